-- queue_copy
-- The vectors that the other side of a switch has of these texts by the same model, passage by passage. A row is
-- left out of which one was changed by hand, or is missing between two others. Row by row through the keys, as in
-- queue_read.
select (j.ord - 1)::integer as position, c.starts, c.ends, c.truncated, c.embeddings
from unnest({key_arrays}, %(hashes)s::bytea[]) with ordinality as j ({places}, hash, ord)
cross join lateral (
    select
        array_agg(v.passage_start order by v.chunk) as starts,
        array_agg(v.passage_end order by v.chunk) as ends,
        array_agg(v.truncated order by v.chunk) as truncated,
        array_agg(v.embedding::{vector} order by v.chunk) as embeddings,
        bool_and(
            v.hash = j.hash and v.fingerprint = %(fingerprint)s and v.checksum = substr(sha256(v.sent), 1, 8)
        ) and count(*) = max(v.chunk) + 1 as whole
    from {twin} v
    where {v_is_j}
) as c
where c.whole;

-- queue_complete
-- Write the vectors of jobs that still hold (same key, same seq, same worker) and strike them from
-- the queue. The first thing it does is take every lock, without waiting: what is locked or no
-- longer matches was changed meanwhile and comes round again.
-- claimed_by has no index: beside a foreign snapshot it held all a worker ever completed, and 13 jobs
-- were looked for among 28,000 entries.
-- Vectors travel in binary: as text 384 numbers took the worker 0.37 ms to write, instead of 0.006.
-- changed and tallied keep the counters of embed.status: what goes, and what comes.
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
    and {vectors_hold} -- else the rows are handed back: embed.cut_over has exchanged the names
    for update of q skip locked
),
cleared as (
    delete from {vectors} v
    using mine m
    where {v_is_m} and m.chunks >= 0 and v.chunk >= m.chunks
),
written as (
    insert into {vectors} ({vector_keys}, chunk, passage_start, passage_end, truncated, embedding, terms,
        fingerprint, hash, checksum, seq)
    select {m_places}, p.chunk, p.passage_start, p.passage_end, p.truncated, p.embedding, p.terms,
        %(fingerprint)s, m.hash, substr(sha256({stored_send}(p.embedding)), 1, 8), m.seq
    from mine m
    join unnest(
        %(positions)s::integer[], %(passages)s::integer[], %(starts)s::integer[], %(ends)s::integer[],
        %(truncated)s::boolean[], %(embeddings)b::{vector}[]::{stored}[], %(terms)b::{sparsevec}[]
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
changed as (
    select v.fingerprint, -count(*) filter (where v.chunk = 0) as vectors,
        -count(distinct m.position) filter (where v.truncated) as truncated,
        -count(*) filter (where v.chunk = 1) as split
    from mine m
    join {vectors} v on {v_is_m}
    where m.chunks >= 0
    group by v.fingerprint
    union all
    select %(fingerprint)s, count(*) filter (where p.chunk = 0),
        count(distinct m.position) filter (where p.truncated), count(*) filter (where p.chunk = 1)
    from mine m
    join unnest(%(positions)s::integer[], %(passages)s::integer[], %(truncated)s::boolean[])
        as p (position, chunk, truncated) on p.position = m.position
),
tallied as materialized (
    select embed._tally(%(source)s, %(worker)s, c.fingerprint, sum(c.vectors)::bigint,
        sum(c.truncated)::bigint, sum(c.split)::bigint,
        case when c.fingerprint = %(fingerprint)s then (select count(*) from mine where chunks > 0) else 0 end)
    from changed c
    group by c.fingerprint
    having sum(abs(c.vectors)) > 0
),
done as (
    delete from {queue} q
    using mine m
    where {q_is_m}
    returning 1
)
select (select count(*) from done), (select count(*) from tallied);

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
    where q.seq = j.seq and q.claimed_by = %(worker)s and {vectors_hold}
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
        %(positions)s::integer[], %(passages)s::integer[], %(starts)s::integer[], %(ends)s::integer[],
        %(truncated)s::boolean[], %(embeddings)b::{vector}[]::{stored}[], %(terms)b::{sparsevec}[]
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
    insert into {vectors} ({vector_keys}, chunk, passage_start, passage_end, truncated, terms, fingerprint,
        hash, checksum, seq)
    select {m_places}, 0, p.passage_start, p.passage_end, p.truncated, p.terms, %(fingerprint)s, m.hash,
        substr(sha256({stored_send}(p.embedding)), 1, 8), m.seq
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
changed as (
    select v.fingerprint, -count(*) filter (where v.chunk = 0) as vectors,
        -count(distinct m.position) filter (where v.truncated) as truncated,
        -count(*) filter (where v.chunk = 1) as split
    from ready m
    join {vectors} v on {v_is_m}
    where m.chunks >= 0
    group by v.fingerprint
    union all
    select %(fingerprint)s, count(*) filter (where p.chunk = 0),
        count(distinct m.position) filter (where p.truncated), count(*) filter (where p.chunk = 1)
    from ready m
    join passage p on p.position = m.position
),
tallied as materialized (
    select embed._tally(%(source)s, %(worker)s, c.fingerprint, sum(c.vectors)::bigint,
        sum(c.truncated)::bigint, sum(c.split)::bigint,
        case when c.fingerprint = %(fingerprint)s then (select count(*) from ready where chunks > 0) else 0 end)
    from changed c
    group by c.fingerprint
    having sum(abs(c.vectors)) > 0
),
done as (
    delete from {queue} q
    using ready m
    where {q_is_m}
    returning 1
)
select (select count(*) from done), (select count(*) from tallied);

-- queue_strike
-- Settle rows at once, the oldest of a priority first, that are gone from the table: a TRUNCATE or a
-- large DELETE leaves a million, and a window after the other took eight minutes. Nobody has claimed
-- them. The row was looked for in the snapshot that has this seq, and a change that came later gave the
-- entry another: it stays.
with due as materialized (
    select {x_places}, x.seq, x.due
    from {queue} x
    where x.priority = %(priority)s
    and x.due <= now() and x.due >= %(after)s::timestamptz and x.due < 'infinity'
    order by x.due
    limit %(limit)s
),
gone as materialized (
    -- Through the key, row by row: a join might read all of the table.
    select {j_places}, j.seq
    from due j
    where (select true from {only} {relation} s where {s_is_j} limit 1) is null
),
mine as materialized (
    select {q_places}, q.seq
    from gone m
    join {queue} q on {q_is_m}
    where q.seq = m.seq and q.claimed_by is null
    and {vectors_hold}
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
),
done as (
    delete from {queue} q
    using mine m
    where {q_is_m}
    returning 1
)
select (select count(*) from due), (select count(*) from done), (select max(due) from due),
    (select count(*) from tallied);
