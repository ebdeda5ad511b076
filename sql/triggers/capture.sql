-- Change capture: the trigger functions of one source, generated with its names written in.
--
-- Static statements, because they run in the application's statement (a dynamic one costs a parse
-- and a plan each time). A rename or drop of a column would make them fail, and with them the
-- application's write; so every function first tries whether its names still hold, in a block that
-- reads only (no subtransaction id is spent), and if not, asks for a sweep instead. The worker then
-- writes the functions again and finds by text hash what was missed.
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
    -- functions (see embed._column_sql): a cast to text may be the function of the owner of the type,
    -- and ran as the owner of these functions, who can be a superuser.
    changed constant text := embed._each(
        '(old_row.%1$s is null) operator(pg_catalog.<>) (new_row.%1$s is null) or pg_catalog.format(''%%s'', '
        'old_row.%1$s) collate pg_catalog."C" operator(pg_catalog.<>) pg_catalog.format(''%%s'', new_row.%1$s) collate '
        'pg_catalog."C"',
        watched, ' or '
    );
    -- A row inserted with nothing to read needs no work. A virtual column is not computed yet in a
    -- trigger, so nothing is known of its text there.
    present constant text := coalesce(
        (
            select format(
                'pg_catalog.concat(%s) collate pg_catalog."C" operator(pg_catalog.<>) %L',
                string_agg(format('new_row.%I', a.attname), ', '),
                ''
            )
            from pg_attribute a
            where a.attrelid = source.relation and a.attnum = any (source.column_attnums)
            having not bool_or(a.attgenerated::text = 'v')
        ),
        'true'
    );
    -- The role that enabled the table may have lost embed_admin. The application's write must not fail for that. The
    -- next look of a worker, a minute later at most, finds by itself that the table is another.
    give_up constant text := embed._fill(
        $b$
        begin
            insert into embed.sweep_request (source, reason)
            select {id}, 'columns changed'
            where not exists (
                select from embed.sweep_request r
                where r.source operator(pg_catalog.=) {id} and r.reason operator(pg_catalog.=) 'columns changed'
            );
            perform embed.wake();
        exception when insufficient_privilege then null;
        end;
        return null;$b$,
        jsonb_build_object('id', source.id)
    );
    wake constant text := embed._fill(
        $b$embed._notifies() and pg_catalog.pg_try_advisory_xact_lock({global}, {notify}) then
        perform pg_catalog.pg_notify('embed', '');
    end if;$b$,
        jsonb_build_object('global', embed._lock_global(), 'notify', embed._turn_notify())
    );
    words jsonb;
    event record;
begin
    select
        array_agg(x.row_name order by x.place),
        array_agg(case when t.oid is not null then format('%I.%I', n.nspname, t.typname) end order by x.place),
        array_agg(x.equal order by x.place)
    into names, types, equals
    from embed._keys(source) as x
    left join pg_attribute a on a.attrelid = source.relation and a.attnum = source.key_attnums[x.place]
    left join pg_type t on t.oid = a.atttypid
    left join pg_namespace n on n.oid = t.typnamespace;
    if array_position(names, null) is not null or array_position(watched, null) is not null then
        raise exception 'a key or text column of % was dropped', source.relation
            using errcode = 'EW004',
            hint = 'Call embed.disable and then embed.enable with the columns that are there.';
    end if;
    words := jsonb_build_object(
        'id', source.id, 'inbox', format('embed.inbox_%s', source.id), 'give_up', give_up, 'wake', wake,
        'present', present, 'changed', changed, 'places', embed._each('k%2$s', names, ', ')
    );
    if embed._captures_rows(source) then
        perform embed._write_trigger_function(source.id, 'row'::text, embed._fill(
            $b$
declare
    n {inbox}%rowtype;
    o {inbox}%rowtype;
    new_row alias for new;
    old_row alias for old;
    moved boolean := false;
    wanted boolean := true;
begin
    begin
        -- A key of another type would be cast to ours.
        if tg_op operator(pg_catalog.<>) 'DELETE' then
            if {new_type_differs} then
                raise datatype_mismatch;
            end if;
            {note_new}
        end if;
        if tg_op operator(pg_catalog.<>) 'INSERT' then
            if {old_type_differs} then
                raise datatype_mismatch;
            end if;
            {note_old}
        end if;
        if tg_op operator(pg_catalog.=) 'INSERT' then
            wanted := {present};
        elsif tg_op operator(pg_catalog.=) 'UPDATE' then
            moved := not ({same_key});
            wanted := {changed};
        end if;
    exception when syntax_error_or_access_rule_violation or data_exception then{give_up}
    end;
    -- Of a changed key both go in: the old one's vector goes, the new one's is made.
    if moved then
        insert into {inbox} ({places}) values ({old_key}), ({new_key});
    elsif tg_op operator(pg_catalog.=) 'DELETE' then
        insert into {inbox} ({places}) values ({old_key});
    elsif wanted then
        insert into {inbox} ({places}) values ({new_key});
    else
        return null;
    end if;
    if {wake}
    return null;
end$b$,
            words || jsonb_build_object(
                'note_new', embed._each('n.k%2$s := new.%1$s;', names, ' '),
                'note_old', embed._each('o.k%2$s := old.%1$s;', names, ' '),
                'same_key', embed._each('o.k%2$s %1$s n.k%2$s', equals, ' and '),
                'old_key', embed._each('o.k%2$s', names, ', '),
                'new_key', embed._each('n.k%2$s', names, ', '),
                'new_type_differs', (
                    select string_agg(
                        format(
                            'pg_catalog.pg_typeof(new.%s) operator(pg_catalog.<>) %L::pg_catalog.regtype',
                            k.name,
                            k.type
                        ),
                        ' or '
                    )
                    from unnest(names, types) as k (name, type)
                ),
                'old_type_differs', (
                    select string_agg(
                        format(
                            'pg_catalog.pg_typeof(old.%s) operator(pg_catalog.<>) %L::pg_catalog.regtype',
                            k.name,
                            k.type
                        ),
                        ' or '
                    )
                    from unnest(names, types) as k (name, type)
                )
            )
        ), pinned => false);
        -- The table was captured by statements before it got a parent; dropping those triggers
        -- would lock it against readers.
        perform embed._silence_capture(source.id, array['insert', 'update', 'delete']::text[]);
    else
        for event in
            select *
            from (values
                (
                    'insert',
                    'new_rows',
                    format(
                        'select %s from new_rows new_row where %s', embed._each('new_row.%1$s', names, ', '), present
                    )
                ),
                -- Of a changed key both come out: the old one's vector goes, the new one's is made.
                (
                    'update',
                    'old_rows',
                    format(
                        'select %s from old_rows old_row full join new_rows new_row on %s where old_row.%s is null or '
                        'new_row.%s is null or %s',
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
            perform embed._write_trigger_function(source.id, event.verb, embed._fill(
                $b$
begin
    begin
        perform from ({query}) as names_hold, {transition} as types_hold where false and {types_hold};
    exception when syntax_error_or_access_rule_violation then{give_up}
    end;
    insert into {inbox} ({places}) {query};
    if found and {wake}
    return null;
end$b$,
                words || jsonb_build_object(
                    'query', event.query,
                    'transition', event.transition,
                    'types_hold', (
                        select string_agg(format('embed._same_type(types_hold.%s, null::%s)', k.name, k.type), ' and ')
                        from unnest(names, types) as k (name, type)
                    )
                )
            ), pinned => false);
        end loop;
    end if;

    -- For a worker that may not write these functions again itself, see embed._refresh_source.
    perform embed._check_function(source.id, 'refresh');
    execute format(
        'create or replace function embed.source_%1$s_refresh() returns text language sql security definer set '
        'search_path = pg_catalog, pg_temp as ''select embed._refresh(%1$s) -- written by %2$s''',
        source.id, embed._edition()
    );
    perform embed._give_function(source.id, format('embed.source_%s_refresh()', source.id));

    -- TRUNCATE: the rows are gone, so their vectors are orphans, and the worker clears them.
    perform embed._write_trigger_function(source.id, 'truncate'::text, embed._fill(
        $b$
begin
    insert into embed.sweep_request (source, reason) values ({id}, 'truncate');
    perform embed.wake();
    return null;
exception when insufficient_privilege then
    return null; -- see above: the files of the table are others
end$b$,
        words
    ), pinned => true);
end
$write$;
