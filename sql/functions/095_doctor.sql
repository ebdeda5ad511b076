-- What can be found wrong from inside the database, one row a check: `embedworker doctor` shows these
-- and adds what can only be seen from outside (whether notifications arrive, models, disks).
--
-- state is ok, warning (works, but see to it) or problem (something does not work). Of each source a
-- row for every check, since one that is well says nothing of the next.

create or replace function embed.doctor() returns table (
    subject text, "check" text, state text, detail text, advice text
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    lock_timeout_of_caller constant text := current_setting('lock_timeout');
    s record;
begin
    perform embed._require_role('embed_monitor', embed._may_look(), 'embed.doctor');
    return query select 'database'::text, d.* from embed._doctor_server() as d;
    return query select 'database'::text, d.* from embed._doctor_extensions() as d;
    return query select 'database'::text, d.* from embed._doctor_schema() as d;
    if has_table_privilege('embed.setting', 'select') and embed._lost_columns() is not null then
        return; -- the other checks read them
    end if;
    return query select 'database'::text, d.* from embed._doctor_index_scans() as d;
    return query select 'questions'::text, d.* from embed._doctor_questions() as d;
    return query select 'workers'::text, d.* from embed._doctor_workers() as d;
    if not pg_is_in_recovery() then -- locks and processes of the primary are not those of a standby
        return query select 'workers'::text, d.* from embed._doctor_locks() as d;
    end if;
    for s in
        select
            x as source,
            x.relation::text || case when x.name = c.relname then '' else format(' (%s)', x.name) end as name
        from embed.source x
        left join pg_class c on c.oid = x.relation
        order by x.id
    loop
        begin
            return query select s.name, d.* from embed._doctor_source(s.source) as d;
            perform set_config('lock_timeout', lock_timeout_of_caller, true);
        exception when lock_not_available then
            return query select s.name, 'table'::text, 'problem'::text, embed._locked_text(s.source),
                'The other checks of this table were left out. select pg_terminate_backend(pid) ends it.'::text;
        end;
    end loop;
end
$$;

comment on function embed.doctor() is
    'Everything that could be wrong with searching by meaning in this database, and what to do about it.';

-- How to turn default_transaction_read_only off, by where its value comes from. What it forbids, it
-- forbids to those who would reset it, too.
create or replace function embed._doctor_writes() returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select case s.source
        when 'session' then format('Run: reset %I;', s.name)
        when 'client' then format('Take %s out of the options of the database URL or of PGOPTIONS.', s.name)
        when 'database'
            then format(
                'Run: set %1$I = off; alter database %2$I reset %1$I; then connect again.', s.name, current_database()
            )
        when 'user'
            then format('Run: set %1$I = off; alter role %2$I reset %1$I; then connect again.', s.name, session_user)
        when 'database user' then format(
            'Run: set %1$I = off; alter role %2$I in database %3$I reset %1$I; then connect again.', s.name,
            session_user, current_database()
        )
        else format(
            'Run as a superuser: alter system reset %I; select pg_reload_conf(); If that does not help, edit %s.',
            s.name, coalesce(s.sourcefile, 'postgresql.conf')
        )
    end
    from pg_settings s
    where s.name = 'default_transaction_read_only'
);

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
    elsif pg_is_in_recovery() then
        state := 'warning';
        detail := detail || ', a standby';
        advice :=
            'Workers and embed.enable need the primary. Searches with a vector work here, and so do questions whose '
            'vector is kept. Other questions are asked there, after embedworker migrate --primary-host.';
    elsif current_setting('default_transaction_read_only') = 'on' then
        state := 'problem';
        detail := detail || ', default_transaction_read_only is on';
        advice := 'Workers cannot write. ' || embed._doctor_writes();
    else
        state := 'ok';
    end if;
    return next;

    "check" := 'connections';
    detail := format('%s of %s in use', connections, most);
    state := case when connections > 0.8 * most then 'warning' else 'ok' end;
    advice := case when state = 'warning' then
        'Every session that asks a question keeps a second connection, and a worker has about six: raise '
        'max_connections, or ask through a pool of fewer sessions.' end;
    return next;

    "check" := 'autovacuum';
    detail := current_setting('autovacuum');
    state := case when detail = 'on' then 'ok' else 'problem' end;
    advice := case
        when state <> 'ok' then 'Turn autovacuum on: the queues are emptied all the time and grow without it.'
    end;
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
        advice := 'Run embedworker migrate, which writes them again; until then searches and embed.enable fail.';
    elsif string_to_array(substring(e.installed from '^[0-9.]+'), '.')::integer[] < array[0, 8, 4] then
        state := 'warning';
        detail := detail || ', in which a vacuum can damage an HNSW index';
        advice :=
            'Versions 0.8.3 and 0.8.4 mended that. Install the package of the newest, then as a superuser: alter '
            'extension vector update; then reindex index concurrently each index over vectors.';
    elsif e.available <> e.installed then
        state := 'warning';
        detail := format('%s, and %s is there', detail, e.available);
        advice := 'As a superuser: alter extension vector update.';
    end if;
    return next;
end
$$;

create or replace function embed._doctor_schema() returns table ("check" text, state text, detail text, advice text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    wrong text;
begin
    "check" := 'tables';
    if has_table_privilege('embed.setting', 'select') then
        wrong := embed._lost_columns();
        state := case when wrong is null then 'ok' else 'problem' end;
        detail := coalesce('missing or of another type: ' || wrong, 'as embedworker migrate made them');
        advice := case
            when wrong is not null
                then 'Run embedworker migrate, which repairs what it can and says what to run for the rest.'
        end;
        return next;
    end if;

    "check" := 'rights';
    select string_agg(x.what, ', ' order by x.place) into wrong
    from (
        select 1, 'not everybody may use the schema embed'
        where not has_schema_privilege('public', 'embed', 'usage')
        union all
        select 2, 'everybody may call embed.' || p.proname
        from pg_proc p
        where p.pronamespace = 'embed'::regnamespace and p.proname in ('ask', 'await')
        and has_function_privilege('public', p.oid, 'execute')
        union all
        select 3, 'everybody may read embed.' || c.relname
        from pg_class c
        where c.relnamespace = 'embed'::regnamespace and c.relname in ('question', 'question_cache', 'source')
        and has_table_privilege('public', c.oid, 'select')
        union all
        select 4, format('%s belongs to %I', f.what, pg_get_userbyid(f.owner)) from embed._strangers() as f
        where has_table_privilege('embed.source', 'select')
    ) as x (place, what);
    state := case when wrong is null then 'ok' else 'problem' end;
    detail := coalesce(wrong, 'as embedworker migrate gave them');
    advice := case
        when wrong like '% belongs to %'
            then 'Drop what is not of embedworker in the schema embed: our functions may call it.'
        when wrong is not null
            then 'Run embedworker migrate, which gives every right again; a restore without grants loses them.'
    end;
    return next;
end
$$;

-- Whether every role's sessions look far enough into an index, see embed._scan_settings.
create or replace function embed._doctor_index_scans() returns table (
    "check" text, state text, detail text, advice text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if to_regnamespace(embed._vector_schema()) is distinct from (
        select x.extnamespace from pg_extension x where x.extname = 'vector'
    ) then
        return; -- which is a problem of its own
    end if;
    "check" := 'index scans';
    select
        case when bool_or(f.name = 'hnsw.iterative_scan') then 'problem' else 'warning' end,
        string_agg(
            format(
                '%s is %s for %s',
                f.name,
                coalesce(f.value, 'pgvector''s default'),
                case f.role when 0 then 'every role' else quote_ident(r.rolname) end
            ),
            ', ' order by f.role, f.name
        ),
        string_agg(
            format(
                case f.role
                    when 0 then 'alter database %1$I set %3$s = %4$L;'
                    else 'alter role %2$I in database %1$I set %3$s = %4$L;'
                end,
                current_database(), r.rolname, f.name, f.wanted
            ),
            ' ' order by f.role, f.name
        )
    into state, detail, advice
    from embed._scan_settings_in_force() f
    left join pg_roles r on r.oid = f.role
    where not embed._scan_suffices(f.value, f.wanted);
    if detail is null then
        state := 'ok';
        detail := (
            select string_agg(format('%s = %s', f.name, f.value), ', ' order by f.name)
            from embed._scan_settings_in_force() f
            where f.role = 0
        );
    else
        advice :=
            'A condition, an offset or row security leaves too few rows of what the index gives. As the owner of the '
            'database, or as a superuser for other roles, for sessions to come: '
            || advice;
    end if;
    return next;
end
$$;
