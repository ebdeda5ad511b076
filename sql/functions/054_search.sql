-- embed.search.

-- Deletes a form of embed.search that older versions had. A view of the application that uses it keeps it, under
-- another name and with the present form behind it.
create or replace function embed._retire_search(signature text) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    older constant oid := to_regprocedure(format('embed.search(%s)', signature));
begin
    execute format('drop function if exists embed.search(%s)', signature);
exception when dependent_objects_still_exist then
    execute format('alter function embed.search(%s) rename to _older_search', signature);
    execute (
        select format(
            'create or replace function embed._older_search(%s) returns %s language plpgsql stable as %L',
            pg_get_function_arguments(older), pg_get_function_result(older),
            format(
                'begin return query select s.* from embed.search(%s) as s; end',
                array_to_string(p.proargnames[:p.pronargs], ', ')
            )
        )
        from pg_proc p
        where p.oid = older
    );
end
$$;

revoke execute on function embed._retire_search(text) from public;

select
    embed._retire_search('anyelement, text, integer, text, double precision, integer'),
    embed._retire_search('anyelement, @extschema:vector@.vector, integer, text'),
    embed._retire_search('text, text, integer, text, double precision, integer'),
    embed._retire_search('text, @extschema:vector@.vector, integer, text');

-- Refuses numbers of rows that no search can have. k is looked at by embed._search_plan.
create or replace function embed._check_pages(skip integer, rerank integer) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if rerank not between 0 and 200 then
        raise exception 'rerank is %, expected 0 to 200', rerank
            using errcode = 'EW003',
            hint = 'It is how many of the best rows a cross-encoder reads, 20 for example; 0 is none.';
    elsif skip is null or skip not between 0 and 10000 then
        raise exception 'skip is %, expected 0 to 10000', coalesce(skip::text, 'null')
            using errcode = 'EW003',
            hint = 'It is how many of the best rows to leave out: 10 begins the second page of 10.';
    end if;
end
$$;

-- The rows in the order of a cross-encoder, the first of them at least: it reads question and passage
-- together, which costs much more than comparing vectors, and tells better. Rows behind the first
-- "rerank" keep their order behind those; their scores are lowered where they would come between.
drop function if exists embed._reranked_rows(
    anyelement, text, integer, integer, @extschema:vector@.vector, record, double precision, integer[],
    @extschema:vector@.sparsevec
);
create or replace function embed._reranked_rows(
    source anyelement, question text, k integer, skip integer, rerank integer, embedding @extschema:vector@.vector,
    plan record, weight double precision, terms integer[], scripts @extschema:vector@.sparsevec
) returns table (
    "row" anyelement, score real, similarity real, bm25 real, reranked real,
    passage text, passage_start integer, passage_end integer
)
language plpgsql stable
as $$
begin
    return query
    with found as materialized (
        select f.*
        from embed._search_rows(source, embedding, greatest(k + skip, rerank), 0, plan, null, weight, terms, scripts)
            with ordinality as f ("row", score, similarity, bm25, passage, passage_start, passage_end, place)
    ), answer as materialized (
        select embed._rerank(
            question, array(select f.passage from found f where f.place operator(pg_catalog.<=) rerank order by f.place)
        ) as scores
    ), ranked as materialized (
        select f.*, a.scores[f.place::integer] as reranked
        from found f, answer a
    ), gap as materialized (
        select greatest(
            0,
            (pg_catalog.max(r.score) filter (where r.reranked is null))::double precision
            operator(pg_catalog.-) pg_catalog.min(r.reranked)::double precision
            operator(pg_catalog.+) 0.001::double precision
        ) as width
        from ranked r
    )
    select
        r."row",
        coalesce(r.reranked, (r.score operator(pg_catalog.-) g.width)::real),
        r.similarity, r.bm25, r.reranked, r.passage, r.passage_start, r.passage_end
    from ranked r, gap g
    order by r.reranked desc nulls last, r.place
    limit k
    offset skip;
end
$$;

create or replace function embed.search(
    source anyelement, question text, k integer default 10, name text default null,
    lexical double precision default null, rerank integer default null, matching jsonb default null,
    skip integer default 0
) returns table (
    "row" anyelement, score real, similarity real, bm25 real, reranked real,
    passage text, passage_start integer, passage_end integer
)
language plpgsql stable
as $$
declare
    plan record;
    asked record;
    state text;
    failure text;
    advice text;
    weight double precision;
    scripts @extschema:vector@.sparsevec;
begin
    perform
        embed._check_pages(skip, rerank), embed._require_rows(pg_catalog.pg_typeof(source)), embed._require_asker();
    plan := embed._search_plan(pg_catalog.pg_typeof(source), name, k, false, matching);
    weight := coalesce(lexical, plan.lexical);
    if not weight between 0 and 1000 then
        raise exception 'lexical is %, expected a weight of 0 or more', lexical
            using errcode = 'EW003', hint = '0 ranks by meaning alone; 0.2 is the default.';
    end if;
    if weight > 0 and plan.rescored is null then
        raise exception 'lexical is %, but % was enabled with words => false', lexical, plan.relation
            using errcode = 'EW003', hint = 'Leave lexical out, or enable the table again without words => false.';
    end if;
    perform embed._check_matching(plan.checks, plan.relation);
    begin
        asked := embed._question(question, plan.model);
        perform embed._check_question(asked.embedding, plan.dimensions, plan.relation);
        perform embed._note_degraded(null, null, null);
    exception when sqlstate 'EW001' or sqlstate 'EW007' or sqlstate 'EW008' then
        get stacked diagnostics state = returned_sqlstate, failure = message_text, advice = pg_exception_hint;
        -- There are no words to answer by where the call or the table leaves them out.
        if weight = 0 or not embed._answers_by_words() then
            raise;
        end if;
        perform embed._note_degraded(state, failure, advice);
        select null::@extschema:vector@.vector as embedding, q.terms, array[0, 0]::real[] as shares into asked
        from embed._question_terms(question) as q;
        weight := 1;
        rerank := 0;
    end;
    -- Half as much for a question in Latin letters: with all of it, English tables were ranked worse than by
    -- meaning alone.
    if lexical is null and asked.shares[2] > asked.shares[1] then
        weight := weight / 2;
    end if;
    -- With the words only: lexical => 0 ranks by the vectors as the model makes them.
    if weight > 0 and asked.shares[1] > asked.shares[2] then
        asked.embedding := embed._centered(asked.embedding, plan.model);
    end if;
    if weight > 0 and pg_catalog.cardinality(asked.terms) > 0 then
        scripts := pg_catalog.format('{1:%s,2:%s}/16777216', asked.shares[1], asked.shares[2]);
    else
        weight := 0;
    end if;
    if rerank > 0 then
        return query
        select *
        from embed._reranked_rows(
            source, question, k, skip, rerank, asked.embedding, plan, weight, asked.terms, scripts
        );
    else
        return query
        select f."row", f.score, f.similarity, f.bm25, null::real, f.passage, f.passage_start, f.passage_end
        from embed._search_rows(source, asked.embedding, k, skip, plan, null, weight, asked.terms, scripts) as f;
    end if;
end
$$;

comment on function embed.search(anyelement, text, integer, text, double precision, integer, jsonb, integer) is
    'The k rows of a table nearest in meaning to a question, with the best passage of each: select (s."row").* '
    'from embed.search(null::article, ''question'', k => 10) s. score, by which they are ranked, is similarity '
    '(cosine) + lexical × bm25 (0 to 1: how much of the question''s words is there) + 0.1 × the share of its codes '
    '(E-119) that is there; lexical => 0 ranks by meaning alone. matching => ''{"lang": "ko", "tenant": [5, 6]}'' '
    'searches rows with these values in their columns; a list is any of them, null is null. skip => 10 gives the rows '
    '11 to 20. rerank => 20 has a cross-encoder read the best 20, whose score is then what it says (reranked); where '
    'it does not answer in time (embed.rerank_timeout, 5s) the order stays as it was, with a notice. Where no worker '
    'answers, the words alone rank the rows: similarity is null, and a notice has the SQLSTATE EW011. `set '
    'embed.search_without_worker = ''error''` makes it an error. score orders the rows of one search and says nothing '
    'by itself.';

create or replace function embed.search(
    source anyelement, question @extschema:vector@.vector, k integer default 10, name text default null,
    matching jsonb default null, skip integer default 0
) returns table (
    "row" anyelement, score real, similarity real, bm25 real, reranked real,
    passage text, passage_start integer, passage_end integer
)
language plpgsql stable
as $$
declare
    plan record;
begin
    perform embed._check_pages(skip, null), embed._require_rows(pg_catalog.pg_typeof(source));
    plan := embed._search_plan(pg_catalog.pg_typeof(source), name, k, false, matching);
    perform
        embed._check_matching(plan.checks, plan.relation),
        embed._check_question(question, plan.dimensions, plan.relation);
    return query
    select f."row", f.score, f.similarity, f.bm25, null::real, f.passage, f.passage_start, f.passage_end
    from embed._search_rows(source, question, k, skip, plan) as f;
end
$$;

comment on function embed.search(anyelement, @extschema:vector@.vector, integer, text, jsonb, integer) is
    'The k rows of a table nearest to a vector that the table''s model made.';

-- What to write instead of a table's name, which says nothing of the type of the rows.
create or replace function embed._refuse_name(call text, relation text) returns void
language plpgsql stable
as $$
declare
    written text;
begin
    begin
        -- As a name is written where this is a table's; what is none is not repeated as one.
        written := pg_catalog.to_regclass(relation);
    exception when others then
        null; -- not even the form of a name
    end;
    raise exception 'the first argument of embed.% is the text %, expected a row of a '
    'table', call, pg_catalog.quote_nullable(relation)
        using errcode = 'EW003',
        hint = pg_catalog.format(
            'A null of the table''s row type names the table. Write: select (hit."row").*, hit.score from '
            'embed.%s(null::%s, …) as hit;',
            call, coalesce(written, 'article')
        );
end
$$;

-- These answer the most natural first try, embed.search('article', …). PostgreSQL itself says "could
-- not determine polymorphic type".
create or replace function embed.search(
    source text, question text, k integer default 10, name text default null,
    lexical double precision default null, rerank integer default null, matching jsonb default null,
    skip integer default 0
) returns table (
    "row" text, score real, similarity real, bm25 real, reranked real,
    passage text, passage_start integer, passage_end integer
)
language plpgsql stable
as $$
begin
    perform embed._refuse_name('search', source);
end
$$;

comment on function embed.search(text, text, integer, text, double precision, integer, jsonb, integer) is
    'Answers with the call to write: a table is given by a null of its row type, as in embed.search(null::article, '
    '''question'').';

create or replace function embed.search(
    source text, question @extschema:vector@.vector, k integer default 10, name text default null,
    matching jsonb default null, skip integer default 0
) returns table (
    "row" text, score real, similarity real, bm25 real, reranked real,
    passage text, passage_start integer, passage_end integer
)
language plpgsql stable
as $$
begin
    perform embed._refuse_name('search', source);
end
$$;

comment on function embed.search(text, @extschema:vector@.vector, integer, text, jsonb, integer) is
    'Answers with the call to write: a table is given by a null of its row type, as in embed.search(null::article, '
    'vector).';
