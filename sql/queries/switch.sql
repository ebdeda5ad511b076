-- switch_begin
-- Begin to fill a second set of vectors of a table; the table that holds them.
select embed.begin_switch(
    %(relation)s::bigint::oid::regclass, %(model)s, name => %(name)s, storage => %(storage)s
)::text;

-- switch_cut_over
-- Have the other vectors answer.
select embed.cut_over(%(relation)s::bigint::oid::regclass, force => %(force)s, name => %(name)s);

-- switch_roll_back
-- Have the old vectors answer again.
select embed.roll_back(%(relation)s::bigint::oid::regclass, name => %(name)s);

-- switch_end
-- Drop the vectors that do not answer.
select embed.end_switch(%(relation)s::bigint::oid::regclass, name => %(name)s);

-- switch_model
-- The model of the side of a table that answers now, or that waits, and the type of its vectors where that is another
-- than vector. Null where no side waits.
select (
    select coalesce(s.model, embed.default_model()) || coalesce(' (' || nullif(embed._storage(s), 'vector') || ')', '')
    from embed.source s
    join pg_catalog.pg_class c on c.oid = s.relation
    where s.relation = %(relation)s::bigint::oid::regclass and embed._is_standby(s.id) = %(waits)s
    order by s.name = %(name)s desc nulls last, s.name = c.relname desc, s.id
    limit 1
);

-- switch_status
-- Every change of a model that is under way.
select
    source::text, name, from_model, to_model, phase, coverage::text, pending, dead, eta, error, from_coverage::text,
    from_pending, from_dead, extra_bytes, judgement, forced, started_at, cut_over_at, rolled_back_at, from_storage,
    to_storage
from embed.switch;

-- switch_sides
-- The sources of a switch: its number, and the names of the old and of the new vectors as they are now.
select w.source, a.name, b.name
from embed.switch_state w
join embed.source a on a.id = w.source
join embed.source b on b.id = w.successor
where a.relation = %(relation)s::bigint::oid::regclass
and coalesce(%(name)s::text in (a.name, b.name), true)
order by w.source
limit 1;

-- switch_texts
-- The beginnings of some texts of a table, to ask with where nobody has questions.
select x.text
from (select left({text}, %(characters)s) as text from {rows} s where {text} is not null limit 10000) as x
order by random()
limit %(most)s;

-- switch_judged
-- Keep what was measured.
update embed.switch_state set judgement = %(judgement)s where source = %(source)s;

-- switch_sizes
-- How many rows a source has by its counters, and what its vectors take now: passages by the planner's guess, or one a
-- row before the first ANALYZE, bytes with indexes, and the folder of the server's data where this role may know it.
select
    x.rows,
    case when c.reltuples < 0 then x.embedded else embed._guess_rows(s.vectors) end as passages,
    pg_catalog.pg_total_relation_size(s.vectors) as bytes,
    s.dimensions,
    (select p.setting from pg_catalog.pg_settings p where p.name = 'data_directory') as folder
from embed.source s
join embed.status x on x.source = s.relation and x.name = s.name
join pg_catalog.pg_class c on c.oid = s.vectors
where s.id = %(source)s;
