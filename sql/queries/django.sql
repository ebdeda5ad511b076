-- django_enable
-- Make the fields of a Django model searchable. Values are literals, because Django also prints the statement.
select embed.enable(
    ({relation})::pg_catalog.regclass, ({columns})::text[], name => {source}, model => {model}, template => {template},
    into_column => {into_column}, chunk => {chunk}, filter => {filter},
    words => {words}, storage => {storage}
);

-- django_disable
-- No longer keep the vectors of a Django model.
select embed.disable(({relation})::pg_catalog.regclass, drop_vectors => {drop_vectors}, name => {source});

-- django_keys
-- The condition of a search that leaves it to the rows of a query of Django's.
(
    select pg_catalog.jsonb_build_object({key}::text, coalesce(pg_catalog.jsonb_agg(x.key), '[]'))
    from ({keys}) as x (key)
);

-- django_search
-- The keys of the rows nearest in meaning to a question, and a last row that says why the words alone ranked them:
-- without a transaction, the next statement would not know.
with found as materialized (
    select s."row", s.score, s.similarity, s.bm25, s.reranked, s.passage, s.place
    from embed.search(
        null::{relation}, %(question)s::text, k => %(k)s, name => %(name)s, lexical => %(lexical)s,
        rerank => %(rerank)s, skip => %(skip)s,
        matching => nullif(coalesce(%(matching)s::jsonb, '{{}}') || coalesce({keys}, '{{}}'), '{{}}')
    ) with ordinality as s ("row", score, similarity, bm25, reranked, passage, passage_start, passage_end, place)
), counted as (
    select pg_catalog.max(f.place) as places from found f
)
select x.key, x.score, x.similarity, x.bm25, x.reranked, x.passage, x.degraded
from (
    select (f."row").{key} as key, f.score, f.similarity, f.bm25, f.reranked, f.passage, f.place, null as degraded
    from found f
    union all
    select null, null, null, null, null, null, null, nullif(pg_catalog.current_setting('embed.degraded', true), '')
    from counted
) as x
order by x.place nulls last;

-- django_distance
-- The distance of the best passage of a row from a question, by the model of the table.
(
    select min(v.embedding <=> (select embed.query({question}, of => ({relation})::pg_catalog.regclass)))
    from {vectors} v
    where v.{key} = {outer}
);
