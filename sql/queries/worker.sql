-- worker_register
-- A new worker. Its number is never in use by another: the sequence is as wide as an advisory lock's key.
insert into embed.worker_session (id, host, pid, process, lanes, model, version, backend, lock_held)
values (
    nextval('embed.worker_id'), %(host)s, %(pid)s, %(process)s, %(lanes)s, %(model)s, %(version)s, pg_backend_pid(),
    false
)
returning id;

-- worker_lost_columns
-- Columns that our tables have lost, null if none.
select embed._lost_columns();

-- worker_name
-- Say in pg_stat_activity whose connection this is. Poolers that know this setting hand it on.
select pg_catalog.set_config('application_name', %(application_name)s, false);

-- worker_replica
-- Why there can be no writes.
select pg_catalog.pg_is_in_recovery();

-- worker_lock
-- The lock that shows this worker is alive; it goes with the session, however that ends. Not had at
-- once after a lost connection, while the server still believes in the old one.
select pg_try_advisory_lock(1701667429, %(worker)s);

-- worker_lock_held
-- Say that the lock can be relied on; enters the worker again if a peer has struck it meanwhile.
insert into embed.worker_session (id, host, pid, process, lanes, model, version, backend, lock_held)
values (%(worker)s, %(host)s, %(pid)s, %(process)s, %(lanes)s, %(model)s, %(version)s, %(backend)s, true)
on conflict (id) do update set lock_held = true, backend = excluded.backend;

-- worker_seen
-- Sign of life, with what was done since the last one. Enters a worker again that a peer has struck:
-- its connection may have been away for longer than the peer believed in it.
insert into embed.worker_session as w (
    id, host, pid, process, lanes, model, version, backend, lock_held, embedded, rows_per_second
)
values (
    %(worker)s, %(host)s, %(pid)s, %(process)s, %(lanes)s, %(model)s, %(version)s, pg_backend_pid(), %(lock_held)s,
    %(embedded)s, %(rows_per_second)s
)
on conflict (id) do update
set seen_at = now(),
    embedded = w.embedded + excluded.embedded,
    rows_per_second = excluded.rows_per_second,
    model = coalesce(excluded.model, w.model),
    lock_held = excluded.lock_held;

-- worker_leave
-- This worker is done.
delete from embed.worker_session where id = %(worker)s;

-- worker_others
-- The other workers, and whether each is gone: its lock is free, or, where it has none, it was
-- silent for three leases, and for longer than three signs of life. A sign from the future is one of
-- a clock that was ahead: a live worker gives another at once.
select
    w.id,
    case
        when w.lock_held then not exists (
            select from pg_catalog.pg_locks l
            where l.locktype = 'advisory' and l.classid = 1701667429 and l.objid = w.id::oid
            and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
        )
        else abs(extract(epoch from now() - w.seen_at)) > greatest(3 * %(lease)s, 15)
    end as gone
from embed.worker_session w
where w.id <> %(worker)s;

-- worker_quiet
-- For a moment nobody notifies: the lock that embed.wake tries for is held. Where another worker holds it,
-- there is nothing to hold.
select case when pg_catalog.pg_try_advisory_xact_lock(1701667428, 1) then pg_catalog.pg_sleep(%(seconds)s) end;

-- worker_free_questions
-- Make what a gone worker was asked due at once, and wake the others.
with freed as (
    update embed.question q
    set due = pg_catalog.clock_timestamp(), claimed_by = null
    where q.id in (
        select x.id
        from embed.question x
        where x.claimed_by = %(worker)s and x.embedding is null and x.scores is null and x.error is null
        for update skip locked
    )
    returning q.role
)
select pg_catalog.pg_notify(x.channel, '')
from (
    select distinct case f.role when 'rerank' then 'embed_rerank' else 'embed_question' end as channel from freed f
) as x;

-- worker_poll
-- Every source, and whether there is work; at is a time before the next claim.
select source, version, paused, work, sweep, now() as at from embed._poll(%(after)s);

-- worker_fresh
-- The sources whose inbox has entries behind the places.
select embed._fresh(%(sources)s::integer[], %(places)s::text[]);
