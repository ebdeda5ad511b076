-- embed.status: it reads counters that workers keep, and a bounded number of the entries that wait.
-- embed.status_exact reads every row. A source that cannot be read shows why, and does not hide the others.

-- Of the index over the vectors of a source; of several, the one in the best state. A build says how
-- much of the table it has read.
create or replace function embed._index_state(source embed.source) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case
                when x.valid then 'valid'
                when not x.building then 'invalid'
                else 'building' || coalesce((
                    select format(', %s %%', 100 * p.blocks_done / p.blocks_total)
                    from pg_stat_progress_create_index p
                    where p.index_relid = x.index and p.phase like 'building index%' and p.blocks_total > 0
                ), '')
            end
        from embed._vector_indexes(source) as x
        order by x.valid desc, x.building desc
        limit 1
    );
end
$$;

-- What is said of a table that cannot be read now; worker/embedworker/service/source_errors.py says the same.
create or replace function embed._locked_text(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select 'an open transaction has locked the table, its vectors or its queue; end it (see pg_stat_activity)'
        || coalesce(': ' || string_agg(format('process %s of the user %I', l.pid, a.usename), ', '), '')
    from pg_locks l
    join pg_stat_activity a on a.pid = l.pid
    where l.mode = 'AccessExclusiveLock' and l.granted and l.pid <> pg_backend_pid()
    and l.database = (select d.oid from pg_database d where d.datname = current_database())
    and l.relation in (
        source.relation, source.vectors,
        to_regclass('embed.inbox_' || source.id), to_regclass('embed.queue_' || source.id)
    )
);

-- One line of embed.status. So many entries of the queue (bound) are looked at in some 20 ms. It waits 0.1 s for
-- a table: an operator asks it while a migration of the application holds one.
create or replace function embed._status(
    s embed.source, has_worker boolean, exact boolean,
    out model text, out state text, out coverage real,
    out rows bigint, out embedded bigint, out pending bigint, out stale bigint, out dead bigint, out removing bigint,
    out oldest_wait interval, out rows_per_second real, out eta interval,
    out truncated bigint, out split bigint, out index_state text, out error text, out counted_at timestamptz,
    out estimated boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    bound constant integer := 1000;
    lock_timeout_of_caller constant text := current_setting('lock_timeout');
    t embed.source_state;
    n record;
begin
    select * into t from embed.source_state x where x.source = s.id;
    model := coalesce(s.model, embed.default_model());
    error := t.error;
    index_state := 'none';
    coverage := 0;
    rows_per_second := 0;
    counted_at := t.counted_at;
    begin
        -- Here and not for the whole function: our own tables, which migrate changes, are waited for.
        perform set_config('lock_timeout', '100ms', true);
        perform embed._check_structure(s);
        index_state := coalesce(embed._index_state(s), substring(t.index_state from '^(?:none|failed).*'), 'none');
        if embed._may_count(s) and (
            exact or (t.counted_at is null or t.recount_at > t.counted_at) and embed._is_small(s, bound)
        ) then
            n := embed._count(s, t.fingerprint);
            counted_at := clock_timestamp();
            estimated := false;
        else
            n := embed._count_kept(s, t, bound);
            estimated := n.estimated;
        end if;
        rows := n.rows;
        if estimated and t.counted_at is null then
            rows := greatest(rows, embed._guess_rows(s.relation));
        end if;
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
        eta := case
            when pending = 0 then interval '0'
            when rows_per_second > 0 then make_interval(secs => pending / rows_per_second)
        end;
        state := case
            when error is not null then 'error'
            when s.paused then 'paused'
            when not has_worker then 'no worker'
            -- A worker that lives and embeds nothing is not well, whatever it says of itself.
            when pending > 0 and rows_per_second = 0 and oldest_wait > interval '5 min' then 'stalled'
            when pending > 0 or exists (
                select
                from embed.sweep_request r
                where r.source = s.id and r.reason in ('enabled again', 'model changed')
            ) then 'embedding'
            when dead > 0 then 'incomplete'
            else 'ready'
        end;
        perform set_config('lock_timeout', lock_timeout_of_caller, true);
    exception
        when lock_not_available then
            state := 'error';
            coverage := null;
            error := embed._locked_text(s);
        when others then
            state := 'error';
            error := sqlerrm;
    end;
end
$$;

-- A condition on source or name reaches embed.source: that line alone is worked out.
select embed._ensure_view('embed.status', $view$
select
    s.relation as source, s.name, x.model, x.state, x.coverage,
    x.rows, x.embedded, x.pending, x.stale, x.dead, x.removing,
    x.oldest_wait, x.rows_per_second, x.eta,
    x.truncated, x.split, s.paused, x.index_state, x.error, x.counted_at, x.estimated,
    s.words,
    z.storage, z.row_bytes, z.index_bytes
from embed._watched_sources() as s
cross join lateral embed._status(
    s, (select exists (select from embed.worker w where 'passages' = any (w.lanes))), false
) as x
cross join lateral embed._sizes(s) as z
order by s.id
$view$);

-- The view had one function for all sources.
drop function if exists embed._status();

create or replace function embed.status_exact(relation regclass default null, name text default null) returns table (
    source regclass, name text, model text, state text, coverage real,
    rows bigint, embedded bigint, pending bigint, stale bigint, dead bigint, removing bigint,
    oldest_wait interval, rows_per_second real, eta interval,
    truncated bigint, split bigint, paused boolean, index_state text, error text, counted_at timestamptz,
    estimated boolean
)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    select
        s.relation, s.name, x.model, x.state, x.coverage,
        x.rows, x.embedded, x.pending, x.stale, x.dead, x.removing,
        x.oldest_wait, x.rows_per_second, x.eta,
        x.truncated, x.split, s.paused, x.index_state, x.error, x.counted_at, x.estimated
    from embed._watched_sources() as s
    cross join lateral embed._status(
        s, (select exists (select from embed.worker w where 'passages' = any (w.lanes))), true
    ) as x
    where (status_exact.relation is null or s.relation = status_exact.relation)
    and (status_exact.name is null or s.name = status_exact.name)
    order by s.id;
end;

comment on function embed.status_exact(regclass, text) is
    'What embed.status shows of a table, or of all tables, with every row counted now: about 3 s for 100,000 rows.';

comment on view embed.status is
    'Per enabled table: how many rows can be found, what still waits, and what stands in the way. state is ready, '
    'embedding, incomplete (nothing waits, but rows were given up: see embed.failure), paused, stalled, no worker or '
    'error.';
comment on column embed.status.coverage is
    'Share of the rows with text whose vector is up to date; 1 only when nothing is pending or dead. Where this role '
    'may not read the table, each entry that waits counts as a row without a vector.';
comment on column embed.status.pending is 'Rows with text that wait to be embedded, stale ones among them.';
comment on column embed.status.stale is
    'Pending rows that are still found by the vector of an older text, or have one of another model.';
comment on column embed.status.removing is
    'Vectors whose row was deleted or emptied and that a worker has yet to remove; search does not show them.';
comment on column embed.status.truncated is 'Rows of which a part was too long for the model and was not embedded.';
comment on column embed.status.split is
    'Rows whose text was longer than the model''s window and is embedded in several passages.';
comment on column embed.status.counted_at is
    'When a worker last compared its counters with the rows. What it has done since is in them, and what waits is '
    'looked at. Null: never.';
comment on column embed.status.estimated is
    'Whether the numbers may be off: a sweep is under way or asked for, no worker has counted yet, or more than 1,000 '
    'entries wait. Where this role may not read the table: whether any waits. embed.status_exact counts.';
comment on column embed.status.words is
    'Whether words count in searches; false after embed.enable(…, words => false).';
comment on column embed.status.storage is 'The type of the vectors: vector, or halfvec with half the bytes.';
comment on column embed.status.row_bytes is
    'Bytes of a row in the table of vectors, without its indexes, by the last vacuum or analyze. A text has a row for '
    'each of its passages.';
comment on column embed.status.index_bytes is
    'Bytes of the indexes over the vectors, by the last build, vacuum or analyze.';
comment on column embed.status.index_state is
    'none (all vectors are compared), building, valid, or invalid (drop it; a worker builds it again).';
