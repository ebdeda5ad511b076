-- How the filter of embed.enable is checked and stored.

-- What makes a filter known to the server as the view embed_probe_rows, over an empty copy of the
-- table: the table itself would have to be locked for the renaming that follows.
create or replace function embed._probe_sql(relation regclass, filter text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select format(
        'create temporary table embed_probe (like %s); create temporary view embed_probe_rows as select 1 as one from '
        'pg_temp.embed_probe as %I where (%s)',
        relation, c.relname, filter
    )
    from pg_class c
    where c.oid = relation
);

-- Not with a search_path of its own: the filter was written for the caller's.
create or replace function embed._probe_filter(relation regclass, filter text) returns void
language plpgsql
as $$
declare
    one_statement refcursor;
begin
    if filter is null then
        return;
    end if;
    -- A cursor takes no more than one statement, so the filter cannot go on with another; and it cannot
    -- be a union, of no columns here and of one in the view.
    open one_statement for execute pg_catalog.format('select from %s where (%s)', relation, filter);
    close one_statement;
    execute embed._probe_sql(relation, filter);
exception when others then
    raise exception 'filter % is not a condition over the columns of %: %', pg_catalog.quote_literal(filter), relation,
        sqlerrm
        using errcode = 'EW003',
        hint = 'Give a condition over columns of the table, as in WHERE, for example: published and lang = ''ko''.';
end
$$;

-- A stored filter without the table's name before its columns. PostgreSQL 15 writes it there, and a
-- rename of the table would break the filter. Literals and other quoted names stay as they are.
create or replace function embed._unqualified(stored text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return regexp_replace(
    stored,
    '(''(?:[^'']|'''')*''|"(?:[^"]|"")*")|'
    '(?:"(?:[^"]|"")*"|[a-z_][a-z0-9_]*)\.(?="\{\d+\}"|(?:tableoid|ctid|[cx]m(?:in|ax))\M)',
    '\1', 'g'
);

-- What in a rule is not immutable, by name; null where the server names nothing.
create or replace function embed._mutable_names(rule text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select string_agg(distinct f.name, ', ')
    from (
        select p.oid::regprocedure::text
        from regexp_matches(rule, ':(funcid|opno) (\d+)', 'g') as m
        left join pg_operator o on m[1] = 'opno' and o.oid = m[2]::oid
        join pg_proc p on p.oid = case m[1] when 'opno' then o.oprcode::oid else m[2]::oid end
        where p.provolatile <> 'i'
        union all
        select 'a keyword such as current_date or current_user' where rule like '%{SQLVALUEFUNCTION %'
    ) as f (name)
);

-- Refuses a condition over the columns of the probe unless it is the same whenever it is asked: no trigger
-- fires when only the time or a setting changes, so rows would neither enter nor leave. The server itself
-- decides that, as for the condition of an index.
create or replace function embed._check_immutable(filter text, stored text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    -- What is declared counts: since PostgreSQL 17 the server looks into functions in SQL, 15 does not.
    culprit text := embed._mutable_names((
        select r.ev_action::text from pg_rewrite r where r.ev_class = to_regclass('pg_temp.embed_probe_rows')
    ));
begin
    if culprit is null then
        begin
            execute format('create index on pg_temp.embed_probe ((1)) where %s', stored);
        exception
            when invalid_object_definition then culprit := 'a cast to or from text that a setting decides';
            -- PostgreSQL 15 writes the table's name before it, which is not that of the probe.
            when feature_not_supported or undefined_table then culprit := 'a system column';
        end;
    end if;
    if culprit is not null then
        raise exception 'filter % can change though its row does not', quote_literal(filter)
            using errcode = 'EW003',
            detail = format('Not immutable: %s.', culprit),
            hint =
                'For what depends on the time or a setting, add a boolean column, have a job update it, and give the '
                'column as filter. Compare a column with a value of its own type: state = ''new'', created >= '
                '''2026-01-01''. A function of yours that depends on its arguments alone can be declared immutable.';
    end if;
end
$$;

-- The probed filter as PostgreSQL understands it: names of functions and operators qualified, columns
-- as "{3}", the third of the table, so that neither search_path nor a rename changes what it means.
-- Dates in it are written so that every session reads the same.
create or replace function embed._read_filter(relation regclass, filter text, out stored text, out attnums smallint[])
language plpgsql
set search_path = pg_catalog, pg_temp
set datestyle = iso
as $$
declare
    probe constant regclass := to_regclass('pg_temp.embed_probe');
    rows constant regclass := to_regclass('pg_temp.embed_probe_rows');
    wrong constant text :=
        'Give a condition over columns of the table, as in WHERE, for example: published and lang = ''ko''.';
    col record;
begin
    attnums := '{}';
    if filter is null then
        return;
    end if;
    stored := (select r.ev_action::text from pg_rewrite r where r.ev_class = rows);
    if stored like '%:hasSubLinks true%' then
        raise exception 'filter % asks more than the row itself', quote_literal(filter)
            using errcode = 'EW003',
            detail = 'A change of other rows or tables would go unnoticed.',
            hint = wrong;
    end if;
    -- A view records which columns it reads and follows their names; nothing else in the server does.
    for col in
        select distinct p.attname, a.attnum
        from pg_rewrite r
        join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
            and d.refclassid = 'pg_class'::regclass and d.refobjid = probe
        join pg_attribute p on p.attrelid = d.refobjid and p.attnum = d.refobjsubid and p.attnum > 0
        join pg_attribute a on a.attrelid = relation and a.attname = p.attname
        where r.ev_class = rows
    loop
        attnums := attnums || col.attnum;
        execute format(
            'alter table pg_temp.embed_probe rename column %I to %I', col.attname, format('{%s}', col.attnum)
        );
    end loop;
    stored := embed._unqualified(substring(pg_get_viewdef(rows) from '^.*?\n  WHERE (.*);$'));
    if cardinality(attnums) = 0
        or strpos(stored, format('%I.*', (select c.relname from pg_class c where c.oid = relation))) > 0
    then
        raise exception 'filter % names no column of %', quote_literal(filter), relation
            using errcode = 'EW003', hint = wrong;
    end if;
    perform embed._check_immutable(filter, stored);
    drop view pg_temp.embed_probe_rows;
    drop table pg_temp.embed_probe;
end
$$;
