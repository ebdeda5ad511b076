-- The index over the vectors of a source, for its build, for searches and for reports.

-- What an index holds the vectors as: HNSW takes a vector of up to 2,000 dimensions and a halfvec of up
-- to 4,000. Null where there can be no index.
create or replace function embed._index_type(dimensions integer) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return case when dimensions <= 2000 then 'vector' when dimensions <= 4000 then 'halfvec' end;

-- What a vector takes, in bytes.
create or replace function embed._vector_bytes(storage text, dimensions integer) returns integer
language sql immutable
set search_path = pg_catalog, pg_temp
return case storage when 'halfvec' then 2 else 4 end * dimensions + 8;

-- The memory that pgvector's graph of so many vectors needs: each, 2 * m = 48 neighbours of 16 bytes on the lowest
-- level, and about 330 bytes more (0.8.5, m = 24). What does not fit takes five times as long to build. Of the
-- memory that processes share, three MB are not the graph's.
create or replace function embed._graph_bytes(vectors bigint, dimensions integer, type text) returns bigint
language sql immutable
set search_path = pg_catalog, pg_temp
return vectors * (embed._vector_bytes(type, dimensions) + 2 * 24 * 16 + 392) + 8 * 1024 * 1024;

-- Refuses a storage that there is not. Null is left to what is there.
create or replace function embed._check_storage(storage text) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if storage not in ('vector', 'halfvec') then
        raise exception 'storage is %, expected ''vector'' or ''halfvec''', quote_literal(storage)
            using errcode = 'EW003', hint = 'Leave it out, or give ''vector'' or ''halfvec''.';
    end if;
end
$$;

create or replace function embed._index_type(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return case when embed._storage(source) = 'halfvec' and source.dimensions <= 4000 then 'halfvec'
    else embed._index_type(source.dimensions) end;

-- The expression that the index is built over and that a search orders by: the two must be the same. Where the column
-- is a halfvec, the server drops the cast and takes the column.
create or replace function embed._index_expression(vector text, type text, dimensions integer) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return case type
    when 'halfvec' then format('((%s)::@extschema:vector@.halfvec(%s))', vector, dimensions)
    else vector
end;

-- What stands behind "create index concurrently NAME". pgvector's own m = 16, ef_construction = 64 cost
-- 0.010 NDCG@10 on 6,099 short Korean sentences at ef_search = 100; with these, and ef_search = 200, it
-- was 0.001.
create or replace function embed._index_definition(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select format(
        'on %s using hnsw (%s @extschema:vector@.%s_cosine_ops) with (m = 24, ef_construction = 128)',
        case when source.into_column is null then source.vectors else source.relation end,
        embed._index_expression(
            case when source.into_column is null then 'embedding'
                else quote_ident(embed._column_name(source.relation, source.into_attnum)) end,
            t.type, source.dimensions
        ),
        t.type
    )
    from (select embed._index_type(source) as type) as t
    where t.type is not null
);

-- Every index by cosine distance over the vectors of a source, the most useful first: of pgvector, or of another
-- extension whose operator class orders by <=> (VectorChord, pgvectorscale and ScaNN do). Until a concurrent
-- build is through, its index is not valid either. In PL/pgSQL, which keeps the plan: before PostgreSQL 18 a
-- function in SQL is planned at every call, and embed.status of 300 sources took three times as long.
-- A plan for every source would be made again and again: to plan it takes 0.9 ms of a search, to run it 0.2 ms.
create or replace function embed._vector_indexes(source embed.source)
returns table (index oid, method text, type text, valid boolean, building boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
    return query
    select
        i.indexrelid,
        m.amname::text,
        t.typname::text,
        i.indisvalid,
        -- A role without the right to statistics sees of another's build no more than its process.
        not i.indisvalid and exists (
            select
            from pg_stat_progress_create_index p
            join pg_locks l on l.pid = p.pid
            where l.relation = i.indrelid
            and l.database = (select d.oid from pg_database d where d.datname = current_database())
            and coalesce(nullif(p.index_relid, 0) = i.indexrelid, true)
        )
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
    join pg_am m on m.oid = c.relam
    join pg_opclass o on o.oid = i.indclass[0]
    join pg_amop w on w.amopfamily = o.opcfamily and w.amoplefttype = o.opcintype and w.amoppurpose = 'o'
    join pg_operator e on e.oid = w.amopopr and e.oprname = '<=>'
    join pg_type t on t.oid = e.oprleft and t.oid = e.oprright and t.typname in ('vector', 'halfvec')
    join pg_attribute a on a.attrelid = i.indrelid
        and case when source.into_column is null then a.attname = 'embedding' else a.attnum = source.into_attnum end
    where i.indrelid = case when source.into_column is null then source.vectors else source.relation end
    and i.indpred is null
    and case when i.indkey[0] <> 0 then i.indkey[0] = a.attnum
        else exists (
            select from pg_depend d
            where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
            and d.refclassid = 'pg_class'::regclass and d.refobjid = i.indrelid and d.refobjsubid = a.attnum
        ) end
    order by i.indisvalid desc, m.amname = 'ivfflat', m.amname, i.indexrelid;
end;
$$;

-- What the vectors of a source take: as what type, bytes of a row of their table, and bytes of their indexes. By the
-- pages that the last vacuum, analyze or build has counted: to ask the files waits for who locks the table.
create or replace function embed._sizes(
    source embed.source, out storage text, out row_bytes integer, out index_bytes bigint
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    page constant bigint := current_setting('block_size');
begin
    storage := embed._storage(source);
    row_bytes := (
        select (c.relpages + coalesce(o.relpages, 0)) * page / c.reltuples
        from pg_class c
        left join pg_class o on o.oid = c.reltoastrelid
        where c.oid = source.vectors and c.reltuples > 0
    );
    if source.into_attnum is not null then
        row_bytes := row_bytes + embed._vector_bytes(storage, source.dimensions);
    end if;
    index_bytes := (
        select coalesce(sum(c.relpages), 0) * page
        from embed._vector_indexes(source) as x
        join pg_class c on c.oid = x.index
        where x.valid
    );
end
$$;
