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

-- A role that may read the text of a row may read its vector, and no other: everybody is granted SELECT,
-- and a policy asks the source, so that what is granted, revoked or restricted there later counts
-- here, too. (The vectors, and the terms even more, tell what a text says.)
--
-- It asks through functions whose bodies no catalog knows: a policy that names the table would forbid
-- its owner to drop the table or a column. open is asked once a statement: a reader of the texts whom
-- no row security stops may see all. Asked row by row, visible took 9 us a vector. It reads the text
-- columns and not only the key, so that a role without the right to them is refused. open refuses who
-- may not read the key and the texts: the vector table shows the key, too.
-- A worker does not wait for the lock.
create or replace function embed._guard_vectors(source embed.source, wait boolean default true) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
-- A NOTICE for each policy that is not there yet is no news when a table is enabled.
set client_min_messages = warning
as $$
declare
    guard constant record := embed._guard(source);
begin
    if not wait and not (guard.readers and guard.workers) then
        execute format('lock table %s in access exclusive mode nowait', source.vectors);
    end if;
    perform embed._check_function(source.id, 'open'), embed._check_function(source.id, 'visible');
    perform embed._open_schema(quote_ident(current_user)::regrole);
    execute format(
        'create or replace function embed.source_%s_open() returns boolean language plpgsql stable as %L',
        source.id,
        -- By the number only where the name is gone: a dump that is restored has other numbers.
        format(
            'declare t constant oid := coalesce(pg_catalog.to_regclass(%L), %s); begin perform '
            'embed._require_columns(t, %L); return not pg_catalog.row_security_active(t); end',
            source.relation::text, source.relation::oid, source.key_attnums || source.column_attnums
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
            'begin return exists (select %s from %s s where %s); end',
            (
                select string_agg(format('s.%I', embed._column_name(source.relation, c.attnum)), ', ')
                from unnest(source.column_attnums) as c (attnum)
            ),
            source.relation,
            (
                select string_agg(format('s.%s %s $%s', x.row_name, x.equal, x.place), ' and ')
                from embed._keys(source) as x
            )
        )
    );
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
    perform embed._write_words(source);
end
$$;
