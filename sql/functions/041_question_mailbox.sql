-- The requests of sessions that ask: what runs on their loopback, each call a transaction of its own.

-- The newest fingerprint of a model is the active one: what a worker that starts now would make. By
-- its time, since the numbers are made from digests and have no order.
--
-- Always by the primary key, since the server counts what is found there, read-only transactions
-- included: that is the metric of hits. Other readers of the table use another way.
create or replace function embed._cached_answer(
    question text, model text, role text,
    out embedding @extschema:vector@.vector, out terms integer[], out shares real[], out lost integer
)
language plpgsql stable
set enable_seqscan = off
set enable_bitmapscan = off
as $$
begin
    if role <> 'query' then
        return;
    end if;
    select c.embedding, c.terms, c.shares, c.lost into embedding, terms, shares, lost
    from embed.question_cache c
    where c.fingerprint = (
        select f.id
        from embed.fingerprint f
        where f.model = _cached_answer.model
        order by f.created_at desc, f.id
        limit 1
    )
    and c.hash = embed.text_hash(question);
end
$$;

-- Refuses where no worker answers questions. A session that waits in vain is missing in its pool:
-- ten requests of five seconds each stop an application. embed.worker_grace is for a worker that
-- restarts.
--
-- Runs on the loopback, not in the asking statement: each look needs a new snapshot, and an asker
-- at REPEATABLE READ sees no worker that started after its transaction.
create or replace function embed._require_worker() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    begun constant timestamptz := clock_timestamp();
    grace constant interval := embed._query_timeout('embed.worker_grace'::text, '300ms'::text);
begin
    while not exists (select from embed.worker w where 'questions' = any (w.lanes)) loop
        if clock_timestamp() - begun >= grace then
            raise exception 'no worker that answers questions is connected to this database'
                using errcode = 'EW001',
                detail = embed._live_workers('questions'::text, null::text),
                hint = 'Start a worker with `embedworker run`. To wait for one that restarts: set embed.worker_grace '
                '= ''5s''.';
        end if;
        perform pg_sleep(0.02);
    end loop;
end
$$;

-- Who logged in to this session, whatever role this function runs as; 0 when dropped since.
create or replace function embed._login() returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return quote_ident(session_user)::regrole;
exception when undefined_object then
    return 0;
end
$$;

-- Takes a token from the bucket of a role that has a limit, or refuses. The bucket holds a minute's
-- worth and fills evenly; where there is no limit nothing is written. What is refused costs no
-- token, since the refusal takes the statement back.
create or replace function embed._charge_question(asker oid) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    now constant timestamptz := clock_timestamp();
    a_minute double precision;
    rest double precision;
begin
    select l.a_minute into a_minute
    from embed.question_limit l
    where l.role in (asker, 0)
    order by l.role = 0
    limit 1;
    if a_minute is null then
        return;
    end if;
    -- Another session may have charged while this one waited for the row: then its time is later. Much later it
    -- is only where the server's clock was ahead.
    insert into embed.question_allowance as b (role, tokens, at)
    values (asker, a_minute - 1, now)
    on conflict (role) do update
    set
        tokens = least(
            a_minute, b.tokens + a_minute / 60 * greatest(0, extract(epoch from now - b.at)::double precision)
        ) - 1,
        at = case when b.at < now + interval '1 min' then greatest(b.at, now) else now end
    returning tokens into rest;
    if rest < 0 then
        raise exception 'the role % may ask % a minute, and has', quote_ident(pg_get_userbyid(asker)),
            case a_minute when 1 then '1 question' else a_minute || ' questions' end
            using errcode = 'EW009',
            hint = format(
                'The next one is allowed in %s s; the same question again is free. A member of embed_admin can change '
                'that with embed.limit_questions(…).',
                greatest(1, ceil(-rest * 60 / a_minute))
            );
    end if;
end
$$;

-- Leaves a request for the workers, answered where the answer is known by now: the caller's
-- snapshot may be older than the cache. The same id may be left twice, after a connection was lost
-- on the way.
--
-- asker is who logged in to the session that asks; over the loopback its own login is another.
-- Where dblink is open to everybody, because it was there before, a role can name somebody else
-- here, and the limit is one of courtesy.
--
-- No COMMIT in these two: PostgreSQL forbids it in SECURITY DEFINER, and a statement sent over the
-- loopback commits by itself.
create or replace function embed.ask(
    id uuid, model text, question text, role text, passages text[] default null, asker oid default null,
    out embedding @extschema:vector@.vector, out terms integer[], out shares real[], out lost integer
)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    select c.embedding, c.terms, c.shares, c.lost into embedding, terms, shares, lost
    from embed._cached_answer(question, model, role) as c;
    if embedding is not null then
        insert into embed.question (id, model, text, role, embedding, terms, shares, lost)
        values (ask.id, ask.model, ask.question, ask.role, ask.embedding, ask.terms, ask.shares, ask.lost)
        on conflict on constraint question_pkey do nothing;
        return;
    end if;
    if length(question) > 100000 then
        raise exception 'the question has % characters; expected at most 100000', length(question)
            using errcode = 'EW003', hint = 'Ask with a shorter text.';
    end if;
    perform embed._require_worker();
    perform embed._charge_question(coalesce(asker, embed._login()));
    insert into embed.question (id, model, text, role, passages)
    values (ask.id, ask.model, ask.question, ask.role, ask.passages)
    on conflict on constraint question_pkey do nothing;
    perform pg_notify(case role when 'rerank' then 'embed_rerank' else 'embed_question' end, '');
end
$$;

comment on function embed.ask(uuid, text, text, text, text[], oid) is
    'Leaves a question for the workers; for the loopback of embed.query only.';

-- Takes the answer, a vector, scores or an error; no row when there is none within the time. withdraw then
-- deletes the request.
--
-- Every look is a statement of its own and so has a new snapshot under READ COMMITTED. Between looks
-- it waits for the lock of the worker that is at the question, and so sees the answer as soon as it is
-- committed; for a fifth of a second at most, since any session can take any advisory lock. Where
-- nobody holds it (no worker answers, or one behind a transaction pooler), it sleeps, and longer the
-- longer it has waited: an answer is at most a millisecond or a twentieth late, and fifty waiting
-- sessions do not eat a processor.
create or replace function embed.await(id uuid, patience interval, withdraw boolean default true)
returns table (
    embedding @extschema:vector@.vector, terms integer[], shares real[], lost integer, scores real[], error text
)
language plpgsql security definer rows 1
set search_path = pg_catalog, pg_temp
as $$
declare
    begun timestamptz := clock_timestamp();
    waited double precision;
    most double precision := extract(epoch from patience);
    looked double precision := 0; -- when it last looked whether a worker is there
    lock constant bigint := embed._question_lock(id);
    usual constant text := current_setting('lock_timeout');
begin
    loop
        return query
        delete from embed.question q
        where q.id = await.id and (q.embedding is not null or q.scores is not null or q.error is not null)
        returning q.embedding, q.terms, q.shares, q.lost, q.scores, q.error;
        if found then
            return;
        end if;
        waited := extract(epoch from clock_timestamp() - begun);
        exit when waited >= most;
        if waited > looked + 0.15 then
            perform embed._require_worker();
            looked := extract(epoch from clock_timestamp() - begun);
        end if;
        if pg_try_advisory_lock_shared(lock) then
            perform pg_advisory_unlock_shared(lock), pg_sleep(least(greatest(0.001, waited / 20), 0.05, most - waited));
        else
            begin
                perform set_config('lock_timeout', greatest(1, 1000 * least(most - waited, 0.2))::integer::text, true);
                perform pg_advisory_lock_shared(lock), pg_advisory_unlock_shared(lock);
            exception when lock_not_available then
                null; -- looks again
            end;
            perform set_config('lock_timeout', usual, true);
        end if;
    end loop;
    if withdraw then
        delete from embed.question q where q.id = await.id;
    end if;
end
$$;

comment on function embed.await(uuid, interval, boolean) is
    'Waits for the answer to a question; for the loopback of embed.query only.';

-- Everybody may ask; nobody but the loopback may touch the requests, where others' questions are.
select embed._grant_usage('public');

revoke execute on function
    embed._cached_answer(text, text, text),
    embed._require_worker(),
    embed._login(),
    embed._charge_question(oid),
    embed.ask(uuid, text, text, text, text[], oid),
    embed.await(uuid, interval, boolean)
from public;
