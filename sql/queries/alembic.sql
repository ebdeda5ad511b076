-- alembic_sources
-- What is enabled, as embed.enable was told, with the names that the columns have now.
select
    n.nspname as schema,
    c.relname as table,
    s.name,
    array(
        select coalesce(embed._column_name(s.relation, k.attnum), s.columns[k.place])
        from unnest(s.column_attnums) with ordinality as k (attnum, place)
        order by k.place
    ) as columns,
    s.model,
    s.template,
    case
        when s.into_attnum is not null then coalesce(embed._column_name(s.relation, s.into_attnum), s.into_column)
    end as into_column,
    s.chunk,
    s.words,
    embed._storage(s) as storage,
    embed._filter_sql(s) as filter,
    array(
        select coalesce(embed._column_name(s.relation, k.attnum), s.keys[k.place])
        from unnest(s.key_attnums) with ordinality as k (attnum, place)
        order by k.place
    ) as key,
    -- What is chosen where no key was named.
    coalesce((
        select
            (i.indkey::smallint[])[0:i.indnkeyatts - 1] operator(pg_catalog.@>) s.key_attnums
            and (i.indkey::smallint[])[0:i.indnkeyatts - 1] operator(pg_catalog.<@) s.key_attnums
        from pg_catalog.pg_index i
        where i.indrelid = s.relation and i.indisprimary
    ), true) as key_is_default,
    s.dimensions,
    s.filter as stored_filter
from embed.source s
join pg_catalog.pg_class c on c.oid = s.relation
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname <> 'embed'
order by s.id;

-- alembic_readable
-- Whether this role may read what is enabled.
select current_user as role,
    pg_catalog.has_table_privilege('embed.source', 'select')
        and pg_catalog.has_table_privilege('embed.model', 'select') as readable;

-- alembic_vector_tables
-- The tables that embed.enable has made, those of tables that are no longer enabled among them.
select n.nspname as schema, c.relname as table
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_description d on d.objoid = c.oid and d.classoid = 'pg_catalog.pg_class'::regclass and d.objsubid = 0
where c.relkind = 'r' and d.description like 'Vectors of %%, kept by embedworker;%%';

-- alembic_vector_indexes
-- The indexes that workers have built on columns of the application's own tables.
select n.nspname as schema, c.relname as index
from embed.source s
cross join lateral embed._vector_indexes(s) as x
join pg_catalog.pg_class c on c.oid = x.index
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where s.into_attnum is not null and x.method = 'hnsw';

-- alembic_dimensions
-- How long a model's vectors are, the default one's if none is named.
select m.dimensions from embed.model m where m.name = coalesce(%(model)s, embed.default_model());

-- alembic_probe_filter
-- Have the server read a filter, for alembic_read_filter.
select embed._probe_filter(%(relation)s::text::regclass, %(filter)s);

-- alembic_read_filter
-- The filter that was probed as embed.enable would store it.
select f.stored from embed._read_filter(%(relation)s::text::regclass, %(filter)s) as f;
