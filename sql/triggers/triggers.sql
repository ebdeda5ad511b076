-- The triggers of a source: which are missing, and how they are attached, silenced and dropped.

-- The triggers that a source needs and that its tables do not have yet.
create or replace function embed._missing_triggers(source embed.source)
returns table (relation regclass, trigger_name text, definition text)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    with recursive tree as (
        select (source).relation as relation, c.relkind = 'p' as partitioned
        from pg_class c
        where c.oid = (source).relation
        union
        -- Not pg_partition_tree, which waits for locks on the partitions.
        select i.inhrelid::regclass, c.relkind = 'p'
        from tree t
        join pg_inherits i on i.inhparent = t.relation and t.partitioned
        join pg_class c on c.oid = i.inhrelid
    ),
    wanted as (
        -- One an event: transition tables allow neither several events nor UPDATE OF.
        select (source).relation as relation, e.verb,
            format('after %s on %s referencing %s for each statement', e.verb, (source).relation, e.tables) as rule
        from (values
            ('insert', 'new table as new_rows'),
            ('update', 'old table as old_rows new table as new_rows'),
            ('delete', 'old table as old_rows')
        ) as e (verb, tables)
        where not embed._captures_rows(source)
        union all
        -- Partitions inherit it, those attached later too.
        select (source).relation, 'row',
            format('after insert or update or delete on %s for each row', (source).relation)
        where embed._captures_rows(source)
        union all
        -- This one they do not inherit.
        select t.relation, 'truncate', format('after truncate on %s for each statement', t.relation) from tree t
    )
    select
        w.relation,
        format('embed_%s_%s', (source).id, w.verb),
        format(
            'create trigger %I %s execute function embed.%I()',
            format('embed_%s_%s', (source).id, w.verb), w.rule, format('source_%s_%s', (source).id, w.verb)
        )
    from wanted w
    where not exists (
        select from pg_trigger t where t.tgrelid = w.relation and t.tgname = format('embed_%s_%s', (source).id, w.verb)
    );
end;

-- Puts the triggers on the tables, which locks them against writers for a moment. Says whether it
-- did. A worker does not wait for the lock, since writers would wait behind it.
create or replace function embed._attach_capture(source embed.source, wait boolean default true) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    m record;
begin
    if not wait then
        for m in
            select distinct x.relation, c.relkind
            from embed._missing_triggers(source) as x
            join pg_class c on c.oid = x.relation
        loop
            execute format(
                'lock table %s %s in share row exclusive mode nowait',
                case when m.relkind = 'p' then '' else 'only' end, m.relation
            );
        end loop;
    end if;
    for m in select * from embed._missing_triggers(source) loop
        execute m.definition;
    end loop;
    return found;
end
$$;

-- The functions of a source whose columns are gone must do nothing, or every write would ask again.
create or replace function embed._silence_capture(
    source integer, verbs text[] default array['insert', 'update', 'delete', 'row', 'truncate']
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    silent constant text := 'begin return null; end';
    a_verb text;
begin
    for a_verb in
        select v.verb
        from unnest(verbs) as v (verb)
        join pg_proc p on p.proname = format('source_%s_%s', source, v.verb) and p.pronamespace = 'embed'::regnamespace
        where p.prosrc <> silent
    loop
        perform embed._write_trigger_function(source, a_verb, silent, pinned => true);
    end loop;
end
$$;

create or replace function embed._drop_capture(source integer) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
-- A NOTICE for each trigger that goes with its function is no news when a table is disabled.
set client_min_messages = warning
as $$
declare
    signature text;
begin
    for signature in
        select p.oid::regprocedure::text
        from pg_proc p
        where p.pronamespace = 'embed'::regnamespace
        and p.proname in (
            select format('source_%s_%s', source, verb)
            from unnest(
                array['insert', 'update', 'delete', 'truncate', 'row', 'open', 'visible', 'refresh', 'compact', 'words']
            ) as verb
        )
    loop
        -- What depends on them goes with them: triggers, and the policy of the vectors.
        execute format('drop function %s cascade', signature);
    end loop;
end
$$;
