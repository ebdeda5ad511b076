-- worker_register
-- A new worker. Its number is never in use by another: the sequence is as wide as an advisory lock's key.
insert into embed.worker_session (id, host, pid, lanes, model, backend, lock_held)
values (nextval('embed.worker_id'), %(host)s, %(pid)s, %(lanes)s, %(model)s, pg_backend_pid(), false)
returning id;

-- worker_lock
-- The lock that shows this worker is alive; it goes with the session, however that ends. Not had at
-- once after a lost connection, while the server still believes in the old one.
select pg_try_advisory_lock(1701667429, %(worker)s);

-- worker_lock_held
-- Say that the lock can be relied on; enters the worker again if a peer has struck it meanwhile.
insert into embed.worker_session (id, host, pid, lanes, model, backend, lock_held)
values (%(worker)s, %(host)s, %(pid)s, %(lanes)s, %(model)s, %(backend)s, true)
on conflict (id) do update set lock_held = true, backend = excluded.backend;

-- worker_seen
-- Sign of life, with what was done since the last one.
update embed.worker_session
set seen_at = now(), embedded = embedded + %(embedded)s, rows_per_second = %(rows_per_second)s, model = coalesce(%(model)s, model)
where id = %(worker)s;

-- worker_leave
-- This worker is done.
delete from embed.worker_session where id = %(worker)s;

-- worker_others
-- The other workers, and whether each is gone: its lock can be had, or, where it has none, it was
-- silent for three leases.
select
    w.id,
    case
        when w.lock_held then not exists (
            select from pg_catalog.pg_locks l
            where l.locktype = 'advisory' and l.classid = 1701667429 and l.objid = w.id::oid
            and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
        )
        else w.seen_at < now() - 3 * %(lease)s * interval '1 second'
    end as gone
from embed.worker_session w
where w.id <> %(worker)s;

-- worker_poll
-- Every source, and whether there is work.
select source, version, paused, work, sweep from embed._poll(%(after)s);
