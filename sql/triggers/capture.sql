-- Change capture: the trigger functions of one source, generated with its names written in.
--
-- Static statements, because they run in the application's statement (a dynamic one costs a parse
-- and a plan each time). A rename or drop of a column would make them fail, and with them the
-- application's write; so every function first tries whether its names still hold, in a block that
-- reads only (no subtransaction id is spent), and if not, asks for a sweep instead. The worker then
-- writes the functions anew and finds by text hash what was missed.
--
-- They run as their owner: the application's roles need no rights on our tables.

-- Fails to be found where the types differ, which is how a trigger notices that its table's key was
-- given another type (an integer key made bigint no longer fits our integer columns).
create or replace function embed._same_type(a anyelement, b anyelement) returns boolean
language sql immutable
as 'select true';

-- Writes the functions; takes no lock on the table, so a worker may do it at any time.
create or replace function embed._write_capture(source embed.source) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $write$
declare
    names text[] := array(
        select quote_ident(embed._column_name(source.relation, k.attnum))
        from unnest(source.key_attnums) with ordinality as k (attnum, place)
        order by k.place
    );
    inbox text := format('embed.inbox_%s', source.id);
    places text := (select string_agg('k' || i, ', ' order by i) from generate_subscripts(names, 1) as i);
    new_keys text := (select string_agg('n.' || names[i], ', ' order by i) from generate_subscripts(names, 1) as i);
    old_keys text := (select string_agg('o.' || names[i], ', ' order by i) from generate_subscripts(names, 1) as i);
    either_keys text := (
        select string_agg(format('coalesce(n.%1$s, o.%1$s)', names[i]), ', ' order by i)
        from generate_subscripts(names, 1) as i
    );
    same_key text := (
        select string_agg(format('o.%1$s = n.%1$s', names[i]), ' and ' order by i)
        from generate_subscripts(names, 1) as i
    );
    changed text := (
        -- As text, byte for byte: json has no equality, and citext's would miss a change of case.
        select string_agg(
            format(
                '(o.%1$I)::text collate "C" is distinct from (n.%1$I)::text collate "C"',
                embed._column_name(source.relation, w.attnum)
            ),
            ' or '
        )
        from unnest(source.watch_attnums) as w (attnum)
    );
    -- A row inserted with nothing to read needs no work. A virtual column is not computed yet in a
    -- trigger, so nothing is known of its text there.
    present text := coalesce(
        (
            select string_agg(format('(n.%I)::text <> %L', a.attname, ''), ' or ')
            from pg_attribute a
            where a.attrelid = source.relation and a.attnum = any (source.column_attnums)
            having not bool_or(a.attgenerated::text = 'v')
        ),
        'true'
    );
    same_types text := (
        select string_agg(
            format('embed._same_type(%s.%s, null::%s)', '%1$s', names[i], format_type(a.atttypid, a.atttypmod)), ' and ' order by i
        )
        from generate_subscripts(names, 1) as i
        join pg_attribute a on a.attrelid = inbox::regclass and a.attname = 'k' || i
    );
    head constant text := $head$
create or replace function embed.%1$I() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $body$
%2$s
$body$
$head$;
    give_up text := format(
        $b$
        insert into embed.sweep_request (source, reason) values (%s, 'columns changed');
        perform embed.wake();
        return null;$b$,
        source.id
    );
    event record;
begin
    if array_position(names, null) is not null or changed is null then
        raise exception 'a key or text column of % was dropped', source.relation
            using errcode = 'EW004',
            hint = 'Call embed.disable and then embed.enable with the columns that are there.';
    end if;
    if (select relkind = 'p' from pg_class where oid = source.relation) then
        execute format(
            head,
            format('source_%s_row', source.id),
            format(
                $b$
declare
    n embed.inbox_%1$s%%rowtype;
    o embed.inbox_%1$s%%rowtype;
    wanted boolean := true;
begin
    begin
        if tg_op <> 'DELETE' then
            %2$s
        end if;
        if tg_op <> 'INSERT' then
            %3$s
        end if;
        if tg_op = 'INSERT' then
            wanted := %4$s;
        elsif tg_op = 'UPDATE' then
            wanted := %5$s;
        end if;
    exception when syntax_error_or_access_rule_violation or data_exception then%6$s
    end;
    if tg_op = 'UPDATE' and (%7$s) then
        insert into embed.inbox_%1$s (%8$s) values (%9$s), (%10$s);
    elsif tg_op = 'DELETE' then
        insert into embed.inbox_%1$s (%8$s) values (%9$s);
    elsif wanted then
        insert into embed.inbox_%1$s (%8$s) values (%10$s);
    else
        return null;
    end if;
    perform embed.wake();
    return null;
end$b$,
                source.id,
                (select string_agg(format('n.k%s := new.%s;', i, names[i]), ' ' order by i) from generate_subscripts(names, 1) as i),
                (select string_agg(format('o.k%s := old.%s;', i, names[i]), ' ' order by i) from generate_subscripts(names, 1) as i),
                replace(present, '(n.', '(new.'),
                replace(replace(changed, '(o.', '(old.'), '(n.', '(new.'),
                give_up,
                (select string_agg(format('n.k%1$s is distinct from o.k%1$s', i), ' or ') from generate_subscripts(names, 1) as i),
                places,
                (select string_agg('o.k' || i, ', ' order by i) from generate_subscripts(names, 1) as i),
                (select string_agg('n.k' || i, ', ' order by i) from generate_subscripts(names, 1) as i)
            )
        );
    else
        for event in
            select *
            from (values
                ('insert', format('select %s from new_rows n where %s', new_keys, present)),
                -- Of a changed key both come out: the old one's vector goes, the new one's is made.
                (
                    'update',
                    format(
                        'select %s from old_rows o full join new_rows n on %s where o.%s is null or n.%s is null or %s',
                        either_keys, same_key, names[1], names[1], changed
                    )
                ),
                ('delete', format('select %s from old_rows o', old_keys))
            ) as e (verb, query)
        loop
            execute format(
                head,
                format('source_%s_%s', source.id, event.verb),
                format(
                    $b$
begin
    begin
        perform from (%1$s) as names_hold where false;
        perform from %5$s as types_hold where false and %6$s;
    exception when syntax_error_or_access_rule_violation then%2$s
    end;
    insert into %3$s (%4$s) %1$s;
    if found then
        perform embed.wake();
    end if;
    return null;
end$b$,
                    event.query, give_up, inbox, places,
                    case event.verb when 'insert' then 'new_rows' else 'old_rows' end,
                    format(same_types, 'types_hold')
                )
            );
        end loop;
    end if;

    -- TRUNCATE: the rows are gone, so their vectors are orphans, and the worker clears them.
    execute format(
        head,
        format('source_%s_truncate', source.id),
        format(
            $b$
begin
    insert into embed.sweep_request (source, reason) values (%s, 'truncate');
    perform embed.wake();
    return null;
end$b$,
            source.id
        )
    );
end
$write$;

-- Puts the triggers on the table; locks it against writers for a moment, so only embed.enable does it.
create or replace function embed._attach_capture(source embed.source) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    verb text;
    leaf regclass;
    tables text;
begin
    if (select relkind = 'p' from pg_class where oid = source.relation) then
        -- Row triggers: a statement trigger on the root misses what is sent to a partition directly.
        -- Partitions attached later inherit them.
        execute format(
            'create or replace trigger %I after insert or update or delete on %s for each row execute function embed.%I()',
            format('embed_%s_row', source.id), source.relation, format('source_%s_row', source.id)
        );
    else
        -- One trigger an event: transition tables allow neither several events nor UPDATE OF.
        foreach verb in array array['insert', 'update', 'delete'] loop
            tables := case verb
                when 'insert' then 'new table as new_rows'
                when 'delete' then 'old table as old_rows'
                else 'old table as old_rows new table as new_rows'
            end;
            execute format(
                'create or replace trigger %I after %s on %s referencing %s for each statement execute function embed.%I()',
                format('embed_%s_%s', source.id, verb), verb, source.relation, tables,
                format('source_%s_%s', source.id, verb)
            );
        end loop;
    end if;
    for leaf in
        select t.relid from pg_partition_tree(source.relation) as t
        union
        select source.relation
    loop
        execute format(
            'create or replace trigger %I after truncate on %s for each statement execute function embed.%I()',
            format('embed_%s_truncate', source.id), leaf, format('source_%s_truncate', source.id)
        );
    end loop;
end
$$;

-- The functions of a source whose columns are gone must do nothing, or every write would ask anew.
create or replace function embed._silence_capture(source integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    f text;
begin
    for f in
        select p.proname
        from pg_proc p
        where p.pronamespace = 'embed'::regnamespace
        and p.proname in (
            select format('source_%s_%s', source, verb)
            from unnest(array['insert', 'update', 'delete', 'row']) as verb
        )
    loop
        execute format(
            'create or replace function embed.%I() returns trigger language plpgsql as $body$ begin return null; end $body$',
            f
        );
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
            from unnest(array['insert', 'update', 'delete', 'truncate', 'row']) as verb
        )
    loop
        -- The triggers depend on the functions and go with them.
        execute format('drop function %s cascade', signature);
    end loop;
end
$$;
