-- mcp_tables
-- The tables that are enabled and whose rows this login may read, with what an assistant needs to ask for rows.
-- In bare are the columns of vectors and of search terms, which are long and say nothing to a reader.
select
    c.oid::pg_catalog.regclass::text as name,
    pg_catalog.format('%%I.%%I', n.nspname, c.relname) as qualified,
    pg_catalog.obj_description(c.oid, 'pg_class') as comment,
    greatest(c.reltuples, 0)::bigint as rows,
    a.columns,
    a.bare,
    a.numeric
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
cross join lateral (
    select
        pg_catalog.jsonb_object_agg(
            a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)
        ) filter (where not b.bare) as columns,
        coalesce(pg_catalog.array_agg(a.attname::text) filter (where b.bare), '{{}}') as bare,
        coalesce(
            pg_catalog.array_agg(a.attname::text)
                filter (where embed._base_type(a.atttypid) = 'pg_catalog.numeric'::pg_catalog.regtype),
            '{{}}'
        ) as numeric
    from pg_catalog.pg_attribute a
    join pg_catalog.pg_type t on t.oid = embed._base_type(a.atttypid)
    cross join lateral (
        select t.typname in ('vector', 'halfvec', 'sparsevec', 'tsvector', '_vector', '_halfvec', '_sparsevec') as bare
    ) b
    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
) a
where pg_catalog.format('%%I.%%I', n.nspname, c.relname) = any (%(tables)s::text[])
order by 1;

-- mcp_key
-- The condition by which one row of a table is read: each key column, and the type that its value is cast to.
select
    p.key_names, p.key_types,
    array(
        select (pg_catalog.parse_ident(k))[1]
        from pg_catalog.unnest(p.key_names) with ordinality as u (k, place)
        order by u.place
    )
from pg_catalog.pg_class c
cross join lateral embed._search_plan(c.reltype::pg_catalog.regtype, null, 1, false) as p
where c.oid = %(table)s::text::pg_catalog.regclass;

-- mcp_row
-- One row by its key. The values arrive as text and are cast to the types of the key.
select pg_catalog.to_json(r)::text from {relation} as r where {condition};
