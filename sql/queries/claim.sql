-- queue_move
-- Empty a part of the inbox into the queue, one entry a key. Each gets a fresh seq, so whatever is
-- under way for the key no longer matches. One mover at a time, or two could wait for each other: it
-- holds a row, because every login could take an advisory lock and so keep changes from being embedded.
with turn as materialized (select from embed.source_state t where t.source = %(source)s for no key update skip locked),
taken as materialized (
    -- By place: no entry is ever updated, and there is no index.
    delete from {inbox} i
    where i.ctid = any (array(
        select x.ctid
        from {inbox} x
        where x.ctid > %(after)s::tid
        limit (select case when exists (select from turn) then %(limit)s else 0 end)
        for update skip locked
    ))
    returning {i_places}, i.priority, i.at, i.ctid as place
),
newest as (
    select {places}, min(priority) as priority, min(at) as at
    from taken
    -- A row without a key, of a table that lost its primary key: it cannot be known, and may not stop the others.
    where num_nulls({places}) = 0
    group by {places}
),
moved as (
    insert into {queue} as q ({places}, seq, due, priority, since)
    select {places}, nextval('embed.seq'), now(), priority, at
    from newest
    order by {places}
    on conflict ({places}) do update
    set seq = excluded.seq,
        due = excluded.due,
        attempts = 0,
        claimed_by = null,
        error = null,
        priority = case when q.priority = 0 then 0 else excluded.priority end,
        since = least(q.since, excluded.since)
)
select count(*), max(place)::text from taken;

-- queue_claim
-- Lease due rows, so many of each priority, oldest first. Attempts count here, so that a text that
-- kills the process ends as a dead letter too; priority tells it from a fresh change from now on.
with picked as materialized (
    select {p_places}, p.priority, p.due
    from unnest(%(priorities)s::smallint[], %(quotas)s::integer[], %(afters)s::timestamptz[])
        as c (priority, quota, after)
    cross join lateral (
        select {x_places}, x.priority, x.due
        from {queue} x
        where x.priority = c.priority
        and x.due <= now() and x.due >= c.after and x.due < 'infinity'
        order by x.due
        limit c.quota
        for update skip locked
    ) as p
    -- Cuts nothing off: it tells the planner, who does not know the quotas, how few rows there are.
    -- Without it the update read the whole queue: 14,600 pages of 1,200,000 rows for 200.
    limit %(most)s
),
claimed as (
    update {queue} q
    set due = case when q.attempts >= %(max_attempts)s then 'infinity' else now() + %(lease)s * interval '1 second' end,
        error = case
            when q.attempts >= %(max_attempts)s
            then coalesce(q.error, format('the worker died %%s times while it had this text', q.attempts))
            else q.error
        end,
        claimed_by = case when q.attempts >= %(max_attempts)s then null else %(worker)s end,
        attempts = case when q.attempts >= %(max_attempts)s then q.attempts else q.attempts + 1 end,
        priority = case when q.attempts >= %(max_attempts)s then q.priority else least(11 + q.attempts, 19) end
    from picked p
    where {q_is_p}
    returning {q_texts} as key, q.seq, q.attempts, p.priority, q.claimed_by is null as dead, p.due
)
select key, seq, attempts, priority, dead, due from claimed;

-- queue_retries
-- The first of these priorities that has due rows. The limit keeps the planner, who takes the queue
-- for nearly empty, from joining all of it.
select c.priority
from unnest(%(priorities)s::smallint[], %(afters)s::timestamptz[])
        as c (priority, after)
cross join lateral (
    select from {queue} x
    where x.priority = c.priority
    and x.due <= now() and x.due >= c.after and x.due < 'infinity'
    limit 1
) as x
order by c.priority
limit 1;

-- queue_read
-- The texts of claimed rows, in a snapshot newer than the claim: joined into the claim, a row can
-- come out with the new seq and the old text, and the update would be lost for good.
-- is_current says that the vectors that are there, all of them, were made of this very text by this
-- model.
-- Row by row through the keys (limit 1 keeps it so): a join may read the whole table and compose
-- every text in it, which for 1000 keys of a table of 3000 rows took ten times as long.
select
    (j.ord - 1)::integer as position,
    r.text,
    r.hash,
    v.fault is null as is_current
from unnest({key_arrays}) with ordinality as j ({places}, ord)
cross join lateral (
    select x.text, x.stored, embed.text_hash(x.text) as hash, %(fingerprint)s::integer as fingerprint
    from (
        select {text} as text, {row_stored} as stored
        from {rows} s
        where {s_is_j}
        limit 1
    ) as x
    where x.text is not null
    offset 0
) as r
cross join lateral (select {fault} as fault from {vectors} v where {v_is_j}) as v;
