-- queue_fail
-- Put rows off after a failure of their own, or let them be dead letters. Their vectors go: what
-- they were made of is no longer there.
with job as (
    select *
    from unnest({key_arrays}, %(seqs)s::bigint[], %(errors)s::text[], %(delays)s::double precision[])
        as j ({places}, seq, error, delay)
),
mine as materialized (
    select {q_places}, q.seq, j.error, j.delay
    from job j
    join {queue} q on {q_is_j}
    where q.seq = j.seq and q.claimed_by = %(worker)s
    and {vectors_hold} -- else the rows are handed back: the vectors to remove have another name by now
    for update of q skip locked
),
tallied as materialized (
    select embed._tally(%(source)s, %(worker)s, v.fingerprint, -count(*) filter (where v.chunk = 0),
        -count(distinct m.seq) filter (where v.truncated), -count(*) filter (where v.chunk = 1), 0)
    from mine m
    join {vectors} v on {v_is_m}
    group by v.fingerprint
),
cleared as (
    delete from {vectors} v
    using mine m
    where {v_is_m}
)
update {queue} q
set due = case when q.attempts >= %(max_attempts)s then 'infinity' else now() + m.delay * interval '1 second' end,
    error = m.error,
    claimed_by = null
from mine m
where {q_is_m}
returning {q_texts} as key, q.attempts, q.due = 'infinity' as dead, (select count(*) from tallied);

-- queue_fail_into
-- The same for a source whose vector is a column of its own table. In one statement: emptied later,
-- the column could hold the vector of a newer text by then. A row that the application holds locked
-- stays as it is.
with job as (
    select *
    from unnest({key_arrays}, %(seqs)s::bigint[], %(errors)s::text[], %(delays)s::double precision[])
        with ordinality as j ({places}, seq, error, delay, ord)
),
mine as materialized (
    select {q_places}, q.seq, j.error, j.delay, j.ord as position
    from job j
    join {queue} q on {q_is_j}
    where q.seq = j.seq and q.claimed_by = %(worker)s and {vectors_hold}
    for update of q skip locked
),
locked as materialized (
    select m.position
    from mine m
    join {only} {relation} s on {s_is_m}
    for no key update of s skip locked
),
ready as materialized (
    select m.*
    from mine m
    where m.position in (select position from locked)
    or not exists (select from {only} {relation} s where {s_is_m})
),
emptied as (
    update {only} {relation} s
    set {into_column} = null
    from ready m
    where {s_is_m} and s.{into_column} is not null
),
tallied as materialized (
    select embed._tally(%(source)s, %(worker)s, v.fingerprint, -count(*) filter (where v.chunk = 0),
        -count(distinct m.seq) filter (where v.truncated), -count(*) filter (where v.chunk = 1), 0)
    from ready m
    join {vectors} v on {v_is_m}
    group by v.fingerprint
),
cleared as (
    delete from {vectors} v
    using ready m
    where {v_is_m}
)
update {queue} q
set due = case when q.attempts >= %(max_attempts)s then 'infinity' else now() + m.delay * interval '1 second' end,
    error = m.error,
    claimed_by = null
from ready m
where {q_is_m}
returning {q_texts} as key, q.attempts, q.due = 'infinity' as dead, (select count(*) from tallied);
