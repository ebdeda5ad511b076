-- The words that statements about the rows of a source are made of; for embed._fill, and for the worker.

-- Each key column of a source: its name in the table now, its name in the vector table, in the
-- queue, its type, and the operator by which its own index compares it (citext's is not text's).
create or replace function embed._keys(
    source embed.source,
    out place integer, out row_name text, out vector_name text, out queue_name text, out type_name text, out equal text
) returns setof record
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    select
        k.place::integer,
        quote_ident(embed._column_name((source).relation, k.attnum)),
        quote_ident((source).keys[k.place]),
        'k' || k.place,
        -- -1 and not null: without it char(8) would come out as character, which is char(1).
        format_type(a.atttypid, -1),
        format('operator(%I.%s)', n.nspname, o.oprname)
    from unnest((source).key_attnums) with ordinality as k (attnum, place)
    join pg_class q on q.relname = format('queue_%s', (source).id) and q.relnamespace = 'embed'::regnamespace
    join pg_attribute a on a.attrelid = q.oid and a.attname = 'k' || k.place
    join pg_index i on i.indrelid = q.oid and i.indisprimary
    join pg_opclass c on c.oid = i.indclass[k.place - 1]
    join pg_amop m on m.amopfamily = c.opcfamily and m.amoplefttype = c.opcintype
        and m.amoprighttype = c.opcintype and m.amopstrategy = 3
    join pg_operator o on o.oid = m.amopopr
    join pg_namespace n on n.oid = o.oprnamespace
    order by k.place;
end;

-- By alias: s is a row of the table, v a row of the vectors; every other alias has the columns k1, k2, … of
-- inbox and queue.
--   places, vector_keys      the columns, without an alias
--   s_keys, v_keys, q_places the columns of one alias
--   s_keys_as_places         the columns of the row, with the names k1, k2, …
--   j_places_desc            the columns of one alias, the last key first
--   q_texts                  the key as an array of text
--   v_is_s                   the condition that two aliases have the same key
--   vectors_hold             the condition that the name of the vectors still stands for the table, or the
--                            column, of the source, and that words count or not as when the source was read
-- A queue row (q) of a job (p, j, m, x), and a vector of m, are compared by any (array[…]), for which the order of
-- the key's index is of no use. A queue that was analysed when it was empty counts as one row, and then "=" may
-- read all of that index for every job, which the planner takes for one page: 54,000 pages next to an old snapshot.
create or replace function embed._key_sql(source embed.source) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb_build_object(
        'vectors_hold',
        case when source.into_column is null
            then format(
                'to_regclass(%L) = (select x.vectors',
                -- Not ::text, which gives the name after a cut that this statement does not see yet. The other names
                -- that a worker reads would be from before it, and its statements would change the other side.
                (
                    select format('%I.%I', n.nspname, c.relname)
                    from pg_class c
                    join pg_namespace n on n.oid = c.relnamespace
                    where c.oid = source.vectors
                )
            )
            else format('%L = (select x.into_column', source.into_column)
        end
        || format(' from embed.source x where x.id = %s and x.words = %L)', source.id, source.words)
    ) || (
        with k as materialized (
            select * from embed._keys(source)
        ),
        side as materialized (
            select a.alias, k.place, k.equal, k.queue_name,
                a.alias || '.'
                    || case a.alias when 's' then k.row_name when 'v' then k.vector_name else k.queue_name end as name
            from k
            cross join unnest('{s,v,i,q,p,x,j,m,r,w,f}'::text[]) as a (alias)
        )
        select jsonb_object_agg(w.word, coalesce(w.text, ''))
        from (
            select 'places' as word, string_agg(k.queue_name, ', ' order by k.place) as text from k
            union all
            select 'vector_keys', string_agg(k.vector_name, ', ' order by k.place) from k
            union all
            select o.alias || case when o.alias in ('s', 'v') then '_keys' else '_places' end,
                string_agg(o.name, ', ' order by o.place)
            from side o group by o.alias
            union all
            select o.alias || '_keys_as_places',
                string_agg(format('%s as %s', o.name, o.queue_name), ', ' order by o.place)
            from side o where o.alias in ('s', 'v') group by o.alias
            union all
            select o.alias || '_places_desc', string_agg(o.name || ' desc', ', ' order by o.place)
            from side o
            group by o.alias
            union all
            -- By output functions: a cast to text may be a function of the owner of the type.
            select o.alias || '_texts',
                format(
                    'array[%s]', string_agg(format('pg_catalog.format(%L, %s)', '%s', o.name), ', ' order by o.place)
                )
            from side o group by o.alias
            union all
            select a.alias || '_is_' || b.alias,
                string_agg(
                    format(
                        case
                            when a.alias || b.alias in ('qp', 'qj', 'qm', 'qx', 'vm') then '%s %s any (array[%s])'
                            else '%s %s %s'
                        end,
                        a.name, a.equal, b.name
                    ),
                    ' and ' order by a.place
                )
            from side a
            join side b on b.place = a.place and b.alias <> a.alias
            where a.alias in ('s', 'v', 'i', 'q')
            group by a.alias, b.alias
        ) as w
    );
end
$$;

-- The same with the tables of the source: inbox, queue, vectors, rows (see embed._rows_sql) and the text of a row s.
create or replace function embed._source_sql(source embed.source) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    stored constant text := 's.' || quote_ident(embed._column_name(source.relation, source.into_attnum));
begin
    return embed._key_sql(source) || jsonb_build_object(
        'id', source.id,
        'inbox', format('embed.inbox_%s', source.id),
        'queue', format('embed.queue_%s', source.id),
        'relation', source.relation::text,
        'vectors', source.vectors::text,
        'rows', embed._rows_sql(source),
        'text', embed._text_sql(source, 's'),
        -- The vector of a row, where the row itself holds it.
        'stored', coalesce(stored, 'null'),
        'is_stored', coalesce(stored || ' is not null', 'true')
    );
end
$$;
