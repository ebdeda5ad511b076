-- The counts of a source from the counters and a bounded number of the entries that wait.

-- What waits for a source: at most so many entries (bound) are looked at, one by one, and the counts of
-- those stand for the rest. older means of a text by another model; gone, that the row has no text left.
create or replace function embed._waiting(
    source embed.source, fingerprint integer, bound integer,
    out missing bigint, out current bigint, out older bigint, out current_gone bigint, out older_gone bigint,
    out dead_missing bigint, out dead_current bigint, out dead_older bigint, out sampled boolean, out oldest timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $waiting$
#variable_conflict use_variable
declare
    words jsonb;
    n record;
    share double precision := 1;
    dead_share double precision := 1;
    waits bigint;
begin
    -- A look at whether anything waits is all that most sources need.
    execute format(
        'select exists (select from embed.inbox_%1$s) or exists (select from embed.queue_%1$s)', source.id
    ) into sampled;
    if not sampled then
        missing := 0;
        current := 0;
        older := 0;
        current_gone := 0;
        older_gone := 0;
        dead_missing := 0;
        dead_current := 0;
        dead_older := 0;
        return;
    end if;
    words := embed._source_sql(source) || jsonb_build_object(
        'has_text',
        (
            -- As embed._text_sql, but without composing the text.
            select string_agg(
                format('embed.nonblank(%s) is not null', embed._column_sql(source.relation, c.attnum, 's')),
                ' or ' order by c.place
            )
            from unnest(source.column_attnums) with ordinality as c (attnum, place)
        )
    );
    -- limit 1: row by row, or a join may read the whole table.
    execute embed._fill(
        $q$with fresh as materialized (
            select {places}, i.at from {inbox} i limit $2
        ),
        queued as materialized (
            select {places}, q.since from {queue} q where q.due < 'infinity' limit $2
        ),
        dead as materialized (
            select {places} from {queue} q where q.due = 'infinity' limit $2
        ),
        w as materialized (
            select {places}, bool_or(x.waits) as waits
            from (
                select {places}, true as waits from fresh
                union all
                select {places}, true from queued
                union all
                select {places}, false from dead
            ) as x
            group by {places}
        ),
        judged as (
            select w.waits, v.current, s.present is not null as present
            from w
            left join lateral (
                select coalesce(v.fingerprint = $1, false) as current
                from {vectors} v
                where {v_is_w} and v.chunk = 0
                limit 1
            ) v on true
            left join lateral (select true as present from {rows} s where {s_is_w} and ({has_text}) limit 1) s on true
        )
        select
            (select count(*) from fresh) as fresh,
            (select count(*) from queued) as queued,
            (select count(*) from dead) as dead,
            least((select min(at) from fresh), (select min(since) from queued)) as oldest,
            count(*) filter (where j.waits and j.current is null and j.present) as missing,
            count(*) filter (where j.waits and j.current and j.present) as current,
            count(*) filter (where j.waits and not j.current and j.present) as older,
            count(*) filter (where j.current and not j.present) as current_gone,
            count(*) filter (where not j.current and not j.present) as older_gone,
            count(*) filter (where not j.waits and j.current is null and j.present) as dead_missing,
            count(*) filter (where not j.waits and j.current and j.present) as dead_current,
            count(*) filter (where not j.waits and not j.current and j.present) as dead_older
        from judged j$q$,
        words
    ) into n using fingerprint, bound;
    oldest := n.oldest;
    sampled := n.fresh >= bound or n.queued >= bound or n.dead >= bound;
    if n.fresh >= bound or n.queued >= bound then
        execute format(
            $q$select
                (select count(*) from (select from embed.inbox_%1$s limit $1) as x)
                    + (select count(*) from (select from embed.queue_%1$s q where q.due < 'infinity' limit $1) as x)$q$,
            source.id
        ) into waits using 10 * bound;
        if waits >= 10 * bound then
            waits := greatest(
                waits,
                pg_stat_get_live_tuples(format('embed.inbox_%s', source.id)::regclass)
                    + pg_stat_get_live_tuples(format('embed.queue_%s', source.id)::regclass) - n.dead
            );
        end if;
        share := waits::double precision / (n.fresh + n.queued);
    end if;
    if n.dead >= bound then
        execute format('select count(*) from embed.queue_%s q where q.due = ''infinity''', source.id) into waits;
        dead_share := waits::double precision / n.dead;
    end if;
    missing := n.missing * share;
    current := n.current * share;
    older := n.older * share;
    current_gone := n.current_gone * share;
    older_gone := n.older_gone * share;
    dead_missing := n.dead_missing * dead_share;
    dead_current := n.dead_current * dead_share;
    dead_older := n.dead_older * dead_share;
end
$waiting$;

-- The same for a role that may not read keys: it counts every entry that waits as one of a row without a vector.
create or replace function embed._waiting_unread(
    source embed.source, bound integer,
    out missing bigint, out current bigint, out older bigint, out current_gone bigint, out older_gone bigint,
    out dead_missing bigint, out dead_current bigint, out dead_older bigint, out sampled boolean, out oldest timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format(
        $q$select count(*) filter (where not x.dead), count(*) filter (where x.dead),
            min(x.at) filter (where not x.dead)
        from (
            (select i.at, false as dead from embed.inbox_%1$s i limit $1)
            union all
            (select q.since, false from embed.queue_%1$s q where q.due < 'infinity' limit $1)
            union all
            select q.since, true from embed.queue_%1$s q where q.due = 'infinity'
        ) as x$q$,
        source.id
    )
    into missing, dead_missing, oldest
    using bound;
    if missing >= bound then
        missing := greatest(
            missing,
            pg_stat_get_live_tuples(format('embed.inbox_%s', source.id)::regclass)
                + pg_stat_get_live_tuples(format('embed.queue_%s', source.id)::regclass) - dead_missing
        );
    end if;
    sampled := missing + dead_missing > 0;
    current := 0;
    older := 0;
    current_gone := 0;
    older_gone := 0;
    dead_current := 0;
    dead_older := 0;
end
$$;

-- The counts of embed._count from the counters. estimated says that they may be off by a little: more
-- waits than is looked at, or the counters are about to be compared with the rows.
create or replace function embed._count_kept(
    source embed.source, kept embed.source_state, bound integer,
    out rows bigint, out embedded bigint, out stale bigint, out dead bigint, out removing bigint,
    out truncated bigint, out split bigint, out rows_per_second real, out oldest timestamptz, out estimated boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    w record;
    current bigint;
    older bigint;
    unqueued bigint := greatest(kept.unqueued, 0);
    orphans bigint := greatest(kept.orphans, 0);
    left_over bigint := 0;
    emptied boolean;
    asked boolean;
begin
    select
        coalesce(sum(t.vectors) filter (where t.fingerprint = kept.fingerprint), 0),
        coalesce(sum(t.vectors) filter (where t.fingerprint is distinct from kept.fingerprint), 0),
        coalesce(greatest(sum(t.truncated), 0), 0),
        coalesce(greatest(sum(t.split), 0), 0),
        coalesce(
            sum(
                (t.recent_rows + case when t.before_at > now() - interval '60 s' then t.before_rows else 0 end)
                / greatest(
                    extract(epoch from clock_timestamp()
                        - case when t.before_at > now() - interval '60 s' then t.before_at else t.recent_at end),
                    1
                )
            ) filter (where t.recent_at > now() - interval '60 s'),
            0
        )
    into current, older, truncated, split, rows_per_second
    from embed.source_tally t
    where t.source = source.id;
    -- The tables of an unlogged source are empty after a crash of the server, the counters are not.
    if pg_relation_size(source.vectors) = 0 then
        current := 0;
        older := 0;
        truncated := 0;
        split := 0;
        orphans := 0;
    end if;
    if embed._may_count(source) then
        w := embed._waiting(source, kept.fingerprint, bound);
    else
        w := embed._waiting_unread(source, 10 * bound);
        w.missing := greatest(w.missing - older, 0); -- the others are of vectors of another model
    end if;
    select coalesce(bool_or(r.reason = 'truncate'), false), count(*) > 0, least(w.oldest, min(r.at))
    into emptied, asked, oldest
    from embed.sweep_request r
    where r.source = source.id;
    if emptied then
        -- Whatever is in the table now came after TRUNCATE, and waits.
        left_over := greatest(
            current + older - w.current - w.older - w.current_gone - w.older_gone - w.dead_current - w.dead_older, 0
        );
        current := w.current + w.current_gone + w.dead_current;
        older := w.older + w.older_gone + w.dead_older;
        unqueued := 0;
        orphans := 0;
        truncated := 0;
        split := 0;
    end if;
    dead := w.dead_missing + w.dead_current + w.dead_older;
    embedded := greatest(current - orphans - w.current - w.current_gone - w.dead_current, 0);
    stale := w.current + greatest(older - w.older_gone - w.dead_older, 0);
    rows := embedded + stale + unqueued + w.missing + dead;
    removing := w.current_gone + w.older_gone + orphans + left_over;
    estimated := w.sampled or asked or kept.counted_at is null or kept.recount_at > kept.counted_at
        or exists (select from embed.sweep_state x where x.source = kept.source and x.phase <> 'done')
        -- A worker of version 0001 keeps no counters.
        or exists (select from embed.worker_session x where x.version is null and 'passages' = any (x.lanes));
end
$$;
