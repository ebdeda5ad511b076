-- observer_backlog
-- What waits for each source, without reading any queue to its end.
select source, relation, name, model, paused, waiting, dead, oldest, due from embed._backlog();

-- observer_questions
-- How many questions wait for an answer, how many answers are kept, and how often one was found
-- since the server counts. The answers are not counted by their primary key: that would be a find.
select
    (select pg_catalog.count(*) from embed.question q where q.embedding is null and q.error is null) as waiting,
    (select pg_catalog.count(c.cached_at) from embed.question_cache c) as cached,
    pg_catalog.pg_stat_get_tuples_fetched('embed.question_cache_pkey'::regclass) as hits;
