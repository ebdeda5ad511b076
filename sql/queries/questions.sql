-- questions_claim
-- Lease the oldest unanswered questions; whoever asks waits, so nothing is waited for here.
with waiting as materialized (
    select q.id
    from embed.question q
    where q.role <> 'rerank'
    and q.embedding is null
    and q.scores is null
    and q.error is null
    and q.due <= pg_catalog.clock_timestamp()
    order by q.due
    limit %(limit)s
    for update skip locked
)
update embed.question q
set due = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => %(lease)s), claimed_by = %(worker)s
from waiting w
where q.id = w.id
returning q.id, q.model, q.text, q.role, embed.text_hash(q.text) as hash,
    extract(epoch from pg_catalog.clock_timestamp() - q.asked_at)::double precision as waited;

-- questions_answer
-- Write vectors, unless the question was withdrawn or its lease has gone to another worker, and keep
-- them for the next who asks the same. Losing some of those in a crash costs nothing, hence no wait
-- for the disk.
with unhurried as materialized (
    select pg_catalog.set_config('synchronous_commit', 'off', true)
),
answer as materialized (
    -- Arrays of unequal length, which an array of arrays cannot hold, travel as text.
    select a.id, a.hash, a.embedding, a.terms::integer[] as terms, a.shares::real[] as shares, a.lost
    from unhurried, unnest(
        %(ids)s::uuid[], %(hashes)s::bytea[], %(vectors)b, %(terms)s::text[], %(shares)s::text[], %(lost)s::integer[]
    ) as a (id, hash, embedding, terms, shares, lost)
),
kept as (
    insert into embed.question_cache (fingerprint, hash, embedding, terms, shares, lost)
    select %(fingerprint)s, a.hash, a.embedding, a.terms, a.shares, a.lost
    from answer a
    where %(keep)s
    on conflict on constraint question_cache_pkey do nothing
)
update embed.question q
set embedding = a.embedding, terms = a.terms, shares = a.shares, lost = a.lost
from answer a
where q.id = a.id
and q.claimed_by = %(worker)s
and q.embedding is null
and q.error is null;

-- questions_fail
-- Write why questions have no vector, under the same conditions.
update embed.question q
set error = a.error
from unnest(%(ids)s::uuid[], %(errors)s::text[]) as a (id, error)
where q.id = a.id
and q.claimed_by = %(worker)s
and q.embedding is null
and q.error is null;

-- questions_evict
-- Forget the oldest of the kept vectors, a bounded number at a time.
with unhurried as materialized (
    select pg_catalog.set_config('synchronous_commit', 'off', true)
),
oldest as materialized (
    select c.fingerprint, c.hash
    from embed.question_cache c
    order by c.cached_at desc
    offset %(keep)s
    limit %(limit)s
)
delete from embed.question_cache c
using unhurried, oldest o
where c.fingerprint = o.fingerprint
and c.hash = o.hash;

-- questions_abandoned
-- Delete requests whose asker was cancelled or lost: nobody waits as long as this.
delete from embed.question q
where q.id in (
    select a.id
    from embed.question a
    where a.asked_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => %(age)s)
    for update skip locked
);
