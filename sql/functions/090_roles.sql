-- Four roles for logins to be members of, so that nobody needs a superuser for daily work:
--   embed_worker   what `embedworker run` needs, and nothing of the application's but the columns
--                  that are embedded
--   embed_admin    may call embed.enable and its like for tables of its own. Trusted by the worker:
--                  filters and triggers of its tables run with the worker's rights
--   embed_monitor  sees how it goes and no text: status, workers, failures, doctor, metrics
--   embed_search   may ask questions where that was taken from everybody (embed.restrict_questions)
-- A writer of an enabled table needs none: the triggers run as the one who enabled it.

-- Makes the roles, which belong to the whole cluster; returns those that this role may not make.
create or replace function embed._make_roles() returns text[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    wanted text;
    missing text[] := '{}';
begin
    foreach wanted in array array['embed_worker', 'embed_admin', 'embed_monitor', 'embed_search'] loop
        continue when to_regrole(wanted) is not null;
        begin
            execute format('create role %I nologin', wanted);
        exception
            when insufficient_privilege then missing := missing || wanted;
            when duplicate_object or unique_violation then null; -- another database's migrate, just now
        end;
    end loop;
    begin
        if not pg_has_role('pg_monitor', to_regrole('embed_monitor'), 'member') then
            grant embed_monitor to pg_monitor;
        end if;
    exception when insufficient_privilege then
        null; -- a managed service may keep it from us: grant embed_monitor to the login itself
    end;
    return missing;
end
$$;

-- What the roles may do with the tables that are there in every database; repeated by every migrate.
create or replace function embed._grant_roles() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if to_regrole('embed_worker') is not null then
        perform embed._grant_usage('embed_worker');
        grant usage on sequence embed.seq, embed.worker_id to embed_worker;
        grant select on embed.source, embed.model, embed.reranker, embed.setting to embed_worker;
        grant select on embed.schema_version to embed_worker;
        grant select, insert, update on embed.fingerprint, embed.source_state to embed_worker;
        grant select, insert, update, delete
            on embed.worker_session, embed.source_tally, embed.sweep_request, embed.sweep_state, embed.lexical_state,
                embed.lexical_term, embed.question_cache
            to embed_worker;
        grant select, update, delete on embed.question to embed_worker;
        grant execute on function embed._question_counts(), embed._learn() to embed_worker;
        perform embed._ensure_policy(
            'embed.lexical_state', 'embed_worker', 'to embed_worker using (true) with check (true)'
        );
        perform embed._ensure_policy(
            'embed.lexical_term', 'embed_worker', 'to embed_worker using (true) with check (true)'
        );
    end if;
    if to_regrole('embed_admin') is not null then
        perform embed._grant_usage('embed_admin');
        grant execute on function embed._open_schema(regrole) to embed_admin;
        if has_schema_privilege('embed_admin', 'embed', 'create') then
            revoke create on schema embed from embed_admin;
        end if;
        grant usage on sequence embed.seq to embed_admin;
        grant select
            on embed.fingerprint, embed.worker_session, embed.source_tally, embed.lexical_state, embed.lexical_term,
                embed.schema_version
            to embed_admin;
        grant select on embed.source to embed_admin;
        revoke insert, update, delete on embed.source from embed_admin;
        grant select, insert, update, delete
            on embed._own_source, embed.source_state, embed.sweep_request, embed.sweep_state to embed_admin;
        grant select, insert, update, delete on embed.switch_state to embed_admin;
        grant select, insert, update on embed.model, embed.reranker, embed.setting to embed_admin;
        grant select, insert, update, delete on embed.question_limit, embed.question_allowance to embed_admin;
        -- The remains of a table that is disabled.
        grant delete on embed.lexical_term to embed_admin;
        perform embed._ensure_policy('embed.lexical_term', 'embed_admin', 'for delete to embed_admin using (true)');
    end if;
    if to_regrole('embed_monitor') is not null then
        perform embed._grant_usage('embed_monitor');
        grant select
            on embed.source, embed.source_state, embed.sweep_request, embed.sweep_state, embed.setting, embed.model,
                embed.reranker, embed.fingerprint, embed.worker_session, embed.source_tally,
                embed.switch_state, embed.schema_version
            to embed_monitor;
        grant execute on function embed._question_counts() to embed_monitor;
    end if;
    if to_regrole('embed_search') is not null then
        perform embed._grant_usage('embed_search');
        grant execute on function embed.query(text, text), embed.query(text, regclass), embed._question(text, text),
            embed._rerank(text, text[]) to embed_search;
    end if;
    -- They say themselves who may read them.
    grant select on embed.status, embed.failure, embed.worker, embed.switch to public;
    perform embed._open_questions();
end
$$;

-- Gives the worker's role, and those that look, what they need of one source, column by column: a table may hold more
-- than the worker should see. Called by the role that enables the table, which owns it.
create or replace function embed._grant_worker(source embed.source) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    a_schema text := (
        select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = source.relation
    );
    readable text := (
        select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
        from pg_attribute a
        where a.attrelid = source.relation and a.attnum > 0 and not a.attisdropped
        and (
            a.attnum = any (source.key_attnums || source.column_attnums || source.watch_attnums || source.into_attnum)
            or strpos(source.filter, format('"{%s}"', a.attnum)) > 0
        )
    );
    observer name;
begin
    perform embed._write_compact(source);
    -- How many wait and since when, but no key and no error, which may quote the text.
    for observer in select r.rolname from pg_roles r where r.rolname in ('embed_monitor', 'embed_admin') loop
        execute format(
            'grant select (priority, at) on embed.inbox_%1$s to %2$I; grant select (seq, due, attempts, priority, '
            'claimed_by, since) on embed.queue_%1$s to %2$I',
            source.id, observer
        );
    end loop;
    if to_regrole('embed_worker') is null then
        return;
    end if;
    execute format('grant select (%s) on %s to embed_worker', readable, source.relation);
    if source.into_attnum is not null then
        execute format(
            'grant update (%I) on %s to embed_worker',
            embed._column_name(source.relation, source.into_attnum),
            source.relation
        );
    end if;
    execute format(
        'grant select, insert, update, delete on embed.inbox_%1$s, embed.queue_%1$s, %2$s to embed_worker', source.id,
        source.vectors
    );
    execute format('revoke execute on function embed.source_%s_refresh() from public', source.id);
    execute format(
        'grant execute on function embed.source_%1$s_refresh(), embed.source_%1$s_compact() to embed_worker', source.id
    );
    if not has_schema_privilege('embed_worker', a_schema, 'usage') then
        begin
            -- Where this role may use the schema but not let others, the server only warns.
            execute format('grant usage on schema %I to embed_worker', a_schema);
        exception when insufficient_privilege then
            null; -- said below
        end;
    end if;
    if not has_schema_privilege('embed_worker', a_schema, 'usage') then
        raise notice 'a worker that logs in as a member of embed_worker cannot reach the schema % yet', a_schema
            using hint = format('As its owner: grant usage on schema %I to embed_worker;', a_schema);
    end if;
end
$$;

-- embed._refresh for a worker that does not own what is to be written again (triggers, functions,
-- policies): then by way of a function that runs as the one who enabled the table. Also says where
-- row security would hide rows from this role, since a row that is not seen is taken for deleted.
create or replace function embed._refresh_source(source_id integer) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    by_owner constant regprocedure := to_regprocedure(format('embed.source_%s_refresh()', source_id));
    s embed.source;
    verdict text;
begin
    if by_owner is null or pg_has_role((select p.proowner from pg_proc p where p.oid = by_owner), 'usage') then
        verdict := embed._refresh(source_id);
    else
        select format(
            '%1$I, who enabled %2$s, is no member of embed_admin any more; as a superuser: grant embed_admin to %1$I; '
            'or disable it and have its owner enable it again',
            pg_get_userbyid(p.proowner), x.relation
        )
        into verdict
        from pg_proc p
        join embed.source x on x.id = source_id
        where p.oid = by_owner and not has_table_privilege(p.proowner, 'embed._own_source', 'update');
        if found then
            return verdict;
        end if;
        execute format('select embed.source_%s_refresh()', source_id) into verdict;
    end if;
    if verdict not in ('same', 'changed') then
        return verdict;
    end if;
    select * into s from embed.source x where x.id = source_id;
    return coalesce(embed._hidden_rows(s), verdict);
end
$$;

-- A sentence where row security stands between this role and rows of a source; null where not.
create or replace function embed._hidden_rows(source embed.source) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    -- 'r' reads; 'w' writes the vector into the table itself.
    needed constant "char"[] := case when source.into_attnum is null then '{r}' else '{r,w}' end;
    hidden boolean;
begin
    if not row_security_active(source.relation) then
        return null;
    end if;
    with policy as (
        select p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid) = 'true' as all_rows
        from pg_policy p
        where p.polrelid = source.relation
        and exists (select from unnest(p.polroles) as r (id) where r.id = 0 or pg_has_role(r.id, 'usage'))
    )
    select
        exists (select from policy p where not p.polpermissive and p.polcmd = any (needed || '*'::"char"))
        or exists (
            select
            from unnest(needed) as n (command)
            where not exists (
                select from policy p where p.polpermissive and p.all_rows and p.polcmd in (n.command, '*')
            )
        )
    into hidden;
    if not hidden then
        return null;
    end if;
    return format(
        'row security of %1$s hides rows from the role %2$I of the worker; as the owner: create policy embed_worker on '
        '%1$s for %3$s to %2$I using (true); or as a superuser: alter role %2$I bypassrls',
        source.relation, current_user, case when source.into_attnum is null then 'select' else 'all' end
    );
end
$$;

-- Stands before every reading of a source's rows by a worker, in the same transaction: from here to its end
-- the name stands for the table that was enabled, and row security hides nothing of it. Both are also
-- looked at from time to time (embed._refresh_source), but a policy made in between hid rows, which were
-- then taken for deleted, and its functions ran as the worker; so did those of a view in the table's place.
--
-- The lock comes of PREPARE, which reads the statement and runs nothing of it; LOCK wants a right to the
-- whole table, and planning a statement may already run a policy's function.
create or replace function embed._hold(source_id integer, named text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    s embed.source;
    hidden text;
begin
    -- A worker's session may refuse to read by policies. Here they are looked at first, below.
    perform set_config('row_security', 'on', true);
    execute format('prepare embed_held as select from %s', named);
    deallocate embed_held;
    select * into s from embed.source x where x.id = source_id;
    if to_regclass(named) is distinct from s.relation then
        raise exception '% is not the table that was enabled', named using errcode = 'undefined_table';
    end if;
    hidden := coalesce(embed._foreign(s), embed._hidden_rows(s));
    if hidden is not null then
        raise exception '%', hidden using errcode = 'insufficient_privilege';
    end if;
end
$$;

grant usage on sequence embed.seq to public; -- the inbox numbers changes as the role that enabled the table

revoke execute on function
    embed._make_roles(),
    embed._grant_roles()
from public;
