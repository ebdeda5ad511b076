-- cli_migrated
-- Whether the schema of ours is in this database.
select pg_catalog.to_regclass('embed.source') is not null;

-- cli_table
-- A table by the name a person typed, as the server reads it.
select
    c.oid::bigint as oid,
    c.oid::pg_catalog.regclass::text as shown,
    pg_catalog.format('%%I.%%I', n.nspname, c.relname) as qualified,
    greatest(c.reltuples, 0)::bigint as estimate
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.oid = pg_catalog.to_regclass(%(name)s);

-- cli_tables
-- The tables a person may have meant.
select c.oid::pg_catalog.regclass::text as shown, c.relname::text as name
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p')
and n.nspname <> 'information_schema'
and n.nspname !~ '^pg_'
and (n.nspname <> 'embed' or c.relname = 'document')
and not c.relispartition
order by 1;

-- search_tables
-- The tables that are enabled, by their triggers: a reader of them may not read embed.source.
select c.oid::pg_catalog.regclass::text as shown, c.relname::text as name
from pg_catalog.pg_class c
where c.relkind in ('r', 'p') and not c.relispartition
and exists (select from pg_catalog.pg_trigger g where g.tgrelid = c.oid and g.tgname ~ '^embed_[0-9]+_(insert|row)$')
order by 1;

-- cli_enable
-- Make a table searchable; the table that holds its vectors, and what became of the rows' number.
select embed.enable(
    %(relation)s::bigint::oid::regclass,
    %(columns)s::text[],
    name => %(name)s,
    model => %(model)s,
    template => %(template)s,
    into_column => %(into_column)s,
    chunk => %(chunk)s,
    filter => %(filter)s,
    key => %(key)s::text[],
    words => %(words)s,
    storage => %(storage)s
)::text;

-- cli_disable
-- Stop keeping the vectors of a table.
select embed.disable(%(relation)s::bigint::oid::regclass, drop_vectors => %(drop_vectors)s, name => %(name)s);

-- cli_pause
-- Leave the changes of a table waiting.
select embed.pause(%(relation)s::bigint::oid::regclass);

-- cli_resume
-- Take a paused table up again.
select embed.resume(%(relation)s::bigint::oid::regclass);

-- cli_retry
-- Have the dead rows of a table tried again.
select embed.retry(%(relation)s::bigint::oid::regclass);

-- cli_enabled
-- The tables that are enabled, each once.
select distinct on (s.relation)
    s.relation::oid::bigint as oid,
    s.relation::text as shown,
    pg_catalog.format('%%I.%%I', n.nspname, c.relname) as qualified,
    greatest(c.reltuples, 0)::bigint as estimate
from embed.source s
join pg_catalog.pg_class c on c.oid = s.relation
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
order by s.relation, s.id;

-- cli_workers_for
-- How many live workers keep vectors.
select pg_catalog.count(*) from embed.worker where 'passages' = any (lanes);

-- cli_status
-- Every source and how far it is, by the counters of the workers.
select
    source::text, name, model, state, coverage::text, rows, embedded, pending, stale, dead, removing,
    oldest_wait, rows_per_second, eta, truncated, split, paused, index_state, error, counted_at, estimated, words,
    storage, row_bytes, index_bytes
from embed.status;

-- cli_status_exact
-- The same by a count of every row.
select
    x.source::text, x.name, x.model, x.state, x.coverage::text, x.rows, x.embedded, x.pending, x.stale, x.dead,
    x.removing, x.oldest_wait, x.rows_per_second, x.eta, x.truncated, x.split, x.paused, x.index_state, x.error,
    x.counted_at, x.estimated, s.words, z.storage, z.row_bytes, z.index_bytes
from embed.status_exact() as x
join embed._watched_sources() as s on s.relation = x.source and s.name = x.name
cross join lateral embed._sizes(s) as z;

-- cli_failures
-- The rows that could not be embedded, the oldest first.
select source::text, name, key, attempts, error, since, retry_at, dead
from embed.failure
order by since
limit %(limit)s;

-- cli_failure_count
-- How many rows could not be embedded.
select pg_catalog.count(*) from embed.failure;

-- cli_workers
-- The lanes of live workers.
select id, host, pid, process, lanes, model, embedded, rows_per_second, started_at, seen_at
from embed.worker
order by id;

-- search_timeout
-- Bound the waits for a question's vector and for the scores of rows in this transaction; a session may
-- be somebody else's next.
select
    pg_catalog.set_config('embed.query_timeout', %(timeout)s, true),
    pg_catalog.set_config('embed.rerank_timeout', %(timeout)s, true);

-- search_plan
-- What a table is searched with: its row type, its model, the names of its key columns, and of those that
-- are numeric.
select
    pg_catalog.format('%%I.%%I', n.nspname, c.relname), p.model, p.key_names,
    array(
        select a.attname::text
        from pg_catalog.pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        and embed._base_type(a.atttypid) = 'pg_catalog.numeric'::regtype
    )
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
cross join lateral embed._search_plan(c.reltype::regtype, %(name)s, %(k)s, false) as p
where c.oid = %(table)s::text::regclass;

-- search_text
-- The rows of a table nearest in meaning to a question, and a last row that says why the words alone ranked them.
-- Not by jsonb, which refuses a \u0000 that json holds.
with found as materialized (
    select s.score, s.similarity, s.bm25, s.reranked, s.passage, pg_catalog.to_json(s."row")::text as found, s.place
    from embed.search(
        null::{relation}, %(question)s, k => %(k)s, name => %(name)s, lexical => %(lexical)s, rerank => %(rerank)s,
        matching => %(matching)s::jsonb, skip => %(skip)s
    ) with ordinality as s ("row", score, similarity, bm25, reranked, passage, passage_start, passage_end, place)
), counted as (
    select pg_catalog.max(f.place) as places from found f
)
select x.score, x.similarity, x.bm25, x.reranked, x.passage, x.found, x.degraded
from (
    select f.*, null as degraded from found f
    union all
    select null, null, null, null, null, null, null, pg_catalog.current_setting('embed.degraded', true)
    from counted
) as x
order by x.place nulls last;

-- search_vector
-- The rows of a table nearest to a vector.
select s.score, s.similarity, s.bm25, s.reranked, s.passage, pg_catalog.to_json(s."row")::text as found
from embed.search(
    null::{relation}, %(question)b, k => %(k)s, name => %(name)s, matching => %(matching)s::jsonb, skip => %(skip)s
) as s;

-- search_similar
-- The rows of a table nearest in meaning to one of its own.
select s.score, s.similarity, null, null, s.passage, pg_catalog.to_json(s."row")::text as found
from embed.similar(null::{relation}, %(key)s, k => %(k)s, name => %(name)s) as s;

-- search_sources
-- What is enabled, with the columns as they are called now.
select pg_catalog.jsonb_build_object(
    'name', s.name,
    'table', s.relation::text,
    'columns', array(
        select coalesce(embed._column_name(s.relation, k.attnum), s.columns[k.place])
        from unnest(s.column_attnums) with ordinality as k (attnum, place)
        order by k.place
    ),
    'model', coalesce(s.model, embed.default_model())
)
from embed._watched_sources() s
order by s.id;

-- search_status
-- What embed.status shows, of one source or of all.
select pg_catalog.to_jsonb(s)
from embed.status s
where %(name)s::text is null or s.name = %(name)s;

-- search_query
-- The vector of a question.
select embed.query(%(question)s::text, %(model)s::text);

-- search_ask
-- Leave a question for the workers; its vector at once where it is known already.
select a.embedding, a.lost from embed.ask(%(id)s, %(model)s, %(question)s, 'query') as a;

-- search_await
-- Wait for the answer to a question that was left.
select a.embedding, a.lost, a.error from embed.await(%(id)s, %(timeout)s * interval '1 second') as a;
