-- What can be found wrong from inside the database, one row a check: `embedworker doctor` shows these
-- and adds what can only be seen from outside (the road of notifications, models, disks).
--
-- state is ok, warning (works, but see to it) or problem (something does not work). Of each source a
-- row for every check, since one that is well says nothing of the next.

create or replace function embed.doctor() returns table (subject text, "check" text, state text, detail text, advice text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    return query select 'database'::text, d.* from embed._doctor_server() as d;
    return query select 'database'::text, d.* from embed._doctor_extensions() as d;
    return query select 'questions'::text, d.* from embed._doctor_questions() as d;
    return query select 'workers'::text, d.* from embed._doctor_workers() as d;
    return query select 'workers'::text, d.* from embed._doctor_locks() as d;
    return query
    select s.relation::text || case when s.name = c.relname then '' else format(' (%s)', s.name) end, d.*
    from embed.source s
    left join pg_class c on c.oid = s.relation
    cross join lateral embed._doctor_source(s) as d
    order by s.id;
end
$$;

comment on function embed.doctor() is
    'Everything that could be wrong with searching by meaning in this database, and what to do about it.';

create or replace function embed._doctor_server() returns table ("check" text, state text, detail text, advice text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    connections integer := (select count(*) from pg_stat_activity a where a.backend_type = 'client backend');
    most integer := current_setting('max_connections')::integer;
begin
    "check" := 'server';
    detail := format('PostgreSQL %s, role %s', current_setting('server_version'), current_user);
    if current_setting('server_version_num')::integer < 150000 then
        state := 'problem';
        advice := 'Upgrade to PostgreSQL 15 or newer.';
    elsif pg_is_in_recovery() or current_setting('default_transaction_read_only') = 'on' then
        state := 'problem';
        detail := detail || ', read only';
        advice := 'Workers need the primary; searches with a vector and cached questions work here.';
    else
        state := 'ok';
    end if;
    return next;

    "check" := 'connections';
    detail := format('%s of %s in use', connections, most);
    state := case when connections > 0.8 * most then 'warning' else 'ok' end;
    advice := case when state = 'warning' then
        'Every session that asks a question keeps a second connection, and a worker has about six: raise max_connections, or ask through a pool of fewer sessions.' end;
    return next;

    "check" := 'autovacuum';
    detail := current_setting('autovacuum');
    state := case when detail = 'on' then 'ok' else 'problem' end;
    advice := case when state <> 'ok' then 'Turn autovacuum on: the queues are emptied all the time and grow without it.' end;
    return next;
end
$$;

-- The schema of pgvector that these functions name, quoted. It may have been moved since.
create or replace function embed._vector_schema() returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$ select '@extschema:vector@' $$;

create or replace function embed._doctor_extensions() returns table ("check" text, state text, detail text, advice text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    e record;
begin
    select x.extversion as installed, a.default_version as available, n.nspname as place,
        n.oid is distinct from to_regnamespace(embed._vector_schema()) as moved
    into e
    from pg_extension x
    join pg_namespace n on n.oid = x.extnamespace
    left join pg_available_extensions a on a.name = x.extname
    where x.extname = 'vector';
    "check" := 'pgvector';
    if not found then
        state := 'problem';
        detail := 'not installed';
        advice := 'As a superuser: create extension vector; then run embedworker migrate.';
        return next;
        return;
    end if;
    state := 'ok';
    detail := format('%s in schema %s', e.installed, e.place);
    if string_to_array(e.installed, '.')::integer[] < array[0, 8] then
        state := 'problem';
        advice := 'pgvector 0.8 is needed: install its package, then alter extension vector update.';
    elsif e.moved then
        state := 'problem';
        detail := format('%s, and the functions of embed look for it in %s', detail, embed._vector_schema());
        advice := 'Run embedworker migrate, which writes them anew; until then searches and embed.enable fail.';
    elsif e.available <> e.installed then
        state := 'warning';
        detail := format('%s, and %s is there', detail, e.available);
        advice := 'As a superuser: alter extension vector update.';
    end if;
    return next;
end
$$;

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
    begin
        perform embed._require_loopback();
        problem := embed._loopback_check();
        if problem is not null then
            advice := 'Run embedworker migrate, which sets the road up anew; EMBEDWORKER_LOOPBACK_HOST names the host.';
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
    detail := coalesce(problem, 'the server reaches itself');
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
        advice := 'Any role can then change the password of embed_loopback, and embed.query fails until the next migrate. If nobody needs dblink: revoke execute on its functions from public.';
    else
        state := 'ok';
        detail := 'closed';
        advice := null;
    end if;
    return next;

    if has_table_privilege('embed.question', 'select') then
        "check" := 'waiting questions';
        select count(*), clock_timestamp() - min(q.asked_at) into waiting, oldest
        from embed.question q
        where q.embedding is null and q.error is null;
        detail := waiting::text;
        state := case when oldest > interval '5 s' then 'problem' else 'ok' end;
        advice := case when state <> 'ok' then 'No worker answers: see the log of embedworker run, and whether it runs with --only-passages.' end;
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
        'They seem to connect through a transaction pooler. Rows of one that dies wait for the end of its lease; name the server itself in EMBEDWORKER_DATABASE_URL.' end;
    return next;

    -- The login that a worker's own session has; behind a pooler the session may be anybody's.
    select string_agg(distinct quote_ident(a.usename), ', '), string_agg(distinct quote_ident(a.usename), ', ') filter (where r.rolsuper)
    into logins, superusers
    from embed.worker w
    join pg_stat_activity a on a.pid = w.backend
    join pg_roles r on r.oid = a.usesysid
    where w.lock_held;
    if logins is null then
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
        detail := format('workers log in as the superuser %s, and %s belongs to a role that is none', superusers, strangers);
        advice := 'What the owner of a table has put on it (triggers, policies, casts, its filter) runs with a superuser''s rights there. Give workers a login of their own: create role embedder login password ''…'' in role embed_worker;';
    end if;
    return next;
end
$$;

-- Advisory locks can be taken by every login, ours among them. Whoever keeps one stops a part of the
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
                l.classid::bigint = 1701667428 and l.objid = 1 as wake_up,
                case l.classid::bigint
                    when 1701667428 then case l.objid::bigint
                        when 1 then 'waking workers up'
                        when 2 then 'embed.enable, embed.disable and triggers'
                        when 3 then 'embedworker migrate'
                        when 4 then 'workers that start'
                    end
                    when 1701667429 then format('the sign of life of worker %s', l.objid)
                    when 1701667430 then 'sweeps of ' || s.relation
                    when 1701667431 then 'changes of ' || s.relation
                    when 1701667432 then 'word counts of ' || s.relation
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
                h.pid, quote_ident(h.usename), quote_literal(h.application_name), string_agg(h.work, ', ' order by h.work),
                ', at least since ' || date_trunc('second', h.since)
            ),
            format('It is no worker. If it is not about to end, end it, as its role or a superuser: select pg_terminate_backend(%s);', h.pid)
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

-- One source. What cannot be looked at is a problem of its own and hides nothing else.
create or replace function embed._doctor_source(source embed.source) returns table ("check" text, state text, detail text, advice text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $doctor$
declare
    t embed.source_state := (select x from embed.source_state x where x.source = _doctor_source.source.id);
    s record;
    unfit text;
    disabled text;
    enabling text;
    others bigint;
    largest bigint;
    built text;
    plan text;
    moved constant boolean := (
        select x.extnamespace is distinct from to_regnamespace(embed._vector_schema()) from pg_extension x where x.extname = 'vector'
    );
begin
    "check" := 'table';
    state := 'ok';
    detail := format('%s', source.columns);
    begin
        perform embed._check_structure(source);
        unfit := coalesce(embed._obstacle(source), embed._hidden_rows(source));
        -- Such a sentence goes on with what to do.
        advice := substring(unfit from '; (.*)');
        unfit := substring(unfit from '^(.*?)(?:; |$)');
        if unfit is null and t.error is not null then
            unfit := split_part(t.error, E'\n', 1);
            advice := concat_ws(
                ' ', substring(t.error from '\nHINT:\s+([^\n]+)'),
                format(
                    'That is how the work of a worker on it ended (%s). Mend what it names; a worker that runs tries again within a minute, and its log says more.',
                    date_trunc('second', t.error_at)
                )
            );
        end if;
    exception when others then
        get stacked diagnostics unfit = message_text, advice = pg_exception_hint;
    end;
    if unfit is not null then
        state := 'problem';
        detail := unfit;
        return next;
        return;
    end if;
    return next;

    "check" := 'triggers';
    -- Each by name: ALL would be the foreign keys', too, which only a superuser may.
    select string_agg(r.names || ' on ' || r.relation, ', '), string_agg(r.statement, ' ') into disabled, enabling
    from (
        select
            g.tgrelid::regclass::text as relation,
            string_agg(g.tgname, ', ' order by g.tgname) as names,
            format('alter table %s %s;', g.tgrelid::regclass, string_agg(format('enable trigger %I', g.tgname), ', ' order by g.tgname)) as statement
        from pg_trigger g
        where g.tgname ~ format('^embed_%s_(insert|update|delete|row|truncate)$', source.id) and g.tgenabled not in ('O', 'A')
        group by g.tgrelid
        order by g.tgrelid::regclass::text
    ) as r;
    select string_agg(m.trigger_name, ', ') into unfit from embed._missing_triggers(source) as m;
    state := case when disabled is null and unfit is null then 'ok' else 'problem' end;
    detail := coalesce('missing: ' || unfit, 'disabled: ' || disabled, 'present and enabled');
    advice := case
        when unfit is not null then 'A running worker puts them back within a minute, once no transaction holds the table.'
        when disabled is not null then format('As the owner: %s then select embed.sweep(%L), which finds what was missed.', enabling, source.relation::text)
    end;
    return next;

    "check" := 'model';
    select m.name, m.dimensions into s from embed.model m where m.name = coalesce(source.model, embed.default_model());
    state := case when s.dimensions = source.dimensions then 'ok' else 'problem' end;
    detail := format('%s, %s dimensions', s.name, source.dimensions);
    if state <> 'ok' then
        detail := format('%s makes %s dimensions, the vectors have %s', s.name, s.dimensions, source.dimensions);
        advice := format('Call embed.disable(%L, drop_vectors => true) and enable it anew, or name a model that fits.', source.relation::text);
    elsif t.fingerprint is null then
        -- A model is loaded within minutes even where it is fetched first.
        state := case when exists (
            select from embed.worker w where 'passages' = any (w.lanes) and w.started_at > now() - interval '10 minutes'
        ) then 'warning' else 'problem' end;
        detail := detail || ', not loaded by any worker yet';
        advice := case state
            when 'warning' then 'A worker that started a moment ago may be at it; if not, its log says why.'
            else 'Start a worker; if one runs, its log says why the model cannot be loaded.'
        end;
    else
        advice := null;
    end if;
    return next;

    select * into s from embed.status x where x.source = _doctor_source.source.relation and x.name = _doctor_source.source.name;

    "check" := 'queue';
    detail := format('%s of %s rows embedded, %s wait, the oldest for %s', s.embedded, s.rows, s.pending, coalesce(date_trunc('second', s.oldest_wait)::text, '-'));
    state := case when s.state in ('stalled', 'no worker', 'error') and s.pending > 0 then 'problem' when s.paused then 'warning' else 'ok' end;
    advice := case
        when s.paused then format('It is paused: select embed.resume(%L).', source.relation::text)
        when state = 'problem' then 'Nothing has been embedded for minutes: see whether a worker runs and what its log says.'
    end;
    return next;

    "check" := 'dead rows';
    detail := s.dead::text;
    state := case when s.dead = 0 then 'ok' else 'problem' end;
    advice := case when s.dead > 0 then format('The view embed.failure says why; when that is mended, select embed.retry(%L).', source.relation::text) end;
    return next;

    "check" := 'fingerprints';
    execute format('select count(*) filter (where v.fingerprint <> $1), count(*) from %s v', source.vectors)
    into others, largest using t.fingerprint;
    detail := case when others = 0 then 'all vectors are of one model' else format('%s of %s vectors are of another model or revision', others, largest) end;
    state := case when others = 0 then 'ok' else 'warning' end;
    advice := case when others > 0 then 'Search does not show those. A worker makes them anew; if none is at it: select embed.sweep of the table.' end;
    return next;

    "check" := 'index';
    built := coalesce(embed._index_state(source), 'none');
    detail := built;
    if built = 'invalid' then
        state := 'problem';
        advice := 'A build was broken off. A worker that owns the table builds it anew; or drop index concurrently and build it by hand.';
    elsif built = 'none' and largest > 10000 then
        state := 'warning';
        detail := format('none for %s vectors: every search reads all of them', largest);
        advice := format(
            'A worker that owns the table builds one by itself. As the owner: create index concurrently on %s using hnsw (%s vector_cosine_ops) with (m = 24, ef_construction = 128);',
            case when source.into_column is null then source.vectors else source.relation end, coalesce(quote_ident(source.into_column), 'embedding')
        );
    elsif built = 'valid' and largest > 10000 and not moved then
        plan := embed._plan_of_search(source);
        state := case when plan like '%"Index Name"%' then 'ok' else 'warning' end;
        detail := case when state = 'ok' then 'valid and used' else 'valid, but the planner does not use it' end;
        advice := case when state <> 'ok' then 'See whether enable_indexscan is off, and analyze the table.' end;
    else
        state := 'ok';
        advice := null;
        detail := case built when 'none' then 'none needed for so few rows' else built end;
    end if;
    return next;

    "check" := 'sweep';
    select w.phase, w.finished_at into s from embed.sweep_state w where w.source = _doctor_source.source.id;
    detail := case when s.finished_at is null then 'none finished yet' else format('last finished at %s', date_trunc('second', s.finished_at)) end;
    state := case when coalesce(s.finished_at, source.created_at) < now() - interval '3 days' then 'warning' else 'ok' end;
    advice := case when state <> 'ok' then 'Workers sweep every night for what triggers cannot see: see why none did.' end;
    return next;
end
$doctor$;

-- The plan of a search by the nearest vector, as JSON. Volatile, since it calls EXPLAIN.
create or replace function embed._plan_of_search(source embed.source) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    plan json;
begin
    execute format(
        'explain (format json) select from %1$s v order by v.%2$I operator(@extschema:vector@.<=>) array_fill(0.1::real, array[%3$s])::@extschema:vector@.vector limit 10',
        case when source.into_column is null then source.vectors else source.relation end,
        coalesce(source.into_column, 'embedding'), source.dimensions
    ) into plan;
    return plan;
end
$$;
