-- The words of a search: what the terms of a question weigh.

-- Which sources' keys and text columns the caller may read. The list itself is nobody's secret; the rights are
-- looked up as the caller.
create or replace function embed._text_columns(
    out source integer, out relation oid, out attnum smallint
) returns setof record
language sql stable security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select s.id, s.relation, c.attnum
    from embed.source s, unnest(s.key_attnums || s.column_attnums) as c (attnum)
    where s.relation_oid = s.relation; -- or the numbers are those of a table that was dumped
end;

create or replace function embed._readable_sources() returns integer[]
language sql stable
set search_path = pg_catalog, pg_temp
return array(
    select c.source
    from embed._text_columns() as c
    group by c.source, c.relation
    having not row_security_active(c.relation)
    and bool_and(coalesce(has_column_privilege(c.relation, c.attnum, 'select'), false))
);

-- How often a word occurs in a table tells something of its texts, to somebody from whom row security
-- hides a part of them more than he may know: whether a name is in a hidden row.
select embed._ensure_policy(t.relation, 'reader', 'for select using (source = any ((select '
'embed._readable_sources())::integer[]))')
from unnest(array['embed.lexical_state', 'embed.lexical_term']::regclass[]) as t (relation);
grant select on embed.lexical_state, embed.lexical_term to public;
select embed._hide_statistics('embed.lexical_state'), embed._hide_statistics('embed.lexical_term', '{term,frequency}');

-- The place of a question's term in the vectors of terms, from 1; see question_terms in
-- worker/embedworker/model/lexical.py for what else its number says.
create or replace function embed._place(term integer) returns integer
language sql immutable
set search_path = pg_catalog, pg_temp
return case when term <= 16777216 then term else term & 16777215 end;

-- How many passages a table has and how many of them have each term; null where the caller may not
-- know, nothing is counted yet, or vectors of an older scheme were counted. Then those that were found
-- for the question stand in for all. The frequency of a term of the older scheme is null: no passage
-- has it.
create or replace function embed._term_counts(
    source integer, terms integer[], out passages real, out frequencies real[]
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    counted bigint;
begin
    select t.passages, t.version into passages, counted
    from embed.lexical_state t
    where t.source = _term_counts.source and t.scheme = 2;
    if found then
        -- The planner guesses that a new count has few terms. So each is looked up by itself: in a join, all 26,764
        -- terms of a table were read for a question, which took 4 ms of 21.
        frequencies := array(
            select case
                when q.term > 16777216 then coalesce(
                    (
                        select t.frequency
                        from embed.lexical_term t
                        where t.source = _term_counts.source and t.version = counted
                        and t.term = embed._place(q.term)
                    ), 0
                )
            end
            from unnest(terms) with ordinality as q (term, place)
            order by q.place
        );
    end if;
end
$$;

-- The question's part in BM25: what each of its terms weighs, over the most that a passage can have,
-- one that is full of every term; and its codes, of too many the rarest. The terms of each scheme have
-- a highest of their own: a passage has those of one.
create or replace function embed._idf(
    terms integer[], passages real, frequencies real[],
    out idf @extschema:vector@.sparsevec, out codes @extschema:vector@.sparsevec[]
)
language sql immutable
set search_path = pg_catalog, pg_temp
begin atomic
    with term as (
        select
            q.term, embed._place(q.term) as place, q.frequency,
            ln(1 + (passages - q.frequency + 0.5) / (q.frequency + 0.5)) as weight
        from unnest(terms, frequencies) as q (term, frequency)
        where q.frequency is not null and embed._place(q.term) > 0
    ),
    part as (
        -- 2.2 is k1 + 1, the limit of a term's weight as it becomes more frequent.
        select t.place, sum(t.weight / t.highest)::real as weight
        from (
            select *, nullif(2.2 * sum(weight) over (partition by term > 16777216), 0) as highest from term
        ) as t
        group by t.place
    )
    select
        (
            '{' || coalesce(
                (select string_agg(p.place || ':' || p.weight, ',' order by p.place) from part p where p.weight > 0), ''
            ) || '}/16777216'
        )::@extschema:vector@.sparsevec,
        array(
            select ('{' || t.place || ':1}/16777216')::@extschema:vector@.sparsevec
            from term t
            where t.term >> 24 = 3
            order by t.frequency, t.place
            limit 32
        );
end;

-- What the caller needs to look up passages of a source by words; null where he may not.
create or replace function embed._words_token(source integer) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (select s.token from embed.lexical_state s where s.source = _words_token.source);

-- The places of the terms that fewest passages have: those that have 1,000 together, or the first alone, which may
-- have 4,000. So no question is slow.
create or replace function embed._rarest(terms integer[], frequencies real[]) returns integer[]
language sql immutable
set search_path = pg_catalog, pg_temp
return array(
    select c.place
    from (
        select
            embed._place(q.term) as place, q.frequency,
            sum(q.frequency) over by_frequency as together,
            row_number() over by_frequency as nth
        from unnest(terms, frequencies) as q (term, frequency)
        where q.frequency is not null
        window by_frequency as (order by q.frequency, q.term)
    ) as c
    where c.together <= 1000 or (c.nth = 1 and c.frequency <= 4000)
);

-- What the question's terms weigh: by the counts of the table; by the passages at these places where the caller may not
-- know those, or nothing is counted yet; all the same where there are no places either.
create or replace function embed._weights(
    plan record, terms integer[], places tid[],
    out idf @extschema:vector@.sparsevec, out codes @extschema:vector@.sparsevec[], out rarest integer[]
)
language plpgsql stable
as $$
declare
    passages real;
    frequencies real[];
begin
    select c.passages, c.frequencies into passages, frequencies from embed._term_counts(plan.source, terms) as c;
    if passages is null then
        execute plan.counted into passages, frequencies using places, terms;
    else
        rarest := embed._rarest(terms, frequencies);
    end if;
    select i.idf, i.codes into idf, codes from embed._idf(terms, passages, frequencies) as i;
end
$$;

-- What a plan's "rescored" begins with, as far as the table "best" (see embed._search_plan).
--
-- A passage in another script than the question's shares no term with it, however well it answers. As far as the
-- scripts differ, it gets what passages of the question's script have on average that are as near in meaning: the
-- regression of their words on their similarity, or their mean where it falls. (Left at 0, the right English article
-- fell from the first place to the eighth behind Korean ones. With the mean alone, English questions to a table of
-- both languages lost 0.0145 NDCG@10 against meaning alone; by the regression they gain 0.0026 ± 0.0045.) From half of
-- its letters in common on it gets nothing: names in Latin letters would raise a Korean passage (0.9456 instead of
-- 0.9463 NDCG@10 on belebele-ko-ko).
--
-- Codes count once more: in a long text one code of many terms weighs less than the differences of the cosine.
create or replace function embed._rescored_sql(vectors regclass, of_vectors text, key_list text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return embed._fill(
    $q$with hit as materialized (
    select
        {vector_keys}, v.chunk, v.passage_start, v.passage_end, found.look,
        1 operator(pg_catalog.-) found.distance as similarity,
        coalesce(operator(pg_catalog.-) (v.terms operator(@extschema:vector@.<#>) $6), 0) as words,
        (
            select pg_catalog.avg(((v.terms operator(@extschema:vector@.<#>) c.code) operator(pg_catalog.<) 0)::integer)
            from unnest($7) as c (code)
        ) as codes,
        coalesce(operator(pg_catalog.-) (v.terms operator(@extschema:vector@.<#>) $8), 0) as same
    from unnest($1, $2, $3) as found (place, distance, look)
    join {vectors} v on v.ctid operator(pg_catalog.=) found.place
), neutral as materialized (
    select
        look,
        coalesce(
            pg_catalog.sum(words operator(pg_catalog.*) same) operator(pg_catalog./) nullif(pg_catalog.sum(same), 0), 0
        ) as words,
        greatest(pg_catalog.regr_slope(words, similarity) filter (where same operator(pg_catalog.>=) 0.5), 0) as slope,
        coalesce(pg_catalog.avg(similarity) filter (where same operator(pg_catalog.>=) 0.5), 0) as similarity
    from hit
    group by look
), passage as (
    select
        hit.*,
        hit.words operator(pg_catalog.+) (
            greatest(0, 1 operator(pg_catalog.-) (2 operator(pg_catalog.*) hit.same))
            operator(pg_catalog.*) greatest(0, least(1,
                neutral.words operator(pg_catalog.+) coalesce(
                    neutral.slope operator(pg_catalog.*) (hit.similarity operator(pg_catalog.-) neutral.similarity), 0
                )
            ))
        ) as bm25
    from hit
    join neutral on neutral.look operator(pg_catalog.=) hit.look
), best as (
    -- Without a worker there is no similarity, and the words are all.
    select distinct on ({keys})
        *, coalesce(similarity, 0) operator(pg_catalog.+) ($9 operator(pg_catalog.*) bm25)
            operator(pg_catalog.+) (0.1 operator(pg_catalog.*) coalesce(codes, 0)) as score
    from passage
    order by {keys}, score desc, chunk
)$q$,
    jsonb_build_object('vector_keys', of_vectors, 'vectors', vectors::text, 'keys', key_list)
);

-- A plan's "counted". l2_normalize is there for its by-product, a copy that is not fetched from TOAST again for
-- every term.
create or replace function embed._counted_sql(vectors regclass) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return format(
    $q$with hit as materialized (
    select @extschema:vector@.l2_normalize(v.terms) as terms
    from unnest($1) as found (place)
    join %1$s v on v.ctid operator(pg_catalog.=) found.place
), asked as materialized (
    select q.place, pg_catalog.format('{%%s:1}/16777216', embed._place(q.term))::@extschema:vector@.sparsevec as term
    from unnest($2) with ordinality as q (term, place)
)
select
    (select pg_catalog.count(*) from hit),
    pg_catalog.array_agg(
        (
            select pg_catalog.count(*) from hit
            where (hit.terms operator(@extschema:vector@.<#>) asked.term) operator(pg_catalog.<) 0
        )
        order by asked.place
    )
from asked$q$,
    vectors
);

create or replace function embed.set_lexical(
    relation regclass, weight double precision, name text default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if weight is null or not weight between 0 and 1000 then
        raise exception 'the weight is %, expected 0 or more', coalesce(weight::text, 'null')
            using errcode = 'EW003', hint = '0 ranks by meaning alone; 0.2 is the default.';
    end if;
    perform embed._sources(relation, name), embed._require_owner(relation);
    update embed._own_source s
    set lexical = weight
    where s.relation = set_lexical.relation and (set_lexical.name is null or s.name = set_lexical.name);
end
$$;

comment on function embed.set_lexical(regclass, double precision, text) is
    'How much the words of a question count in the searches of a table that say nothing of it, beside its meaning; 0 '
    'is not at all, 0.2 the default.';
