-- What workers learn from the rows that people chose, and how long questions are kept.

-- A worker's chore: makes judgements of choices, and deletes what is too old. It waits for nobody, because what is
-- locked is left for the next time. A choice counts where the row was shown by that search. The rows shown above it
-- that nobody chose are weak negatives: grade 0, unless some source says that they are right. Of those the 20 next
-- above it count, and a row that is shown or chosen twice counts once, because a login may log what it likes.
create or replace function embed._learn() returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    learned integer := 0;
begin
    begin
        perform set_config('lock_timeout', '50ms', true);
        learned := embed._learn_choices();
    exception when others then
        -- Such as a judgement that an open transaction holds. The server's log says it, the choices stay, and the next
        -- time tries again. Raised, it would end the session that answers questions.
        raise warning 'choices are not judged yet: %', sqlerrm;
    end;
    delete from embed.logged_search l
    where l.id = any (array(
        select x.id
        from embed.logged_search x
        left join embed.question_log d on d.relation = x.relation
        where d.relation is null or x.searched_at < now() - make_interval(days => d.days)
        limit 1000
        for update of x skip locked
    ));
    delete from embed.judgement j
    where j.id = any (array(
        select x.id
        from embed.judgement x
        left join embed.question_log d on d.relation = x.relation
        where (x.source = 'click' and (d.relation is null or x.judged_at < now() - make_interval(days => d.days)))
        or not exists (select from pg_class c where c.oid = x.relation)
        limit 1000
        for update of x skip locked
    ));
    return learned;
end
$$;

-- Makes judgements of up to 1,000 choices, and returns of how many rows.
create or replace function embed._learn_choices() returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    learned integer;
begin
    with taken as (
        delete from embed.choice c
        where c.ctid = any (array(select x.ctid from embed.choice x limit 1000 for update skip locked))
        returning c.search, c.key, c.chosen_at
    ), chosen as (
        select l.relation, l.question, l.asker, l.keys, t.key, t.chosen_at, p.place
        from (select x.search, x.key, max(x.chosen_at) as chosen_at from taken x group by x.search, x.key) as t
        join embed.logged_search l on l.id = t.search
        cross join lateral (
            select x.place
            from jsonb_array_elements(l.keys) with ordinality as x (shown, place)
            where x.shown = to_jsonb(t.key)
            order by x.place
            limit 1
        ) as p
    ), judged as (
        select c.relation, c.question, c.key, 1 as grade, c.asker, c.chosen_at
        from chosen c
        union all
        select c.relation, c.question, n.key, 0, c.asker, c.chosen_at
        from chosen c
        cross join lateral generate_series(greatest(c.place - 20, 1), c.place - 1) as p (place)
        cross join lateral (
            select array(select jsonb_array_elements_text(c.keys -> (p.place - 1)::integer)) as key
        ) as n
    ), best as (
        -- By what the index of judgements is over: two keys may have one hash.
        select distinct on (
            j.relation, hashtextextended(j.question, 0), hashtextextended(j.question, 1), hash_array_extended(j.key, 0)
        ) j.*
        from judged j
        order by j.relation, hashtextextended(j.question, 0), hashtextextended(j.question, 1),
            hash_array_extended(j.key, 0), j.grade desc, j.chosen_at desc
    )
    insert into embed.judgement as j (relation, question, key, grade, source, asker, judged_at)
    select b.relation, b.question, b.key, b.grade, 'click', b.asker, b.chosen_at
    from best b
    on conflict (
        relation, hashtextextended(question, 0), hashtextextended(question, 1), hash_array_extended(key, 0), source
    ) do update
    set grade = greatest(j.grade, excluded.grade), judged_at = excluded.judged_at, asker = excluded.asker;
    get diagnostics learned = row_count;
    return learned;
end
$$;

revoke execute on function embed._learn(), embed._learn_choices() from public;
