-- What embed.doctor says of the sizes of a source.

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
