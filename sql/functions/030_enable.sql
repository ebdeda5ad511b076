-- embed.enable.

drop function if exists
    embed.enable(regclass, text[], text, text, text, text, boolean, text, text[], boolean),
    embed._enable(regclass, text[], text, text, text, text, boolean, text, text[], boolean);

create or replace function embed.enable(
    relation regclass,
    columns text[],
    name text default null,
    model text default null,
    template text default null,
    into_column text default null,
    chunk boolean default true,
    filter text default null,
    key text[] default null,
    words boolean default true,
    storage text default null
) returns regclass
language plpgsql
as $$
begin
    perform embed._require_role(
        'embed_admin', pg_catalog.has_table_privilege('embed._own_source', 'insert'), 'embed.enable'
    );
    if filter is not null and not pg_catalog.has_database_privilege(pg_catalog.current_database(), 'temporary') then
        raise exception 'the role % may not create temporary tables, with which a filter is read',
            pg_catalog.quote_ident(current_user)
            using errcode = 'insufficient_privilege',
            hint = pg_catalog.format(
                'As the owner of the database: grant temporary on database %I to %I;',
                pg_catalog.current_database(),
                current_user
            );
    end if;
    perform embed._probe_filter(relation, filter);
    return embed._enable(relation, columns, name, model, template, into_column, chunk, filter, key, words, storage);
end
$$;

comment on function embed.enable(regclass, text[], text, text, text, text, boolean, text, text[], boolean, text) is
    'Makes a table searchable by the meaning of the given text columns; returns the table that holds the vectors. '
    'words => false leaves out what searches by words need: time, space and an index. storage is ''vector'', or '
    '''halfvec'', which takes half the bytes. Without it, and without model, an enabled table keeps what it has.';

create or replace function embed._enable(
    relation regclass, columns text[], name text, model text, template text, into_column text, chunk boolean,
    filter text, key text[],
    words boolean, storage text
) returns regclass
language plpgsql
set search_path = pg_catalog, pg_temp
set quote_all_identifiers = off -- it keeps names of types
as $enable$
declare
    -- Parameters share their names with columns of embed.source.
    a_relation constant regclass := relation;
    a_name constant text := coalesce(_enable.name, (select c.relname from pg_class c where c.oid = a_relation));
    a_storage constant text := storage;
    a_model embed.model;
    old embed.source;
    new embed.source;
    class record;
    bad record;
    vector_schema text := (
        select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector'
    );
    found_dims integer;
    found_storage text;
begin
    select c.relkind, c.relpersistence, c.relname, n.nspname into class
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = a_relation;

    -- What is asked for must make sense before anything is touched.
    if class.relkind not in ('r', 'p') then
        raise exception '% is not a table', a_relation
            using errcode = 'EW003',
            detail =
                'Changes are captured by triggers, which views, materialised views and foreign tables do not have.',
            hint = 'Enable the table that holds the text.';
    end if;
    if class.relpersistence = 't' then
        raise exception '% is a temporary table, which no worker can see', a_relation
            using errcode = 'EW003', hint = 'Use an ordinary table.';
    end if;
    if class.nspname in ('pg_catalog', 'information_schema')
        or (class.nspname = 'embed' and class.relname <> 'document') then
        raise exception '% belongs to the system', a_relation
            using errcode = 'EW003', hint = 'Enable a table of your own.';
    end if;
    perform embed._require_owner(a_relation);
    if coalesce(cardinality(columns), 0) = 0 then
        raise exception 'no columns were given for %', a_relation
            using errcode = 'EW003',
            hint = 'Name the text columns: embed.enable(''article'', array[''title'', ''content'']).';
    end if;

    if btrim(a_name) = '' then
        raise exception 'the name is blank'
            using errcode = 'EW003', hint = 'Leave name out, or say what this set of vectors is for.';
    end if;
    if chunk is null or words is null then
        raise exception '% is null', case when chunk is null then 'chunk' else 'words' end
            using errcode = 'EW003', hint = 'Leave it out, or give true or false.';
    end if;
    perform embed._check_storage(a_storage);

    select c.name, a.attnum, format_type(a.atttypid, a.atttypmod) as type_name
    into bad
    from unnest(columns) as c (name)
    left join pg_attribute a
        on a.attrelid = a_relation and a.attname = c.name and a.attnum > 0 and not a.attisdropped
    where a.attnum is null or not embed._is_text(a.atttypid)
    limit 1;
    if found then
        if bad.attnum is null then
            raise exception 'table % has no column %', a_relation, quote_ident(coalesce(bad.name, 'NULL'))
                using errcode = '42703',
                hint = 'Its text columns: ' || coalesce((
                    select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
                    from pg_attribute a
                    where a.attrelid = a_relation and a.attnum > 0 and not a.attisdropped and embed._is_text(a.atttypid)
                ), 'none') || '.';
        end if;
        raise exception 'column % of % is of type %, expected a text type', quote_ident(bad.name), a_relation,
            bad.type_name
            using errcode = 'EW003',
            hint =
                'Enable columns of text, varchar, char, citext or an enum, or arrays of these. For others add a text '
                'column: generated where the cast is immutable, else filled by a trigger.';
    end if;
    if (select count(distinct c) from unnest(columns) as c) <> cardinality(columns) then
        raise exception 'a column is named twice in %', columns
            using errcode = 'EW003', hint = 'Name every column once.';
    end if;

    -- One enable at a time, and the table stands still while it is looked at.
    perform pg_advisory_xact_lock(embed._lock_global(), embed._turn_enable());

    -- A table keeps its model, as it keeps its storage: an application that enables its tables at each start took the
    -- change of a model back.
    model := coalesce(
        _enable.model, (select s.model from embed.source s where s.relation = a_relation and s.name = a_name)
    );
    select * into a_model from embed.model m where m.name = coalesce(_enable.model, embed.default_model());
    if not found then
        raise exception 'model % is not known', quote_literal(coalesce(_enable.model, embed.default_model()))
            using errcode = 'EW003',
            detail = 'Known: ' || (select string_agg(m.name, ', ' order by m.name) from embed.model m) || '.',
            hint =
                'Add another with embed.add_model(name, dimensions, max_tokens, query_prefix, passage_prefix, '
                'pooling).';
    end if;

    new.relation := a_relation;
    new.relation_oid := a_relation;
    new.name := a_name;
    new.columns := columns;
    new.column_attnums := array(
        select a.attnum
        from unnest(columns) with ordinality as c (name, place)
        join pg_attribute a on a.attrelid = a_relation and a.attname = c.name
        order by c.place
    );
    new.key_attnums := embed._key_attnums(a_relation, key);
    select array_agg(a.attname::text order by k.place),
        array_agg(format_type(embed._base_type(a.atttypid), -1) order by k.place)
    into new.keys, new.key_types
    from unnest(new.key_attnums) with ordinality as k (attnum, place)
    join pg_attribute a on a.attrelid = a_relation and a.attnum = k.attnum;
    select format('%I', a.attname) as name, format_type(a.atttypid, a.atttypmod) as type_name,
        case t.typcategory when 'A' then 'array type' when 'C' then 'composite type' else 'domain' end as kind,
        case when t.typcategory in ('A', 'C') then '' else format(' over %s', format_type(t.oid, null)) end as more
    into bad
    from unnest(new.key_attnums) as k (attnum)
    join pg_attribute a on a.attrelid = a_relation and a.attnum = k.attnum
    join pg_type t on t.oid = embed._base_type(a.atttypid)
    where t.typcategory in ('A', 'C')
    -- Whose operators want two of the very same type, and the domain is another.
    or t.typtype in ('e', 'r', 'm') and t.oid <> a.atttypid;
    if found then
        raise exception 'the key column % of % is of the % %', bad.name, a_relation, bad.kind, bad.type_name || bad.more
            using errcode = 'EW003', hint = 'Give another unique key with key => …, or add one of a plain type.';
    end if;
    new.template := embed._template_normalise(template, columns);
    select f.stored, new.column_attnums || f.attnums into new.filter, new.watch_attnums
    from embed._read_filter(a_relation, filter) as f;
    new.watch_attnums := embed._stored_attnums(a_relation, new.watch_attnums);
    new.chunk := chunk and into_column is null;
    new.words := words;
    new.model := _enable.model;
    new.dimensions := a_model.dimensions;
    new.into_column := into_column;

    if into_column is not null then
        select a.attnum, a.atttypmod, t.typname into new.into_attnum, found_dims, found_storage
        from pg_attribute a
        join pg_type t on t.oid = a.atttypid
        where a.attrelid = a_relation and a.attname = into_column and not a.attisdropped
        and t.typname in ('vector', 'halfvec') and a.attnotnull = false;
        if not found or found_storage <> a_storage then
            raise exception 'table % has no nullable column % of type %(%)', a_relation, quote_ident(into_column),
                coalesce(a_storage, 'vector'), a_model.dimensions
                using errcode = 'EW003',
                hint = format(
                    'Add it: alter table %s add column %I %I.%I(%s);',
                    a_relation,
                    into_column,
                    vector_schema,
                    coalesce(a_storage, 'vector'),
                    a_model.dimensions
                );
        end if;
        if found_dims <> a_model.dimensions then
            raise exception 'column % of % has % dimensions, but model % makes %', quote_ident(into_column), a_relation,
                found_dims, a_model.name, a_model.dimensions
                using errcode = 'EW005', hint = 'Use a column of the model''s dimensions, or another model.';
        end if;
    end if;

    -- A table that was dropped and made again: its vectors can be used for the new one.
    perform embed._forget(s, drop_vectors => false)
    from embed.source s
    where s.vectors = to_regclass(format('%I.%I', class.nspname, embed._bounded_name(a_name, '_embedding')))
    and not exists (select from pg_class c where c.oid = s.relation);

    select * into old from embed.source s where s.relation = a_relation and s.name = a_name;
    if found and old.relation_oid <> old.relation then
        perform embed._refresh(old.id);
        select * into old from embed.source s where s.id = old.id;
    end if;
    if old.id is not null then
        return embed._enable_again(old, new, a_storage);
    end if;

    if new.keys && array[
        'chunk', 'passage_start', 'passage_end', 'truncated', 'embedding', 'terms', 'fingerprint', 'hash', 'checksum',
        'seq', 'embedded_at'
    ] then
        raise exception 'a key column of % has the name of a column of its vector table', a_relation
            using errcode = 'EW003',
            detail =
                'Taken: chunk, passage_start, passage_end, truncated, embedding, terms, fingerprint, hash, checksum, '
                'seq, embedded_at.',
            hint = 'Give another unique key with key => …, or rename the column.';
    end if;

    perform embed._open_schema(quote_ident(current_user)::regrole);
    insert into embed._own_source (
        name, relation, relation_oid, vectors, keys, key_attnums, key_types, columns, column_attnums,
        watch_attnums, template, filter, into_column, into_attnum, chunk, words, model, dimensions
    )
    values (
        new.name, new.relation, new.relation_oid, new.relation, new.keys, new.key_attnums, new.key_types, new.columns,
        new.column_attnums, new.watch_attnums, new.template, new.filter, new.into_column, new.into_attnum, new.chunk,
        new.words, new.model, new.dimensions
    )
    returning * into new;
    insert into embed.source_state (source) values (new.id);

    perform embed._make_queue(new);
    update embed._own_source s set vectors = embed._make_vectors(new, a_storage)
    where s.id = new.id
    returning * into new;
    perform embed._write_capture(new);
    perform embed._attach_capture(new);
    perform embed._guard_vectors(new);
    perform embed._grant_worker(new);
    update embed.source_state t set structure = embed._structure(new) where t.source = new.id;
    insert into embed.sweep_request (source, reason) values (new.id, 'enabled');
    perform embed.wake();
    perform embed._notice_triggers(new);
    return case when into_column is null then new.vectors else a_relation end;
end
$enable$;
