-- questions_claim
-- Lease the oldest unanswered questions.
select id, model, text, role, hash, waited, locked
from embed._claim_questions(%(limit)s, %(lease)s, %(worker)s, %(keep_lock)s);

-- questions_answer
-- Write vectors, and keep those of questions for the next who asks the same.
select embed._answer_questions(
    %(ids)s::uuid[], %(hashes)s::bytea[], %(vectors)b, %(terms)s::text[], %(shares)s::text[], %(lost)s::integer[],
    %(fingerprint)s, %(keep)s, %(worker)s, %(locked)s::boolean[]
);

-- questions_fail
-- Write why questions have no vector, under the same conditions.
update embed.question q
set error = a.error
from unnest(%(ids)s::uuid[], %(errors)s::text[]) as a (id, error)
where q.id = a.id
and q.claimed_by = %(worker)s
and q.embedding is null
and q.error is null;

-- questions_unlock
-- Let the asker look at once.
select embed._unlock_questions(%(ids)s::uuid[], %(locked)s::boolean[]);

-- questions_put_back
-- Leave questions to other workers for a moment, while their model is being loaded here.
update embed.question q
set due = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => %(delay)s), claimed_by = null
where q.id = any (%(ids)s::uuid[])
and q.claimed_by = %(worker)s;

-- questions_evict
-- Forget the oldest of the kept vectors, a bounded number at a time. By their place, since what is
-- found by the primary key is counted as a hit.
with oldest as materialized (
    select c.ctid as place
    from embed.question_cache c
    order by c.cached_at desc
    offset %(keep)s
    limit %(limit)s
)
delete from embed.question_cache c
using oldest o
where c.ctid = o.place;

-- questions_abandoned
-- Delete requests whose asker was cancelled or lost: nobody waits as long as this.
delete from embed.question q
where q.id in (
    select a.id
    from embed.question a
    where a.asked_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => %(age)s)
    for update skip locked
);

-- questions_learn
-- Make judgements of what people chose, and delete questions that were kept for long enough.
select embed._learn();
