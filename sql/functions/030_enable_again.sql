-- embed.enable of a table that is enabled already.

-- Changes a source to what is asked for, or refuses. Returns what embed.enable returns.
drop function if exists embed._enable_again(embed.source, embed.source);
create or replace function embed._enable_again(old embed.source, new embed.source, storage text) returns regclass
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    changed text;
begin
    if (old.into_column is null) <> (new.into_column is null) or old.into_column <> new.into_column
        or (old.key_attnums, old.key_types) is distinct from (new.key_attnums, new.key_types)
    then
        raise exception '% is enabled already, with another %', new.relation,
            case when (old.key_attnums, old.key_types) is distinct from (new.key_attnums, new.key_types) then 'key'
                else 'place for its vectors' end
            using errcode = 'EW003',
            hint = format(
                'Call embed.disable(%L, name => %L, drop_vectors => true) first.', new.relation::text, old.name
            );
    end if;
    if old.chunk <> new.chunk then
        raise exception '% is enabled already, with chunk => %', new.relation, old.chunk
            using errcode = 'EW003',
            detail = 'It is not known which of its vectors would have to be computed again.',
            hint = format(
                'Call embed.disable(%L, name => %L, drop_vectors => true) first.', new.relation::text, old.name
            );
    end if;
    if old.dimensions <> new.dimensions then
        raise exception 'vectors of % have % dimensions, but model % makes %', new.relation, old.dimensions,
            coalesce(new.model, embed.default_model()), new.dimensions
            using errcode = 'EW005',
            hint = format(
                'To change the model while the old vectors answer: select embed.begin_switch(%L, %L); without that: '
                'call embed.disable(%1$L, name => %3$L, drop_vectors => true) first, then enable it with the new '
                'model.',
                new.relation::text, coalesce(new.model, embed.default_model()), old.name
            );
    end if;
    if exists (select from pg_class c where c.oid = old.vectors) and embed._storage(old) is null then
        perform embed._check_structure(old);
    end if;
    if storage <> embed._storage(old) then
        raise exception '% is enabled already, with storage => %', new.relation, quote_literal(embed._storage(old))
            using errcode = 'EW003',
            hint = format(
                'A switch changes it in the background: select embed.begin_switch(%L, storage => %L, name => %L);',
                new.relation::text, storage, old.name
            );
    end if;
    perform embed._set_words(old, new.words);
    if (old.columns, old.column_attnums, old.watch_attnums, old.template, old.filter, old.model)
        is not distinct from
        (new.columns, new.column_attnums, new.watch_attnums, new.template, new.filter, new.model)
        and exists (select from pg_class c where c.oid = old.vectors)
        and not exists (select from embed._missing_triggers(old))
    then
        return case when new.into_column is null then old.vectors else new.relation end;
    end if;
    perform embed._require_no_switch(old.id, 'embed.enable with other arguments'::text);
    perform embed._open_schema(quote_ident(current_user)::regrole);
    update embed._own_source s
    set columns = new.columns, column_attnums = new.column_attnums, watch_attnums = new.watch_attnums,
        template = new.template, filter = new.filter, model = new.model,
        vectors = case when exists (select from pg_class c where c.oid = old.vectors) then old.vectors
            else embed._make_vectors(old, storage) end,
        version = nextval('embed.seq')
    where s.id = old.id
    returning * into new;
    perform embed._write_capture(new);
    perform embed._attach_capture(new);
    perform embed._guard_vectors(new);
    perform embed._grant_worker(new);
    insert into embed.sweep_request (source, reason) values (new.id, 'enabled again');
    -- Or embed.status of a small table said "ready" until a worker began.
    update embed.source_state t set recount_at = clock_timestamp() where t.source = new.id;
    changed := concat_ws(
        ', ',
        case when old.columns <> new.columns then 'columns ' || array_to_string(old.columns, ', ') end,
        case when old.template is distinct from new.template then 'template' end,
        case when old.filter is distinct from new.filter then 'filter' end,
        case when old.model is distinct from new.model then 'model' end
    );
    if changed <> '' then
        raise notice '% was enabled with other settings before (%); a worker looks at all its rows again',
            new.relation, changed
            using hint = case
                when old.model is distinct from new.model
                    then 'Search finds a row when it is embedded again. embed.begin_switch fills the vectors of '
                    'another model while the old ones answer.'
                else 'Until then, search compares the old vectors. The view embed.status shows how far it is.'
            end;
    end if;
    perform embed.wake();
    perform embed._notice_triggers(new);
    return case when new.into_column is null then new.vectors else new.relation end;
end
$$;
