-- Who may create in the schema embed: its owner always, and others in a transaction of embed.enable or of a
-- look at a table, for what we make there. A member of embed_admin had the right once and could add a function
-- embed.query(varchar), say, which ran as the caller of embed.query with a varchar.

-- Lets a role use the schema. A grant that changes nothing is left out, because it waits for a transaction of
-- embed.enable that is open.
create or replace function embed._grant_usage(role text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if not has_schema_privilege(role, 'embed', 'usage') then
        execute 'grant usage on schema embed to ' || case role when 'public' then role else quote_ident(role) end;
    end if;
end
$$;

-- Lets a role create in the schema embed until this transaction ends. Its end is watched by
-- embed._close_schema, which takes the right back and refuses what is not ours. Nobody else sees the right,
-- because no other transaction sees an open one's.
--
-- One transaction at a time, because two may not change the rights of one schema: a caller of this holds
-- the lock of embed.enable.
create or replace function embed._open_schema(role regrole) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if has_schema_privilege(role, 'embed', 'create') then
        return;
    end if;
    if not has_table_privilege(role, 'embed._own_source', 'insert') then
        raise exception 'the role % may not create in the schema embed', role
            using errcode = 'insufficient_privilege',
            hint = format(
                'Members of embed_admin are trusted with all embedding in this database. Have a superuser run: '
                'grant embed_admin to %s;', role
            );
    end if;
    if not pg_try_advisory_xact_lock(embed._lock_global(), embed._turn_enable()) then
        raise exception 'another transaction enables a table' using errcode = 'lock_not_available', hint = 'Try again.';
    end if;
    set constraints embed.close_schema deferred;
    insert into embed.setting (name, value) values ('opened for ' || role, role);
    execute format('grant create on schema embed to %s', role);
end
$$;

-- What is in the schema embed and is neither ours nor a part of somebody's enabled table, with its owner.
create or replace function embed._strangers() returns table (what text, owner oid)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    with found as (
        select p.oid::regprocedure::text as what, p.proowner as owner,
            substring(p.proname from '^source_(\d+)_\w+$')::integer as source
        from pg_proc p
        where p.pronamespace = 'embed'::regnamespace
        union all
        -- A view of such a name would run functions of its owner with the rights of all who look at queues.
        select c.oid::regclass::text, c.relowner,
            case when c.relkind = 'r' then substring(c.relname from '^(?:inbox|queue|state)_(\d+)$')::integer end
        from pg_class c
        where c.relnamespace = 'embed'::regnamespace and c.relkind not in ('i', 'I')
        union all
        select t.oid::regtype::text, t.typowner, null
        from pg_type t
        where t.typnamespace = 'embed'::regnamespace and t.typrelid = 0 and t.typelem = 0
        union all
        select o.oid::regoperator::text, o.oprowner, null
        from pg_operator o
        where o.oprnamespace = 'embed'::regnamespace
    )
    select f.what, f.owner
    from found f
    join pg_roles r on r.oid = f.owner and not r.rolsuper
    where f.owner <> (select n.nspowner from pg_namespace n where n.nspname = 'embed')
    -- The role that enabled the table owns its inbox.
    and not exists (
        select
        from embed.source s
        join pg_class i on i.oid = to_regclass(format('embed.inbox_%s', s.id))
        where s.id = f.source and i.relowner = f.owner
    );
end;

create or replace function embed._close_schema() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    planted text;
begin
    delete from embed.setting s where s.name = new.name;
    execute format('revoke create on schema embed from %s', new.value);
    select string_agg(f.what, ', ' order by f.what) into planted
    from embed._strangers() as f
    where pg_has_role(f.owner, new.value::regrole, 'usage');
    if planted is not null then
        raise exception 'the role % may create nothing of its own in the schema embed: %', new.value, planted
            using errcode = 'insufficient_privilege', hint = 'Drop it, and create it in a schema of yours.';
    end if;
    return null;
end
$$;

do $$
begin
    if not exists (
        select
        from pg_trigger t
        where t.tgrelid = 'embed.setting'::regclass and t.tgname = 'close_schema' and t.tgenabled = 'O'
    ) then
        drop trigger if exists close_schema on embed.setting;
        create constraint trigger close_schema after insert on embed.setting
        deferrable initially deferred for each row when (new.name like 'opened for %')
        execute function embed._close_schema();
    end if;
end
$$;

-- A login that calls it would hold up embed.enable.
revoke execute on function embed._open_schema(regrole), embed._close_schema() from public;
