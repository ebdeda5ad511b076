-- What an operator looks at. The counts are exact: they are taken from the rows, not kept in
-- counters that drift. A source that cannot be read shows why, and does not hide the others.

create or replace view embed.worker as
select
    w.id, w.host, w.pid, w.lanes, w.model, w.embedded, w.rows_per_second, w.started_at, w.seen_at, w.backend, w.lock_held
from embed.worker_session w
where case
    -- The lock goes with the worker's connection, at once; behind a pooler there is none to look at.
    when w.lock_held then exists (
        select
        from pg_catalog.pg_locks l
        where l.locktype = 'advisory' and l.granted
        and l.classid = 1701667429 and l.objid = w.id::oid and l.objsubid = 2
        and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
    )
    else w.seen_at > now() - interval '60 s'
end;

comment on view embed.worker is 'Workers that are alive now.';
comment on column embed.worker.lanes is 'What it does: passages, questions.';
comment on column embed.worker.embedded is 'Rows since it started.';
comment on column embed.worker.lock_held is 'Whether a lock of its connection shows that it lives; behind a pooler only seen_at does.';

-- The counts of one source:
--   rows      have text and pass the filter
--   embedded  of these, have a vector of the active fingerprint and nothing waiting
--   dead      of these, given up after the last attempt
--   stale     of the others, have a vector that is of another fingerprint or of an older text
--   removing  vectors whose row is gone or has no text left
--   truncated rows of which a part was too long for the model's window and is not in a vector
--   split     rows in several passages
-- Whether there is text is asked only of rows without a good vector: reading every text of a
-- large table takes long, and a worker found text where it made a vector.
create or replace function embed._count(
    source embed.source, fingerprint integer,
    out rows bigint, out embedded bigint, out stale bigint, out dead bigint, out removing bigint,
    out truncated bigint, out split bigint, out rows_per_second real, out oldest timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $count$
declare
    keys record;
    orphans bigint;
    recent bigint;
    since timestamptz;
begin
    select
        string_agg(format('v.%s %s s.%s', x.vector_name, x.equal, x.row_name), ' and ' order by x.place) as vector_is_row,
        string_agg(format('q.%s %s s.%s', x.queue_name, x.equal, x.row_name), ' and ' order by x.place) as queue_is_row,
        string_agg(format('i.%s %s s.%s', x.queue_name, x.equal, x.row_name), ' and ' order by x.place) as inbox_is_row,
        string_agg(x.queue_name, ', ' order by x.place) as list,
        string_agg('v.' || x.vector_name, ', ' order by x.place) as vector_list
    into keys
    from embed._keys(source) as x;
    execute format(
        $q$select
            count(*) filter (where r.state <> 'empty'),
            count(*) filter (where r.state = 'embedded'),
            count(*) filter (where r.state = 'stale'),
            count(*) filter (where r.state = 'dead'),
            count(*) filter (where r.state = 'empty' and r.has_vector)
        from (
            select
                v.fingerprint is not null as has_vector,
                case
                    when v.fingerprint = $1 and q.seq is null and i.waits is null %1$s then 'embedded'
                    when %2$s is null then 'empty'
                    when q.due = 'infinity' and i.waits is null then 'dead'
                    when v.fingerprint is not null then 'stale'
                    else 'missing'
                end as state
            from %3$s s
            left join %4$s v on %5$s and v.chunk = 0
            left join embed.queue_%6$s q on %7$s
            left join (select distinct %8$s, true as waits from embed.inbox_%6$s) i on %9$s
        ) r$q$,
        case when source.into_column is null then ''
            else format('and s.%I is not null', embed._column_name(source.relation, source.into_attnum)) end,
        embed._text_sql(source, 's'), embed._rows_sql(source), source.vectors, keys.vector_is_row,
        source.id, keys.queue_is_row, keys.list, keys.inbox_is_row
    ) into rows, embedded, stale, dead, removing using fingerprint;
    execute format(
        $q$select
            count(*) filter (where not exists (select from %1$s s where %2$s)),
            count(*) filter (where v.embedded_at > clock_timestamp() - interval '60 s'),
            min(v.embedded_at) filter (where v.embedded_at > clock_timestamp() - interval '60 s')
        from %3$s v
        where v.chunk = 0$q$,
        embed._rows_sql(source), keys.vector_is_row, source.vectors
    ) into orphans, recent, since;
    removing := removing + orphans;
    execute format(
        $q$select count(distinct (%1$s)) filter (where v.truncated), count(*) filter (where v.chunk = 1)
        from %2$s v
        where (v.truncated or v.chunk = 1)
        and exists (select from %3$s s where %4$s)$q$,
        keys.vector_list, source.vectors, embed._rows_sql(source), keys.vector_is_row
    ) into truncated, split;
    -- Rows of the last minute; of a run that began within it, of the time since, at least a second.
    rows_per_second := recent / greatest(extract(epoch from clock_timestamp() - since), 1);
    rows_per_second := coalesce(rows_per_second, 0);
    execute format(
        $q$select least(
            (select min(i.at) from embed.inbox_%1$s i),
            (select min(q.since) from embed.queue_%1$s q where q.due < 'infinity'),
            (select min(r.at) from embed.sweep_request r where r.source = %1$s)
        )$q$,
        source.id
    ) into oldest;
end
$count$;

-- Of the index over the vectors of a source; of several, the one in the best state.
create or replace function embed._index_state(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select case
            when i.indisvalid then 'valid'
            when exists (select from pg_stat_progress_create_index p where p.index_relid = i.indexrelid) then 'building'
            else 'invalid'
        end
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
    join pg_am m on m.oid = c.relam and m.amname in ('hnsw', 'ivfflat')
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
    where case when source.into_column is null
        then i.indrelid = source.vectors and a.attname = 'embedding'
        else i.indrelid = source.relation and a.attnum = source.into_attnum end
    order by i.indisvalid desc, i.indexrelid
    limit 1
);

create or replace function embed._status() returns table (
    source regclass, name text, model text, state text, coverage real,
    rows bigint, embedded bigint, pending bigint, stale bigint, dead bigint, removing bigint,
    oldest_wait interval, rows_per_second real, eta interval,
    truncated bigint, split bigint, paused boolean, index_state text, error text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    s embed.source;
    t embed.source_state;
    n record;
    has_worker constant boolean := exists (select from embed.worker w where 'passages' = any (w.lanes));
begin
    for s in select * from embed.source x order by x.id loop
        select * into t from embed.source_state x where x.source = s.id;
        source := s.relation;
        name := s.name;
        model := coalesce(s.model, embed.default_model());
        paused := s.paused;
        error := t.error;
        index_state := 'none';
        rows := null;
        embedded := null;
        pending := null;
        stale := null;
        dead := null;
        removing := null;
        truncated := null;
        split := null;
        coverage := 0;
        oldest_wait := null;
        rows_per_second := 0;
        eta := null;
        begin
            perform embed._check_structure(s);
            index_state := coalesce(embed._index_state(s), t.index_state, 'none');
            n := embed._count(s, t.fingerprint);
            rows := n.rows;
            embedded := n.embedded;
            stale := n.stale;
            dead := n.dead;
            removing := n.removing;
            truncated := n.truncated;
            split := n.split;
            pending := rows - embedded - dead;
            -- Cut, not rounded: 1 is said only of a table that is whole.
            coverage := case rows when 0 then 1 else trunc(embedded::numeric / rows, 4) end;
            -- A sweep that was asked for may find that there is nothing to do.
            oldest_wait := case when pending > 0 or removing > 0 then clock_timestamp() - n.oldest end;
            rows_per_second := n.rows_per_second;
            eta := case when pending = 0 then interval '0' when rows_per_second > 0 then make_interval(secs => pending / rows_per_second) end;
            state := case
                when error is not null then 'error'
                when paused then 'paused'
                when not has_worker then 'no worker'
                -- A worker that lives and embeds nothing is not well, whatever it says of itself.
                when pending > 0 and rows_per_second = 0 and oldest_wait > interval '5 min' then 'stalled'
                when pending > 0 then 'embedding'
                when dead > 0 then 'incomplete'
                else 'ready'
            end;
        exception when others then
            state := 'error';
            error := sqlerrm;
        end;
        return next;
    end loop;
end
$$;

create or replace view embed.status as select * from embed._status();

comment on view embed.status is
    'Per enabled table: how many rows can be found, what still waits, and what stands in the way. state is ready, embedding, incomplete (nothing waits, but rows were given up: see embed.failure), paused, stalled, no worker or error.';
comment on column embed.status.coverage is
    'Share of the rows with text whose vector is up to date; 1 only when nothing is pending or dead.';
comment on column embed.status.pending is 'Rows with text that wait to be embedded, stale ones among them.';
comment on column embed.status.stale is
    'Pending rows that are still found by the vector of an older text, or have one of another model.';
comment on column embed.status.removing is
    'Vectors whose row was deleted or emptied and that a worker has yet to remove; search does not show them.';
comment on column embed.status.truncated is 'Rows of which a part was too long for the model and was not embedded.';
comment on column embed.status.split is 'Rows whose text was longer than the model''s window and is embedded in several passages.';
comment on column embed.status.index_state is 'none (all vectors are compared), building, valid, or invalid (drop it; a worker builds it anew).';

create or replace function embed._failures() returns table (
    source regclass, name text, key jsonb, attempts integer, error text, since timestamptz, retry_at timestamptz, dead boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    s embed.source;
begin
    for s in select * from embed.source x order by x.id loop
        continue when to_regclass(format('embed.queue_%s', s.id)) is null;
        source := s.relation;
        name := s.name;
        for key, attempts, error, since, retry_at, dead in
            execute format(
                $q$select jsonb_build_object(%1$s), q.attempts, q.error, q.since, nullif(q.due, 'infinity'), q.due = 'infinity'
                from embed.queue_%2$s q
                where q.error is not null or q.due = 'infinity'
                order by q.since$q$,
                (select string_agg(format('%L, q.k%s', k.name, k.place), ', ' order by k.place) from unnest(s.keys) with ordinality as k (name, place)),
                s.id
            )
        loop
            return next;
        end loop;
    end loop;
end
$$;

create or replace view embed.failure as select * from embed._failures();

comment on view embed.failure is
    'Rows that could not be embedded, and why; a dead one is tried again when its text changes or by embed.retry.';
comment on column embed.failure.error is 'The reason of the last attempt; may quote the text.';
comment on column embed.failure.retry_at is 'When it is tried again; null for a dead row.';
comment on column embed.failure.dead is 'Given up after the last attempt.';
