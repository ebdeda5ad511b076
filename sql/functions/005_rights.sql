-- Rights, policies and views that are the same after every `embedworker migrate`, whatever was there before: a
-- dump restored without owners and grants, an older version, somebody's GRANT.

-- Columns of our tables that are not there, or have another type, than `embedworker migrate` made them;
-- null if none. `drop extension vector cascade` and `drop schema public cascade` take some away.
create or replace function embed._lost_columns() returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select string_agg(format('%s.%s', t.key, c.key), ', ' order by t.key, c.key)
    from embed.setting s, jsonb_each(s.value::jsonb -> 'columns') as t, jsonb_each_text(t.value) as c
    where s.name = 'tables'
    and not exists (
        select
        from pg_attribute a
        join pg_type y on y.oid = a.atttypid
        where a.attrelid = to_regclass(format('embed.%I', t.key)) and a.attname = c.key and y.typname = c.value
    )
);

do $$
declare
    lost constant text := embed._lost_columns();
begin
    if lost is not null then
        raise exception 'tables of the schema embed lack columns that embedworker made, or have others: %', lost
            using errcode = 'EW004',
            hint =
                'Run `embedworker migrate --down`, then `embedworker migrate`, and enable your tables again: vectors '
                'in your own schemas are used again.';
    end if;
end
$$;

-- The states of sources go with what they refer to, for example the fingerprints. A worker moves no row without one.
insert into embed.source_state (source)
select s.id
from embed.source s
where not exists (select from embed.source_state t where t.source = s.id);

-- PUBLIC and our roles, as a list for GRANT and REVOKE.
create or replace function embed._grantees() returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select concat_ws(', ', 'public', string_agg(quote_ident(r.rolname), ', '))
    from pg_roles r
    where r.rolname in ('embed_worker', 'embed_admin', 'embed_search', 'embed_monitor')
);

-- Nobody has a right on our tables, and everybody may call every function, until a file below says
-- otherwise. Functions and tables of one source and of the loopback have their rights from elsewhere.
do $$
declare
    granted text;
begin
    for granted in
        select format('table %s', c.oid::regclass)
        from embed.setting s, jsonb_object_keys(s.value::jsonb -> 'columns') as t (name)
        join pg_class c on c.oid = to_regclass(format('embed.%I', t.name))
        where s.name = 'tables' and t.name <> 'document' and c.relacl is not null
    loop
        execute format('revoke all on %s from %s', granted, embed._grantees());
    end loop;
    for granted in
        select format('function %s', p.oid::regprocedure)
        from pg_proc p
        where p.pronamespace = 'embed'::regnamespace
        and p.proname !~ '^(source_[0-9]+_|_loopback)'
        and p.proacl is not null
        and pg_has_role(p.proowner, 'usage')
        and not exists (
            select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
        )
    loop
        execute format('revoke all on %s from %s', granted, embed._grantees());
        execute format('grant execute on %s to public', granted);
    end loop;
end
$$;

-- Has a table protect its rows by this policy. rule is what follows the table's name in CREATE POLICY;
-- the policy's comment keeps it. A policy that is already so is left alone, because to make one waits
-- for every transaction that has read the table.
create or replace function embed._ensure_policy(relation regclass, name text, rule text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if not (select c.relrowsecurity from pg_class c where c.oid = relation) then
        execute format('alter table %s enable row level security', relation);
    end if;
    if exists (
        select from pg_policy p
        where p.polrelid = relation and p.polname = name and obj_description(p.oid, 'pg_policy') = rule
    ) then
        return;
    end if;
    if exists (select from pg_policy p where p.polrelid = relation and p.polname = name) then
        execute format('drop policy %I on %s', name, relation);
    end if;
    execute format('create policy %I on %s %s', name, relation, rule);
    execute format('comment on policy %I on %s is %L', name, relation, rule);
end
$$;

-- Has a view show this query. One that does is left alone, because `create or replace view` waits for
-- every transaction that has read it.
create or replace function embed._ensure_view(name text, query text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('create temporary view embed_wanted as %s', query);
    if to_regclass(name) is null
        or pg_get_viewdef(to_regclass(name)) <> pg_get_viewdef('pg_temp.embed_wanted'::regclass) then
        execute format('create or replace view %s as %s', name, query);
    end if;
    drop view pg_temp.embed_wanted;
    execute format('revoke all on %s from %s', name, embed._grantees());
end
$$;

-- Has a table call this function before each row is written. A trigger that is there is left alone,
-- because to make one waits for every transaction that has written to the table.
create or replace function embed._ensure_trigger(relation regclass, name text, function text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from pg_trigger t where t.tgrelid = relation and t.tgname = name and t.tgenabled = 'O') then
        execute format(
            'create or replace trigger %I before insert or update or delete on %s for each row execute function %s',
            name, relation, function
        );
    end if;
end
$$;
