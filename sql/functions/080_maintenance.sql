-- What an administrator does by hand. Like a trigger, these only append to the inbox: no transaction
-- that is left open can hold a lock that a worker needs.

create or replace function embed._sources(relation regclass, name text) returns setof embed.source
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    perform embed._require_role(
        'embed_admin',
        has_table_privilege('embed.source', 'select') and has_table_privilege('embed.sweep_request', 'insert'),
        'this function'
    );
    return query
    select * from embed.source s
    where s.relation = _sources.relation and (_sources.name is null or s.name = _sources.name)
    order by s.id;
    if not found then
        raise exception '% is not enabled%', relation, coalesce(' under the name ' || quote_literal(name), '')
            using errcode = 'EW002', hint = 'See the view embed.status for what is.';
    end if;
end
$$;

create or replace function embed.retry(relation regclass, name text default null) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    s embed.source;
    revived bigint;
    total bigint := 0;
begin
    for s in select * from embed._sources(relation, name) loop
        perform embed._require_enabler(s.id);
        execute format(
            'insert into embed.inbox_%1$s (%2$s, priority) select %2$s, 0 from embed.queue_%1$s where due = '
            '''infinity'' order by seq',
            s.id, embed._key_sql(s) ->> 'places'
        );
        get diagnostics revived = row_count;
        total := total + revived;
    end loop;
    if total > 0 then
        perform embed.wake();
    end if;
    return total;
end
$$;

comment on function embed.retry(regclass, text) is
    'Has the dead rows of a table tried again; returns how many there are.';

-- Counts what differs, as this transaction sees it, and asks for the one sweep that repairs: a worker's, page by
-- page (sql/queries/sweep.sql). To repair here would not be enough: a row that a worker has read before a
-- change that no trigger saw is in order until that worker writes, and only a sweep's begin fences it. So
-- the request goes out also where nothing differs. It is an append: it waits for nobody, is undone by a
-- rollback, and stays until a worker lives.
create or replace function embed.sweep(relation regclass, name text default null)
returns table (missing bigint, stale bigint, orphaned bigint, altered bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
as $sweep$
declare
    s embed.source;
    words jsonb;
    n record;
begin
    missing := 0;
    stale := 0;
    orphaned := 0;
    altered := 0;
    for s in select * from embed._sources(relation, name) loop
        perform embed._check_structure(s), embed._require_enabler(s.id);
        words := embed._source_sql(s) || jsonb_build_object('fault', embed._fault_sql(s));
        begin
            -- offset 0: composing a text costs most of the time, so it is done once a row, not once a use.
            execute embed._fill(
                $q$select
                    count(*) filter (where f.fault = 'missing') as missing,
                    count(*) filter (where f.fault = 'stale') as stale,
                    count(*) filter (where f.fault = 'altered') as altered,
                    (
                        select count(*)
                        from (
                            select {v_keys_as_places} from {vectors} v
                            union
                            select {q_places} from {queue} q where q.due = 'infinity'
                        ) f
                        where not exists (select from {rows} s where {s_is_f} and {text} is not null)
                    ) as orphaned
                from (
                    select v.fault
                    from (
                        select {x_places}, x.text, embed.text_hash(x.text) as hash, x.stored, $1 as fingerprint
                        from (select {s_keys_as_places}, {text} as text, {stored} as stored from {rows} s offset 0) x
                        where x.text is not null
                        offset 0
                    ) r
                    cross join lateral (select {fault} as fault from {vectors} v where {v_is_r}) v
                    -- A dead row has no vector, and stays dead.
                    where not exists (select from {queue} q where {q_is_r} and q.due = 'infinity')
                ) f$q$,
                words
            ) into n using (select t.fingerprint from embed.source_state t where t.source = s.id);
            missing := missing + n.missing;
            stale := stale + n.stale;
            orphaned := orphaned + n.orphaned;
            altered := altered + n.altered;
        exception when data_exception or raise_exception then
            raise warning 'the rows of % cannot be counted: %', s.relation, sqlerrm
                using hint =
                    'A worker sweeps them all the same; embed.failure then shows the rows that cannot be read.';
            missing := null;
            stale := null;
            orphaned := null;
            altered := null;
        end;
        insert into embed.sweep_request (source, reason) values (s.id, 'asked for');
    end loop;
    perform embed.wake();
    return next;
end
$sweep$;

comment on function embed.sweep(regclass, text) is
    'Compares every row of a table with its vector and has a worker repair what differs: rows without a vector, '
    'vectors of an older text or of another model, vectors without a row, vectors changed by hand or with a passage '
    'lost. Returns how many of each this transaction sees. The worker''s own sweep begins after the commit, as soon as '
    'a worker lives, and looks again at every row. The counts are null where a row cannot be read, for example because '
    'the filter raises an error.';

-- Rewrites a queue and its indexes. Vacuum alone gives back the end of the table, which a single
-- dead letter there prevents, and never an index: those of 1,200,000 rows stay at 70 MB.
--
-- Waits for nobody: false where somebody uses the queue. By CLUSTER, because a function cannot run
-- VACUUM FULL, and before PostgreSQL 17 only the owner of a table may run either.
create or replace function embed._compact(source_id integer) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    queue constant regclass := format('embed.queue_%s', source_id);
begin
    execute format('lock table %s in access exclusive mode nowait', queue);
    execute format(
        'cluster %s using %I', queue,
        (
            select c.relname
            from pg_index i
            join pg_class c on c.oid = i.indexrelid
            where i.indrelid = queue and i.indisprimary
        )
    );
    return true;
exception when lock_not_available then
    return false;
end
$$;

-- embed._compact for a worker that does not own the queue: runs as the owner of the queue.
create or replace function embed._write_compact(source embed.source) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    name constant text := format('embed.source_%s_compact()', source.id);
    owner text := (
        select c.relowner::regrole from pg_class c where c.oid = format('embed.queue_%s', source.id)::regclass
    );
begin
    perform embed._open_schema(r.role) from unnest(array[quote_ident(current_user), owner]::regrole[]) as r (role);
    execute format(
        'create or replace function %s returns boolean language sql security definer set search_path = pg_catalog, '
        'pg_temp as %L',
        name, format('select embed._compact(%s)', source.id)
    );
    perform embed._give_function(source.id, name);
    execute format('revoke execute on function %s from public', name);
end
$$;

-- Whether this transaction may sweep a source: until it ends, no other worker does. Every login can hold an
-- advisory lock. One of a role that may not sweep counts for nothing, because it would keep new tables from
-- being embedded. Then two workers may look at the same page, and the queue takes each row once.
create or replace function embed._take_sweep(source integer) returns boolean
language sql
set search_path = pg_catalog, pg_temp
return case
    when pg_try_advisory_xact_lock(embed._lock_sweep(), source) then true
    else not exists (
        select
        from pg_locks l
        join pg_stat_activity a on a.pid = l.pid
        where l.locktype = 'advisory' and l.granted and l.objsubid = 2
        and l.classid::bigint = embed._lock_sweep() and l.objid::bigint = _take_sweep.source
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and has_table_privilege(a.usesysid, 'embed.sweep_state', 'update')
    )
end;
