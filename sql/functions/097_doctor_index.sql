-- What embed.doctor says of the index of a source: its size, the memory of a build, and whether it is used.

-- The maintenance_work_mem for a build, never less than the server has.
create or replace function embed._build_memory(source embed.source, vectors bigint) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return greatest(
    pg_size_bytes(current_setting('maintenance_work_mem')),
    embed._graph_bytes(vectors, source.dimensions, embed._index_type(source))
) / 1024 || 'kB';

create or replace function embed._doctor_size(source embed.source) returns table (
    "check" text, state text, detail text, advice text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    z record := embed._sizes(source);
    passages constant bigint := embed._guess_rows(source.vectors);
    needed constant bigint := embed._graph_bytes(passages, source.dimensions, embed._index_type(source));
    buffers constant bigint := pg_size_bytes(current_setting('shared_buffers'));
    cache constant bigint := greatest(pg_size_bytes(current_setting('effective_cache_size')), buffers);
begin
    "check" := 'size';
    state := 'ok';
    detail := format(
        '%s, %s bytes a row; index %s, shared_buffers %s, effective_cache_size %s; the next build takes %s of memory, '
        'maintenance_work_mem is %s',
        z.storage, coalesce(z.row_bytes::text, '-'), pg_size_pretty(z.index_bytes), pg_size_pretty(buffers),
        pg_size_pretty(cache), coalesce(pg_size_pretty(needed), '-'), current_setting('maintenance_work_mem')
    );
    if z.index_bytes > cache then
        state := 'warning';
        advice := concat(
            'Searches read from disk what does not fit into memory. If the server has more memory, raise '
            'effective_cache_size, which says so.',
            case when z.storage = 'vector' then format(
                ' Vectors of half the size: select embed.begin_switch(%L, storage => ''halfvec'', name => %L);',
                source.relation::text, source.name
            ) end
        );
    end if;
    return next;
end
$$;

-- The plan of a search by the nearest vector, as JSON. Volatile, since it calls EXPLAIN. With pgvector's
-- own ef_search: with more, the planner compares up to some 20,000 vectors one by one, which is right.
create or replace function embed._plan_of_search(source embed.source) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set hnsw.ef_search = 40
as $$
declare
    plan json;
    indexed constant text := (select x.type from embed._vector_indexes(source) as x where x.valid limit 1);
begin
    execute format(
        'explain (format json) select from %1$s v order by %2$s operator(@extschema:vector@.<=>) %3$s limit 10',
        case when source.into_column is null then source.vectors else source.relation end,
        embed._index_expression(format('v.%I', coalesce(source.into_column, 'embedding')), indexed, source.dimensions),
        embed._index_expression(
            format('array_fill(0.1::real, array[%s])::@extschema:vector@.vector', source.dimensions), indexed,
            source.dimensions
        )
    ) into plan;
    return plan;
end
$$;
