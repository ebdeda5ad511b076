-- Tell the workers that there is something to do, without making the application pay for it.
--
-- A transaction that notifies takes one cluster-wide lock at commit. Measured on PostgreSQL 18 with
-- 16 writers of single rows: 17.8k rows/s with the enqueue alone, 4.8k with a plain NOTIFY, 15.6k
-- when only the transaction that gets an advisory lock notifies. Rows of the others are found by
-- the poll that follows a wake-up.
--
-- A transaction that has notified cannot be prepared, so where prepared transactions are allowed
-- the default is to leave it to the poll. `set embed.notify = on | off` decides otherwise.
--
-- Neither function has a search_path of its own, which would be set again for every statement of the
-- application. The triggers that call them have none either and more rights than the role that set it, so every
-- name is qualified. The first is one that the planner writes in where it is called.
create or replace function embed._notifies() returns boolean
language sql stable
return case
    when pg_catalog.lower(pg_catalog.current_setting('embed.notify', true))
        operator(pg_catalog.=) any ('{off,false,no,0}'::pg_catalog.text[]) then false
    when pg_catalog.lower(pg_catalog.current_setting('embed.notify', true))
        operator(pg_catalog.=) any ('{on,true,yes,1}'::pg_catalog.text[]) then true
    else pg_catalog.current_setting('max_prepared_transactions') operator(pg_catalog.=) '0'
end;

create or replace function embed.wake() returns void
language plpgsql
as $$
begin
    if embed._notifies() and pg_catalog.pg_try_advisory_xact_lock(embed._lock_global(), embed._turn_notify()) then
        -- Always empty: a payload over 8000 bytes would fail the application's statement.
        perform pg_catalog.pg_notify('embed', '');
    end if;
end
$$;

comment on function embed.wake() is
    'Wakes the workers; called by the triggers. Setting embed.notify: auto (default), on, off.';
