-- The login of the loopback: a role of this database that can do nothing but ask and await, and a
-- foreign server with a user mapping that holds its password, so that no function body does. Standbys have a second
-- such server, see 015_primary.sql.
--
-- Called by `embedworker migrate` every time. The password is made here and not by the caller, so
-- that it never stands in a statement that log_statement would write down. The role and the mapping
-- change in one transaction: no question finds one without the other.
-- primary_options: see embed._loopback_make_primary.
drop function if exists embed._loopback_login(text);
create or replace function embed._loopback_login(host text, primary_options jsonb) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set password_encryption = 'scram-sha-256'
as $$
declare
    login constant text := embed._loopback_role();
    -- Twice 122 random bits; the beginning is for servers that ask for every kind of character.
    password constant text := 'Ew1!' || replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
    -- dblink looks for the mapping of whom the function runs as.
    owner constant text := (
        select quote_ident(pg_get_userbyid(p.proowner))
        from pg_proc p
        where p.oid = 'embed._loopback(text, text, text, interval, text[])'::regprocedure
    );
    connections constant integer := current_setting('max_connections')::integer / 2;
begin
    if to_regrole(login) is null then
        execute format('create role %I', login);
    end if;
    -- It can change its own settings. It needs none.
    execute format('alter role %I reset all', login);
    execute format('alter role %I in database %I reset all', login, current_database());
    -- No more attributes: a new role has none of them, and naming one needs the right to give it.
    execute format('alter role %I login noinherit connection limit %s password %L', login, connections, password);
    execute format('grant connect on database %I to %I', current_database(), login);
    perform embed._grant_usage(login);
    execute format('grant execute on function embed.ask(uuid, text, text, text, text[], oid) to %I', login);
    execute format('grant execute on function embed.await(uuid, interval, boolean) to %I', login);
    perform embed._loopback_make(
        'embed_loopback'::text,
        jsonb_build_object('host', host, 'port', current_setting('port'), 'connect_timeout', '3'),
        owner, login, password
    );
    perform embed._loopback_make_primary(primary_options, owner, login, password);
end
$$;

-- Roles belong to the whole cluster, so the name holds the database's number.
create or replace function embed._loopback_role() returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (select 'embed_loopback_' || d.oid from pg_database d where d.datname = current_database());

-- Try another host for the server; null when it works.
create or replace function embed._loopback_try(host text) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('alter server embed_loopback options (set host %L)', host);
    return embed._loopback_check();
end
$$;

-- Points the foreign server to this server again, after a failover or an upgrade to another host or
-- port. problem is null where questions can come through, renewed where they could not before.
--
-- For workers that own nothing of it, hence a definer's. It tries the host of before and those under
-- which a server knows itself, and none that a caller could name: the password would go there.
create or replace function embed._loopback_renew(out renewed boolean, out problem text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    own constant text := (select d.oid from pg_database d where d.datname = current_database());
    before text;
    candidate text;
begin
    renewed := false;
    select o.option_value into before
    from pg_foreign_server s
    cross join pg_options_to_table(s.srvoptions) as o
    where s.srvname = 'embed_loopback' and o.option_name = 'host';
    -- A copy of a database, or one where it was never set up: the role has to be made, by migrate.
    if before is null or own is distinct from (select s.value from embed.setting s where s.name = 'loopback') then
        return;
    end if;
    problem := embed._loopback_check();
    -- Where a migrate or another worker is renewing it, it is for them.
    if problem is null or not pg_try_advisory_xact_lock(embed._lock_global(), embed._turn_migrate()) then
        return;
    end if;
    execute format(
        'alter server embed_loopback options (set port %L, set dbname %L)', current_setting('port'), current_database()
    );
    foreach candidate in array array_remove(array[
        before, '127.0.0.1', 'localhost',
        (
            select nullif(btrim(split_part(s.setting, ',', 1)), '')
            from pg_settings s
            where s.name = 'unix_socket_directories'
        ),
        host(inet_server_addr())
    ], null) loop
        if embed._loopback_try(candidate) is null then
            renewed := true;
            problem := null;
            return;
        end if;
    end loop;
    problem := embed._loopback_try(before);
end
$$;

-- Where dblink was installed for this alone, nobody else needs its functions. Where it was there
-- before, they stay as they are. Who may call them can use the kept connection of his own session,
-- and PostgreSQL lets any role change its own password and settings and end sessions of its own kind: a nuisance
-- that the next migrate and the next question put right, but no way to anybody's data. So the options of the server
-- and the names in our statements leave nothing to those settings.
create or replace function embed._loopback_close_dblink() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    owner constant name := (select pg_get_userbyid(n.nspowner) from pg_namespace n where n.nspname = 'embed');
    signature regprocedure;
begin
    for signature in
        select d.objid::regprocedure
        from pg_depend d
        join pg_extension e on e.oid = d.refobjid and e.extname = 'dblink'
        where d.refclassid = 'pg_extension'::regclass and d.classid = 'pg_proc'::regclass and d.deptype = 'e'
    loop
        execute format('revoke execute on function %s from public', signature);
        -- The functions of the loopback run as him.
        if signature::text !~ 'dblink_connect_u' then
            execute format('grant execute on function %s to %I', signature, owner);
        end if;
    end loop;
end
$$;

-- The reverse of embed._loopback_login.
create or replace function embed._loopback_take_down() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    login text := embed._loopback_role();
begin
    drop server if exists embed_loopback cascade;
    drop server if exists embed_primary cascade;
    if to_regrole(login) is not null then
        execute format('revoke connect on database %I from %I', current_database(), login);
        execute format('revoke usage on schema embed from %I', login);
        execute format('revoke execute on function embed.ask(uuid, text, text, text, text[], oid) from %I', login);
        execute format('revoke execute on function embed.await(uuid, interval, boolean) from %I', login);
        begin
            execute format('drop role %I', login);
        exception when dependent_objects_still_exist then
            -- Where dblink was open to everybody, somebody may have made an object in his name.
            execute format('alter role %I nologin password null', login);
            raise warning 'the role % stays, without a login, because objects depend on it', quote_ident(login)
                using hint = format('To drop it: drop owned by %I; drop role %I;', login, login);
        end;
    end if;
end
$$;

revoke execute on function
    embed._loopback_take_down(),
    embed._loopback_login(text, jsonb),
    embed._loopback_role(),
    embed._loopback_renew(),
    embed._loopback_try(text),
    embed._loopback_close_dblink()
from public;

do $$
begin
    if to_regrole('embed_worker') is not null then
        grant execute on function embed._loopback_renew() to embed_worker;
    end if;
end
$$;
