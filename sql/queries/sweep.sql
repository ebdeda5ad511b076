-- sweep_turn
-- One sweeps a source at a time; until the end of the transaction, so that no pooler and no dead
-- connection that the server still believes in can keep it.
select embed._take_sweep(%(source)s);

-- sweep_begin
-- Start over for everything asked for so far; a request that comes later starts another sweep.
-- Rows that are being worked on get a new seq: what was asked for may have changed them after the
-- worker read them (a TRUNCATE, or a change with the triggers off that the sweep finds in order
-- before the worker writes what it read).
with asked as (
    delete from embed.sweep_request where source = %(source)s
),
held as materialized (
    select {q_places}
    from {queue} q
    where q.priority between 11 and 19 and q.claimed_by is not null and q.due < 'infinity'
    order by {q_places}
    for update
),
fenced as (
    update {queue} q
    set seq = nextval('embed.seq'),
        due = now(),
        claimed_by = null,
        attempts = case when q.attempts > 1 then q.attempts else 0 end,
        priority = case when q.attempts > 1 then q.priority else 0 end
    from held m
    where {q_is_m}
)
insert into embed.sweep_state (source, phase) values (%(source)s, 'rows')
on conflict (source) do update
set phase = 'rows', cursor = null, visited = 0, missing = 0, stale = 0, orphaned = 0, started_at = now(),
    finished_at = null;

-- sweep_current
-- Where the sweep of a source stands.
select phase, cursor, visited, missing, stale, orphaned from embed.sweep_state where source = %(source)s;

-- sweep_save
-- Remember how far the sweep has come, so that another worker can go on.
update embed.sweep_state
set phase = %(phase)s,
    cursor = %(cursor)s,
    visited = visited + %(visited)s,
    missing = missing + %(missing)s,
    stale = stale + %(stale)s,
    orphaned = orphaned + %(orphaned)s,
    finished_at = case when %(phase)s = 'done' then now() end
where source = %(source)s;

-- sweep_due
-- Sources to sweep: the last one is older than the interval, or there was none, or it was begun and
-- its worker has gone; or it ended in the future, by a clock that was ahead.
select s.id, w.phase is distinct from 'done' and w.source is not null as unfinished
from embed.source s
left join embed.sweep_state w on w.source = s.id
where not s.paused
and (
    w.finished_at is null
    or w.finished_at < now() - %(interval)s * interval '1 second'
    or w.finished_at > now() + interval '1 minute'
)
and not exists (select from embed.sweep_request r where r.source = s.id);

-- sweep_rows
-- One page of the source in key order: rows without a vector, with one of another text or model, or
-- with one that was altered by hand go into the queue, behind everything else. A row that is being
-- worked on gets a new seq: what made the difference may not be what the worker has read. Its attempt
-- is not counted, or it would look as if a worker had died with it. A dead letter stays one.
-- held: the page was compared with the vectors of this source, whose name embed.cut_over exchanges.
with page as materialized (
    select {s_keys_as_places}, {text} as text, {row_stored} as stored
    from {rows} s
    where {after}
    order by {s_keys}
    limit %(limit)s
),
judged as materialized (
    select {j_places}, coalesce(v.fault = 'missing', false) as missing, coalesce(v.fault <> 'missing', false) as stale
    from page j
    cross join lateral (
        select j.text, j.stored, embed.text_hash(j.text) as hash, %(fingerprint)s::integer as fingerprint offset 0
    ) as r
    cross join lateral (select {fault} as fault from {vectors} v where {v_is_j}) as v
    where j.text is not null
    and not exists (select from {queue} q where {q_is_j} and q.due = 'infinity')
),
queued as (
    insert into {queue} as q ({places}, seq, due, priority)
    select {j_places}, nextval('embed.seq'), now(), 20
    from judged j
    where %(repair)s and (j.missing or j.stale)
    order by {j_places}
    on conflict ({places}) do update
    set seq = excluded.seq,
        due = excluded.due,
        claimed_by = null,
        attempts = case when q.attempts > 1 then q.attempts else 0 end,
        priority = case when q.attempts > 1 then q.priority else 0 end
    where q.claimed_by is not null and q.due < 'infinity'
    returning 1
)
select
    (select count(*) from page) as visited,
    (select {j_texts} from page j order by {j_places_desc} limit 1) as cursor,
    (select count(*) from judged where missing) as missing,
    (select count(*) from judged where stale) as stale,
    (select count(*) from queued) as queued,
    {vectors_hold} as held;

-- sweep_rows_unjudged
-- The same page where one of its rows makes the server raise an error, in the filter for instance: all of its
-- keys go into the queue. There each row is read by itself, and one that cannot be read fails alone.
with page as materialized (
    select {s_keys_as_places}
    from {only} {relation} s
    where {after}
    order by {s_keys}
    limit %(limit)s
),
queued as (
    insert into {queue} as q ({places}, seq, due, priority)
    select {j_places}, nextval('embed.seq'), now(), 20
    from page j
    where not exists (select from {queue} q where {q_is_j} and q.due = 'infinity')
    order by {j_places}
    on conflict ({places}) do update
    set seq = excluded.seq,
        due = excluded.due,
        claimed_by = null,
        attempts = case when q.attempts > 1 then q.attempts else 0 end,
        priority = case when q.attempts > 1 then q.priority else 0 end
    where q.claimed_by is not null and q.due < 'infinity'
    returning 1
)
select
    (select count(*) from page) as visited,
    (select {j_texts} from page j order by {j_places_desc} limit 1) as cursor,
    0 as missing,
    0 as stale,
    (select count(*) from queued) as queued,
    {vectors_hold} as held;

-- sweep_orphans
-- One page of the vector table in key order: vectors whose row, or its text, is gone. The last page
-- looks at the dead letters, too, of which there are few: nobody else would notice that the row of
-- one is gone.
with page as materialized (
    select distinct {v_keys_as_places}
    from {vectors} v
    where {after}
    order by {places}
    limit %(limit)s
),
judged as materialized (
    select {j_places}
    from (
        select {places} from page
        union
        select {places} from {queue} where due = 'infinity' and (select count(*) from page) < %(limit)s
    ) j
    where not exists (select from {rows} s where {s_is_j} and {text} is not null)
),
queued as (
    insert into {queue} as q ({places}, seq, due, priority)
    select {j_places}, nextval('embed.seq'), now(), 20
    from judged j
    where %(repair)s
    order by {j_places}
    on conflict ({places}) do update
    set seq = excluded.seq, due = excluded.due, attempts = 0, error = null, claimed_by = null,
        priority = excluded.priority
    where q.due = 'infinity' or q.claimed_by is not null
)
select
    (select count(*) from page) as visited,
    (select {j_texts} from page j order by {j_places_desc} limit 1) as cursor,
    (select count(*) from judged) as orphaned,
    {vectors_hold} as held;

-- sweep_orphans_unjudged
-- The same page of vectors where a row makes the server raise an error.
with page as materialized (
    select distinct {v_keys_as_places}
    from {vectors} v
    where {after}
    order by {places}
    limit %(limit)s
),
queued as (
    insert into {queue} as q ({places}, seq, due, priority)
    select {j_places}, nextval('embed.seq'), now(), 20
    from page j
    where not exists (select from {queue} q where {q_is_j} and q.due = 'infinity')
    order by {j_places}
    on conflict ({places}) do update
    set seq = excluded.seq,
        due = excluded.due,
        claimed_by = null,
        attempts = case when q.attempts > 1 then q.attempts else 0 end,
        priority = case when q.attempts > 1 then q.priority else 0 end
    where q.claimed_by is not null and q.due < 'infinity'
)
select
    (select count(*) from page) as visited,
    (select {j_texts} from page j order by {j_places_desc} limit 1) as cursor,
    0 as orphaned,
    {vectors_hold} as held;
