-- embed.disable, embed.pause and embed.resume.

-- Lock tables against everybody, all or none of them, and wait as long as lock_timeout of the session allows.
-- A worker locks the same tables in another order. So each try gives all locks back after 100 ms: that is
-- less than deadlock_timeout (1 s), and a writer of the tables waits no longer than one try. The pauses grow to
-- a second: where a transaction keeps a table for long, such as a dump, others wait during a tenth of the time.
create or replace function embed._lock_tables(tables regclass[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    given constant text := current_setting('lock_timeout');
    until constant timestamptz := clock_timestamp() + given::interval;
    pause double precision := 0.01;
begin
    if tables = '{}' then
        return;
    end if;
    loop
        begin
            perform set_config('lock_timeout', '100ms', true);
            execute 'lock table ' || (select string_agg(t.relation::text, ', ') from unnest(tables) as t (relation))
                || ' in access exclusive mode';
            perform set_config('lock_timeout', given, true);
            return;
        exception when lock_not_available then
            if given::interval > interval '0' and clock_timestamp() >= until then
                raise exception 'open transactions hold %, which this call needs for a moment',
                    array_to_string(tables, ', ')
                    using errcode = 'lock_not_available',
                    detail = (
                        select coalesce(
                            'Processes: ' || string_agg(distinct l.pid::text, ', ') || '.', 'They have ended since.'
                        )
                        from pg_locks l
                        where l.granted and l.pid <> pg_backend_pid() and l.relation = any (tables)
                        and l.database = (select d.oid from pg_database d where d.datname = current_database())
                    ),
                    hint = 'End them (pg_stat_activity shows them), or try again.';
            end if;
        end;
        perform pg_sleep(pause);
        pause := least(pause * 2, 1);
        if given::interval > interval '0' then
            pause := greatest(least(pause, extract(epoch from until - clock_timestamp())), 0.01);
        end if;
    end loop;
end
$$;

-- Takes everything of a source out, but the column that into_column named.
create or replace function embed._forget(source embed.source, drop_vectors boolean) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    index text;
begin
    perform embed._lock_tables(
        array(
            select c.oid::regclass
            from pg_class c
            where c.oid in (
                source.relation, source.vectors,
                to_regclass(format('embed.inbox_%s', source.id)), to_regclass(format('embed.queue_%s', source.id))
            )
            and c.relkind in ('r', 'p')
            and has_table_privilege(c.oid, 'update, delete, truncate')
            order by c.oid
        )
    );
    perform embed._drop_capture(source.id);
    execute format('drop table if exists embed.inbox_%1$s, embed.queue_%1$s', source.id);
    delete from embed.sweep_request r where r.source = source.id;
    delete from embed.lexical_term t where t.source = source.id;
    delete from embed._own_source x where x.id = source.id;
    if (drop_vectors or source.into_column is not null)
        and exists (select from pg_class c where c.oid = source.vectors) then
        execute format('drop table %s', source.vectors);
    else
        -- They stay without the index that needs a function of ours.
        for index in select x.index::regclass::text from embed._words_indexes(source) as x loop
            execute format('drop index %s', index);
        end loop;
    end if;
end
$$;

create or replace function embed.disable(
    relation regclass, drop_vectors boolean default false, name text default null
) returns void
language plpgsql
as $$
declare
    s embed.source;
    was text;
    any_found boolean := false;
begin
    perform embed._require_role(
        'embed_admin', pg_catalog.has_table_privilege('embed._own_source', 'delete'), 'embed.disable'
    );
    perform pg_catalog.pg_advisory_xact_lock(embed._lock_global(), embed._turn_enable());
    for s in
        select * from embed.source x
        where x.relation = disable.relation and (disable.name is null or x.name = disable.name)
    loop
        any_found := true;
        perform embed._require_owner(s.relation),
            embed._require_enabler(s.id);
        perform embed._forget(s, drop_vectors);
        if drop_vectors and embed._column_name(relation, s.into_attnum) is not null then
            was := pg_catalog.current_setting('embed.writing', true);
            perform pg_catalog.set_config('embed.writing', 'on', true);
            execute format(
                'update %s set %I = null where %2$I is not null', relation, embed._column_name(relation, s.into_attnum)
            );
            perform pg_catalog.set_config('embed.writing', coalesce(was, ''), true);
        end if;
    end loop;
    if not any_found then
        raise exception '% is not enabled%', relation, coalesce(' under the name ' || quote_literal(disable.name), '')
            using errcode = 'EW002', hint = 'See the view embed.status for what is.';
    end if;
    perform embed.wake();
end
$$;

comment on function embed.disable(regclass, boolean, text) is
    'Stops keeping vectors of a table; the vectors stay unless drop_vectors is true. Without a name it does so for all '
    'sources of the table.';

-- What embed.pause and embed.resume do.
create or replace function embed._set_paused(relation regclass, paused boolean, caller text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform embed._require_role('embed_admin', has_table_privilege('embed._own_source', 'update'), caller);
    perform embed._require_owner(relation);
    update embed._own_source s
    set paused = _set_paused.paused, version = nextval('embed.seq')
    where s.relation = _set_paused.relation;
    if not found then
        raise exception '% is not enabled', relation
            using errcode = 'EW002', hint = 'See the view embed.status for what is.';
    end if;
    perform embed.wake();
end
$$;

create or replace function embed.pause(relation regclass) returns void
language sql
return embed._set_paused(relation, true, 'embed.pause'::text);

comment on function embed.pause(regclass) is
    'Changes are still captured, but not worked on until embed.resume. Workers finish what they have claimed.';

create or replace function embed.resume(relation regclass) returns void
language sql
return embed._set_paused(relation, false, 'embed.resume'::text);

comment on function embed.resume(regclass) is 'Takes a paused table up again.';
