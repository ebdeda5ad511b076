-- observer_backlog
-- What waits for each source, without reading any queue to its end.
select source, relation, name, model, paused, waiting, dead, oldest, due from embed._backlog();

-- observer_questions
-- How many questions wait for an answer, and how many answers are kept.
select
    (select pg_catalog.count(*) from embed.question q where q.embedding is null and q.error is null) as waiting,
    (select pg_catalog.count(*) from embed.question_cache) as cached;
