-- queue_move
-- Empty a part of the inbox into the queue, one entry a key. Each gets a fresh seq, so whatever is
-- under way for the key no longer matches. One mover at a time, or two could wait for each other.
with turn as materialized (
    select pg_try_advisory_xact_lock(1701667431, %(source)s) as mine
),
taken as materialized (
    -- By place: no entry is ever updated, and there is no index.
    delete from {inbox} i
    where i.ctid = any (array(
        select x.ctid
        from {inbox} x
        where x.ctid > %(after)s::tid
        limit (select case when mine then %(limit)s else 0 end from turn)
        for update skip locked
    ))
    returning {i_places}, i.priority, i.at, i.ctid as place
),
newest as (
    select {places}, min(priority) as priority, min(at) as at
    from taken
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
    from unnest(%(priorities)s::smallint[], %(quotas)s::integer[], %(afters)s::timestamptz[]) as c (priority, quota, after)
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
            then coalesce(q.error, format('the worker died %%s times with this text at hand', q.attempts))
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

-- queue_suspects
-- The first of these priorities that has due rows. The limit keeps the planner, who takes the queue
-- for nearly empty, from joining all of it.
select c.priority
from unnest(%(priorities)s::smallint[], %(afters)s::timestamptz[]) as c (priority, after)
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
    t.text,
    t.hash,
    coalesce(v.intact, false) as is_current
from unnest({key_arrays}) with ordinality as j ({places}, ord)
cross join lateral (
    select r.text, r.stored, embed.text_hash(r.text) as hash
    from (
        select {text} as text, {row_stored} as stored
        from {rows} s
        where {s_is_j}
        limit 1
    ) as r
    where r.text is not null
) as t
cross join lateral (
    select
        count(*) = max(v.chunk) + 1
            and bool_and(
                v.fingerprint = %(fingerprint)s
                and v.hash = t.hash
                and coalesce(v.checksum = substr(sha256({vector_send}({read_stored})), 1, 8), false)
            )
            and embed.nonblank(substr(t.text, max(v.passage_end) + 1)) is null as intact
    from {vectors} v
    where {v_is_j}
) as v;

-- queue_complete
-- Write the vectors of jobs that still hold (same key, same seq, same worker) and strike them from
-- the queue. The first thing it does is take every lock, without waiting: what is locked or no
-- longer matches was changed meanwhile and comes round again.
-- claimed_by has no index: beside a foreign snapshot it held all a worker ever completed, and 13 jobs
-- were looked for among 28,000 entries.
-- Vectors travel in binary: as text 384 numbers took the worker 0.37 ms to write, instead of 0.006.
-- chunks: number of passages; 0 removes the row's vectors, -1 leaves them as they are.
with job as (
    select *
    from unnest({key_arrays}, %(seqs)s::bigint[], %(hashes)s::bytea[], %(chunks)s::integer[])
        with ordinality as j ({places}, seq, hash, chunks, ord)
),
mine as materialized (
    select {q_places}, q.seq, j.hash, j.chunks, j.ord - 1 as position
    from job j
    join {queue} q on {q_is_j}
    where q.seq = j.seq and q.claimed_by = %(worker)s
    for update of q skip locked
),
cleared as (
    delete from {vectors} v
    using mine m
    where {v_is_m} and m.chunks >= 0 and v.chunk >= m.chunks
),
written as (
    insert into {vectors} ({vector_keys}, chunk, passage_start, passage_end, truncated, embedding, terms, fingerprint, hash, checksum, seq)
    select {m_places}, p.chunk, p.passage_start, p.passage_end, p.truncated, p.embedding, p.terms, %(fingerprint)s, m.hash,
        substr(sha256({vector_send}(p.embedding)), 1, 8), m.seq
    from mine m
    join unnest(
        %(positions)s::integer[], %(passages)s::integer[], %(starts)s::integer[], %(ends)s::integer[], %(truncated)s::boolean[],
        %(embeddings)b::{vector}[], %(terms)b::{sparsevec}[]
    ) as p (position, chunk, passage_start, passage_end, truncated, embedding, terms) on p.position = m.position
    on conflict ({vector_keys}, chunk) do update
    set passage_start = excluded.passage_start,
        passage_end = excluded.passage_end,
        truncated = excluded.truncated,
        embedding = excluded.embedding,
        terms = excluded.terms,
        fingerprint = excluded.fingerprint,
        hash = excluded.hash,
        checksum = excluded.checksum,
        seq = excluded.seq,
        embedded_at = now()
),
done as (
    delete from {queue} q
    using mine m
    where {q_is_m}
    returning 1
)
select count(*) from done;

-- queue_complete_into
-- The same for a source whose vector is a column of its own table. Its rows can be locked by the
-- application: such a row stays in the queue.
with job as (
    select *
    from unnest({key_arrays}, %(seqs)s::bigint[], %(hashes)s::bytea[], %(chunks)s::integer[])
        with ordinality as j ({places}, seq, hash, chunks, ord)
),
mine as materialized (
    select {q_places}, q.seq, j.hash, j.chunks, j.ord - 1 as position
    from job j
    join {queue} q on {q_is_j}
    where q.seq = j.seq and q.claimed_by = %(worker)s
    for update of q skip locked
),
locked as materialized (
    select m.position
    from mine m
    join {only} {relation} s on {s_is_m}
    where m.chunks >= 0
    for no key update of s skip locked
),
ready as materialized (
    select m.*
    from mine m
    where m.chunks < 0
    or m.position in (select position from locked)
    or not exists (select from {only} {relation} s where {s_is_m})
),
passage as materialized (
    select *
    from unnest(
        %(positions)s::integer[], %(passages)s::integer[], %(starts)s::integer[], %(ends)s::integer[], %(truncated)s::boolean[],
        %(embeddings)b::{vector}[], %(terms)b::{sparsevec}[]
    ) as p (position, chunk, passage_start, passage_end, truncated, embedding, terms)
    where p.chunk = 0
),
set_column as (
    update {only} {relation} s
    set {into_column} = p.embedding
    from ready m
    left join passage p on p.position = m.position
    where {s_is_m} and m.chunks >= 0
),
cleared as (
    delete from {vectors} v
    using ready m
    where {v_is_m} and m.chunks = 0
),
written as (
    insert into {vectors} ({vector_keys}, chunk, passage_start, passage_end, truncated, terms, fingerprint, hash, checksum, seq)
    select {m_places}, 0, p.passage_start, p.passage_end, p.truncated, p.terms, %(fingerprint)s, m.hash,
        substr(sha256({vector_send}(p.embedding)), 1, 8), m.seq
    from ready m
    join passage p on p.position = m.position
    on conflict ({vector_keys}, chunk) do update
    set passage_start = excluded.passage_start,
        passage_end = excluded.passage_end,
        truncated = excluded.truncated,
        terms = excluded.terms,
        fingerprint = excluded.fingerprint,
        hash = excluded.hash,
        checksum = excluded.checksum,
        seq = excluded.seq,
        embedded_at = now()
),
done as (
    delete from {queue} q
    using ready m
    where {q_is_m}
    returning 1
)
select count(*) from done;

-- queue_fail
-- Put rows off after a failure of their own, or let them be dead letters. Their vectors go: what
-- they were made of is no longer there.
with job as (
    select *
    from unnest({key_arrays}, %(seqs)s::bigint[], %(errors)s::text[], %(delays)s::double precision[]) as j ({places}, seq, error, delay)
),
mine as materialized (
    select {q_places}, j.error, j.delay
    from job j
    join {queue} q on {q_is_j}
    where q.seq = j.seq and q.claimed_by = %(worker)s
    for update of q skip locked
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
returning {q_texts} as key, q.attempts, q.due = 'infinity' as dead;

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
    select {q_places}, j.error, j.delay, j.ord as position
    from job j
    join {queue} q on {q_is_j}
    where q.seq = j.seq and q.claimed_by = %(worker)s
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
returning {q_texts} as key, q.attempts, q.due = 'infinity' as dead;

-- queue_release
-- Hand rows back untried. Whoever waits for locks on several rows takes them in the order of the key,
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
set due = now() + %(delay)s * interval '1 second', attempts = greatest(q.attempts - 1, 0), priority = m.priority, claimed_by = null
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
set due = now(), attempts = greatest(q.attempts - 1, 0), priority = m.priority, claimed_by = null
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

-- queue_bloat
-- Bytes of a queue with its indexes, its rows as the server counts them, those that an old snapshot
-- keeps among them, whether this role may rewrite it, and the file that a rewrite exchanges. Looks
-- at no page of it.
select
    pg_catalog.pg_total_relation_size(c.oid) as size,
    coalesce(pg_catalog.pg_stat_get_live_tuples(c.oid), 0) + coalesce(pg_catalog.pg_stat_get_dead_tuples(c.oid), 0) as rows,
    case
        when current_setting('server_version_num')::integer < 170000 then pg_catalog.pg_has_role(c.relowner, 'usage')
        else pg_catalog.has_table_privilege(c.oid, 'maintain')
    end as ours,
    pg_catalog.pg_relation_filenode(c.oid) as file
from pg_catalog.pg_class c
where c.oid = pg_catalog.to_regclass(pg_catalog.format('embed.queue_%%s', %(source)s));

-- queue_compact
-- Write a queue and its indexes anew. Vacuum alone gives back the end of the table, which a single
-- dead letter there prevents, and never an index: those of 1,200,000 rows stay at 70 MB.
-- Waits for nobody: where anyone is at the queue, it is left for another time.
vacuum (full, skip_locked) {queue};
