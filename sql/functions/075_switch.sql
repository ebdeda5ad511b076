-- A change of the model of a table, or of the type of its vectors, with a way back.
--
-- The successor is a second source of the same table, with vectors of the other model or type. From its beginning
-- every change of a row goes to both. The cut exchanges their names in one transaction: of the vector
-- tables, of their indexes, and of the sources. So a query that names <table>_embedding gets the vectors of
-- the source that answers, and embed.query(…, of => table) gives the question's vector by its model.

-- The switch of a table that is under way. name is that of the source that answers, or of the other.
create or replace function embed._find_switch(relation regclass, name text) returns embed.switch_state
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    found_switch embed.switch_state;
begin
    select w.* into found_switch
    from embed.switch_state w
    join embed.source s on s.id in (w.source, w.successor)
    where s.relation = _find_switch.relation and (_find_switch.name is null or s.name = _find_switch.name)
    order by w.source
    limit 1;
    if not found then
        perform embed._sources(relation, name);
        raise exception 'the model of % is not being changed', relation
            using errcode = 'EW010', hint = 'Begin with embed.begin_switch(table, model).';
    end if;
    perform embed._require_owner(relation),
        embed._require_enabler(found_switch.source),
        embed._require_enabler(found_switch.successor);
    return found_switch;
end
$$;

-- The same for the function that changes it: one of these at a time, by a role with this right on the sources.
create or replace function embed._take_switch(relation regclass, name text, caller text, privilege text)
returns embed.switch_state
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform embed._require_role('embed_admin', has_table_privilege('embed._own_source', privilege), caller);
    perform pg_advisory_xact_lock(embed._lock_global(), embed._turn_enable());
    return embed._find_switch(relation, name);
end
$$;

-- together: by embed.use_model, with the others that follow the default model. Without a model or a storage it is
-- that of the table.
drop function if exists embed.begin_switch(regclass, text, text), embed._begin_switch(regclass, text, text, boolean);
create or replace function embed._begin_switch(
    relation regclass, model text, name text, together boolean, storage text default null
) returns regclass
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    old embed.source;
    new embed.source;
    was embed.switch_state;
    next_name text;
    next_column text;
    next_model text;
    next_storage text;
begin
    perform embed._require_role(
        'embed_admin', has_table_privilege('embed._own_source', 'insert'), 'embed.begin_switch'
    );
    perform embed._check_storage(_begin_switch.storage);
    perform pg_advisory_xact_lock(embed._lock_global(), embed._turn_enable());
    select s.* into old
    from embed._sources(_begin_switch.relation, _begin_switch.name) as s
    join pg_class c on c.oid = s.relation
    order by s.name = c.relname desc, embed._is_standby(s.id), s.id
    limit 1;
    -- A table that follows the default model goes on to, where its model stays.
    next_model := coalesce(_begin_switch.model, old.model);
    next_storage := coalesce(_begin_switch.storage, embed._storage(old), 'vector');
    select w.* into was from embed.switch_state w where old.id in (w.source, w.successor);
    if found then
        select s.* into new from embed.source s where s.id = was.successor;
        if new.model is not distinct from next_model and embed._storage(new) = next_storage and not was.cut then
            update embed.switch_state w set together = was.together or _begin_switch.together
            where w.source = was.source;
            return case when new.into_column is null then new.vectors else relation end;
        end if;
        raise exception 'the model of % is being changed to % (%) already', relation,
            quote_literal(coalesce(new.model, embed.default_model())), embed._storage(new)
            using errcode = 'EW010', hint = 'End that with embed.end_switch first.';
    end if;
    if coalesce(old.model, embed.default_model()) = coalesce(next_model, embed.default_model())
        and embed._storage(old) = next_storage then
        raise exception '% has vectors of % already, of the type %', relation,
            quote_literal(coalesce(next_model, embed.default_model())), next_storage
            using errcode = 'EW003', hint = 'Name another model, or another storage => ….';
    end if;
    -- With room for what the name of the table of vectors ends with, or both sides of a long name had the same table.
    next_name := regexp_replace(embed._bounded_name(old.name, '_next_embedding'), '_embedding$', '');
    if exists (select from embed.source s where s.relation = old.relation and s.name = next_name) then
        raise exception '% is enabled under the name %, which a switch needs', relation, quote_literal(next_name)
            using errcode = 'EW003',
            hint = format('Call embed.disable(%L, name => %L) first.', relation::text, next_name);
    end if;

    if old.into_column is not null then
        next_column := embed._make_next_column(old, next_model, next_storage);
    end if;
    perform embed.enable(
        relation,
        array(
            select embed._column_name(old.relation, c.attnum)
            from unnest(old.column_attnums) with ordinality as c (attnum, place)
            order by c.place
        ),
        name => next_name,
        model => next_model,
        into_column => next_column,
        chunk => old.chunk or next_column is not null,
        key => array(select embed._column_name(old.relation, k.attnum) from unnest(old.key_attnums) as k (attnum)),
        words => old.words,
        storage => next_storage
    );
    -- How the other source reads its rows, as it is stored: nothing is parsed again.
    update embed._own_source s
    set template = old.template, filter = old.filter, watch_attnums = old.watch_attnums,
        lexical = old.lexical, paused = old.paused, version = nextval('embed.seq')
    where s.relation = old.relation and s.name = next_name
    returning s.* into new;
    perform embed._write_capture(new);
    perform embed._grant_worker(new);
    update embed.source_state t set structure = embed._structure(new) where t.source = new.id;
    insert into embed.switch_state (source, successor, together) values (old.id, new.id, _begin_switch.together);
    if old.model is null and next_model is not null and not together then
        raise notice 'embed.query(''…'') gives vectors of the default model, %', quote_literal(embed.default_model())
            using hint = format(
                'Before you cut over, write embed.query(''…'', of => %L) where %s is searched.',
                relation::text, case when next_column is null then old.vectors else relation end::text
            );
    end if;
    return case when next_column is null then new.vectors else relation end;
end
$$;

create or replace function embed.begin_switch(
    relation regclass, model text default null, name text default null, storage text default null
) returns regclass
language sql
set search_path = pg_catalog, pg_temp
return embed._begin_switch(relation, model, name, false, storage);

comment on function embed.begin_switch(regclass, text, text, text) is
    'Begins to fill a second set of vectors of a table, by another model or of another storage (''vector'', '
    '''halfvec''); the present ones answer meanwhile. Returns the table that holds the new ones.';

-- Begins a switch of every source that follows the default model.
create or replace function embed._begin_switches(model text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    s embed.source;
    begun text[] := '{}';
begin
    perform pg_advisory_xact_lock(embed._lock_global(), embed._turn_enable());
    if model = embed.default_model() then
        raise notice 'the default model is % already', quote_literal(model);
        return;
    end if;
    for s in select x.* from embed.source x where x.model is null order by x.id loop
        perform embed._begin_switch(s.relation, _begin_switches.model, s.name, true);
        begun := begun || s.relation::text;
    end loop;
    if begun = '{}' then
        perform embed.use_model(model);
        return;
    end if;
    raise notice 'new vectors are being filled for: %', array_to_string(begun, ', ')
        using hint = format(
            'When embed.switch says ready for all: select embed.cut_over(%L). It cuts all of these tables over, and '
            'changes the default model.',
            begun[1]
        );
end
$$;

create or replace function embed.cut_over(
    relation regclass, force boolean default false, name text default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    w embed.switch_state;
begin
    w := embed._take_switch(cut_over.relation, cut_over.name, 'embed.cut_over'::text, 'update'::text);
    if w.cut then
        raise notice '% was cut over already', relation;
        return;
    end if;
    if w.together then
        perform embed._require_all_followers();
    end if;
    if not force then
        perform embed._require_vectors(old), embed._require_vectors(new), embed._require_complete(old, new),
            embed._require_judgement(x.judgement)
        from embed._taken_together(w) as x
        join embed.source old on old.id = x.source
        join embed.source new on new.id = x.successor;
    end if;
    perform embed._exchange(w);
    update embed.switch_state x
    set cut = true, forced = cut_over.force, cut_over_at = clock_timestamp()
    from embed._taken_together(w) as t
    where x.source = t.source;
    perform embed.wake();
end
$$;

comment on function embed.cut_over(regclass, boolean, text) is
    'Has the vectors that embed.begin_switch filled answer from now on, under the names of the old ones. Refused while '
    'rows are missing or after a judgement that is worse, unless force is true. Each try for the locks takes at most '
    '100 ms; lock_timeout bounds all tries. Tables whose change embed.use_model(…, switch => true) began are cut over '
    'together.';

create or replace function embed.roll_back(relation regclass, name text default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    w embed.switch_state;
begin
    w := embed._take_switch(roll_back.relation, roll_back.name, 'embed.roll_back'::text, 'update'::text);
    if not w.cut then
        raise notice '% was not cut over', relation;
        return;
    end if;
    if w.together then
        perform embed._require_all_followers();
    end if;
    perform embed._exchange(w);
    update embed.switch_state x
    set cut = false, rolled_back_at = clock_timestamp()
    from embed._taken_together(w) as t
    where x.source = t.source;
    perform embed.wake();
end
$$;

comment on function embed.roll_back(regclass, text) is
    'Undoes embed.cut_over: the old vectors answer again. They are current, because every change went to both.';

create or replace function embed.end_switch(relation regclass, name text default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    w embed.switch_state;
    s embed.source;
begin
    w := embed._take_switch(end_switch.relation, end_switch.name, 'embed.end_switch'::text, 'delete'::text);
    for w in select x.* from embed._taken_together(w) as x loop
        select x.* into s from embed.source x where x.id = case when w.cut then w.source else w.successor end;
        delete from embed.switch_state x where x.source = w.source;
        update embed._own_source x set version = nextval('embed.seq') -- a worker may read vectors of the other side
        where x.id in (w.source, w.successor) and x.id <> s.id;
        perform embed._forget(s, true);
        if embed._column_name(s.relation, s.into_attnum) is not null then
            execute format('alter table %s drop column %I', s.relation, embed._column_name(s.relation, s.into_attnum));
        end if;
    end loop;
    perform embed.wake();
end
$$;

comment on function embed.end_switch(regclass, text) is
    'Drops the vectors that do not answer: the old ones after a cut, the new ones without. There is no way back then.';
