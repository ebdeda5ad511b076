-- The conditions of a search: matching => '{"tenant": 5, "lang": ["ko", "en"]}'.

-- The operator by which PostgreSQL itself compares two values of a type: that of the default operator class of the
-- type, or of the type that it is stored like (varchar is stored like text). Null where it has none (json).
create or replace function embed._equality(type oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select format('operator(%I.%s)', n.nspname, o.oprname)
    from pg_type t
    join pg_opclass c on c.opcdefault
    join pg_am a on a.oid = c.opcmethod and a.amname in ('btree', 'hash')
    join pg_type i on i.oid = c.opcintype
    join pg_amop m on m.amopfamily = c.opcfamily and m.amoplefttype = c.opcintype and m.amoprighttype = c.opcintype
        and m.amopstrategy = case a.amname when 'btree' then 3 else 1 end
    join pg_operator o on o.oid = m.amopopr
    join pg_namespace n on n.oid = o.oprnamespace
    where t.oid = _equality.type
    and (
        c.opcintype = t.oid
        or c.opcintype in (
            select k.casttarget from pg_cast k where k.castsource = t.oid and k.castmethod = 'b' and k.castcontext = 'i'
        )
        or c.opcintype = case
            when t.typtype = 'e' then 'anyenum'::regtype
            when t.typtype = 'r' then 'anyrange'::regtype
            when t.typtype = 'm' then 'anymultirange'::regtype
            when t.typtype = 'c' then 'record'::regtype
            when t.typcategory = 'A' then 'anyarray'::regtype
        end
    )
    order by c.opcintype = t.oid desc, a.amname, i.typispreferred desc, c.oid
    limit 1
);

-- A statement with the condition that matching cannot have, to be completed at each ….
create or replace function embed._ranged(source embed.source, column_name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return format(
    'select * from %1$s%2$s where %3$I > … order by %4$s <=> (select embed.query(…, of => %1$L)) limit 10',
    source.relation::text,
    case when source.into_column is null
        then format(
            ' join %s using (%s)', source.vectors, (select string_agg(quote_ident(k), ', ') from unnest(source.keys) k)
        )
    end,
    column_name,
    coalesce(quote_ident(source.into_column), 'embedding')
);

-- The conditions as SQL over the table called alias, and what they compare with. No value is in the SQL: they are
-- the elements of the text array $4 of the statements, each cast to the type of its column.
--   conditions  'article.tenant operator(pg_catalog.=) ($4[1])::integer and …'; null without conditions
--   given       the values
--   checks      for embed._check_matching: the column, its type and its values
create or replace function embed._conditions(
    source embed.source, matching jsonb, alias text, out conditions text, out given text[], out checks jsonb
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    wanted record;
    unfit text;
    parts text[] := '{}';
    first_of integer;
    operand text;
    with_null boolean;
begin
    given := '{}';
    checks := '[]';
    if matching is null then
        return;
    end if;
    if jsonb_typeof(matching) <> 'object' then
        raise exception 'matching is a json %, expected an object of columns and values', jsonb_typeof(matching)
            using errcode = 'EW003', hint = 'Write for example matching => ''{"lang": "ko", "tenant": [5, 6]}''.';
    end if;
    for wanted in
        select
            e.key, case jsonb_typeof(e.value) when 'array' then e.value else jsonb_build_array(e.value) end as values,
            a.attnum, b.type, format_type(b.type, -1) as type_name, embed._equality(b.type) as equal,
            t.typcategory = 'A' as is_array, b.type = 'jsonb'::regtype as is_json
        from jsonb_each(matching) as e
        left join pg_attribute a
            on a.attrelid = source.relation and a.attname = e.key and a.attnum > 0 and not a.attisdropped
        cross join lateral (select embed._base_type(a.atttypid) as type) b
        left join pg_type t on t.oid = b.type
        order by e.key
    loop
        if wanted.attnum is null then
            raise exception '% has no column %, which matching names', source.relation, quote_literal(wanted.key)
                using errcode = 'EW003', hint = 'It has: ' || (
                    select string_agg(a.attname, ', ' order by a.attnum)
                    from pg_attribute a
                    where a.attrelid = source.relation and a.attnum > 0 and not a.attisdropped
                ) || '.';
        elsif wanted.equal is null then
            raise exception 'the column % of % has the type %, whose values cannot be compared for equality',
                wanted.key, source.relation, wanted.type_name
                using errcode = 'EW003', hint = 'Leave it out of matching.';
        end if;
        select jsonb_typeof(v) into unfit
        from jsonb_array_elements(wanted.values) as v
        where jsonb_typeof(v) in ('object', 'array') and not wanted.is_json
        limit 1;
        if found then
            raise exception 'the column % of % has the type %; matching gives it a json %',
                wanted.key, source.relation, wanted.type_name, unfit
                using errcode = 'EW003',
                hint = case
                    when unfit = 'array' then 'Give a value as a json text, or a list of values.'
                    else format(
                        'matching compares for equality: give a value, or a list of values. For a range, write a '
                        'condition: %s;',
                        embed._ranged(source, wanted.key)
                    )
                end;
        end if;
        first_of := cardinality(given) + 1;
        given := given || array(
            select case when wanted.is_json then v::text else v #>> '{}' end
            from jsonb_array_elements(wanted.values) as v
            where jsonb_typeof(v) <> 'null'
        );
        with_null := wanted.values @> '[null]';
        checks := checks || jsonb_build_object(
            'column', wanted.key, 'type', wanted.type_name, 'values', to_jsonb(given[first_of:])
        );
        operand := format('%s.%I', alias, wanted.key);
        parts := parts || concat(
            '(',
            case
                when cardinality(given) < first_of then 'false'
                when cardinality(given) = first_of
                    then format('%s %s ($4[%s])::%s', operand, wanted.equal, first_of, wanted.type_name)
                -- An array of arrays would be one array of their elements.
                when wanted.is_array then format(
                    '%s %s any (select (g.value)::%s from pg_catalog.unnest($4[%s:%s]) as g (value))',
                    operand, wanted.equal, wanted.type_name, first_of, cardinality(given)
                )
                else format(
                    '%s %s any (($4[%s:%s])::%s[])',
                    operand, wanted.equal, first_of, cardinality(given), wanted.type_name
                )
            end,
            case when with_null then format(' or %s is null', operand) end,
            ')'
        );
    end loop;
    conditions := array_to_string(parts, ' and ');
    conditions := nullif(conditions, '');
end
$$;

-- Refuses values that are none of their column's type. Called by the asker: a cast can run functions of others.
create or replace function embed._check_matching(checks jsonb, relation text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    item record;
begin
    for item in
        select
            c ->> 'column' as name, c ->> 'type' as type,
            array(select v from jsonb_array_elements_text(c -> 'values') as v) as values
        from jsonb_array_elements(checks) as c
    loop
        begin
            execute format('select count((v)::%s) from unnest($1) as v', item.type) using item.values;
        exception when insufficient_privilege then
            raise;
        -- The second class is that of names, as of a regclass, and of a tsquery that cannot be read.
        when data_exception or syntax_error_or_access_rule_violation or check_violation then
            raise exception 'matching gives the column % of % a value that is no %: %',
                item.name, relation, item.type, sqlerrm
                using errcode = 'EW003', hint = format('Give a value of the type %s.', item.type);
        end;
    end loop;
end
$$;
