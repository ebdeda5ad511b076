-- migrate_lock
-- Concurrent upgrades run one after the other.
select pg_catalog.pg_advisory_xact_lock(1701667428, 3)
from (select pg_catalog.set_config('lock_timeout', %(lock_timeout)s, true) as wait) as x
where x.wait is not null;

-- migrate_settings
-- How long a statement of this transaction may wait for a table. Checks that a DBA has turned on for his own functions
-- refuse some of ours, which name what they return as columns are named.
select
    pg_catalog.set_config('lock_timeout', %(lock_timeout)s, true),
    pg_catalog.set_config('plpgsql.extra_errors', 'none', true),
    pg_catalog.set_config('plpgsql.extra_warnings', 'none', true);

-- migrate_holders
-- Whose transactions hold locks that are in the way, beside those of workers, which are short. Before our turn has
-- come, it is that of another run of this command, which every login may take. Then it is those on tables of ours
-- and, where triggers are dropped, on enabled tables and their vectors.
select string_agg(distinct format('process %%s of the user %%s', a.pid, a.usename), ', ')
from pg_catalog.pg_locks l
join pg_catalog.pg_stat_activity a on a.pid = l.pid
left join pg_catalog.pg_class c on c.oid = l.relation
where l.granted
and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
and case
    when not %(turn)s then l.locktype = 'advisory' and l.classid = 1701667428 and l.objid = 3
    when a.application_name like 'embedworker %%' then false
    when c.relnamespace = to_regnamespace('embed') then true
    else %(triggers)s and (
        c.relname like '%%\_embedding'
        or exists (select from pg_catalog.pg_trigger g where g.tgrelid = c.oid and g.tgname ~ '^embed_[0-9]+_')
    )
end;
