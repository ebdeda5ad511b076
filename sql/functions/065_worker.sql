-- Which workers are alive.

select embed._ensure_view('embed.worker', $view$
select
    w.id, w.host, w.pid, w.lanes, w.model, w.embedded, w.rows_per_second, w.started_at, w.seen_at, w.backend,
    w.lock_held, w.version, coalesce(w.process, w.pid) as process
from embed._watched_workers() as w
where case
    -- The lock goes with the worker's connection, at once. Behind a pooler there is none to look at, and
    -- a standby does not see those of its primary.
    when w.lock_held and not pg_catalog.pg_is_in_recovery() then exists (
        select
        from pg_catalog.pg_locks l
        where l.locktype = 'advisory' and l.granted
        and l.classid::bigint = embed._lock_worker() and l.objid = w.id::oid and l.objsubid = 2
        and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
    )
    -- Nor in the future, by a clock that was ahead.
    else w.seen_at between now() - interval '60 s' and now() + interval '60 s'
end
$view$);

comment on view embed.worker is 'Lanes of workers that are alive now.';
comment on column embed.worker.process is
    'Process number of the `embedworker run` that the lane belongs to: the lanes of one host and process are one '
    'worker.';
comment on column embed.worker.lanes is 'What it does: passages, questions.';
comment on column embed.worker.embedded is 'Rows since it started.';
comment on column embed.worker.version is 'The version of the schema that it was made for.';
comment on column embed.worker.lock_held is
    'Whether a lock of its connection shows that it lives; behind a pooler only seen_at does.';
