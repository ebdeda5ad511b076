-- count_wanted
-- Sources whose counters are to be compared with the rows: they are new, a sweep has begun or ended, or
-- their tables are unlogged and the server has restarted.
select t.source
from embed.source_state t
join embed.source s on s.id = t.source
left join pg_catalog.pg_class c on c.oid = s.relation
where t.counted_at is null
or t.recount_at > t.counted_at
or (c.relpersistence = 'u' and t.counted_at < pg_catalog.pg_postmaster_start_time());

-- count_turn
-- One counts a source at a time, until the end of the transaction: a difference that two find would be
-- corrected twice.
select pg_try_advisory_xact_lock(1701667434, %(source)s);

-- count_measure
-- How far the counters of a source are from the truth.
select m.at, m.asked, m.drift, m.unqueued, m.orphans
from embed.source s
cross join lateral embed._measure(s) as m
where s.id = %(source)s;

-- count_correct
-- Put the counters right by what was measured: as a difference, since workers may have counted on. The
-- entries of workers that are gone go into those of worker 0.
with folded as (
    delete from embed.source_tally t
    where t.source = %(source)s
    and t.worker <> 0
    and not exists (select from embed.worker_session w where w.id = t.worker)
    returning t.fingerprint, t.vectors, t.truncated, t.split
),
corrected as (
    insert into embed.source_tally as t (source, worker, fingerprint, vectors, truncated, split)
    select %(source)s, 0, x.fingerprint, sum(x.vectors), sum(x.truncated), sum(x.split)
    from (
        select * from folded
        union all
        select d.fingerprint, d.vectors, d.truncated, d.split
        from jsonb_to_recordset(%(drift)s) as d (fingerprint integer, vectors bigint, truncated bigint, split bigint)
    ) as x
    group by x.fingerprint
    order by x.fingerprint
    on conflict (source, worker, fingerprint) do update
    set vectors = t.vectors + excluded.vectors,
        truncated = t.truncated + excluded.truncated,
        split = t.split + excluded.split
)
update embed.source_state
set unqueued = unqueued + %(unqueued)s,
    orphans = orphans + %(orphans)s,
    -- What was asked for meanwhile is still to be done.
    counted_at = case when recount_at = %(asked)s then greatest(%(at)s, recount_at) else counted_at end
where source = %(source)s;

-- count_swept
-- A page of a sweep has queued so many rows; at its begin and end the rows are to be counted again. Below
-- zero until a count that is under way adds what it found before this page.
update embed.source_state t
set unqueued = case when %(done)s then 0 else t.unqueued - %(missing)s end,
    orphans = case when %(done)s then 0 else t.orphans - %(orphaned)s end,
    recount_at = case when %(recount)s then clock_timestamp() else t.recount_at end
where t.source = %(source)s;

-- status_progress
-- How far one source is: rows, embedded, rows a second, seconds that are left, and whether its rows were counted.
select x.rows, x.embedded, x.rows_per_second, extract(epoch from x.eta)::double precision, x.counted_at is not null
from embed.source s
cross join lateral embed._status(s, true, false) as x
where s.id = %(source)s;

-- count_give_way
-- Break a count off that somebody waits for, such as ALTER TABLE or embed.disable: writers wait behind them.
select pg_catalog.pg_cancel_backend(%(pid)s)
where exists (
    select
    from pg_catalog.pg_locks l
    where not l.granted
    and l.pid <> %(pid)s
    and %(pid)s = any (pg_catalog.pg_blocking_pids(l.pid))
);

-- status_settled
-- How many tables there are, how many of their rows wait, how each table is, how many rows were given up, and
-- why the first of them was. Of one table where a name is given.
select
    count(*),
    coalesce(sum(coalesce(s.pending, 1) + s.removing), 0)::bigint,
    string_agg(format('%%s: %%s', s.name, coalesce(s.error, s.state)), ', ' order by s.name),
    coalesce(sum(s.dead), 0)::bigint,
    (
        select f.error
        from embed.failure f
        where f.dead and (%(relation)s::text is null or f.source = %(relation)s::text::regclass)
        order by f.since
        limit 1
    )
from embed.status s
where %(relation)s::text is null or s.source = %(relation)s::text::regclass;
