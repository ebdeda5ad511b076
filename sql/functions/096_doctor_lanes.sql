-- What embed.doctor checks of questions, workers and locks.

create or replace function embed._doctor_questions() returns table ("check" text, state text, detail text, advice text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    problem text;
    waiting bigint;
    oldest interval;
begin
    "check" := 'embed.query';
    if pg_is_in_recovery() and not exists (select from pg_foreign_server s where s.srvname = 'embed_primary') then
        state := 'skipped';
        detail := 'a standby asks no worker without embedworker migrate --primary-host';
        return next;
        return;
    end if;
    begin
        perform embed._require_loopback();
        problem := embed._loopback_check();
        if problem is not null then
            advice := case when pg_is_in_recovery()
                then
                    'See that this server reaches the primary, and that its pg_hba.conf lets embed_loopback_* in from '
                    'here. On the primary, embedworker migrate --primary-host names its hosts.'
                else
                    'Run embedworker migrate, which sets the loopback up again; EMBEDWORKER_LOOPBACK_HOST names the '
                    'host.'
                end;
        end if;
    exception
        when insufficient_privilege then
            problem := null;
            advice := null;
        when undefined_function or invalid_schema_name then
            problem := 'the extension dblink is not there';
            advice := 'As a superuser: create extension dblink; then run embedworker migrate.';
        when sqlstate 'EW007' then
            get stacked diagnostics problem = message_text, advice = pg_exception_hint;
    end;
    state := case when problem is null then 'ok' else 'problem' end;
    detail := coalesce(
        problem,
        case when pg_is_in_recovery() then 'this standby reaches the primary' else 'the server reaches itself' end
    );
    if problem is null and not has_function_privilege('embed._loopback_check()', 'execute') then
        state := 'skipped';
        detail := format('the role %I may not try it', current_user);
        advice := 'Run this as the role that ran embedworker migrate.';
    end if;
    return next;

    "check" := 'dblink for others';
    if exists (
        select
        from pg_proc p
        join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
        join pg_extension e on d.refclassid = 'pg_extension'::regclass and e.oid = d.refobjid and e.extname = 'dblink'
        where p.proname = 'dblink' and has_function_privilege('public', p.oid, 'execute')
    ) then
        state := 'warning';
        detail := 'everybody may call dblink';
        advice :=
            'Any role can then change the password of embed_loopback, and embed.query fails until the next migrate. If '
            'nobody needs dblink: revoke execute on its functions from public.';
    else
        state := 'ok';
        detail := 'closed';
        advice := null;
    end if;
    return next;

    -- A standby cannot read embed.question, an unlogged table.
    if has_function_privilege('embed._question_counts()', 'execute') and not pg_is_in_recovery() then
        "check" := 'waiting questions';
        select q.waiting, clock_timestamp() - q.oldest into waiting, oldest from embed._question_counts() as q;
        detail := waiting::text;
        state := case when oldest > interval '5 s' then 'problem' else 'ok' end;
        advice := case
            when state <> 'ok'
                then 'No worker answers: see the log of embedworker run, and whether it runs with --only-passages.'
        end;
        return next;
    end if;
end
$$;

create or replace function embed._doctor_workers() returns table ("check" text, state text, detail text, advice text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    lane text;
    alive bigint;
    strangers text;
    logins text;
    superusers text;
begin
    foreach lane in array array['passages', 'questions'] loop
        select count(*) into alive from embed.worker w where lane = any (w.lanes);
        "check" := lane;
        detail := format('%s alive', alive);
        state := case when alive > 0 then 'ok' else 'problem' end;
        advice := case when alive = 0 then case lane
            when 'passages' then 'Changes wait until a worker runs: embedworker run.'
            else 'Questions are not answered until a worker runs: embedworker run.'
        end end;
        return next;
    end loop;

    "check" := 'leases';
    select string_agg(w.host || ' ' || w.pid, ', ' order by w.id) into strangers
    from embed.worker w
    where not w.lock_held;
    state := case when strangers is null then 'ok' else 'warning' end;
    detail := coalesce('no lock shows that these are alive: ' || strangers, 'shown to be alive by a lock');
    advice := case when strangers is not null then
        'They seem to connect through a transaction pooler. Rows of one that dies wait for the end of its lease; name '
        'the server itself in EMBEDWORKER_DATABASE_URL.' end;
    return next;

    -- The login that a worker's own session has; behind a pooler the session may be anybody's.
    select string_agg(distinct quote_ident(a.usename), ', '),
        string_agg(distinct quote_ident(a.usename), ', ') filter (where r.rolsuper)
    into logins, superusers
    from embed.worker w
    join pg_stat_activity a on a.pid = w.backend
    join pg_roles r on r.oid = a.usesysid
    where w.lock_held;
    if logins is null or pg_is_in_recovery() then
        return;
    end if;
    select string_agg(distinct s.relation::text, ', ') into strangers
    from embed.source s
    join pg_class c on c.oid = s.relation
    join pg_roles o on o.oid = c.relowner
    where not o.rolsuper;
    "check" := 'login';
    state := 'ok';
    detail := logins;
    advice := null;
    if superusers is not null and strangers is not null then
        state := 'warning';
        detail := format(
            'workers log in as the superuser %s, and %s belongs to a role that is none', superusers, strangers
        );
        advice :=
            'What the owner of a table has put on it (triggers, policies, casts, its filter) runs with a superuser''s '
            'rights there. Give workers a login of their own: create role embedder login password ''…'' in role '
            'embed_worker;';
    end if;
    return next;
end
$$;

-- Advisory locks can be taken by every login, ours among them. A login that keeps one stops a part of the
-- work, and nobody waits for long or fails, so it shows nowhere else.
--
-- An ordinary holder has a role that may write to the schema embed, and is one of our programs or is
-- done within seconds. The wake-up is held by transactions of the application, for as long as they last.
create or replace function embed._doctor_locks() returns table ("check" text, state text, detail text, advice text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    "check" := 'locks';
    state := 'problem';
    for detail, advice in
        with held as (
            select
                l.pid,
                l.classid::bigint = embed._lock_global() and l.objid::bigint = embed._turn_notify() as wake_up,
                case l.classid::bigint
                    when embed._lock_global() then case l.objid::bigint
                        when 1 then 'waking workers up'
                        when 2 then 'embed.enable, embed.disable and triggers'
                        when 3 then 'embedworker migrate'
                    end
                    when embed._lock_worker() then format('the sign of life of worker %s', l.objid)
                    when embed._lock_sweep() then 'sweeps of ' || s.relation
                    when embed._lock_terms() then 'word counts of ' || s.relation
                    when embed._lock_count() then 'counts of ' || s.relation
                end as work
            from pg_locks l
            left join embed.source s on s.id = l.objid::bigint
            where l.locktype = 'advisory' and l.granted and l.objsubid = 2
            and l.database = (select d.oid from pg_database d where d.datname = current_database())
            and l.pid <> pg_backend_pid()
        ),
        holder as (
            select
                a.pid, a.usename, a.application_name, a.state, h.wake_up, h.work,
                -- When a lock was taken is not kept: at the latest as the session fell idle, or when the
                -- statement came that it is at. Null where this role may not see it.
                case when a.state = 'active' then a.query_start else a.state_change end as since,
                has_table_privilege(a.usesysid, 'embed.sweep_state', 'insert') as trusted
            from held h
            join pg_stat_activity a on a.pid = h.pid
            where h.work is not null
            and not exists (select from embed.worker w where w.backend = a.pid)
        )
        select
            format(
                'process %s (role %s, application %s) holds up %s%s',
                h.pid, quote_ident(h.usename), quote_literal(h.application_name),
                string_agg(h.work, ', ' order by h.work),
                ', at least since ' || date_trunc('second', h.since)
            ),
            format(
                'It is no worker. If it is not about to end, end it, as its role or a superuser: select '
                'pg_terminate_backend(%s);',
                h.pid
            )
        from holder h
        where not (h.trusted and h.application_name like 'embedworker%')
        and (not h.wake_up or h.state = 'idle')
        and coalesce(h.since < clock_timestamp() - interval '10 s', not h.trusted)
        group by h.pid, h.usename, h.application_name, h.since
        order by h.pid
    loop
        return next;
    end loop;
    if not found then
        state := 'ok';
        detail := 'held by nobody else';
        advice := null;
        return next;
    end if;
end
$$;
