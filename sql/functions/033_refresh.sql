-- How a worker brings a source in line with its table, which may have been changed, restored or dropped.
-- Functions may be added to, but never changed in place while a worker of the version before may be running.

-- What stands in the way of a source whose table is there, a sentence; null if nothing does.
create or replace function embed._obstacle(source embed.source) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    again constant text := format(
        'call embed.disable(%L, name => %L, drop_vectors => true) and enable it again', source.relation::text,
        source.name
    );
    lost text;
begin
    if not exists (select from embed.source_state t where t.source = source.id) then
        return format(
            'embed.source_state has no row of %s; run `embedworker migrate`, which makes it', source.relation
        );
    end if;
    if not exists (select from pg_class where oid = source.vectors) then
        return format(
            'the table that holds the vectors of %s was dropped; call embed.enable to create it again', source.relation
        );
    end if;
    lost := embed._lacking_columns(source.vectors, source);
    if lost is not null then
        return coalesce(
            embed._foreign(source), format('the vectors of %s lack the columns %s; %s', source.relation, lost, again)
        );
    end if;
    select string_agg(n.name, ', ' order by n.name) into lost
    from unnest(
        source.keys || source.columns || source.into_column,
        source.key_attnums || source.column_attnums || source.into_attnum
    ) as n (name, attnum)
    where n.name is not null and embed._column_name(source.relation, n.attnum) is null;
    if lost is null and (source.filter is not null and embed._filter_sql(source) is null
        or exists (
            select
            from unnest(source.watch_attnums) as w (attnum)
            where embed._column_name(source.relation, w.attnum) is null
        ))
    then
        lost := 'a column of its filter';
    end if;
    if lost is not null then
        return format('%s of %s was dropped; %s with the columns that are there', lost, source.relation, again);
    end if;
    if not exists (select from embed._unique_keys(source.relation) as k where k.attnums <@ source.key_attnums) then
        return format(
            'rows of %s can have the same key (%s), because no primary key or unique index holds it any more; make one '
            'again, or %s',
            source.relation, array_to_string(source.keys, ', '), again
        );
    end if;
    select string_agg(
        format('%s from %s to %s', a.attname, format_type(i.atttypid, -1), format_type(a.atttypid, -1)), ', '
    )
    into lost
    from unnest(source.key_attnums) with ordinality as k (attnum, place)
    join pg_attribute a on a.attrelid = source.relation and a.attnum = k.attnum
    join pg_attribute i on i.attrelid = format('embed.inbox_%s', source.id)::regclass and i.attname = 'k' || k.place
    where embed._base_type(a.atttypid) <> i.atttypid;
    if lost is not null then
        return format('the key of %s changed its type, %s; %s', source.relation, lost, again);
    end if;
    select string_agg(format('%s is now of type %s', a.attname, format_type(a.atttypid, -1)), ', ') into lost
    from unnest(source.column_attnums) as c (attnum)
    join pg_attribute a on a.attrelid = source.relation and a.attnum = c.attnum
    where not embed._is_text(a.atttypid);
    if lost is not null then
        return format(
            '%s of %s, which is no text; make it text, varchar, char or citext again, or %s',
            lost,
            source.relation,
            again
        );
    end if;
    return null;
end
$$;

-- As a sweep does at its beginning: a worker that holds a row is to read it again.
create or replace function embed._read_again(source integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format(
        $q$update embed.queue_%s q
        set seq = nextval('embed.seq'), due = now(), claimed_by = null,
            attempts = case when q.attempts > 1 then q.attempts else 0 end,
            priority = case when q.attempts > 1 then q.priority else 0 end
        where q.claimed_by is not null and q.due < 'infinity'$q$,
        source
    );
end
$$;

-- What the functions of a source are written by: another edition writes others.
create or replace function embed._edition() returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select left(encode(sha256(convert_to(string_agg(p.prosrc, '' order by p.proname), 'UTF8')), 'hex'), 16)
    from pg_proc p
    where p.pronamespace = 'embed'::regnamespace
    and p.proname in (
        '_write_capture', '_write_trigger_function', '_guard_vectors', '_write_words', '_grant_worker', '_write_compact'
    )
);

-- Whether functions, policies and grants of a source are as this version writes them. An older version
-- wrote others, a dump without grants leaves some out, and a schema that is renamed gives the table another name.
create or replace function embed._is_written(source embed.source) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return coalesce((select g.readers and g.workers and g.granted from embed._guard(source) as g), true)
    and exists (
        select from pg_proc p
        where p.oid = to_regprocedure(format('embed.source_%s_refresh()', source.id))
        and strpos(p.prosrc, embed._edition()) > 0
    )
    and exists (
        select from pg_proc p
        where p.pronamespace = 'embed'::regnamespace and p.proname = format('source_%s_visible', source.id)
        and strpos(p.prosrc, embed._named_sql(source)) > 0
    );

-- A sentence where a source's table or vectors belong to a role for which the role that enabled it may not act:
-- then the row was changed or the table given away since. Null where not.
create or replace function embed._foreign(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select format(
        '%1$s belongs to %2$I, for whom %3$I, who enabled %4$s, may not act; as a superuser: grant %2$I to %3$I; or '
        'disable it and have %2$I enable it again',
        c.oid::regclass, pg_get_userbyid(c.relowner), pg_get_userbyid(i.relowner), source.relation
    )
    from pg_class i
    join pg_class c on c.oid in (source.relation, source.vectors)
    where i.oid = to_regclass(format('embed.inbox_%s', source.id))
    and not pg_has_role(i.relowner, c.relowner, 'usage')
    order by c.oid = source.relation desc
    limit 1
);

-- A sentence where the table survives a crash of the server and its vectors, or changes that wait, do not; else null.
create or replace function embed._unlogged(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select format(
        'a crash of the server empties %s, because unlogged; as the owner: %s',
        string_agg(c.oid::regclass::text, ', ' order by c.oid),
        string_agg(format('alter table %s set logged;', c.oid::regclass), ' ' order by c.oid)
    )
    from pg_class c
    where c.oid in (
        source.vectors, to_regclass(format('embed.inbox_%s', source.id)),
        to_regclass(format('embed.queue_%s', source.id))
    )
    and c.relpersistence = 'u'
    and exists (select from pg_class t where t.oid = source.relation and t.relpersistence = 'p')
    having count(*) > 0
);

-- Whether nothing is left of vectors that were counted: of an unlogged table after a crash of the server, or somebody
-- emptied it. The counters survive both.
create or replace function embed._lost_vectors(source embed.source) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
begin
    return pg_relation_size(source.vectors) = 0
        and 0 < (select sum(t.vectors) from embed.source_tally t where t.source = _lost_vectors.source.id);
exception when lock_not_available then
    return false; -- the next look asks again
end
$$;

-- Bring a source in line with its table. Returns what happened: 'same', 'changed', 'gone' (the
-- table was dropped and all of ours with it), or a sentence that says what stands in the way.
create or replace function embed._refresh(source_id integer) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    s embed.source;
    now_is text;
    obstacle text;
    changed boolean;
    outdated boolean;
begin
    select * into s from embed.source x where x.id = source_id;
    if not found then
        return 'gone';
    end if;
    perform embed._renew_token(s.id);
    now_is := embed._structure(s);
    changed := now_is is null or s.relation_oid <> s.relation
        or now_is is distinct from (select t.structure from embed.source_state t where t.source = s.id)
        or exists (select from embed._missing_triggers(s));
    outdated := not embed._is_written(s);
    -- embed.enable and embed.disable write the same functions, and so may another worker: the next
    -- look is early enough.
    -- Who enabled a table that was given away since would read what its new owner writes.
    obstacle := coalesce(embed._obstacle(s), embed._foreign(s));
    if (changed or outdated or obstacle is not null)
        and not pg_try_advisory_xact_lock(embed._lock_global(), embed._turn_enable()) then
        return case when now_is is null then 'gone' else coalesce(obstacle, 'same') end;
    end if;
    if now_is is null then
        begin
            perform embed._forget(s, embed._foreign(s) is null);
        exception when dependent_objects_still_exist then
            -- A view of somebody's on the vectors: then they stay, and it with them.
            perform embed._forget(s, false);
        end;
        return 'gone';
    end if;

    if s.relation_oid <> s.relation then
        s := embed._renumber(s);
        now_is := embed._structure(s);
        obstacle := coalesce(embed._obstacle(s), embed._foreign(s));
    end if;
    if obstacle is not null then
        perform embed._silence_capture(s.id, array['insert', 'update', 'delete', 'row', 'truncate']::text[]);
        delete from embed.sweep_request r where r.source = s.id;
        -- Should it be as it was again, that is a change.
        update embed.source_state t set structure = null where t.source = s.id and t.structure is not null;
        return obstacle;
    end if;
    if embed._lost_vectors(s) then
        insert into embed.sweep_request (source, reason)
        select s.id, 'vectors lost'
        where not exists (select from embed.sweep_request r where r.source = s.id);
    end if;
    -- What a trigger asked for that did not fit any more: it is seen to now.
    update embed.sweep_request r set reason = 'table changed' where r.source = s.id and r.reason = 'columns changed';
    if not changed and not outdated then
        return 'same';
    end if;
    if not changed then
        begin
            perform embed._write_capture(s);
            perform embed._guard_vectors(s, wait => false);
            perform embed._grant_worker(s);
        exception when lock_not_available then
            null; -- the next look tries again
        end;
        return 'same';
    end if;

    update embed._own_source x
    set columns = array(
        select embed._column_name(s.relation, c.attnum)
        from unnest(s.column_attnums) with ordinality as c (attnum, place)
        order by c.place
    ),
        into_column = embed._column_name(s.relation, s.into_attnum)
    where x.id = s.id
    returning * into s;
    perform embed._write_capture(s);
    begin
        perform embed._attach_capture(s, wait => false);
        perform embed._guard_vectors(s, wait => false);
        perform embed._grant_worker(s);
        -- Triggers that were just made are no change. Of all else, only what was looked at above counts.
        now_is := (now_is::jsonb || jsonb_build_object('triggers', embed._structure(s)::jsonb -> 'triggers'))::text;
    exception when lock_not_available then
        now_is := null;  -- so that the next look tries again
    end;
    update embed.source_state t set structure = now_is where t.source = s.id;
    insert into embed.sweep_request (source, reason)
    select s.id, 'table changed'
    where not exists (select from embed.sweep_request r where r.source = s.id);
    return 'changed';
end
$$;
