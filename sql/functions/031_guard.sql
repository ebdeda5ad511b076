-- Who may read vectors: row security of the vector tables.

-- What there is of the protection of a source's vectors (see embed._guard_vectors): its policy for readers,
-- the one for a worker that is not the owner, and the grants. Takes no lock, as pg_get_expr would.
create or replace function embed._guard(
    source embed.source, out readers boolean, out workers boolean, out granted boolean
)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    select
        c.relrowsecurity and exists (
            select from pg_policy p
            where p.polrelid = c.oid
            and p.polname = 'embed_source'
            and p.polcmd = 'r'
            and p.polpermissive
            and p.polroles = '{0}'
            and 2 = (
                select count(distinct f.proname)
                from pg_depend d
                join pg_proc f on d.refclassid = 'pg_proc'::regclass and f.oid = d.refobjid
                where d.classid = 'pg_policy'::regclass and d.objid = p.oid and f.pronamespace = 'embed'::regnamespace
                and f.proname in (format('source_%s_open', source.id), format('source_%s_visible', source.id))
            )
        ),
        to_regrole('embed_worker') is null or exists (
            select from pg_policy p
            where p.polrelid = c.oid and p.polname = 'embed_worker' and p.polcmd = '*' and p.polpermissive
            and p.polroles = array[to_regrole('embed_worker')::oid]
        ),
        has_table_privilege('public', c.oid, 'select')
            and (
                to_regrole('embed_monitor') is null
                or has_column_privilege('embed_monitor', format('embed.queue_%s', source.id), 'due', 'select')
            )
            and (
                to_regrole('embed_worker') is null
                or has_table_privilege('embed_worker', format('embed.queue_%s', source.id), 'update')
            )
    from pg_class c
    where c.oid = source.vectors;
end;

-- The columns of a table of vectors whose values are for nobody who may not read the table that is searched.
create or replace function embed._hidden_columns(source embed.source) returns text[]
language sql immutable
set search_path = pg_catalog, pg_temp
return source.keys || '{passage_start,passage_end,hash,checksum,seq,embedded_at}'::text[];

-- The table of a source, whatever its name is now; null where there is none.
create or replace function embed._relation_of(source integer) returns regclass
language sql stable security definer
set search_path = pg_catalog, pg_temp
return (select s.relation from embed.source s join pg_class c on c.oid = s.relation where s.id = _relation_of.source);

-- The same while the numbers of its columns are known. After a restore they are those of the table that was dumped: a
-- role that might read another column read all vectors, until a worker came.
create or replace function embed._numbered_relation_of(source integer) returns regclass
language sql stable security definer
set search_path = pg_catalog, pg_temp
return (
    select s.relation
    from embed.source s
    join pg_class c on c.oid = s.relation and c.oid = s.relation_oid
    where s.id = _numbered_relation_of.source
);

-- The condition that the name of a source's table still means that table.
create or replace function embed._named_sql(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return format(
    'pg_catalog.to_regclass(%L) operator(pg_catalog.=) %s::pg_catalog.oid', source.relation::text, source.relation::oid
);

-- A role that may read the text of a row may read its vector, and no other: everybody is granted SELECT,
-- and a policy asks the source, so that what is granted, revoked or restricted there later counts
-- here, too. (The vectors, and the terms even more, tell what a text says.)
--
-- It asks through functions whose bodies no catalog knows: a policy that names the table would forbid
-- its owner to drop the table or a column. open is asked once a statement: a reader of the texts whom
-- no row security stops may see all. Asked row by row, visible took 9 us a vector. It reads the text
-- columns and not only the key, so that a role without the right to them is refused. open refuses who
-- may not read the key and the texts: the vector table shows the key, too.
--
-- Both ask for the table by its number in embed.source, which a restored dump has right. By the name that it had, they
-- asked another's table: after a schema was renamed, a role that made a table of that name read all vectors. visible
-- has a quick statement by name, for as long as the name means that table.
-- A worker does not wait for the lock.
create or replace function embed._guard_vectors(source embed.source, wait boolean default true) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
-- A NOTICE for each policy that is not there yet is no news when a table is enabled.
set client_min_messages = warning
as $$
declare
    guard constant record := embed._guard(source);
    columns constant text := (
        select string_agg(format('s.%I', embed._column_name(source.relation, c.attnum)), ', ')
        from unnest(source.column_attnums) as c (attnum)
    );
    is_row constant text := (
        select string_agg(format('s.%s %s $%s', x.row_name, x.equal, x.place), ' and ') from embed._keys(source) as x
    );
begin
    if not wait and not (guard.readers and guard.workers) then
        execute format('lock table %s in access exclusive mode nowait', source.vectors);
    end if;
    perform embed._check_function(source.id, 'open'), embed._check_function(source.id, 'visible');
    perform embed._open_schema(quote_ident(current_user)::regrole);
    execute format(
        'create or replace function embed.source_%s_open() returns boolean language plpgsql stable as %L',
        source.id,
        format(
            'declare t constant oid := embed._numbered_relation_of(%s); begin if t is null then return false; end if; '
            'perform embed._require_columns(t, %L); return not pg_catalog.row_security_active(t); end',
            source.id, source.key_attnums || source.column_attnums
        )
    );
    execute format(
        'create or replace function embed.source_%s_visible(%s) returns boolean language plpgsql stable as %L',
        source.id,
        -- Not as _declared has them: a parameter has no collation of its own, but that of the argument.
        (
            select string_agg(format('%s %s', x.queue_name, x.type_name), ', ' order by x.place)
            from embed._keys(source) as x
        ),
        format(
            $q$declare
    t pg_catalog.regclass;
    is_there boolean;
begin
    if %s then
        return exists (select %s from %s s where %s);
    end if;
    t := embed._relation_of(%s);
    if t is null then
        return false;
    end if;
    execute pg_catalog.format(%L, t) into is_there using %s;
    return is_there;
end$q$,
            embed._named_sql(source), columns, source.relation, is_row, source.id,
            format('select exists (select %s from %%s s where %s)', columns, is_row),
            (select string_agg('$' || x.place, ', ' order by x.place) from embed._keys(source) as x)
        )
    );
    perform embed._give_function(source.id, p.oid::regprocedure::text)
    from pg_proc p
    where p.pronamespace = 'embed'::regnamespace
    and p.proname in (format('source_%s_open', source.id), format('source_%s_visible', source.id));
    if not guard.readers then
        execute format('alter table %s enable row level security', source.vectors);
        execute format('drop policy if exists embed_source on %s', source.vectors);
        execute format(
            'create policy embed_source on %s for select using ((select embed.source_%s_open()) or '
            'embed.source_%2$s_visible(%s))',
            source.vectors, source.id, embed._each('%1$I', source.keys, ', ')
        );
    end if;
    if not guard.workers then
        execute format('drop policy if exists embed_worker on %s', source.vectors);
        execute format(
            'create policy embed_worker on %s to embed_worker using (true) with check (true)', source.vectors
        );
    end if;
    if not guard.granted then
        execute format('grant select on %s to public', source.vectors);
    end if;
    perform embed._hide_statistics(source.vectors, embed._hidden_columns(source), wait);
    perform embed._write_words(source);
end
$$;

select embed._forget_statistics(s.vectors) from embed.source s;
