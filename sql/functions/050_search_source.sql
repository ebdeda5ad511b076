-- Search: rows of a table by the meaning of a question, typed as the table's own rows.
--
-- Everything that touches the application's data runs with the caller's rights, so row security
-- applies by itself. What must be known of embed's own tables is read by _search_plan, which runs as
-- its owner and returns statements, not data: it reads no table of anybody else, whose owner could give a
-- column a type that is cast by a function of his. The functions that run those statements have no
-- search_path of their own: a policy of the table may call functions that rely on the caller's.
-- Instead every name in the statements is qualified, operators too.

-- The table's columns and the places of its vectors as they are now; an error says what is gone.
create or replace function embed._check_structure(source embed.source) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    again constant text := format('Call embed.disable(%L, name => %L) and then embed.enable with the columns that are '
    'there.', source.relation::text, source.name);
begin
    if not exists (select from pg_class where oid = source.relation) then
        raise exception 'the table of the source % was dropped', quote_literal(source.name)
            using errcode = 'EW004', hint = format('Forget it with embed.disable(%s::regclass).', source.relation::oid);
    end if;
    if not exists (select from pg_class where oid = source.vectors) then
        raise exception 'the vector table of % was dropped', source.relation
            using errcode = 'EW004', hint = again;
    end if;
    if exists (
        select
        from unnest(source.key_attnums || source.column_attnums || source.into_attnum) as c (attnum)
        where c.attnum is not null
        -- Not embed._column_name, a call for each column, which embed.status of many tables would feel.
        and not exists (
            select from pg_attribute a
            where a.attrelid = source.relation and a.attnum = c.attnum and not a.attisdropped
        )
    ) or (source.filter is not null and embed._filter_sql(source) is null) then
        raise exception 'an enabled column of % was dropped', source.relation
            using errcode = 'EW004', hint = again;
    end if;
    if embed._storage(source) is null then
        raise exception 'the vectors of % are in no column of the type vector or halfvec any more', source.relation
            using errcode = 'EW004',
            hint = format(
                'Call embed.disable(%L, name => %L, drop_vectors => true) and embed.enable again. All rows are then '
                'embedded again.', source.relation::text, source.name
            );
    end if;
end
$$;

-- The source that a row type and perhaps a name stand for.
create or replace function embed._find_source(row_type regtype, name text) returns embed.source
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    result embed.source;
    root regclass;
    a_relation regclass := (
        select c.oid
        from pg_type t join pg_class c on c.oid = t.typrelid
        where t.oid = row_type and c.relkind in ('r', 'p')
    );
begin
    if a_relation is null then
        raise exception 'the first argument is of type %, expected a row of a table', row_type
            using errcode = 'EW003', hint = 'Give a null of the table''s type, for example: null::article.';
    end if;
    -- Enabled several times, a table is known by the source that bears its name, or else by the oldest.
    select s.* into result
    from embed.source s join pg_class c on c.oid = s.relation
    where s.relation = a_relation and (_find_source.name is null or s.name = _find_source.name)
    order by s.name = c.relname desc, embed._is_standby(s.id), s.id
    limit 1;
    if found then
        return result;
    end if;
    if exists (select from embed.source s where s.relation = a_relation) then
        raise exception '% is not enabled under the name %', a_relation, quote_literal(name)
            using errcode = 'EW002',
            hint = 'It is under: ' || (select string_agg(quote_literal(s.name), ', '
            '' order by s.id) from embed.source s where s.relation = a_relation) || '.';
    end if;
    select s.relation into root from embed.source s where s.vectors = a_relation;
    if found then
        raise exception '% holds the vectors of %, which is the table to search', a_relation, root
            using errcode = 'EW002', hint = format('Give null::%s.', root);
    end if;
    select a.relid into root
    from pg_partition_ancestors(a_relation) as a join embed.source s on s.relation = a.relid
    limit 1;
    if found then
        raise exception '% is not enabled, but % is, of which it is a partition', a_relation, root
            using errcode = 'EW002', hint = format('Give null::%s.', root);
    end if;
    raise exception '% is not enabled', a_relation
        using errcode = 'EW002', hint = format('Call embed.enable(%L, array[…]) with the text columns to '
        'search.', a_relation::text);
end
$$;

-- Has the name of a table of vectors stand for it until the transaction ends. A plan names the table, and
-- embed.cut_over exchanges names: between the plan and its execution the name could come to stand for the
-- table of another model, and the search found nothing (once in 123 questions, with 12 cuts in a few seconds).
-- A definer's function calls it, so it plans no statement over the table: policies and views of its owner would run
-- with the definer's rights. Volatile, because LOCK is refused in a stable function.
create or replace function embed._keep_name(vectors regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    name text;
begin
    loop
        name := vectors::text;
        execute format('lock table only %s in access share mode', name); -- as a reader takes it
        exit when to_regclass(name) = vectors;
    end loop;
end
$$;
