-- web_bounds
-- No statement of this transaction takes longer than the page may cost, whatever the role is allowed.
select
    pg_catalog.set_config('statement_timeout', %(statement)s, true),
    pg_catalog.set_config('lock_timeout', %(lock)s, true);

-- web_rights
-- What this login may look at: how far the tables are, and how many questions wait.
select
    pg_catalog.current_database()::text,
    current_user::text,
    embed._may_look(),
    coalesce(
        pg_catalog.has_function_privilege(pg_catalog.to_regprocedure('embed._question_counts()'), 'execute'), false
    );

-- web_status
-- Every source and how far it is, by the counters of the workers; with a number, that source alone.
select
    s.id, x.source::text as source, x.name, x.model, x.state, x.coverage::text as coverage, x.rows, x.embedded,
    x.pending, x.stale, x.dead, x.removing, x.oldest_wait, x.rows_per_second, x.eta, x.truncated, x.split, x.paused,
    x.index_state, x.error, x.counted_at, x.estimated, x.words, x.storage, x.row_bytes, x.index_bytes
from embed.source s
join embed.status x on x.source = s.relation and x.name = s.name
where %(source)s::integer is null or s.id = %(source)s
order by s.id;

-- web_source
-- What one source is made of and how much disk it takes, in bytes; sizes are null of a table that is gone or
-- locked.
select
    s.relation::oid::bigint as relation,
    s.columns,
    s.keys,
    s.template,
    s.filter,
    s.into_column,
    s.chunk,
    s.dimensions,
    s.vectors::text as vectors,
    embed._disk_bytes(s.relation, false) as table_size,
    embed._disk_bytes(v.oid, false) as vector_size,
    embed._disk_bytes(v.oid, true) - embed._disk_bytes(v.oid, false) as index_size,
    (
        select p.blocks_done::double precision / nullif(p.blocks_total, 0)
        from pg_catalog.pg_stat_progress_create_index p
        where p.relid = v.oid
        limit 1
    ) as build
from embed.source s
left join pg_catalog.pg_class v on v.oid = s.vectors
where s.id = %(source)s;

-- web_queues
-- The queue of every source, and whether this login may read its keys and reasons, which may quote a text.
select
    s.id,
    s.relation::text as source,
    s.name,
    s.keys,
    pg_catalog.has_table_privilege(q.oid, 'select') as readable,
    pg_catalog.has_column_privilege(q.oid, 'due', 'select') as countable
from embed.source s
join pg_catalog.pg_class q on q.oid = pg_catalog.to_regclass('embed.queue_' || s.id)
where %(source)s::integer is null or s.id = %(source)s
order by s.id;

-- web_failures
-- The rows of one queue that failed, by reason: at most so many that were given up, and as many that are
-- tried again. Indexes of the queue lead to both.
with failed as materialized (
    (select q.* from {queue} q where q.due = 'infinity' order by q.since limit %(bound)s)
    union all
    (
        select q.*
        from {queue} q
        where q.due < 'infinity' and q.priority between 11 and 19 and q.claimed_by is null and q.error is not null
        limit %(bound)s
    )
)
select
    f.error,
    f.due = 'infinity' as dead,
    pg_catalog.count(*) as number,
    min(f.since) as first,
    max(f.since) as last,
    max(f.attempts)::integer as attempts,
    min(nullif(f.due, 'infinity')) as retry_at,
    (pg_catalog.array_agg(f.seq order by f.since))[1:%(shown)s] as numbers,
    (pg_catalog.array_agg(pg_catalog.to_jsonb(f) order by f.since))[1:%(shown)s] as entries
from failed f
group by f.error, f.due = 'infinity'
order by dead desc, number desc;

-- web_failure_counts
-- The same without keys and reasons, for a login that may not read them.
with failed as materialized (
    (select q.due, q.since, q.attempts from {queue} q where q.due = 'infinity' order by q.since limit %(bound)s)
    union all
    (
        select q.due, q.since, q.attempts
        from {queue} q
        where q.due < 'infinity' and q.priority between 11 and 19 and q.claimed_by is null and q.attempts > 0
        limit %(bound)s
    )
)
select
    f.due = 'infinity' as dead,
    pg_catalog.count(*) as number,
    min(f.since) as first,
    max(f.since) as last,
    max(f.attempts)::integer as attempts,
    min(nullif(f.due, 'infinity')) as retry_at
from failed f
group by f.due = 'infinity'
order by dead desc;

-- web_retry_one
-- Have one dead row tried again; its number says that it is the one that was shown.
insert into {inbox} ({keys}, priority)
select {keys}, 0 from {queue} where due = 'infinity' and seq = %(number)s;

-- web_retry_alike
-- Have all dead rows tried again that failed for the same reason.
insert into {inbox} ({keys}, priority)
select {keys}, 0 from {queue} where due = 'infinity' and error is not distinct from %(error)s order by seq;

-- web_wake
-- Tell the workers that there is something to do.
select embed.wake();

-- web_searchable
-- The tables that are enabled and whose rows this login may read.
select c.oid::pg_catalog.regclass::text, pg_catalog.format('%%I.%%I', n.nspname, c.relname)
from (select distinct t.relation from embed._text_columns() as t) as enabled
join pg_catalog.pg_class c on c.oid = enabled.relation
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where pg_catalog.has_schema_privilege(n.oid, 'usage')
and (%(table)s::text is null or c.oid::pg_catalog.regclass::text = %(table)s)
and (
    pg_catalog.has_table_privilege(c.oid, 'select')
    or not exists (
        select
        from pg_catalog.pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        and not pg_catalog.has_column_privilege(c.oid, a.attnum, 'select')
    )
)
order by 1;

-- web_work
-- What every live worker has done since it started, by which the page draws the last hour.
select w.id, w.lanes, w.embedded from embed.worker w;

-- web_switches
-- The changes of a model that are under way, each with the number of the source that answers.
select
    s.id, w.source::text, w.from_model, w.to_model, w.phase, w.coverage::text, w.pending, w.dead,
    w.eta, w.extra_bytes, w.error
from embed.switch w
join embed.source s on s.relation = w.source and s.name = w.name;

-- web_questions
-- How many questions wait for an answer.
select c.waiting from embed._question_counts() as c;

-- web_dead
-- How many rows were given up; beyond 10,000 of a source an estimate.
select coalesce(sum(b.dead), 0)::bigint from embed._backlog() as b;
