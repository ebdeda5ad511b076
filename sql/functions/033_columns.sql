-- What a worker remembers of a table, and how it finds the columns again after a change or a restore.
-- Functions may be added to, but never changed in place while a worker of the version before may be running.

-- What the trigger functions of a source and the worker's statements are written for, and what
-- decides which rows it has. When it changes, they are written again and the rows compared.
--
-- It also changes whenever rows can have changed unseen between two looks, though all is as it was at
-- the second: triggers shows that one was disabled and enabled (the row gets another xmin), or dropped and
-- made again, which a partition that is detached and attached also does to its own; files shows that rows
-- were rewritten (ALTER COLUMN … TYPE … USING fires no trigger). VACUUM FULL and TRUNCATE change files,
-- too, at the price of a sweep too many.
create or replace function embed._structure(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    with recursive tree as (
        select (source).relation::oid as relation, c.relkind = 'p' as partitioned, c.relfilenode as file
        from pg_class c
        where c.oid = (source).relation
        union
        select c.oid, c.relkind = 'p', c.relfilenode
        from tree t
        join pg_inherits i on i.inhparent = t.relation and t.partitioned
        join pg_class c on c.oid = i.inhrelid
    )
    select jsonb_build_object(
        'relation', jsonb_build_array(c.oid::bigint, c.relname, c.relnamespace::bigint, c.relrowsecurity),
        'parents',
        (select jsonb_agg(i.inhparent::bigint order by i.inhparent) from pg_inherits i where i.inhrelid = c.oid),
        'files',
        (
            select encode(
                sha256(convert_to(string_agg(format('%s %s', t.relation, t.file), ',' order by t.relation), 'UTF8')),
                'hex'
            )
            from tree t
        ),
        'triggers', (
            select encode(
                sha256(convert_to(string_agg(format('%s %s', g.oid, g.xmin), ',' order by g.oid), 'UTF8')), 'hex'
            )
            from tree t
            join pg_trigger g on g.tgrelid = t.relation and starts_with(g.tgname, format('embed_%s_', (source).id))
        ),
        'columns', (
            select jsonb_object_agg(
                a.attnum,
                -- A generated column can be given another expression; every row then has another text.
                jsonb_build_array(
                    a.attname,
                    a.atttypid::bigint,
                    a.atttypmod,
                    case when a.attgenerated::text <> '' then pg_get_expr(d.adbin, d.adrelid) end
                )
            )
            from pg_attribute a
            left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
            where a.attrelid = c.oid
            and a.attnum = any (
                (source).key_attnums
                    || (source).watch_attnums
                    || (source).column_attnums
                    || coalesce((source).into_attnum, 0::smallint)
            )
        )
    )::text
    from pg_class c
    where c.oid = (source).relation;
end;

-- Numbers of columns in a table that was restored from a dump: the names are as they were, the
-- numbers need not be. before holds the names by the old numbers, as in embed._structure; names is
-- for where that is not known. A column that is not there has -1, which no column of a user's has.
create or replace function embed._renumbered(
    relation regclass, attnums smallint[], before jsonb, names text[]
) returns smallint[]
language sql stable
set search_path = pg_catalog, pg_temp
return array(
    select case when n.attnum is not null then coalesce(a.attnum, -1::smallint) end
    from unnest(attnums, names) with ordinality as n (attnum, name, place)
    left join pg_attribute a on a.attrelid = relation and a.attname = coalesce(before -> n.attnum::text ->> 0, n.name)
        and a.attnum > 0 and not a.attisdropped
    order by n.place
);

create or replace function embed._renumber(source embed.source) returns embed.source
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    before constant jsonb := (
        select t.structure::jsonb -> 'columns' from embed.source_state t where t.source = source.id
    );
    of_filter smallint[] := array(
        select distinct m[1]::smallint from regexp_matches(source.filter, '"\{(\d+)\}"', 'g') as m
    );
    renumbered constant smallint[] := embed._renumbered(source.relation, of_filter, before, null);
begin
    for i in 1 .. cardinality(of_filter) loop
        -- "{=7}" for now, or what was renumbered to 3 would be taken for an old 3.
        source.filter := replace(source.filter, format('"{%s}"', of_filter[i]), format('"{=%s}"', renumbered[i]));
    end loop;
    source.filter := replace(source.filter, '"{=', '"{');
    source.key_attnums := embed._renumbered(source.relation, source.key_attnums, before, source.keys);
    source.column_attnums := embed._renumbered(source.relation, source.column_attnums, before, source.columns);
    source.into_attnum := (
        embed._renumbered(source.relation, array[source.into_attnum], before, array[source.into_column])
    )[1];
    source.watch_attnums := embed._stored_attnums(source.relation, source.column_attnums || renumbered);
    update embed._own_source x
    set relation_oid = source.relation, key_attnums = source.key_attnums, column_attnums = source.column_attnums,
        watch_attnums = source.watch_attnums, into_attnum = source.into_attnum, filter = source.filter
    where x.id = source.id
    returning * into source;
    return source;
end
$$;
