-- How the two sides of a switch exchange their names, in one transaction.

-- Makes the column beside that of a source, for other vectors. Who was granted the column is granted this one. One of
-- the application is refused, because embed.end_switch drops the column with its data.
drop function if exists embed._make_next_column(embed.source, text);
create or replace function embed._make_next_column(source embed.source, model text, storage text) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    column_name constant text := embed._bounded_name(source.into_column, '_next');
    statement text;
begin
    if exists (
        select from pg_attribute a
        where a.attrelid = source.relation and a.attname = column_name and a.attnum > 0 and not a.attisdropped
    ) then
        raise exception '% has a column %, whose name the other vectors need', source.relation, quote_ident(column_name)
            using errcode = 'EW003',
            hint = format(
                'Rename it with alter table %s rename column %I to …, or drop it. embed.end_switch drops the column '
                'that the switch makes.',
                source.relation, column_name
            );
    end if;
    perform embed._require_owner(source.relation), embed._lock_tables(array[source.relation]);
    execute format(
        'alter table %s add column %I @extschema:vector@.%I(%s)',
        source.relation, column_name, storage,
        -- An unknown model is refused by embed.enable, which says which are known.
        coalesce((select m.dimensions from embed.model m where m.name = _make_next_column.model), source.dimensions)
    );
    for statement in
        select format(
            'grant %s (%I) on %s to %s', g.privilege_type, column_name, source.relation,
            case g.grantee when 0 then 'public' else g.grantee::regrole::text end
        )
        from pg_attribute a
        cross join lateral aclexplode(a.attacl) as g
        where a.attrelid = source.relation and a.attnum = source.into_attnum
    loop
        execute statement;
    end loop;
    return column_name;
end
$$;

-- A switch, and all others that are cut over with it.
create or replace function embed._taken_together(switch embed.switch_state) returns setof embed.switch_state
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    w embed.switch_state;
begin
    for w in
        select x.* from embed.switch_state x
        where x.source = switch.source or switch.together and x.together
        order by x.source
    loop
        perform embed._require_owner(s.relation), embed._require_enabler(s.id)
        from embed.source s
        where s.id in (w.source, w.successor);
        return next w;
    end loop;
end
$$;

-- Refuses to change the default model while a table follows it that would not be cut over with the others.
create or replace function embed._require_all_followers() returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    others constant text := (
        select string_agg(s.relation::text, ', ' order by s.id)
        from embed.source s
        where s.model is null
        and not exists (select from embed.switch_state w where w.together and s.id in (w.source, w.successor))
    );
begin
    if others is not null then
        raise exception 'tables follow the default model whose vectors are not being changed: %', others
            using errcode = 'EW010',
            hint =
                'Call embed.use_model(name, switch => true) again to begin with them, or name their model in '
                'embed.enable.';
    end if;
end
$$;

-- Refuses a source whose table or column of vectors was dropped.
create or replace function embed._require_vectors(source embed.source) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if (case when source.into_attnum is null
        then not exists (select from pg_class c where c.oid = source.vectors)
        else embed._column_name(source.relation, source.into_attnum) is null
    end) then
        raise exception 'the vectors of % under the name % were dropped', source.relation, quote_literal(source.name)
            using errcode = 'EW004', hint = format('Call embed.end_switch(%L).', source.relation::text);
    end if;
end
$$;

-- Refuses two tables of vectors in two schemas: they exchange their names, and one that queries name would be gone.
create or replace function embed._require_one_schema(serving embed.source, other embed.source) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    home constant text := (select c.relnamespace::regnamespace::text from pg_class c where c.oid = serving.vectors);
begin
    if serving.into_attnum is null
        and home <> (select c.relnamespace::regnamespace::text from pg_class c where c.oid = other.vectors) then
        raise exception '% and % are in two schemas', serving.vectors, other.vectors
            using errcode = 'EW010', hint = format('alter table %s set schema %s;', other.vectors, home);
    end if;
end
$$;

-- Exchanges the names of two tables of vectors and of their indexes.
create or replace function embed._exchange_tables(a embed.source, b embed.source) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    a_table constant text := (select c.relname from pg_class c where c.oid = a.vectors);
    b_table constant text := (select c.relname from pg_class c where c.oid = b.vectors);
    indexes constant jsonb[] := array(
        select jsonb_build_object(
            'index', i.indexrelid::bigint, 'schema', c.relnamespace::regnamespace::text,
            'wanted', embed._bounded_name(
                case i.indrelid when a.vectors then b_table else a_table end,
                substr(c.relname, length(case i.indrelid when a.vectors then a_table else b_table end) + 1)
            )
        )
        from pg_index i
        join pg_class c on c.oid = i.indexrelid
        where i.indrelid in (a.vectors, b.vectors)
        and starts_with(c.relname, case i.indrelid when a.vectors then a_table else b_table end)
    );
    an_index jsonb;
    -- Nobody can take it before: a table of a name that can be guessed would refuse every cut.
    temp_prefix constant text := format('embed_switch_%s_', replace(gen_random_uuid()::text, '-', ''));
    taken regclass;
begin
    select x.other into taken
    from unnest(indexes) as i (an_index),
        to_regclass(format('%s.%I', i.an_index ->> 'schema', i.an_index ->> 'wanted')) as x (other)
    where x.other <> all (select (j.an_index ->> 'index')::oid from unnest(indexes) as j (an_index))
    limit 1;
    if taken is not null then
        raise exception '% has the name that an index of % gets now', taken, a.relation
            using errcode = 'EW010', hint = format('Rename %s, or drop it.', taken);
    end if;
    foreach an_index in array indexes loop
        execute format(
            'alter index %s rename to %I',
            (an_index ->> 'index')::oid::regclass, temp_prefix || (an_index ->> 'index')
        );
    end loop;
    foreach an_index in array indexes loop
        execute format(
            'alter index %s.%I rename to %I',
            an_index ->> 'schema', temp_prefix || (an_index ->> 'index'), an_index ->> 'wanted'
        );
    end loop;
    execute format('alter table %s rename to %I', a.vectors, temp_prefix || a.id);
    execute format('alter table %s rename to %I', b.vectors, a_table);
    execute format('alter table %s rename to %I', a.vectors, b_table);
end
$$;

-- Exchanges the names of two columns of vectors.
create or replace function embed._exchange_columns(a embed.source, b embed.source) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    a_column constant text := embed._column_name(a.relation, a.into_attnum);
    b_column constant text := embed._column_name(b.relation, b.into_attnum);
    -- The names are a part of what workers compare to see a change of the table. Where they have seen the last
    -- one, this is none. A row that a worker holds is left out: it would have to be waited for.
    known constant integer[] := array(
        select t.source
        from embed.source_state t
        join embed.source s on s.id = t.source
        where s.id in (a.id, b.id) and t.structure = embed._structure(s)
        for update of t skip locked
    );
begin
    execute format('alter table %s rename column %I to %I', a.relation, a_column, format('embed_switch_%s', a.id));
    execute format('alter table %s rename column %I to %I', a.relation, b_column, a_column);
    execute format('alter table %s rename column %I to %I', a.relation, format('embed_switch_%s', a.id), b_column);
    update embed._own_source s
    set into_column = case s.id when a.id then b_column else a_column end
    where s.id in (a.id, b.id);
    update embed.source_state t
    set structure = embed._structure(s)
    from embed.source s
    where s.id = t.source and t.source = any (known);
end
$$;

-- Has the other side of a switch answer, and of all switches that go with it: exchanges the names of their sources and
-- of what holds their vectors.
create or replace function embed._exchange(switch embed.switch_state) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    old_default constant text := embed.default_model();
    new_default text;
    w embed.switch_state;
    a embed.source;
    b embed.source;
begin
    perform embed._require_vectors(old), embed._require_vectors(new), embed._require_present(old),
        embed._require_present(new), embed._require_unbound(old, new), embed._require_one_schema(old, new)
    from embed._taken_together(switch) as x
    join embed.source old on old.id = x.source
    join embed.source new on new.id = x.successor;
    -- All at once, or the first would be locked while the last is waited for. The queues, too: a worker that
    -- holds rows of them would write by the name that the table had.
    perform embed._lock_tables(
        array(
            select distinct l.relation::regclass
            from embed._taken_together(switch) as x
            join embed.source s on s.id in (x.source, x.successor)
            cross join lateral unnest(
                array[
                    s.vectors, format('embed.queue_%s', s.id)::regclass,
                    case when s.into_attnum is not null then s.relation end
                ]::oid[]
            ) as l (relation)
            where l.relation is not null
        )
    );
    for w in select x.* from embed._taken_together(switch) as x loop
        -- a answers, and b is to.
        select s.* into a from embed.source s where s.id = case when w.cut then w.successor else w.source end;
        select s.* into b from embed.source s where s.id = case when w.cut then w.source else w.successor end;
        if a.into_attnum is null then
            perform embed._exchange_tables(a, b);
        else
            perform embed._exchange_columns(a, b);
        end if;
        new_default := coalesce(b.model, old_default);
        update embed._own_source s set name = format('embed switch %s', a.id) where s.id = a.id;
        update embed._own_source s
        set name = a.name, model = case when w.together then null else s.model end, version = nextval('embed.seq')
        where s.id = b.id;
        update embed._own_source s
        set name = b.name, model = case when w.together then old_default else s.model end,
            version = nextval('embed.seq')
        where s.id = a.id;
        perform embed._read_again(a.id), embed._read_again(b.id);
    end loop;
    if switch.together then
        update embed.setting x set value = new_default where x.name = 'default_model';
    end if;
end
$$;
