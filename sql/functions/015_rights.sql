-- What a missing right is called: who lacks it, for what, and the statement that gives it.

create or replace function embed._require_role(wanted text, able boolean, call text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if able then
        return;
    end if;
    raise exception 'the role % may not use %', quote_ident(current_user), call
        using errcode = 'insufficient_privilege',
        hint = format(
            case
                when to_regrole(wanted) is null
                then 'The role %s does not exist: have a superuser run `embedworker migrate`, then: grant %1$s to %I;'
                when wanted = 'embed_admin'
                then 'Members of embed_admin are trusted with all embedding in this database. Have a superuser run: '
                    'grant %s to %I;'
                else 'Have a superuser run: grant %s to %I;'
            end,
            wanted, current_user
        );
end
$$;

-- Whether this role may look at how it goes, of all that is enabled.
create or replace function embed._may_look() returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return has_table_privilege('embed.source', 'select') and has_table_privilege('embed.worker_session', 'select');

-- What the views embed.status and embed.worker read. Everybody may name the views, because the server's own
-- refusal says nothing of the role that is needed. The rows are read with the rights of the caller.
create or replace function embed._watched_sources() returns setof embed.source
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    perform embed._require_role('embed_monitor', embed._may_look(), 'embed.status');
    return query select * from embed.source;
end
$$;

create or replace function embed._watched_workers() returns setof embed.worker_session
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    perform embed._require_role('embed_monitor', embed._may_look(), 'embed.worker');
    return query select * from embed.worker_session;
end
$$;

-- Nothing where the relation is gone.
create or replace function embed._require_owner(relation regclass) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    owner constant oid := (select c.relowner from pg_class c where c.oid = relation);
begin
    if owner is not null and not pg_has_role(owner, 'usage') then
        perform embed._refuse_for(owner, format('the role %I does not own %s', current_user, relation));
    end if;
end
$$;

-- The role that enabled a source owns its inbox. The table can have another owner since.
create or replace function embed._require_enabler(source_id integer) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    owner constant oid := (
        select c.relowner from pg_class c where c.oid = to_regclass(format('embed.inbox_%s', source_id))
    );
begin
    if owner is not null and not pg_has_role(owner, 'usage') then
        perform embed._refuse_for(owner, format(
            'the role %I may not act for %I, who enabled %s', current_user, pg_get_userbyid(owner),
            coalesce((select s.relation::text from embed.source s where s.id = source_id), 'source ' || source_id)
        ));
    end if;
end
$$;

create or replace function embed._refuse_for(owner oid, problem text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception '%', problem
        using errcode = 'insufficient_privilege',
        -- A member of a superuser's role can become that superuser.
        hint = format(
            case when (select r.rolsuper from pg_roles r where r.oid = owner)
                then 'Ask %1$I or another superuser to do it.'
                else 'Ask %1$I to do it, or have a superuser run: grant %1$I to %2$I;'
            end,
            pg_get_userbyid(owner), current_user
        );
end
$$;

-- Has the server keep no statistics of the values of columns. EXPLAIN tells everybody who may SELECT how many rows
-- it expects, whatever row security hides: by bisection, in 40 steps, the greatest key of a table, a token of others,
-- or one of their questions. ALTER TABLE leaves what is there, see embed._forget_statistics.
create or replace function embed._hide_statistics(
    relation regclass, names text[] default null, wait boolean default true
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    columns constant text[] := array(
        select x.attname::text
        from pg_attribute x
        where x.attrelid = relation and x.attnum > 0 and not x.attisdropped
        and (names is null or x.attname = any (names))
        and coalesce(x.attstattarget, -1) <> 0
    );
    name text;
begin
    if not wait and columns <> '{}' then
        execute format('lock table %s in share update exclusive mode nowait', relation);
    end if;
    foreach name in array columns loop
        execute format('alter table %s alter column %I set statistics 0', relation, name);
        if to_regprocedure('pg_clear_attribute_stats(text, text, text, boolean)') is not null then
            execute format(
                'select pg_clear_attribute_stats(%L, %L, %L, false)',
                (select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = relation),
                (select c.relname from pg_class c where c.oid = relation),
                name
            );
        end if;
    end loop;
    perform embed._forget_statistics(relation);
end
$$;

-- Removes what the server knows of the values of columns for which it is to keep no statistics. Before PostgreSQL 18
-- only a superuser can: migrate calls it for all tables of vectors, because workers may have hidden them without.
create or replace function embed._forget_statistics(relation regclass) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if (select r.rolsuper from pg_roles r where r.rolname = current_user) then
        delete from pg_statistic s
        using pg_attribute a
        where s.starelid = relation and a.attrelid = relation and a.attnum = s.staattnum and a.attstattarget = 0;
    end if;
end
$$;

create or replace function embed._require_schema(a_schema oid, privilege text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if not has_schema_privilege(a_schema, privilege) then
        raise exception 'the role % may not % the schema %', quote_ident(current_user),
            case privilege when 'create' then 'create in' else 'use' end, a_schema::regnamespace
            using errcode = 'insufficient_privilege',
            hint = format(
                'As its owner: grant %s on schema %s to %I;', privilege, a_schema::regnamespace, current_user
            );
    end if;
end
$$;

-- The right to read columns of a table; of all of them where attnums is null.
create or replace function embed._require_columns(relation oid, attnums smallint[]) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    lacking text;
begin
    if has_table_privilege(relation, 'select') then
        return;
    end if;
    -- Who may read what a column had is not known any more after it was dropped.
    if exists (
        select from pg_attribute a where a.attrelid = relation and a.attnum = any (attnums) and a.attisdropped
    ) then
        raise exception 'the role % may not read all of %, of which a column was dropped', quote_ident(current_user),
            relation::regclass
            using errcode = 'insufficient_privilege',
            hint = format('As its owner: grant select on %s to %I;', relation::regclass, current_user);
    end if;
    select string_agg(quote_ident(a.attname), ', ' order by a.attnum) into lacking
    from pg_attribute a
    where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
    and (attnums is null or a.attnum = any (attnums))
    and not has_column_privilege(relation, a.attnum, 'select');
    if lacking is not null then
        raise exception 'the role % may not read %: permission denied for table %', quote_ident(current_user), lacking,
            (select quote_ident(c.relname) from pg_class c where c.oid = relation)
            using errcode = 'insufficient_privilege',
            hint = format('As its owner: grant select (%s) on %s to %I;', lacking, relation::regclass, current_user);
    end if;
end
$$;

-- What every search needs, before anybody is asked: the result has whole rows of the table.
create or replace function embed._require_rows(row_type regtype) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    class record;
begin
    select c.oid, c.relnamespace into class
    from pg_type t
    join pg_class c on c.oid = t.typrelid
    where t.oid = row_type;
    perform embed._require_schema(class.relnamespace, 'usage'::text),
        embed._require_columns(class.oid, null::smallint[]);
end
$$;

create or replace function embed._require_asker() returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if not has_function_privilege('embed._question(text, text)', 'execute') then
        raise exception 'the role % may not ask questions', quote_ident(current_user)
            using errcode = 'insufficient_privilege',
            detail = 'embed.restrict_questions() left them to members of embed_search.',
            hint = format('Have a superuser run: grant embed_search to %I;', current_user);
    end if;
end
$$;
