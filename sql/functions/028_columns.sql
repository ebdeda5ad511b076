-- Keys and columns of a table that is enabled.

-- The columns of each unique index by which rows can be known, the primary key first and then the smallest.
create or replace function embed._unique_keys(relation regclass) returns table (attnums smallint[], nth bigint)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    select k.attnums, row_number() over (order by i.indisprimary desc, i.indnkeyatts, i.indexrelid)
    from pg_index i
    cross join lateral (
        select array_agg(x.attnum order by x.place) as attnums, bool_and(a.attnotnull) as all_not_null
        from unnest(i.indkey::smallint[]) with ordinality as x (attnum, place)
        left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = x.attnum
        where x.place <= i.indnkeyatts
    ) as k
    where i.indrelid = _unique_keys.relation
    and i.indisunique and i.indimmediate and i.indisvalid
    and i.indpred is null and i.indexprs is null
    and k.all_not_null;
end;

-- The key by which rows are known: the primary key, or else the smallest usable unique index.
create or replace function embed._key_attnums(relation regclass, wanted text[]) returns smallint[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    found_key smallint[];
begin
    select k.attnums into found_key
    from embed._unique_keys(relation) as k
    where wanted is null
    or (
        select array_agg(a.attname::text order by a.attname::text collate "C")
        from pg_attribute a
        where a.attrelid = relation and a.attnum = any (k.attnums)
    ) = array(select w from unnest(wanted) as w order by w collate "C")
    order by k.nth
    limit 1;
    if found_key is null then
        raise exception 'table % has no usable key%', relation, coalesce(' ' || wanted::text, '')
            using errcode = 'EW003',
            detail =
                'Rows must be known by a primary key, or by a unique index whose columns are all not null (not '
                'partial, not on an expression, not deferrable).',
            hint = case
                when wanted is null then format('Add one: alter table %s add primary key (…);', relation)
                else 'Leave the key out to take the primary key, or make these columns unique and not null.'
            end;
    end if;
    return found_key;
end
$$;

drop function if exists embed._definition(regclass); -- of versions up to 0.1; nothing calls it

-- Columns of a table as text that declares them again: "k1 bigint, k2 text collate …". Without
-- length limits, which the table may widen later, and without domains: a CHECK that a domain gets
-- would run as the role that puts a key in, and where it raises nothing of the key could be written.
create or replace function embed._declared(relation regclass, attnums smallint[], names text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select string_agg(
        format('%I %s', names[k.place], format_type(t.oid, -1))
            || coalesce(
                (
                    select format(' collate %I.%I', n.nspname, c.collname)
                    from pg_collation c join pg_namespace n on n.oid = c.collnamespace
                    where c.oid = a.attcollation and a.attcollation <> t.typcollation
                ),
                ''
            ),
        ', ' order by k.place
    )
    from unnest(attnums) with ordinality as k (attnum, place)
    join pg_attribute a on a.attrelid = relation and a.attnum = k.attnum
    join pg_type t on t.oid = embed._base_type(a.atttypid)
);

-- A virtual generated column has no value of its own in a trigger; what it is computed from has.
create or replace function embed._stored_attnums(relation regclass, attnums smallint[]) returns smallint[]
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select array_agg(distinct coalesce(d.refobjsubid, a.attnum)::smallint)
    from pg_attribute a
    left join pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum and a.attgenerated::text = 'v'
    left join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid
        and d.refclassid = 'pg_class'::regclass and d.refobjid = relation and d.refobjsubid > 0
        and d.refobjsubid <> a.attnum
    where a.attrelid = relation and a.attnum = any (attnums)
);

-- A name of at most 63 bytes, cut between characters.
create or replace function embed._bounded_name(base text, suffix text) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    while octet_length(base) + octet_length(suffix) > 63 loop
        base := left(base, -1);
    end loop;
    return base || suffix;
end
$$;
