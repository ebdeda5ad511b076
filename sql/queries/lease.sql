-- queue_release
-- Hand rows back untried. A statement that waits for locks on several rows takes them in the order of the key,
-- as queue_move and the sweep do, or two of ours could wait for each other.
with job as (
    select * from unnest({key_arrays}, %(seqs)s::bigint[], %(priorities)s::smallint[]) as j ({places}, seq, priority)
),
mine as materialized (
    select {q_places}, j.priority
    from job j
    join {queue} q on {q_is_j}
    where q.seq = j.seq and q.claimed_by = %(worker)s
    order by {q_places}
    for update of q
)
update {queue} q
set due = now() + %(delay)s * interval '1 second', attempts = greatest(q.attempts - 1, 0),
    priority = m.priority, claimed_by = null
from mine m
where {q_is_m};

-- queue_release_held
-- The same where the keys may not be read back from text: the value of an enumeration may have got
-- another name since. Looks at all that is held or was tried, so it is for what a source in trouble
-- holds.
with job as (
    select * from unnest(%(seqs)s::bigint[], %(priorities)s::smallint[]) as j (seq, priority)
),
mine as materialized (
    select {q_places}, j.priority
    from {queue} q
    join job j on j.seq = q.seq
    where q.priority between 11 and 19 and q.claimed_by = %(worker)s and q.due < 'infinity'
    order by {q_places}
    for update of q
)
update {queue} q
set due = now(), attempts = greatest(q.attempts - 1, 0),
    priority = m.priority, claimed_by = null
from mine m
where {q_is_m};

-- queue_extend
-- Keep the lease of everything this worker holds, which has one of these priorities. A row that is
-- locked is about to be no longer held.
with mine as materialized (
    select {q_places}
    from {queue} q
    where q.priority between 11 and 19 and q.claimed_by = %(worker)s and q.due < 'infinity'
    for update skip locked
)
update {queue} q
set due = now() + %(lease)s * interval '1 second'
from mine m
where {q_is_m};

-- queue_free
-- Make the rows of a worker that is gone due at once.
with lost as materialized (
    select {q_places}
    from {queue} q
    where q.priority between 11 and 19 and q.claimed_by = %(worker)s and q.due < 'infinity'
    order by {q_places}
    for update
)
update {queue} q
set due = now(), claimed_by = null
from lost m
where {q_is_m};

-- queue_mend
-- Make rows due that nobody holds and that wait for longer than the longest back-off: the server's clock was
-- ahead when they were put off. A few looks into an index where there are none.
with far as materialized (
    select {x_places}
    from unnest(%(priorities)s::smallint[]) as c (priority)
    cross join lateral (
        select {x_places}
        from {queue} x
        where x.priority = c.priority
        and x.due > now() + %(longest)s * interval '1 second' and x.due < 'infinity'
        and x.claimed_by is null
        for update skip locked
    ) as x
)
update {queue} q
set due = now()
from far x
where {q_is_x};
