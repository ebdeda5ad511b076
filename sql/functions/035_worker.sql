-- What the worker asks of the schema. Kept apart from what people call: these may be added to, but
-- never changed in place while a worker of the version before may be running.

-- One look at everything: which sources there are, and which have work. The cursors let the look
-- start behind rows that are done but not yet vacuumed (an old snapshot somewhere may keep them).
-- A request of a trigger that no longer fits shows as another version: a worker then looks at once.
create or replace function embed._poll(after jsonb)
returns table (source integer, version bigint, paused boolean, work boolean, sweep boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- A queue that is being dropped in an open transaction must not stop the look at the others.
set lock_timeout = '50ms'
as $$
declare
    priorities constant smallint[] := embed._priorities();
    small constant bigint := 65536; -- bytes
begin
    for source, version, paused, sweep in
        select
            s.id,
            coalesce(
                (select max(r.id) from embed.sweep_request r where r.source = s.id and r.reason = 'columns changed'),
                s.version
            ),
            s.paused,
            exists (select from embed.sweep_request r where r.source = s.id)
        from embed.source s
        order by s.id
    loop
        work := false;
        if not paused then
            begin
                -- Most sources have nothing, and this is planned in half the time. A queue that is large may be
                -- full of rows that are done and not vacuumed yet.
                if pg_relation_size(format('embed.queue_%s', source)::regclass) <= small then
                    execute format(
                        'select exists (select from embed.inbox_%1$s where ctid > $1) '
                        'or exists (select from embed.queue_%1$s)',
                        source
                    )
                    into work
                    using coalesce((after -> source::text ->> 0)::tid, '(0,0)');
                    if not work then
                        return next;
                        continue;
                    end if;
                end if;
                execute format(
                    'select exists (select from embed.inbox_%1$s where ctid > $1)
                        or exists (
                            select
                            from unnest($2, $3) as c (priority, after)
                            cross join lateral (
                                select from embed.queue_%1$s q
                                where q.priority = c.priority and q.due < ''infinity''
                                and q.due <= now() and q.due >= c.after
                                limit 1
                            ) as q
                        )',
                    source
                )
                into work
                using
                    coalesce((after -> source::text ->> 0)::tid, '(0,0)'),
                    priorities,
                    array(
                        select coalesce((after -> source::text -> 1 ->> p.priority::text)::timestamptz, '-infinity')
                        from unnest(priorities) with ordinality as p (priority, place)
                        order by p.place
                    );
            exception
                when undefined_table then continue;
                when lock_not_available then work := null; -- not known
                -- Such as a right that somebody took away: the claim says it of this source, and the others go on.
                when others then work := true;
            end;
        end if;
        return next;
    end loop;
end
$$;

-- Those of the sources whose inbox has entries behind the places. One statement for all: 300 took a third of a
-- second one by one. A source whose inbox is gone is among them, so that its worker meets that. A paused one is not:
-- the worker may not have read yet that it is.
create or replace function embed._fresh(sources integer[], places text[])
returns setof integer
language plpgsql stable
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
declare
    source integer;
    place tid;
    found boolean;
begin
    for source, place in
        select s.source, s.place::tid
        from unnest(sources, places) as s (source, place)
        left join embed.source x on x.id = s.source
        where x.paused is not true
    loop
        begin
            execute format('select exists (select from embed.inbox_%s where ctid > $1)', source) into found using place;
        exception
            when lock_not_available then found := false; -- a later look finds them
            when others then found := true; -- a look at this source alone says why
        end;
        if found then
            return next source;
        end if;
    end loop;
end
$$;

-- What waits, for a monitor that asks every few seconds: nothing here reads a whole queue.
--   waiting  entries of inbox and queue; counted up to a bound, beyond it the server's own estimate
--   dead     rows that were given up, by an index that holds no others
--   oldest   seconds since the oldest of those that wait was changed. Of the inbox and of each
--            priority those that are due first are looked at, so where more wait it may be a little
--            more than said
--   due      whether a row could be taken right now
-- embed.status counts exactly, and reads every row for it.
create or replace function embed._backlog(bound bigint default 10000)
returns table (
    source integer, relation text, name text, model text, paused boolean, waiting bigint, dead bigint,
    oldest double precision, due boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
declare
    since timestamptz;
begin
    for source, relation, name, model, paused in
        select s.id, s.relation::text, s.name, coalesce(s.model, embed.default_model()), s.paused
        from embed.source s
        order by s.id
    loop
        begin
            execute format(
                $q$select
                    (select count(*) from (select from embed.inbox_%1$s limit $1) as x)
                        + (
                            select count(*)
                            from (
                                select
                                from embed.queue_%1$s q
                                where q.priority = any ($2) and q.due < 'infinity'
                                limit $1
                            ) as x
                        ),
                    (select count(*) from embed.queue_%1$s q where q.due = 'infinity'),
                    least(
                        (select min(x.at) from (select i.at from embed.inbox_%1$s i limit 1000) as x),
                        (
                            select min(x.since)
                            from unnest($2) as p (priority)
                            cross join lateral (
                                select q.since
                                from embed.queue_%1$s q
                                where q.priority = p.priority and q.due < 'infinity'
                                order by q.due
                                limit 1000
                            ) as x
                        ),
                        (select min(r.at) from embed.sweep_request r where r.source = $3)
                    ),
                    exists (select from embed.inbox_%1$s)
                        or exists (
                            select from embed.queue_%1$s q
                            where q.priority = any ($2) and q.due < 'infinity' and q.due <= now()
                        )$q$,
                source
            )
            into waiting, dead, since, due
            using bound, embed._priorities(), source;
        exception
            -- It is being dropped, or cannot be read: the error of the worker that claims from it is in embed.status.
            when others then continue;
        end;
        if waiting >= bound then
            waiting := greatest(
                waiting,
                pg_stat_get_live_tuples(format('embed.inbox_%s', source)::regclass)
                    + pg_stat_get_live_tuples(format('embed.queue_%s', source)::regclass) - dead
            );
        end if;
        oldest := extract(epoch from clock_timestamp() - since);
        return next;
    end loop;
end
$$;
