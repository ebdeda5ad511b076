-- Who may write our tables of sources, settings and states.

-- What every write of embed.source by a role with few rights goes through. Nobody but the owner of the
-- schema is granted a write of the table itself.
select embed._ensure_view('embed._own_source', 'select * from embed.source');

-- Refuses to write a source of somebody else's table, or one that names somebody else's vectors: the role
-- that enabled the table would act on it with its rights. Triggers run as the writer, also through the view.
create or replace function embed._check_source_rights() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    source constant embed.source := case when tg_op = 'INSERT' then new else old end;
    result constant embed.source := case when tg_op = 'DELETE' then old else new end;
    -- What the owner of a table may change that somebody else enabled.
    simple constant text[] := '{version,paused,lexical}';
begin
    if pg_has_role((select c.relowner from pg_class c where c.oid = 'embed.source'::regclass), 'usage') then
        return result;
    end if;
    -- embed.use_model has every source looked at again that follows the default.
    if tg_op = 'UPDATE' and to_jsonb(new) - 'version' = to_jsonb(old) - 'version' then
        return result;
    end if;
    perform embed._require_owner(source.relation), embed._require_owner(result.relation);
    if tg_op = 'INSERT' or result.vectors <> source.vectors then
        perform embed._require_owner(result.vectors);
        if not exists (select from pg_class c where c.oid = result.vectors and c.relkind in ('r', 'p')) then
            raise exception '% is no table', result.vectors using errcode = 'insufficient_privilege',
                hint = 'A source keeps its vectors in a table. Call embed.enable.';
        end if;
    end if;
    -- Of the role that enabled it: with its rights a worker writes what the row says.
    if tg_op <> 'UPDATE' or to_jsonb(new) - simple <> to_jsonb(old) - simple then
        perform embed._require_enabler(source.id);
    end if;
    if source.id <> result.id then
        raise exception 'the number of a source stays' using errcode = 'insufficient_privilege',
            hint = 'Call embed.disable and embed.enable for another one.';
    end if;
    return result;
end
$$;

select embed._ensure_trigger('embed.source', 'check_rights', 'embed._check_source_rights()');

-- What embed.use_model and embed.use_reranker choose is all that a role with few rights may set; the other
-- settings are what migrate found out, and who may ask.
create or replace function embed._check_setting_rights() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if not pg_has_role((select c.relowner from pg_class c where c.oid = 'embed.setting'::regclass), 'usage')
        and exists (
            select from unnest(array[old.name, new.name]) as n (name) where n.name not in ('default_model', 'reranker')
        )
    then
        raise exception 'the role % may not write the setting %', quote_ident(current_user),
            coalesce(new.name, old.name)
            using errcode = 'insufficient_privilege',
            hint =
                'embed.use_model and embed.use_reranker are for members of embed_admin; the rest is for the owner of '
                'the schema embed.';
    end if;
    return coalesce(new, old);
end
$$;

select embed._ensure_trigger('embed.setting', 'check_rights', 'embed._check_setting_rights()');

-- What workers found out about a source is for workers to write, and for the role that enabled it.
create or replace function embed._check_state_rights() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if not pg_has_role((select c.relowner from pg_class c where c.oid = 'embed.source_state'::regclass), 'usage')
        and not coalesce(pg_has_role(to_regrole('embed_worker'), 'usage'), false)
    then
        perform embed._require_enabler(n.source)
        from unnest(array[old.source, new.source]) as n (source);
    end if;
    return coalesce(new, old);
end
$$;

-- A switch is for the role that enabled both of its sources.
create or replace function embed._check_switch_rights() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if not pg_has_role((select c.relowner from pg_class c where c.oid = 'embed.switch_state'::regclass), 'usage') then
        perform embed._require_enabler(n.source)
        from unnest(array[old.source, old.successor, new.source, new.successor]) as n (source);
    end if;
    return coalesce(new, old);
end
$$;

select embed._ensure_trigger('embed.switch_state', 'check_rights', 'embed._check_switch_rights()');

select embed._ensure_trigger('embed.source_state', 'check_rights', 'embed._check_state_rights()');
select embed._ensure_trigger('embed.sweep_state', 'check_rights', 'embed._check_state_rights()');
