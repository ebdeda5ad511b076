-- Change capture: the trigger functions of one source, generated with its names written in.
--
-- Static statements, because they run in the application's statement (a dynamic one costs a parse
-- and a plan each time). A rename or drop of a column would make them fail, and with them the
-- application's write; so every function first tries whether its names still hold, in a block that
-- reads only (no subtransaction id is spent), and if not, asks for a sweep instead. The worker then
-- writes the functions anew and finds by text hash what was missed.
--
-- They run as their owner: the application's roles need no rights on our tables. Those that run at every
-- statement have no search_path of their own: to set it and to take it back cost about as much as all
-- else that they do (16 writers of single rows: 0.59 of the rate without triggers with it, 0.70 without).
-- Instead every name in them is qualified, operators and types too. For the same reason embed.wake is written
-- in where rows are noted: to call it was worth a twentieth of that rate.

-- Fails to be found where the types differ, which is how a trigger notices that its table's key was
-- given another type (an integer key made bigint no longer fits our integer columns).
create or replace function embed._same_type(a anyelement, b anyelement) returns boolean
language sql immutable
as 'select true';

-- The pattern once for each name, %1$s the name and %2$s its place, with a separator between.
create or replace function embed._each(pattern text, names text[], separator text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return (
    select string_agg(format(pattern, n.name, n.place), separator order by n.place)
    from unnest(names) with ordinality as n (name, place)
);

-- Whether a source is captured row by row. A statement trigger sees only statements that name its
-- own table: not what is sent to a partition, nor what reaches a partition or an inheritance child
-- through its parent. Once row by row, always: the triggers are not exchanged back.
create or replace function embed._captures_rows(source embed.source) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return exists (select from pg_class c where c.oid = source.relation and c.relkind = 'p')
    or exists (select from pg_inherits i where i.inhrelid = source.relation)
    or exists (
        select from pg_trigger t where t.tgrelid = source.relation and t.tgname = format('embed_%s_row', source.id)
    );

-- Writes one of the functions; pinned, with a search_path that its names are looked up in.
create or replace function embed._write_trigger_function(source integer, verb text, body text, pinned boolean default true) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format(
        'create or replace function embed.%I() returns trigger language plpgsql security definer %s as %L',
        format('source_%s_%s', source, verb), case when pinned then 'set search_path = pg_catalog, pg_temp' else '' end, body
    );
end
$$;

-- Writes the functions; takes no lock on the table, so a worker may do it at any time.
create or replace function embed._write_capture(source embed.source) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $write$
declare
    names text[];
    types text[];
    equals text[];
    watched text[] := array(
        select quote_ident(embed._column_name(source.relation, w.attnum))
        from unnest(source.watch_attnums) as w (attnum)
    );
    -- As text, byte for byte: json has no equality, and citext's would miss a change of case. By output
    -- functions (see embed._column_sql): a cast to text may be the function of whoever owns the type,
    -- and ran as the owner of these functions, who can be a superuser.
    changed constant text := embed._each(
        '(old_row.%1$s is null) operator(pg_catalog.<>) (new_row.%1$s is null) or pg_catalog.format(''%%s'', old_row.%1$s) collate pg_catalog."C" operator(pg_catalog.<>) pg_catalog.format(''%%s'', new_row.%1$s) collate pg_catalog."C"',
        watched, ' or '
    );
    -- A row inserted with nothing to read needs no work. A virtual column is not computed yet in a
    -- trigger, so nothing is known of its text there.
    present constant text := coalesce(
        (
            select format('pg_catalog.concat(%s) collate pg_catalog."C" operator(pg_catalog.<>) %L', string_agg(format('new_row.%I', a.attname), ', '), '')
            from pg_attribute a
            where a.attrelid = source.relation and a.attnum = any (source.column_attnums)
            having not bool_or(a.attgenerated::text = 'v')
        ),
        'true'
    );
    give_up constant text := format(
        $b$
        insert into embed.sweep_request (source, reason)
        select %1$s, 'columns changed'
        where not exists (
            select from embed.sweep_request r
            where r.source operator(pg_catalog.=) %1$s and r.reason operator(pg_catalog.=) 'columns changed'
        );
        perform embed.wake();
        return null;$b$,
        source.id
    );
    places text;
    event record;
begin
    select
        array_agg(x.row_name order by x.place),
        array_agg(case when t.oid is not null then format('%I.%I', n.nspname, t.typname) end order by x.place),
        array_agg(x.equal order by x.place),
        string_agg(x.queue_name, ', ' order by x.place)
    into names, types, equals, places
    from embed._keys(source) as x
    left join pg_attribute a on a.attrelid = source.relation and a.attnum = source.key_attnums[x.place]
    left join pg_type t on t.oid = a.atttypid
    left join pg_namespace n on n.oid = t.typnamespace;
    if array_position(names, null) is not null or array_position(watched, null) is not null then
        raise exception 'a key or text column of % was dropped', source.relation
            using errcode = 'EW004',
            hint = 'Call embed.disable and then embed.enable with the columns that are there.';
    end if;
    if embed._captures_rows(source) then
        perform embed._write_trigger_function(source.id, 'row', format(
            $b$
declare
    n embed.inbox_%1$s%%rowtype;
    o embed.inbox_%1$s%%rowtype;
    new_row alias for new;
    old_row alias for old;
    moved boolean := false;
    wanted boolean := true;
begin
    begin
        -- A key of another type would be cast to ours.
        if tg_op operator(pg_catalog.<>) 'DELETE' then
            if %11$s then
                raise datatype_mismatch;
            end if;
            %2$s
        end if;
        if tg_op operator(pg_catalog.<>) 'INSERT' then
            if %12$s then
                raise datatype_mismatch;
            end if;
            %3$s
        end if;
        if tg_op operator(pg_catalog.=) 'INSERT' then
            wanted := %4$s;
        elsif tg_op operator(pg_catalog.=) 'UPDATE' then
            moved := not (%5$s);
            wanted := %6$s;
        end if;
    exception when syntax_error_or_access_rule_violation or data_exception then%7$s
    end;
    -- Of a changed key both go in: the old one's vector goes, the new one's is made.
    if moved then
        insert into embed.inbox_%1$s (%8$s) values (%9$s), (%10$s);
    elsif tg_op operator(pg_catalog.=) 'DELETE' then
        insert into embed.inbox_%1$s (%8$s) values (%9$s);
    elsif wanted then
        insert into embed.inbox_%1$s (%8$s) values (%10$s);
    else
        return null;
    end if;
    if embed._notifies() and pg_catalog.pg_try_advisory_xact_lock(1701667428, 1) then
        perform pg_catalog.pg_notify('embed', '');
    end if;
    return null;
end$b$,
            source.id,
            embed._each('n.k%2$s := new.%1$s;', names, ' '),
            embed._each('o.k%2$s := old.%1$s;', names, ' '),
            present,
            embed._each('o.k%2$s %1$s n.k%2$s', equals, ' and '),
            changed,
            give_up,
            places,
            embed._each('o.k%2$s', names, ', '),
            embed._each('n.k%2$s', names, ', '),
            (select string_agg(format('pg_catalog.pg_typeof(new.%s) operator(pg_catalog.<>) %L::pg_catalog.regtype', k.name, k.type), ' or ') from unnest(names, types) as k (name, type)),
            (select string_agg(format('pg_catalog.pg_typeof(old.%s) operator(pg_catalog.<>) %L::pg_catalog.regtype', k.name, k.type), ' or ') from unnest(names, types) as k (name, type))
        ), pinned => false);
        -- The table was captured by statements before it got a parent; dropping those triggers
        -- would lock it against readers.
        perform embed._silence_capture(source.id, array['insert', 'update', 'delete']);
    else
        for event in
            select *
            from (values
                (
                    'insert',
                    'new_rows',
                    format('select %s from new_rows new_row where %s', embed._each('new_row.%1$s', names, ', '), present)
                ),
                -- Of a changed key both come out: the old one's vector goes, the new one's is made.
                (
                    'update',
                    'old_rows',
                    format(
                        'select %s from old_rows old_row full join new_rows new_row on %s where old_row.%s is null or new_row.%s is null or %s',
                        embed._each('coalesce(new_row.%1$s, old_row.%1$s)', names, ', '),
                        (
                            select string_agg(format('old_row.%1$s %2$s new_row.%1$s', k.name, k.equal), ' and ')
                            from unnest(names, equals) as k (name, equal)
                        ),
                        names[1], names[1], changed
                    )
                ),
                (
                    'delete',
                    'old_rows',
                    format('select %s from old_rows old_row', embed._each('old_row.%1$s', names, ', '))
                )
            ) as e (verb, transition, query)
        loop
            perform embed._write_trigger_function(source.id, event.verb, format(
                $b$
begin
    begin
        perform from (%1$s) as names_hold, %2$s as types_hold where false and %3$s;
    exception when syntax_error_or_access_rule_violation then%4$s
    end;
    insert into embed.inbox_%5$s (%6$s) %1$s;
    if found and embed._notifies() and pg_catalog.pg_try_advisory_xact_lock(1701667428, 1) then
        perform pg_catalog.pg_notify('embed', '');
    end if;
    return null;
end$b$,
                event.query, event.transition,
                (
                    select string_agg(format('embed._same_type(types_hold.%s, null::%s)', k.name, k.type), ' and ')
                    from unnest(names, types) as k (name, type)
                ),
                give_up, source.id, places
            ), pinned => false);
        end loop;
    end if;

    -- For a worker that may not write these functions anew itself, see embed._refresh_source.
    execute format(
        'create or replace function embed.source_%1$s_refresh() returns text language sql security definer set search_path = pg_catalog, pg_temp as ''select embed._refresh(%1$s)''',
        source.id
    );

    -- TRUNCATE: the rows are gone, so their vectors are orphans, and the worker clears them.
    perform embed._write_trigger_function(source.id, 'truncate', format(
        $b$
begin
    insert into embed.sweep_request (source, reason) values (%s, 'truncate');
    perform embed.wake();
    return null;
end$b$,
        source.id
    ));
end
$write$;

-- The triggers that a source needs and that its tables do not have yet.
create or replace function embed._missing_triggers(source embed.source)
returns table (relation regclass, trigger_name text, definition text)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    with recursive tree as (
        select (source).relation as relation, c.relkind = 'p' as partitioned from pg_class c where c.oid = (source).relation
        union
        -- Not pg_partition_tree, which waits for locks on the partitions.
        select i.inhrelid::regclass, c.relkind = 'p'
        from tree t
        join pg_inherits i on i.inhparent = t.relation and t.partitioned
        join pg_class c on c.oid = i.inhrelid
    ),
    wanted as (
        -- One an event: transition tables allow neither several events nor UPDATE OF.
        select (source).relation as relation, e.verb, format('after %s on %s referencing %s for each statement', e.verb, (source).relation, e.tables) as rule
        from (values
            ('insert', 'new table as new_rows'),
            ('update', 'old table as old_rows new table as new_rows'),
            ('delete', 'old table as old_rows')
        ) as e (verb, tables)
        where not embed._captures_rows(source)
        union all
        -- Partitions inherit it, those attached later too.
        select (source).relation, 'row', format('after insert or update or delete on %s for each row', (source).relation)
        where embed._captures_rows(source)
        union all
        -- This one they do not inherit.
        select t.relation, 'truncate', format('after truncate on %s for each statement', t.relation) from tree t
    )
    select
        w.relation,
        format('embed_%s_%s', (source).id, w.verb),
        format(
            'create trigger %I %s execute function embed.%I()',
            format('embed_%s_%s', (source).id, w.verb), w.rule, format('source_%s_%s', (source).id, w.verb)
        )
    from wanted w
    where not exists (
        select from pg_trigger t where t.tgrelid = w.relation and t.tgname = format('embed_%s_%s', (source).id, w.verb)
    );
end;

-- Puts the triggers on the tables, which locks them against writers for a moment. Says whether it
-- did. A worker does not wait for the lock, since writers would wait behind it.
create or replace function embed._attach_capture(source embed.source, wait boolean default true) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    m record;
begin
    if not wait then
        for m in select distinct x.relation, c.relkind from embed._missing_triggers(source) as x join pg_class c on c.oid = x.relation loop
            execute format(
                'lock table %s %s in share row exclusive mode nowait',
                case when m.relkind = 'p' then '' else 'only' end, m.relation
            );
        end loop;
    end if;
    for m in select * from embed._missing_triggers(source) loop
        execute m.definition;
    end loop;
    return found;
end
$$;

-- The functions of a source whose columns are gone must do nothing, or every write would ask anew.
create or replace function embed._silence_capture(
    source integer, verbs text[] default array['insert', 'update', 'delete', 'row', 'truncate']
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    silent constant text := 'begin return null; end';
    a_verb text;
begin
    for a_verb in
        select v.verb
        from unnest(verbs) as v (verb)
        join pg_proc p on p.proname = format('source_%s_%s', source, v.verb) and p.pronamespace = 'embed'::regnamespace
        where p.prosrc <> silent
    loop
        perform embed._write_trigger_function(source, a_verb, silent);
    end loop;
end
$$;

create or replace function embed._drop_capture(source integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    signature text;
begin
    for signature in
        select p.oid::regprocedure::text
        from pg_proc p
        where p.pronamespace = 'embed'::regnamespace
        and p.proname in (
            select format('source_%s_%s', source, verb)
            from unnest(array['insert', 'update', 'delete', 'truncate', 'row', 'open', 'visible', 'refresh']) as verb
        )
    loop
        -- What depends on them goes with them: triggers, and the policy of the vectors.
        execute format('drop function %s cascade', signature);
    end loop;
end
$$;
