-- evaluate_lock
-- One evaluation at a time in a database; goes with the session.
select pg_catalog.pg_try_advisory_lock(1701667428, 5);

-- evaluate_state
-- Whether the schema is there, and whether an evaluation made it.
select
    pg_catalog.to_regnamespace('embedworker_eval') is not null as taken,
    pg_catalog.obj_description(
        pg_catalog.to_regnamespace('embedworker_eval'), 'pg_namespace'
    ) is not distinct from %(mark)s as ours;

-- evaluate_disable
-- Forget the table of an evaluation that was kept or cut short.
select embed.disable(s.relation, drop_vectors => true)
from (
    select distinct x.relation
    from embed.source x
    where x.relation = pg_catalog.to_regclass('embedworker_eval.document')
) as s;

-- evaluate_drop_table
-- The table itself.
drop table if exists embedworker_eval.document;

-- evaluate_drop_schema
-- Refused by the server when something of others is in it.
drop schema if exists embedworker_eval;

-- evaluate_create_schema
-- The schema of evaluations.
create schema embedworker_eval;

-- evaluate_mark_schema
-- So that the next evaluation knows it may drop it.
comment on schema embedworker_eval is {mark};

-- evaluate_create_table
-- An ordinary table, as an application has it. Title and text are one column, joined as the
-- benchmarks join them; a template would leave a blank in front of a text without a title.
create table embedworker_eval.document (
    id text primary key,
    content text not null
);

-- evaluate_enable
-- The one call that makes it searchable.
select embed.enable('embedworker_eval.document', array['content'], model => %(model)s, chunk => %(chunk)s);

-- evaluate_fill
-- The documents, as an application inserts them.
insert into embedworker_eval.document (id, content)
select *
from unnest(%(ids)s::text[], %(contents)s::text[]);

-- evaluate_analyze
-- What autovacuum does within a minute; the planner's choice must not hang on when it came by.
analyze {table};

-- evaluate_embedded
-- How many documents have a vector that search would use.
select (
    select pg_catalog.count(*)
    from embedworker_eval.document_embedding v
    where v.chunk = 0 and v.fingerprint = t.fingerprint
)
from embed.source s
join embed.source_state t on t.source = s.id
where s.relation = 'embedworker_eval.document'::regclass;

-- evaluate_trouble
-- What stands in the way of all documents.
select t.error
from embed.source s
join embed.source_state t on t.source = s.id
where s.relation = 'embedworker_eval.document'::regclass;

-- evaluate_progress
-- How far a source is, exactly.
select x.rows, x.pending, x.dead, x.error
from embed.status_exact(%(relation)s::bigint::oid::regclass, %(name)s) as x;

-- evaluate_failure
-- One of the reasons why rows of a source were given up.
select f.error
from embed.failure f
where f.source = %(relation)s::bigint::oid::regclass and f.dead
limit 1;

-- evaluate_source
-- The source that a search of a table would use, the names of its key, and what made its vectors.
select
    s.id,
    s.relation::oid::bigint as relation,
    pg_catalog.format('%%I.%%I', n.nspname, c.relname) as qualified,
    c.relkind = 'p' as partitioned,
    s.name,
    array(select x.row_name from embed._keys(s) as x order by x.place) as keys,
    s.vectors::oid::bigint as vectors,
    s.vectors::text as vectors_name,
    s.chunk,
    coalesce(s.model, embed.default_model()) as model,
    pg_catalog.to_jsonb(f) - 'id' - 'created_at' as fingerprint,
    (
        select i.indexrelid::bigint
        from pg_catalog.pg_index i
        join pg_catalog.pg_class x on x.oid = i.indexrelid
        join pg_catalog.pg_am m on m.oid = x.relam and m.amname = 'hnsw'
        where i.indrelid = case when s.into_column is null then s.vectors else s.relation end and i.indisvalid
        order by i.indexrelid
        limit 1
    ) as index
from pg_catalog.pg_class t
cross join lateral embed._find_source(t.reltype::regtype, %(name)s) as s
join embed.source_state a on a.source = s.id
join pg_catalog.pg_class c on c.oid = s.relation
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join embed.fingerprint f on f.id = a.fingerprint
where t.oid = %(relation)s::bigint::oid;

-- evaluate_passages
-- How many passages there are.
select pg_catalog.count(*) from {vectors};

-- evaluate_keys
-- The keys a person wrote as the table has them, in the order given; nulls where no row has it.
select {found}
from pg_catalog.jsonb_array_elements(%(given)s) with ordinality as line (embed_entry, embed_place)
cross join lateral pg_catalog.jsonb_populate_record(null::{relation}, line.embed_entry) as given
left join {only} {relation} as found using ({keys})
order by line.embed_place;

-- evaluate_has_lexical
-- Whether embed.search of this database can be told the weight of words.
select exists (
    select
    from pg_catalog.pg_proc p
    where p.pronamespace = 'embed'::regnamespace and p.proname = 'search' and 'lexical' = any (p.proargnames)
);

-- evaluate_versions
-- The server and the extension that compared the vectors.
select
    pg_catalog.current_setting('server_version') as postgresql,
    (select x.extversion from pg_catalog.pg_extension x where x.extname = 'vector') as pgvector;

-- evaluate_planner
-- Which access paths the planner may use, so that exact and approximate search can be told apart.
select
    pg_catalog.set_config('enable_indexscan', %(indexscan)s, false),
    pg_catalog.set_config('enable_seqscan', %(seqscan)s, false),
    pg_catalog.set_config('enable_sort', %(sort)s, false);

-- evaluate_warm
-- Whether a worker answers, with the model loaded.
select embed.query(%(question)s, %(model)s) is not null;

-- evaluate_index_scans
-- How often this transaction has used an index.
select pg_catalog.pg_stat_get_xact_numscans(%(index)s::bigint::oid);

-- evaluate_forget
-- Forget a question's vector, so that every setting is timed with the model. The empty bytes
-- keep the primary key out of it, by which only hits may be found.
delete from embed.question_cache where hash || ''::bytea = embed.text_hash(%(question)s);

-- evaluate_search
-- What an application writes.
select {keys}, s.score
from embed.search(null::{relation}, %(question)s::text, k => %(k)s, name => %(name)s) as s;

-- evaluate_search_ranked
-- The same with a weight for the words, or reranked.
select {keys}, s.score, s.reranked is not null as reranked
from embed.search(
    null::{relation}, %(question)s::text, k => %(k)s, name => %(name)s, lexical => %(lexical)s::real,
    rerank => %(rerank)s::integer
) as s;

-- evaluate_timeouts
-- Bound the waits for vectors and scores for the whole session, which is ours: no pooler is let in. A search that no
-- worker answers is an error here: its order is not what is measured.
select
    pg_catalog.set_config('embed.search_without_worker', 'error', false),
    pg_catalog.set_config('embed.query_timeout', %(timeout)s, false),
    pg_catalog.set_config('embed.worker_grace', %(timeout)s, false),
    pg_catalog.set_config('embed.rerank_timeout', %(timeout)s, false);
