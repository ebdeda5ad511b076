-- Which rows a source has, and whether their vectors are current.

-- The filter with the names that its columns have now; it is stored with their numbers, as "{3}".
-- Null without a filter, and where one of its columns was dropped.
create or replace function embed._filter_sql(source embed.source) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    result text := source.filter;
    place text;
begin
    for place in select distinct m[1] from regexp_matches(source.filter, '"\{(\d+)\}"', 'g') as m loop
        result := replace(
            result, format('"{%s}"', place), quote_ident(embed._column_name(source.relation, place::smallint))
        );
    end loop;
    return result;
end
$$;

-- Where rows of the source are read from: its filter applied, its inheritance children left out.
-- (Children of a plain table have keys of their own that may repeat the parent's; partitions do not.)
-- Null when the table or a column of the filter was dropped.
create or replace function embed._rows_sql(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select case
        when source.filter is null then of_table.rows
        else format('(select %s from %s where (%s))', of_table.columns, of_table.rows, embed._filter_sql(source))
    end
    from (
        select
            format('%s%I.%I', case when c.relkind = 'p' then '' else 'only ' end, n.nspname, c.relname) as rows,
            -- Not *, for which a worker would need the right to read every column.
            (
                select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
                from pg_catalog.pg_attribute a
                where a.attrelid = c.oid and not a.attisdropped
                and a.attnum = any (source.key_attnums || source.column_attnums || source.into_attnum)
            ) as columns
        from pg_catalog.pg_class c
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.oid = source.relation
    ) as of_table
);

-- The type of the column that holds the vectors of a source: vector, or halfvec, whose numbers have 2 bytes each.
-- Null where the table or the column was dropped. The column is the only place that says so.
create or replace function embed._storage(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select t.typname
    from pg_attribute a
    join pg_type t on t.oid = a.atttypid and t.typname in ('vector', 'halfvec')
    where a.attrelid = case when source.into_attnum is null then source.vectors else source.relation end
    and case when source.into_attnum is null then a.attname = 'embedding' else a.attnum = source.into_attnum end
);

-- What is wrong with the vectors of a row, as an SQL expression: an aggregate over the passages v of the row r, whose
-- columns are text, hash, stored (the vector, where a column of the table holds it) and fingerprint (the active
-- one; null where no worker has come yet, and then no model is wrong).
--   missing  there are none
--   stale    of another text or another model
--   altered  changed by hand, or a passage is lost; a last one that is lost shows as text left over
-- Null: they are current. Nothing else decides that.
create or replace function embed._fault_sql(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select format(
        'case
            when count(*) = 0 then ''missing''
            when not bool_and(v.hash = r.hash and v.fingerprint = coalesce(r.fingerprint, v.fingerprint)) then ''stale''
            when count(*) <> max(v.chunk) + 1
                or not bool_and(coalesce(v.checksum = substr(sha256(%I.%I(%s)), 1, 8), false))
                or embed.nonblank(substr(r.text, max(v.passage_end) + 1)) is not null
            then ''altered''
        end',
        n.nspname, coalesce(embed._storage(source), 'vector') || '_send',
        case when source.into_attnum is null then 'v.embedding' else 'r.stored' end
    )
    from pg_catalog.pg_extension e
    join pg_catalog.pg_namespace n on n.oid = e.extnamespace
    where e.extname = 'vector'
);
