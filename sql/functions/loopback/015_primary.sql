-- The way of a standby to its primary: a second foreign server, with the login of the loopback. Workers see what
-- the primary commits, so a question that a standby asks is written there, and its answer comes back over the same
-- connection. The standby itself writes nothing.

-- The foreign server that leads to the workers from here.
create or replace function embed._loopback_server() returns text
language sql stable
set search_path = pg_catalog, pg_temp
return case when pg_is_in_recovery() then 'embed_primary' else 'embed_loopback' end;

-- Looks at a connection over embed_primary. here is whether it leads to this database of this cluster; that the
-- server there takes writes is for libpq to say (target_session_attrs). shown is how many characters of a
-- statement others see there.
--
-- A kept connection is looked at, too, before each question: a setting of the standby can be smaller than that of
-- the primary, and who asks could then see what others ask. Its commits wait for no standby, see embed._loopback_here.
create or replace function embed._loopback_primary(connection text, out here boolean, out shown integer)
language sql
set search_path = pg_catalog, pg_temp
as $$
    select t.cluster = c.system_identifier and t.database = current_database() and t.commits = 'off', t.shown
    from @extschema:dblink@.dblink(
        connection,
        'select (pg_catalog.pg_control_system()).system_identifier, pg_catalog.current_database(),'
        ' pg_catalog.set_config(''synchronous_commit'', ''off'', false),'
        ' pg_catalog.pg_size_bytes(pg_catalog.current_setting(''track_activity_query_size''))'
    ) as t (cluster bigint, database text, commits text, shown integer),
        pg_control_system() as c
$$;

-- Makes a foreign server again, so that nothing of a database that this one was copied from remains.
create or replace function embed._loopback_make(
    server text, options jsonb, owner text, login text, password text
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    written constant text := (
        select string_agg(format('%I %L', o.key, o.value), ', ' order by o.key)
        from jsonb_each_text(options || jsonb_build_object(
            'dbname', current_database(), 'gssencmode', 'disable', 'application_name', 'embedworker question',
            -- Given at the start of a session, these win over what the role or the database has set.
            -- READ COMMITTED gives each look of await a new snapshot. lock_timeout ends a wait for the
            -- asking transaction itself, which no deadlock detector could see. Where PUBLIC may call dblink, any login
            -- can change the settings of this role: types of another search_path would read what others ask.
            'options', '-c search_path=pg_catalog '
            '-c default_transaction_isolation=read\ committed -c default_transaction_read_only=off '
            '-c statement_timeout=0 -c lock_timeout=2s -c idle_in_transaction_session_timeout=10s -c jit=off'
        )) as o
    );
begin
    execute format('drop server if exists %I cascade', server);
    execute format('create server %I foreign data wrapper dblink_fdw options (%s)', server, written);
    execute format('alter server %I owner to %s', server, owner);
    execute format(
        'create user mapping for %s server %I options (user %L, password %L)', owner, server, login, password
    );
end
$$;

-- Makes embed_primary again. given are the options that lead there, as host and port: null keeps those of before, and
-- without a host there is no such server. A host without a port has the port of this server.
create or replace function embed._loopback_make_primary(
    given jsonb, owner text, login text, password text
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    options jsonb := coalesce(given, (
        select jsonb_object_agg(o.option_name, o.option_value)
        from pg_foreign_server s
        cross join pg_options_to_table(s.srvoptions) as o
        where s.srvname = 'embed_primary'
    ));
    ports constant text := (
        select string_agg(coalesce(nullif(p.port, ''), current_setting('port')), ',' order by p.place)
        from string_to_table(coalesce(nullif(options ->> 'port', ''), current_setting('port')), ',')
            with ordinality as p (port, place)
    );
begin
    if options ->> 'host' is null then
        drop server if exists embed_primary cascade;
        return;
    end if;
    -- A primary that vanishes without a word is noticed within about 3 seconds, as one that does not answer.
    options := jsonb_build_object(
        'connect_timeout', '3', 'tcp_user_timeout', '3000',
        'keepalives_idle', '1', 'keepalives_interval', '1', 'keepalives_count', '2'
    ) || options || jsonb_build_object('port', ports, 'target_session_attrs', 'primary');
    perform embed._loopback_make('embed_primary'::text, options, owner, login, password);
end
$$;

-- Whether this server reaches itself by the hosts of embed_primary: null, or the reason why not. For migrate, so that
-- a wrong host is said at once; a host that only standbys know fails here, too.
create or replace function embed._loopback_check_primary() returns text
language sql security definer
set search_path = pg_catalog, pg_temp
as $$ select embed._loopback_trial('embed_primary'::text) $$;

revoke execute on function
    embed._loopback_server(),
    embed._loopback_primary(text),
    embed._loopback_make(text, jsonb, text, text, text),
    embed._loopback_make_primary(jsonb, text, text, text),
    embed._loopback_check_primary()
from public;
