-- observer_backlog
-- What waits for each source, without reading any queue to its end.
select source, relation, name, model, paused, waiting, dead, oldest, due from embed._backlog();

-- observer_questions
-- How many questions wait for an answer, how many answers are kept, how often one was found, and how many searches
-- the words alone answered.
select waiting, cached, hits, degraded from embed._question_counts();
