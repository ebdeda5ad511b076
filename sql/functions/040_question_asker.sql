-- A question's vector from inside SQL.
--
-- The request must be committed before a worker can see it, while the statement that asks is still
-- running. So it goes through a second connection of the session to its own server (dblink, see
-- loopback/) on which two statements run, each a transaction of its own: embed.ask and embed.await.
-- Being apart from the caller's transaction, they work inside BEGIN, in a read-only transaction and
-- at every isolation level.
--
-- The answer is the vector and, for rescoring by words, the places of the question's terms and the
-- shares of the scripts (worker/embedworker/model/lexical.py): a worker makes them all, so that terms are cut in
-- one place only. Scores of passages use the same connection (embed._rerank).
--
-- In order of cost, an answer comes from this statement's memo, from embed.question_cache, or from a
-- worker.
--
-- Functions about questions stand in one file for each session that runs them:
--   040_question_asker    the session that asks
--   041_question_mailbox  the loopback of that session, where the request is committed
--   042_question_lane     workers, and views about them

-- What the caller wants and where it may come from; everything but the public face of it.
--
-- The memo makes a STABLE function cheap where PostgreSQL calls it for every row (a sequential scan
-- sorted by distance): the answer of a worker is committed after this statement took its snapshot,
-- so neither the cache nor anything else in a table can be seen by the second call. A setting can.
--
-- Callers reach everything that a session keeps by name: cursors, prepared statements, temporary
-- tables. What runs when such a thing is used would run with the definer's rights. A setting is text,
-- and runs nothing. Its name holds a random secret, so callers can neither read nor write it. It ends
-- with the transaction, so no other user of a pooled session sees it. Reading a vector of 384
-- numbers takes 20 us. There are 16 slots, because a statement may hold several questions.
create or replace function embed._answer(
    question text, model text, role text,
    out embedding @extschema:vector@.vector, out terms integer[], out shares real[]
)
language plpgsql stable cost 1000
set search_path = pg_catalog, pg_temp
as $$
declare
    -- The model is quoted, so that no question looks like another model and question.
    mark constant text := encode(
        sha256(convert_to(concat_ws('|', statement_timestamp(), role, quote_nullable(model), question), 'UTF8')), 'hex'
    );
    memo constant text := (select format('embed.memo_%s_%s', s.value, left(mark, 1)) from embed.memo_secret s limit 1);
    held constant text := current_setting(memo, true);
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
    if held like mark || ' %' then
        terms := nullif(split_part(held, ' ', 2), '');
        shares := nullif(split_part(held, ' ', 3), '');
        embedding := split_part(held, ' ', 4);
        return;
    end if;

    if embed.nonblank(question) is null then
        raise exception 'the question is %', case when question is null then 'null' else 'blank' end
            using errcode = 'EW003',
            hint = 'Ask with at least one character that can be read; test for an empty search field first.';
    end if;
    perform embed._check_words(question);
    asked := embed._nfc(question);
    if chosen is null then
        select s.value into chosen from embed.setting s where s.name = 'default_model';
        if current_setting('transaction_isolation') <> 'read committed' then
            perform embed._require_present(s) from embed.source s where s.model is null;
        end if;
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
                hint = 'Enable a table with it, embed.enable(…, model => …), or make it the default with '
                'embed.use_model(…).';
        end if;
        patience := embed._query_timeout('embed.query_timeout'::text, '5s'::text);
        perform embed._require_loopback();
        select a.embedding, a.terms, a.shares, a.lost into embedding, terms, shares, lost
        from embed._loopback(asked, chosen, role, patience, null::text[]) as a;
        if embedding is null then
            raise exception 'no worker answered the question within '
            '%', coalesce(nullif(current_setting('embed.query_timeout', true), ''), '5s')
                using errcode = 'EW001',
                detail = embed._live_workers('questions'::text, chosen),
                hint = 'A worker may still load the model. A longer wait is `set embed.query_timeout = ''30s''`; the '
                'worker''s log says what keeps it.';
        end if;
    end if;
    if lost > 0 then
        raise notice 'the question is longer than the model''s window: its last % tokens were left out', lost
            using hint = 'Ask with the part that matters, at its beginning.';
    end if;
    perform set_config(memo, format('%s %s %s %s', mark, terms, shares, embedding), true) where memo is not null;
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

-- Refuses a vector that arrives as a text: PostgreSQL takes a literal without a type for a text, and
-- its digits would be searched for as words.
create or replace function embed._check_words(question text) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Two numbers at least: [1] may well be a part of a text.
    if question ~ '^\s*\[\s*[-+]?[0-9.][-+0-9.eE]*(\s*,\s*[-+]?[0-9.][-+0-9.eE]*)+\s*\]\s*$' then
        raise exception 'the question is a text that looks like a vector: %', left(question, 20) || '…'
            using errcode = 'EW003',
            hint = format(
                'Give a vector with its type: ''[0.1, …]''::%1$s, or $1::%1$s in a statement with parameters.',
                '@extschema:vector@.vector'::regtype
            );
    end if;
end
$$;

-- The setting embed.query_timeout, or another of its kind: '500ms', '3s', '1min', or a number of
-- seconds. usual is what it is where nobody set it.
drop function if exists embed._query_timeout(text);
create or replace function embed._query_timeout(setting text, usual text) returns interval
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    given text := coalesce(nullif(current_setting(setting, true), ''), usual);
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

-- Refuses if there is no loopback, with the reason that `embedworker migrate` found.
--
-- The setting loopback names the database that the loopback was made for: in a copy of a database
-- (CREATE DATABASE … TEMPLATE, pg_restore) it would lead to the original.
create or replace function embed._require_loopback() returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    made_for text;
    problem text;
begin
    if pg_is_in_recovery() and not exists (select from pg_foreign_server s where s.srvname = 'embed_primary') then
        raise exception 'a standby cannot ask a worker for a question''s vector'
            using errcode = 'EW007',
            hint = 'Run `embedworker migrate --primary-host HOST` on the primary: standbys then ask there. Or ask '
            'there yourself, and search here with the vector. A question is answered here while its vector is kept.';
    end if;
    select s.value into made_for from embed.setting s where s.name = 'loopback';
    select s.value into problem from embed.setting s where s.name = 'loopback_problem';
    if problem is null and made_for is null then
        problem := 'It was never set up: run `embedworker migrate`.';
    elsif problem is null
        and made_for <> (select d.oid::text from pg_database d where d.datname = current_database())
    then
        problem := 'This database is a copy, and its loopback leads to the original: run `embedworker migrate` here.';
    end if;
    if problem is not null then
        raise exception 'questions cannot reach a worker from inside SQL' using errcode = 'EW007', hint = problem;
    end if;
end
$$;

-- COST: an index evaluates this once, a sort of everything once a row, and the planner should know.
-- A role that may not ask gets the error here: the right is that to embed._question.
create or replace function embed.query(text text, model text default null) returns @extschema:vector@.vector
language plpgsql stable security invoker cost 1000
set search_path = pg_catalog, pg_temp
as $$
begin
    if not has_function_privilege('embed._question(text, text)'::regprocedure, 'execute') then
        perform embed._require_asker();
    end if;
    return (embed._question(query.text, query.model)).embedding;
end
$$;

comment on function embed.query(text, text) is
    'The vector of a question, computed by a running worker: order by embedding <=> (select embed.query(''…'')) limit '
    '10. The setting embed.query_timeout bounds the wait (5s); where no worker runs, embed.worker_grace does (300ms).';

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
    from embed._answer(question, model, 'query'::text) as a;
end
$$;

-- How well passages answer a question, by the cross-encoder of this database: a number for each, in
-- their order. Null, with a notice, if there is none in time: the rows are good as they
-- are, only in a coarser order.
--
-- The asker sends the texts, and did read them with his own rights. Were they keys, a worker would
-- read the rows with its rights, and a caller of this with a key would learn of a row that row
-- security hides from him how well it answers any question. The texts stay in the request, which
-- nobody else may read, and go with it. Where nobody answers questions, none is left.
create or replace function embed._rerank(question text, passages text[]) returns real[]
language plpgsql stable security definer cost 1000
set search_path = pg_catalog, pg_temp
as $$
declare
    patience constant interval := embed._query_timeout('embed.rerank_timeout'::text, '5s'::text);
    -- Far more than the 512 tokens that a cross-encoder reads.
    most constant integer := 10000;
    asked constant text[] := array(
        select left(coalesce(p.passage, ''), most)
        from unnest(passages) with ordinality as p (passage, place)
        order by p.place
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
        perform embed._require_loopback();
        select a.scores into scores
        from embed._loopback(left(question, most), embed.reranker(), 'rerank'::text, patience, asked) as a;
        if scores is null then
            raise exception 'no worker answered within '
            '%', coalesce(nullif(current_setting('embed.rerank_timeout', true), ''), '5s')
                using errcode = 'EW001',
                hint = 'The first time a worker loads the model, which takes a while; a longer wait is `set '
                'embed.rerank_timeout = ''30s''`, and fewer rows are read sooner.';
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
    'Scores of passages for a question, in their order; null and a notice where there are none. For embed.search. The '
    'setting embed.rerank_timeout bounds the wait (5s).';

revoke execute on function
    embed._answer(text, text, text),
    embed._vector(text, text, text),
    embed._query_timeout(text, text),
    embed._require_loopback()
from public;
