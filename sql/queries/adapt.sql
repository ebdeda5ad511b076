-- adapt_rows
-- Texts of a table with their keys: those that are judged first, then others in an order that stays.
select left({text}, %(characters)s), {keys}
from {rows} s
where {text} is not null
order by
    exists (
        select from embed.judgement j where j.relation = %(relation)s::bigint::oid::regclass and j.key = array[{texts}]
    ) desc,
    hashtextextended((array[{texts}])::text, 0)
limit %(most)s;

-- adapt_model
-- Tell the database of a model that was made here; it is a folder that every worker can read.
select embed.add_model(%(name)s, %(dimensions)s, %(max_tokens)s, %(query_prefix)s, %(passage_prefix)s);

-- adapt_lexical
-- How much words weigh in the searches of a source.
select case when s.words then s.lexical else 0 end::double precision from embed.source s where s.id = %(source)s;
