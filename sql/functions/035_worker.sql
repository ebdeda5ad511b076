-- What the worker asks of the schema. Kept apart from what people call: these may be added to, but
-- never changed in place while a worker of the version before may be running.

-- What the trigger functions of a source and the worker's statements are written for. When it
-- changes, both are written anew.
create or replace function embed._structure(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod), ',' order by a.attnum)
        || ' ' || min(c.oid::text) || ' ' || min(c.relname) || ' ' || min(c.relnamespace::text)
        || ' ' || (select count(*) from pg_partition_tree(source.relation))
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid
        and a.attnum = any (source.key_attnums || source.watch_attnums || source.column_attnums || coalesce(source.into_attnum, 0::smallint))
    where c.oid = source.relation
);

-- Bring a source in line with its table. Returns what happened: 'same', 'changed', 'gone' (the
-- table was dropped and all of ours with it), or a sentence that says what stands in the way.
create or replace function embed._refresh(source_id integer) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    s embed.source;
    now_is text;
    lost text;
begin
    select * into s from embed.source x where x.id = source_id;
    if not found then
        return 'gone';
    end if;
    if not exists (select from pg_class where oid = s.relation) then
        execute format('drop table if exists embed.inbox_%1$s, embed.queue_%1$s', s.id);
        if exists (select from pg_class where oid = s.vectors) then
            execute format('drop table %s', s.vectors);
        end if;
        perform embed._drop_capture(s.id);
        delete from embed.sweep_request r where r.source = s.id;
        delete from embed.source x where x.id = s.id;
        return 'gone';
    end if;
    if not exists (select from pg_class where oid = s.vectors) then
        return format('the table that holds the vectors of %s was dropped; call embed.disable(%L) and enable it again', s.relation, s.relation::text);
    end if;

    if s.relation_oid <> s.relation then
        -- Restored from a dump: the names are as they were, the numbers need not be.
        update embed.source x
        set relation_oid = s.relation,
            key_attnums = (select array_agg(a.attnum order by n.place) from unnest(s.keys) with ordinality as n (name, place)
                join pg_attribute a on a.attrelid = s.relation and a.attname = n.name and not a.attisdropped),
            column_attnums = (select array_agg(a.attnum order by n.place) from unnest(s.columns) with ordinality as n (name, place)
                join pg_attribute a on a.attrelid = s.relation and a.attname = n.name and not a.attisdropped),
            into_attnum = (select a.attnum from pg_attribute a where a.attrelid = s.relation and a.attname = s.into_column)
        where x.id = s.id
        returning * into s;
        update embed.source x
        set watch_attnums = embed._stored_attnums(s.relation, s.column_attnums
            || case when s.filter is null then '{}'::smallint[] else embed._columns_read(s.relation, s.filter) end)
        where x.id = s.id
        returning * into s;
    end if;

    select string_agg(n.name, ', ') into lost
    from unnest(s.keys || s.columns || s.into_column, s.key_attnums || s.column_attnums || s.into_attnum) as n (name, attnum)
    where n.name is not null and embed._column_name(s.relation, n.attnum) is null;
    if lost is null and exists (
        select from unnest(s.watch_attnums) as w (attnum) where embed._column_name(s.relation, w.attnum) is null
    ) then
        lost := 'a column of its filter';
    end if;
    if lost is not null then
        perform embed._silence_capture(s.id);
        return format('%s of %s was dropped; call embed.disable(%L) and enable it with the columns that are there', lost, s.relation, s.relation::text);
    end if;
    select string_agg(format('%s from %s to %s', a.attname, format_type(i.atttypid, i.atttypmod), format_type(a.atttypid, a.atttypmod)), ', ') into lost
    from unnest(s.key_attnums) with ordinality as k (attnum, place)
    join pg_attribute a on a.attrelid = s.relation and a.attnum = k.attnum
    join pg_attribute i on i.attrelid = format('embed.inbox_%s', s.id)::regclass and i.attname = 'k' || k.place
    where a.atttypid <> i.atttypid;
    if lost is not null then
        perform embed._silence_capture(s.id);
        return format('the key of %s changed its type, %s; call embed.disable(%L, drop_vectors => true) and enable it again', s.relation, lost, s.relation::text);
    end if;

    now_is := embed._structure(s);
    if now_is is not distinct from (select t.structure from embed.source_state t where t.source = s.id) then
        return 'same';
    end if;
    update embed.source x
    set columns = (select array_agg(embed._column_name(s.relation, c.attnum) order by c.place)
            from unnest(s.column_attnums) with ordinality as c (attnum, place)),
        into_column = embed._column_name(s.relation, s.into_attnum)
    where x.id = s.id
    returning * into s;
    perform embed._write_capture(s);
    update embed.source_state t set structure = now_is where t.source = s.id;
    return 'changed';
end
$$;

-- One look at everything: which sources there are, and which have work. The cursors let the look
-- start behind rows that are done but not yet vacuumed (an old snapshot somewhere may keep them).
create or replace function embed._poll(after jsonb)
returns table (source integer, version bigint, paused boolean, work boolean, sweep boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    for source, version, paused, sweep in
        select s.id, s.version, s.paused, exists (select from embed.sweep_request r where r.source = s.id)
        from embed.source s
        order by s.id
    loop
        work := false;
        if not paused then
            begin
                execute format(
                    'select exists (select from embed.inbox_%1$s where seq > $1 order by seq limit 1)
                        or exists (
                            select from embed.queue_%1$s
                            where priority = any ($3) and due < ''infinity'' and due <= now() and due >= $2
                        )',
                    source
                )
                into work
                using
                    coalesce((after -> source::text ->> 0)::bigint, 0),
                    coalesce((after -> source::text ->> 1)::timestamptz, '-infinity'),
                    array[0, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]::smallint[];
            exception when undefined_table then
                continue;
            end;
        end if;
        return next;
    end loop;
end
$$;
