-- rerank_claim
-- Lease the oldest request for scores; nothing is waited for here.
with waiting as materialized (
    select q.id
    from embed.question q
    where q.role = 'rerank'
    and q.embedding is null
    and q.scores is null
    and q.error is null
    and q.due <= pg_catalog.clock_timestamp()
    order by q.due
    limit 1
    for update skip locked
)
update embed.question q
set due = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => %(lease)s), claimed_by = %(worker)s
from waiting w
where q.id = w.id
returning q.id, q.model, q.text, q.passages;

-- rerank_keep
-- Extend the lease between two batches; no row when nobody waits any more, or another worker has it.
update embed.question q
set due = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => %(lease)s)
where q.id = %(id)s
and q.claimed_by = %(worker)s
and q.scores is null
and q.error is null
returning q.id;

-- rerank_hand_back
-- Leave a request to other workers.
update embed.question q
set due = pg_catalog.clock_timestamp(), claimed_by = null
where q.id = %(id)s
and q.claimed_by = %(worker)s;

-- rerank_answer
-- Write the scores in the place of the texts, under the same conditions.
update embed.question q
set scores = %(scores)s::real[], passages = null
where q.id = %(id)s
and q.claimed_by = %(worker)s
and q.scores is null
and q.error is null;

-- reranker_card
-- How many tokens of question and passage together a cross-encoder reads.
select r.max_tokens
from embed.reranker r
where r.name = %(name)s;
