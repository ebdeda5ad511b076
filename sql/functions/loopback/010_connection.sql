-- The loopback: a kept connection of the session to its own server, through dblink. On a standby it leads to the
-- primary, see 015_primary.sql.
--
-- A kept dblink connection can be used by any SQL of the same session. It is therefore logged in as
-- a role that can do nothing but call embed.ask and embed.await (see 020_login.sql).

-- Closes the kept connection, if there is one.
create or replace function embed._loopback_close(connection text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if connection = any (@extschema:dblink@.dblink_get_connections()) then
        perform @extschema:dblink@.dblink_disconnect(connection);
    end if;
exception when undefined_function or invalid_schema_name then
    null; -- dblink was dropped
end
$$;

-- Whether a connection leads to this server and database. After a failover or an upgrade, host and
-- port may be those of the old server.
--
-- Its commits wait for no standby from now on. Questions are in a table that no standby has, but the
-- server writes WAL besides, as when it prunes a page of the catalog. Then a question waited for a
-- standby that was away, for ever.
create or replace function embed._loopback_here(connection text) returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
    select t.started = pg_postmaster_start_time() and t.database = current_database() and t.commits = 'off'
    from @extschema:dblink@.dblink(
        connection,
        'select pg_catalog.pg_postmaster_start_time(), pg_catalog.current_database(),'
        ' pg_catalog.set_config(''synchronous_commit'', ''off'', false)'
    ) as t (started timestamptz, database text, commits text)
$$;

-- Takes a request back whose asker was cancelled, with the texts in it; a worker deletes it later
-- where this fails.
create or replace function embed._loopback_withdraw(connection text, id uuid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform
    from @extschema:dblink@.dblink(
        connection, format('select from embed.await(%L::pg_catalog.uuid, ''0''::pg_catalog.interval, true)', id)
    ) as t (nothing text);
exception when others then
    null;
end
$$;

-- Ask over the kept connection and wait; null when nobody answered in time. The request is committed,
-- and what waits for its answer begun, in one message: of several results dblink returns the last.
-- They must have the same number of columns.
--
-- Statements are sent behind as many blanks as pg_stat_activity shows characters: all sessions log
-- in as one role, which may read the statements of its own kind, and so anybody could have read
-- what others ask through the connection of his own session.
--
-- The wait is cut into slices. Before PostgreSQL 17 dblink cannot be interrupted while it waits,
-- and later ones wait for the statement to end after an interruption: a cancelled statement ends
-- within a slice, and leaves a connection that is free again.
create or replace function embed._loopback(
    question text, model text, role text, patience interval, passages text[] default null,
    out embedding @extschema:vector@.vector, out terms integer[], out shares real[], out lost integer, out scores real[]
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    away constant boolean := pg_is_in_recovery(); -- the workers are those of another server
    -- Not one name: a kept connection to the old primary must not be used after a promotion.
    name constant text := case when away then 'embed_primary' else 'embedworker' end;
    slice constant interval := '200 ms';
    deadline timestamptz := clock_timestamp() + patience;
    shown integer := pg_size_bytes(current_setting('track_activity_query_size'));
    here boolean;
    id uuid := gen_random_uuid();
    asker oid := embed._login();
    kept boolean;
    connected boolean;
    again boolean := true;
    -- The caller's setting, since the loopback is a session of its own.
    grace constant text := format(
        'set embed.worker_grace = %L; ',
        least(patience, embed._query_timeout('embed.worker_grace'::text, '300ms'::text))
    );
    ask text;
    rest interval;
    failure text;
    more text;
    state text;
    context text;
begin
    loop
        connected := false;
        begin
            kept := coalesce(name = any (@extschema:dblink@.dblink_get_connections()), false);
            -- Something else may run on it: dblink would wait for the end of that, however far.
            if kept and @extschema:dblink@.dblink_is_busy(name) = 1 then
                perform @extschema:dblink@.dblink_disconnect(name);
                kept := false;
            end if;
            connected := kept;
            if not kept then
                perform @extschema:dblink@.dblink_connect(name, embed._loopback_server());
            end if;
            if away then
                select p.here, p.shown into here, shown from embed._loopback_primary(name) as p;
            else
                here := kept or embed._loopback_here(name);
            end if;
            if not here then
                raise exception 'another server or database answered' using errcode = '08001';
            end if;
            connected := true;
            ask := format(
                '%sbegin; select a.*, null, null from embed.ask(%L::pg_catalog.uuid, %L::pg_catalog.text, '
                '%L::pg_catalog.text, %L::pg_catalog.text, %L::pg_catalog.text[], %L::pg_catalog.oid) as a; commit; ',
                grace, id, model, question, role, passages, asker
            );
            while embedding is null and scores is null and failure is null loop
                rest := deadline - clock_timestamp();
                select t.embedding, t.terms, t.shares, t.lost, t.scores, t.error
                into embedding, terms, shares, lost, scores, failure
                from @extschema:dblink@.dblink(
                    name,
                    repeat(' ', shown) || ask || format(
                        'select * from embed.await(%L::pg_catalog.uuid, %L::pg_catalog.interval, %L::pg_catalog.bool)',
                        id, least(rest, slice), rest <= slice
                    )
                ) as t (
                    embedding @extschema:vector@.vector, terms integer[], shares real[], lost integer, scores real[],
                    error text
                );
                exit when rest <= slice;
                ask := '';
            end loop;
            exit;
        exception when query_canceled or others then
            -- Broken, busy with something else, cancelled over there, or its server process has
            -- gone: once more from the start, under the same id, with a new connection. When it is
            -- the caller's own statement that was cancelled, no connection is named.
            get stacked diagnostics failure = message_text, more = pg_exception_detail,
                state = returned_sqlstate, context = pg_exception_context;
            if state = '57014' and context not like '%"' || name || '"%' then
                if passages is not null then
                    perform embed._loopback_withdraw(name, id);
                end if;
                raise;
            end if;
            -- A refusal, within the transaction of the request; or the last worker has gone since.
            if state like 'EW%' then
                perform @extschema:dblink@.dblink_exec(name, 'rollback', false);
                perform embed._loopback_withdraw(name, id);
                raise;
            end if;
            perform embed._loopback_close(name);
            if not connected or not again or state = '55P03' then
                raise exception 'questions cannot reach a worker from inside SQL'
                    using errcode = 'EW007',
                    detail = concat_ws(': ', failure, nullif(more, '')),
                    hint = case
                        when state = '55P03'
                        then 'A transaction, maybe this one, locks embed.question: end it first.'
                        when more like '%too many%' or more like '%remaining connection slots%'
                        then
                            'Every session that asks keeps a second connection: raise max_connections, or ask through '
                            'a pool of fewer sessions.'
                        when away
                        then
                            'The primary must be reached from this standby, and let the role of the loopback in '
                            '(pg_hba.conf). `embedworker migrate --primary-host HOST` on the primary names its hosts.'
                        else
                            'Restart a worker, or run `embedworker migrate`: both renew the connection, and migrate '
                            'says what prevents it. EMBEDWORKER_LOOPBACK_HOST names the host.'
                    end;
            end if;
            again := false;
            failure := null;
        end;
    end loop;
    if failure is not null then
        raise exception '% %',
            case role when 'rerank' then 'the worker failed:' else 'the question could not be embedded:' end, failure
            using errcode = 'EW008',
            hint = 'The log of the worker says more; another model can be named as '
                || case role when 'rerank' then 'embed.use_reranker(…).' else 'embed.query(…, model => …).' end;
    end if;
    if embedding is null and scores is null then
        -- A connection on which nothing arrives may be the reason (somebody opened a transaction on
        -- it, say), so the next question gets a new one.
        perform embed._loopback_close(name);
    end if;
end
$$;

-- Connects over a foreign server and closes the connection again: null, or the reason why it leads nowhere.
create or replace function embed._loopback_trial(server text) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    name constant text := 'embedworker_check';
    failure text;
    more text;
    here boolean;
begin
    perform embed._loopback_close(name);
    perform @extschema:dblink@.dblink_connect(name, server);
    here := case server
        when 'embed_primary' then (select p.here from embed._loopback_primary(name) as p)
        else embed._loopback_here(name)
    end;
    perform embed._loopback_close(name);
    return case when here then null else 'another server or database answered' end;
exception when others then
    get stacked diagnostics failure = message_text, more = pg_exception_detail;
    perform embed._loopback_close(name);
    return concat_ws(': ', failure, nullif(more, ''));
end
$$;

-- Whether the loopback leads here, and on a standby to the primary: null, or the reason why not.
create or replace function embed._loopback_check() returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$ begin return embed._loopback_trial(embed._loopback_server()); end $$;

revoke execute on function
    embed._loopback_close(text),
    embed._loopback_here(text),
    embed._loopback_withdraw(text, uuid),
    embed._loopback(text, text, text, interval, text[]),
    embed._loopback_trial(text),
    embed._loopback_check()
from public;
