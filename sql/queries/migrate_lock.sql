-- migrate_lock
-- Concurrent upgrades run one after the other.
select pg_catalog.pg_advisory_xact_lock(1701667428, 3)
from (select pg_catalog.set_config('lock_timeout', %(lock_timeout)s, true) as wait) as x
where x.wait is not null;

-- migrate_lock_timeout
-- How long a statement of this transaction may wait for a table. Checks that a DBA has turned on for his own functions
-- refuse some of ours, which name what they return as columns are named.
select
    pg_catalog.set_config('lock_timeout', %(lock_timeout)s, true),
    pg_catalog.set_config('plpgsql.extra_errors', 'none', true),
    pg_catalog.set_config('plpgsql.extra_warnings', 'none', true);

-- migrate_holders
-- Whose transactions hold locks that are in the way: on tables of ours, beside workers, whose own are short, on enabled
-- tables, and that of a run of this command, which every login may take.
select string_agg(distinct format('process %s of the user %s', a.pid, a.usename), ', ')
from pg_catalog.pg_locks l
join pg_catalog.pg_stat_activity a on a.pid = l.pid
left join pg_catalog.pg_class c on c.oid = l.relation
where l.granted and a.application_name not like 'embedworker %'
and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
and (
    c.relnamespace = to_regnamespace('embed')
    or c.relname like '%\_embedding'
    or exists (select from pg_catalog.pg_trigger g where g.tgrelid = c.oid and g.tgname ~ '^embed_[0-9]+_')
    or l.locktype = 'advisory' and l.classid = 1701667428 and l.objid = 3
);
