-- fleet_sources
-- The sources of some tables.
select s.id, s.relation::oid::bigint
from embed.source s
where s.relation::oid = any (%(relations)s::bigint[]::oid[])
order by s.id;

-- fleet_connections
-- How many connections the server allows, how many of them it keeps for others, and how many are in use.
select
    pg_catalog.current_setting('max_connections')::integer,
    pg_catalog.current_setting('superuser_reserved_connections')::integer
    + coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::integer,
    (select coalesce(sum(d.numbackends), 0)::integer from pg_catalog.pg_stat_database d);

-- fleet_progress
-- How far some sources are, and since when all that was found by their sweep is queued; null while one is due.
-- The time is that of the server.
select
    s.id,
    s.relation::text as source,
    s.name,
    x.rows,
    x.embedded,
    x.pending,
    x.dead,
    s.paused,
    x.error,
    case
        when w.phase = 'done' and not exists (select from embed.sweep_request r where r.source = s.id)
        then w.finished_at
    end as swept_at,
    pg_catalog.clock_timestamp() as at
from embed.source s
cross join lateral embed._status(s, true, false) as x
left join embed.sweep_state w on w.source = s.id
where s.id = any (%(sources)s)
order by s.id;

-- fleet_waiting
-- Whether anything of a source has waited since this time.
select
    exists (select from {inbox} i where i.at <= %(at)s)
    or exists (select from {queue} q where q.since <= %(at)s and q.due < 'infinity');
