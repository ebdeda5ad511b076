-- How the question lane of a worker claims and answers questions.

-- The two statements that stand between a question and its answer, as functions: PostgreSQL keeps the
-- plans of a function for the session, behind a transaction pooler too, where a prepared statement
-- would not be found again.
--
-- Lease the oldest unanswered questions; an asker waits, so nothing is waited for here.
--
-- With a lock for each that embed.await can wait for, where this session is the worker's own from one
-- statement to the next (keep_lock): behind a transaction pooler it would stay with somebody else.
create or replace function embed._claim_questions(
    most integer, lease double precision, worker integer, keep_lock boolean,
    out id uuid, out model text, out text text, out role text, out hash bytea, out waited double precision,
    out locked boolean
) returns setof record
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with waiting as materialized (
        select q.id
        from embed.question q
        where q.role <> 'rerank'
        and q.embedding is null
        and q.scores is null
        and q.error is null
        and q.due <= clock_timestamp()
        order by q.due
        limit most
        for update skip locked
    )
    update embed.question q
    set due = clock_timestamp() + make_interval(secs => lease), claimed_by = worker
    from waiting w
    where q.id = w.id
    returning q.id, q.model, q.text, q.role, embed.text_hash(q.text),
        extract(epoch from clock_timestamp() - q.asked_at)::double precision,
        keep_lock and pg_try_advisory_lock(embed._question_lock(q.id));
end
$$;

-- The lock of a question that is being answered. In the answer's transaction, and released at its end: an asker
-- that waited sees the answer then. The transaction's own takes the place of the session's.
create or replace function embed._question_lock(id uuid) returns bigint
language sql immutable
set search_path = pg_catalog, pg_temp
return uuid_hash_extended(id, embed._lock_question());

create or replace function embed._unlock_questions(ids uuid[], locked boolean[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_advisory_xact_lock(embed._question_lock(a.id)), pg_advisory_unlock(embed._question_lock(a.id))
    from unnest(ids, locked) as a (id, locked)
    where a.locked;
end
$$;

-- Keep vectors for the next who asks the same. What is there already is left out before the insert,
-- and found by a bitmap: ON CONFLICT would find it by the index whose finds are counted as hits (see
-- embed._cached_answer), and is for two workers that answer the same at the same moment.
create or replace function embed._keep_answers(
    hashes bytea[], vectors @extschema:vector@.vector[], terms text[], shares text[], lost integer[],
    fingerprint integer
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_indexscan = off
set enable_indexonlyscan = off
as $$
#variable_conflict use_column
begin
    insert into embed.question_cache (fingerprint, hash, embedding, terms, shares, lost)
    select distinct on (a.hash)
        _keep_answers.fingerprint, a.hash, a.embedding, a.terms::integer[], a.shares::real[], a.lost
    from unnest(
        hashes, vectors, _keep_answers.terms, _keep_answers.shares, _keep_answers.lost
    ) as a (hash, embedding, terms, shares, lost)
    where not exists (
        select
        from embed.question_cache c
        where c.fingerprint = _keep_answers.fingerprint and c.hash = a.hash
    )
    -- A worker of version 0002 gives terms of the first scheme alone, which fewer and fewer passages have.
    and (a.terms = '{}' or (a.terms::integer[])[1] > 16777216)
    on conflict on constraint question_cache_pkey do nothing;
end
$$;

-- Write vectors, unless the question was withdrawn or its lease has gone to another worker, and keep
-- them for the next who asks the same. Arrays of unequal length, which an array of arrays cannot hold, travel as text.
create or replace function embed._answer_questions(
    ids uuid[], hashes bytea[], vectors @extschema:vector@.vector[], terms text[], shares text[], lost integer[],
    fingerprint integer, keep boolean, worker integer, locked boolean[]
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    perform embed._unlock_questions(ids, locked);
    if keep then
        perform embed._keep_answers(hashes, vectors, terms, shares, lost, fingerprint);
    end if;
    update embed.question q
    set embedding = a.embedding, terms = a.terms::integer[], shares = a.shares::real[], lost = a.lost
    from unnest(
        ids, vectors, _answer_questions.terms, _answer_questions.shares, _answer_questions.lost
    ) as a (id, embedding, terms, shares, lost)
    where q.id = a.id
    and q.claimed_by = worker
    and q.embedding is null
    and q.error is null;
end
$$;
