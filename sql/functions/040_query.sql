-- A question's vector from inside SQL.
--
-- The request must be committed before a worker can see it, while the statement that asks is still
-- running. So it goes through a second connection of the session to its own server (dblink, see
-- loopback/) on which two statements run, each a transaction of its own: embed.ask and embed.await.
-- Being apart from the caller's transaction, they work inside BEGIN, in a read-only transaction and
-- at every isolation level.
--
-- The answer is the vector and, for rescoring by words, the places of the question's terms and the
-- shares of the scripts (worker/model/lexical.py): a worker makes them all, so that terms are cut in
-- one place only. Scores of passages come over the same road (embed._rerank).
--
-- In order of cost, an answer comes from this statement's memo, from embed.question_cache, or from a
-- worker.

-- What the caller wants and where it may come from; everything but the public face of it.
--
-- The memo makes a STABLE function cheap where PostgreSQL calls it for every row (a sequential scan
-- sorted by distance): the answer of a worker is committed after this statement took its snapshot,
-- so neither the cache nor anything else in a table can be seen by the second call. A cursor can.
-- It holds the vector as it is (kept as text in a setting, it took 180 us to read instead of 10),
-- and is gone with the transaction, so no other user of a pooled session sees it. Its price is a
-- snapshot that is held until then. One of eight slots, since a statement may hold several
-- questions; a setting names what is in it.
create or replace function embed._answer(
    question text, model text, role text,
    out embedding @extschema:vector@.vector, out terms integer[], out shares real[]
)
language plpgsql stable cost 1000
set search_path = pg_catalog, pg_temp
as $$
declare
    mark text;
    memo refcursor;
    asked text;
    chosen text := model;
    patience interval;
    lost integer;
begin
    if length(question) > 100000 then
        raise exception 'the question has % characters; expected at most 100000', length(question)
            using errcode = 'EW003',
            hint = 'Ask with the part that matters: a model reads a few hundred words at most.';
    end if;
    mark := encode(sha256(convert_to(concat_ws('|', statement_timestamp(), role, model, question), 'UTF8')), 'hex');
    memo := 'embed_memo_' || (get_byte(decode(left(mark, 2), 'hex'), 0) & 7);
    if mark = current_setting('embed.' || memo, true) then
        begin
            fetch first from memo into embedding, terms, shares;
            return;
        exception when invalid_cursor_name then
            null; -- somebody ran CLOSE ALL
        end;
    end if;

    if embed.nonblank(question) is null then
        raise exception 'the question is %', case when question is null then 'null' else 'blank' end
            using errcode = 'EW003',
            hint = 'Ask with at least one character that can be read; test for an empty search field first.';
    end if;
    asked := embed._nfc(question);
    if chosen is null then
        select s.value into chosen from embed.setting s where s.name = 'default_model';
    end if;

    select c.embedding, c.terms, c.shares, c.lost into embedding, terms, shares, lost
    from embed._cached_answer(asked, chosen, role) as c;
    if embedding is null then
        if not exists (select from embed.model m where m.name = chosen) then
            raise exception 'model % is not known', coalesce(quote_literal(chosen), 'null')
                using errcode = 'EW003',
                hint = 'See embed.model for what is, or add it with embed.add_model(…).';
        end if;
        -- Everybody may ask, and a worker loads what it is asked for: gigabytes for a model of which
        -- nobody here has a vector.
        if chosen <> embed.default_model() and not exists (select from embed.source s where s.model = chosen) then
            raise exception 'the model % is in use nowhere here; expected % or that of an enabled table',
                quote_literal(chosen), quote_literal(embed.default_model())
                using errcode = 'EW003',
                hint = 'Enable a table with it, embed.enable(…, model => …), or make it the default with embed.use_model(…).';
        end if;
        patience := embed._query_timeout();
        perform embed._require_loopback();
        select a.embedding, a.terms, a.shares, a.lost into embedding, terms, shares, lost
        from embed._loopback(asked, chosen, role, patience) as a;
        if embedding is null then
            raise exception 'no worker answered the question within %', coalesce(nullif(current_setting('embed.query_timeout', true), ''), '5s')
                using errcode = 'EW001',
                detail = embed._live_workers(),
                hint = case when exists (select from embed.worker w where 'questions' = any (w.lanes))
                    then 'A longer wait is `set embed.query_timeout = ''30s''`; what keeps the worker is in its log.'
                    else 'Start a worker with `embedworker run`; a longer wait is `set embed.query_timeout = ''30s''`.'
                end;
        end if;
    end if;
    if lost > 0 then
        raise notice 'the question is longer than the model''s window: its last % tokens were left out', lost
            using hint = 'Ask with the part that matters, at its beginning.';
    end if;
    if current_setting('embed.' || memo, true) <> '' then
        begin
            close memo;
        exception when invalid_cursor_name then
            null;
        end;
    end if;
    open memo scroll for select embedding, terms, shares;
    perform set_config('embed.' || memo, mark, true);
end
$$;

create or replace function embed._vector(question text, model text, role text) returns @extschema:vector@.vector
language plpgsql stable cost 1000
set search_path = pg_catalog, pg_temp
as $$
begin
    return (select a.embedding from embed._answer(question, model, role) as a);
end
$$;

-- The newest fingerprint of a model is the active one: what a worker that starts now would make. By
-- its time, since the numbers are made from digests and have no order.
--
-- Always by the primary key, since the server counts what is found there, read-only transactions
-- included: that is the metric of hits. Whoever else reads the table goes another way.
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

-- The setting embed.query_timeout, or another of its kind: '500ms', '3s', '1min', or a number of
-- seconds.
create or replace function embed._query_timeout(setting text default 'embed.query_timeout') returns interval
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    given text := coalesce(nullif(current_setting(setting, true), ''), '5s');
    result interval;
begin
    begin
        result := given::interval;
    exception when invalid_datetime_format or datetime_field_overflow or interval_field_overflow then
        result := null;
    end;
    -- A minute, because a worker takes a request that is two minutes old for abandoned.
    if result is null or result <= interval '0' or result > interval '1 minute' then
        raise exception '% is %; expected a time of at most one minute', setting, quote_literal(given)
            using errcode = 'EW003',
            hint = format('Write for example `set %s = ''500ms''`, ''3s'' or ''1min''.', setting);
    end if;
    return result;
end
$$;

-- Refuses where there is no road for questions, with what `embedworker migrate` found out.
--
-- The setting loopback names the database that the road was made for: in a copy of a database
-- (CREATE DATABASE … TEMPLATE, pg_restore) it would lead to the original.
create or replace function embed._require_loopback() returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    made_for text;
    problem text;
begin
    if pg_is_in_recovery() then
        raise exception 'a read replica cannot ask a worker for a question''s vector'
            using errcode = 'EW007',
            hint = 'Ask on the primary, and search here with the vector; questions that were asked there of late are answered here too.';
    end if;
    select s.value into made_for from embed.setting s where s.name = 'loopback';
    select s.value into problem from embed.setting s where s.name = 'loopback_problem';
    if problem is null and made_for is null then
        problem := 'It was never set up: run `embedworker migrate`.';
    elsif problem is null and made_for <> (select d.oid::text from pg_database d where d.datname = current_database()) then
        problem := 'This database is a copy, and its road leads to the original: run `embedworker migrate` here.';
    end if;
    if problem is not null then
        raise exception 'questions cannot reach a worker from inside SQL' using errcode = 'EW007', hint = problem;
    end if;
end
$$;

-- A sentence for an error: the workers whose lock is held, or who cannot hold one and were seen.
create or replace function embed._live_workers() returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select case count(*)
        when 0 then 'No worker is connected to this database.'
        when 1 then '1 worker is connected; it may be loading its model, or not serve questions.'
        else count(*) || ' workers are connected; they may be loading their model, or not serve questions.'
    end
    from embed.worker_session w
    where case
        when w.lock_held then exists (
            select
            from pg_locks l
            where l.locktype = 'advisory' and l.classid = 1701667429 and l.objid = w.id::oid and l.objsubid = 2
            and l.granted and l.database = (select d.oid from pg_database d where d.datname = current_database())
        )
        else w.seen_at > clock_timestamp() - interval '1 minute'
    end
);

-- COST: an index evaluates this once, a sort of everything once a row, and the planner should know.
create or replace function embed.query(text text, model text default null) returns @extschema:vector@.vector
language plpgsql stable security definer cost 1000
set search_path = pg_catalog, pg_temp
as $$
begin
    return embed._vector(query.text, query.model, 'query');
end
$$;

comment on function embed.query(text, text) is
    'The vector of a question, computed by a running worker: order by embedding <=> embed.query(''…'') limit 10. The setting embed.query_timeout bounds the wait (5s).';

-- What embed.search asks for: the vector and what there is of words.
create or replace function embed._question(
    question text, model text,
    out embedding @extschema:vector@.vector, out terms integer[], out shares real[]
)
language plpgsql stable security definer cost 1000
set search_path = pg_catalog, pg_temp
as $$
begin
    select a.embedding, a.terms, a.shares into embedding, terms, shares
    from embed._answer(question, model, 'query') as a;
end
$$;

-- How well passages answer a question, by the cross-encoder of this database: a number for each, in
-- their order. Null, with a notice, where there is none to be had in time: the rows are good as they
-- are, only in a coarser order.
--
-- The asker sends the texts, and did read them with his own rights. Were they keys, a worker would
-- read the rows with its rights, and whoever calls this with a key would learn of a row that row
-- security hides from him how well it answers any question. The texts stay in the request, which
-- nobody else may read, and go with it. Where nobody answers questions, none is left.
create or replace function embed._rerank(question text, passages text[]) returns real[]
language plpgsql stable security definer cost 1000
set search_path = pg_catalog, pg_temp
as $$
declare
    patience constant interval := embed._query_timeout('embed.rerank_timeout');
    -- Far more than the 512 tokens that a cross-encoder reads.
    most constant integer := 10000;
    asked constant text[] := array(
        select left(coalesce(p.passage, ''), most) from unnest(passages) with ordinality as p (passage, place) order by p.place
    );
    scores real[];
    failure text;
    advice text;
begin
    if cardinality(asked) = 0 then
        return null;
    elsif cardinality(asked) > 200 then
        raise exception '% passages are to be reranked; expected at most 200', cardinality(asked)
            using errcode = 'EW003', hint = 'A cross-encoder reads each of them: a few dozen are enough.';
    end if;
    begin
        if not exists (select from embed.worker w where 'questions' = any (w.lanes)) then
            raise exception 'no worker that answers questions is connected'
                using errcode = 'EW001', hint = 'Start a worker with `embedworker run`.';
        end if;
        perform embed._require_loopback();
        select a.scores into scores
        from embed._loopback(left(question, most), embed.reranker(), 'rerank', patience, asked) as a;
        if scores is null then
            raise exception 'no worker answered within %', coalesce(nullif(current_setting('embed.rerank_timeout', true), ''), '5s')
                using errcode = 'EW001',
                hint = 'The first time a worker loads the model, which takes a while; a longer wait is `set embed.rerank_timeout = ''30s''`, and fewer rows are read sooner.';
        end if;
        return scores;
    exception when others then
        get stacked diagnostics failure = message_text, advice = pg_exception_hint;
        raise notice 'the rows are not reranked: %', failure using hint = advice;
        return null;
    end;
end
$$;

comment on function embed._rerank(text, text[]) is
    'Scores of passages for a question, in their order; null and a notice where there are none. For embed.search. The setting embed.rerank_timeout bounds the wait (5s).';

-- Who logged in to this session, whatever role the function at hand runs as; 0 when dropped since.
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
    -- Another session may have charged while this one waited for the row: then its time is later.
    insert into embed.question_allowance as b (role, tokens, at)
    values (asker, a_minute - 1, now)
    on conflict (role) do update
    set
        tokens = least(a_minute, b.tokens + a_minute / 60 * greatest(0, extract(epoch from now - b.at)::double precision)) - 1,
        at = greatest(b.at, now)
    returning tokens into rest;
    if rest < 0 then
        raise exception 'the role % may ask % a minute, and has', quote_ident(pg_get_userbyid(asker)),
            case a_minute when 1 then '1 question' else a_minute || ' questions' end
            using errcode = 'EW009',
            hint = format(
                'The next one is allowed in %s s; the same question again is free. A member of embed_admin can change that with embed.limit_questions(…).',
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
-- nobody holds it (no worker is at it, or one behind a transaction pooler), it sleeps, and longer the
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
grant usage on schema embed to public;

revoke execute on function
    embed._answer(text, text, text),
    embed._vector(text, text, text),
    embed._cached_answer(text, text, text),
    embed._query_timeout(text),
    embed._require_loopback(),
    embed._live_workers(),
    embed._login(),
    embed._charge_question(oid),
    embed.ask(uuid, text, text, text, text[], oid),
    embed.await(uuid, interval, boolean)
from public;

grant execute on function embed.query(text, text) to public;

revoke all on all tables in schema embed from public;
