-- How one function of a source is written, and whose it may be.

-- Refuses a function of a source that somebody made in advance: written over, it would stay his, and run
-- in the statements of the table's writers and readers.
create or replace function embed._check_function(source integer, verb text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    squatter record;
begin
    select p.oid::regprocedure::text as signature, o.rolname into squatter
    from pg_proc p
    join pg_roles o on o.oid = p.proowner
    where p.pronamespace = 'embed'::regnamespace
    and p.proname = format('source_%s_%s', source, verb)
    and not o.rolsuper
    and o.oid not in (
        select n.nspowner from pg_namespace n where n.nspname = 'embed'
        union all
        select c.relowner from pg_class c where c.oid = to_regclass(format('embed.inbox_%s', source))
    );
    if found then
        raise exception 'the function % belongs to %, who did not enable the table', squatter.signature,
            squatter.rolname
            using errcode = 'insufficient_privilege',
            hint = format('Have its owner or a superuser run: drop function %s cascade;', squatter.signature);
    end if;
end
$$;

-- Gives a function of a source to the role that enabled it, who owns its inbox. A superuser who made it again, in
-- migrate or as a worker, would own a function that runs as him at every write of the table, where triggers of the
-- inbox, which are not his, fire.
create or replace function embed._give_function(source integer, signature text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    owner constant regrole := (
        select c.relowner::regrole from pg_class c where c.oid = to_regclass(format('embed.inbox_%s', source))
    );
begin
    if owner is null
        or exists (select from pg_proc p where p.oid = signature::regprocedure and p.proowner = owner) then
        return;
    end if;
    if not (select r.rolsuper from pg_roles r where r.rolname = current_user) then
        perform embed._open_schema(owner);
    end if;
    execute format('alter function %s owner to %s', signature, owner);
end
$$;

-- Writes one of the functions; pinned, with a search_path that its names are looked up in.
create or replace function embed._write_trigger_function(
    source integer, verb text, body text, pinned boolean default true
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform embed._check_function(source, verb);
    perform embed._open_schema(quote_ident(current_user)::regrole);
    execute format(
        'create or replace function embed.%I() returns trigger language plpgsql security definer %s as %L',
        format('source_%s_%s', source, verb), case when pinned then 'set search_path = pg_catalog, pg_temp' else '' end,
        body
    );
    perform embed._give_function(source, format('embed.source_%s_%s()', source, verb));
end
$$;
