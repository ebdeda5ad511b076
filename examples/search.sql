-- Search by meaning in plain SQL. Run it as often as you like:
--     psql "$DATABASE_URL" -f examples/search.sql
\set ON_ERROR_STOP on

create table if not exists manual (
    id integer primary key,
    title text not null,
    content text not null
);

-- Once. From here on every insert, update and delete is reflected in manual_embedding.
select embed.enable('manual', array['title', 'content']);

insert into manual (id, title, content)
values
    (1, '세탁기', 'F-05가 뜨면 배수 호스가 꺾였는지 확인하고 필터를 청소하세요.'),
    (2, '냉장고', '뒷면에서 소음이 나면 벽에서 5 cm 이상 떼어 놓으세요.'),
    (3, 'Coffee machine', 'Run the descaling program when the red light blinks.')
on conflict (id) do update set title = excluded.title, content = excluded.content;

-- A worker embeds the rows. An application would not wait: a row without a vector is just not found.
do $$
declare
    found record;
begin
    loop
        select * into found from embed.status where source = 'manual'::regclass;
        exit when found.embedded = found.rows;
        if found.state not in ('embedding', 'ready') then
            raise exception 'rows of manual wait: %', coalesce(found.error, found.state)
                using hint = 'Start a worker in another terminal, `embedworker run`, and run this file again.';
        end if;
        perform pg_sleep(0.1);
    end loop;
end
$$;

-- Rows, typed as the table's own, with the passage that matched.
select (hit."row").title, round(hit.score::numeric, 2) as score, hit.passage
from embed.search(null::manual, '빨래하다가 물이 안 빠져요', k => 2) as hit;

-- The same idea as an expression, to be combined with anything else that SQL can do. `select` has the
-- question computed once; that a condition leaves enough rows is a setting that `migrate` makes.
select title
from manual
join manual_embedding using (id)
where length(content) < 200
order by embedding <=> (select embed.query('noise behind the fridge', of => 'manual'))
limit 1;
