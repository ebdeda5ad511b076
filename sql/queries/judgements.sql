-- judgements_import
-- Judgements of a person's file, whose keys are those of the table; one that is there gets the new grade.
insert into embed.judgement as j (relation, question, key, grade, source)
select distinct on (line.entry ->> 'question', x.key) %(relation)s::bigint::oid::regclass, line.entry ->> 'question',
    x.key, 1, 'file'
from pg_catalog.jsonb_array_elements(%(given)s) with ordinality as line (entry, place)
cross join lateral pg_catalog.jsonb_populate_record(null::{relation}, line.entry -> 'key') as given
cross join lateral (select array[{texts}] as key) as x
order by line.entry ->> 'question', x.key, line.place
on conflict (
    relation, hashtextextended(question, 0), hashtextextended(question, 1), hash_array_extended(key, 0), source
) do update
set grade = excluded.grade, judged_at = now();

-- judgements_read
-- The judgements of a table whose rows are there, one for a question and a row: a person's counts before a click's.
select distinct on (j.question, j.key) j.question, j.grade, {found}
from embed.judgement j
join {only} {relation} as found on array[{texts}] = j.key
where j.relation = %(relation)s::bigint::oid::regclass
order by j.question, j.key, pg_catalog.array_position('{{person,file,click,reranker}}'::text[], j.source);
