-- What the worker asks of the schema. Kept apart from what people call: these may be added to, but
-- never changed in place while a worker of the version before may be running.

-- What the trigger functions of a source and the worker's statements are written for, and what
-- decides which rows it has. When it changes, they are written anew and the rows compared.
create or replace function embed._structure(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    with recursive tree as (
        select (source).relation::oid as relation
        union
        select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.relation
    )
    select jsonb_build_object(
        'relation', jsonb_build_array(c.oid::bigint, c.relname, c.relnamespace::bigint, c.relrowsecurity),
        'parents', (select jsonb_agg(i.inhparent::bigint order by i.inhparent) from pg_inherits i where i.inhrelid = c.oid),
        'tree', case when c.relkind = 'p' then (select encode(sha256(convert_to(string_agg(t.relation::text, ',' order by t.relation), 'UTF8')), 'hex') from tree t) end,
        'columns', (
            select jsonb_object_agg(
                a.attnum,
                -- A generated column can be given another expression; every row then has another text.
                jsonb_build_array(a.attname, a.atttypid::bigint, a.atttypmod, case when a.attgenerated::text <> '' then pg_get_expr(d.adbin, d.adrelid) end)
            )
            from pg_attribute a
            left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
            where a.attrelid = c.oid
            and a.attnum = any ((source).key_attnums || (source).watch_attnums || (source).column_attnums || coalesce((source).into_attnum, 0::smallint))
        )
    )::text
    from pg_class c
    where c.oid = (source).relation;
end;

-- Numbers of columns in a table that was restored from a dump: the names are as they were, the
-- numbers need not be. before holds the names by the old numbers, as in embed._structure; names is
-- for where that is not known. A column that is not there has -1, which no column of a user's has.
create or replace function embed._renumbered(relation regclass, attnums smallint[], before jsonb, names text[]) returns smallint[]
language sql stable
set search_path = pg_catalog, pg_temp
return array(
    select case when n.attnum is not null then coalesce(a.attnum, -1::smallint) end
    from unnest(attnums, names) with ordinality as n (attnum, name, place)
    left join pg_attribute a on a.attrelid = relation and a.attname = coalesce(before -> n.attnum::text ->> 0, n.name)
        and a.attnum > 0 and not a.attisdropped
    order by n.place
);

create or replace function embed._renumber(source embed.source) returns embed.source
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    before constant jsonb := (select t.structure::jsonb -> 'columns' from embed.source_state t where t.source = source.id);
    of_filter smallint[] := array(
        select distinct m[1]::smallint from regexp_matches(source.filter, '"\{(\d+)\}"', 'g') as m
    );
    renumbered constant smallint[] := embed._renumbered(source.relation, of_filter, before, null);
begin
    for i in 1 .. cardinality(of_filter) loop
        -- "{=7}" for now, or what was renumbered to 3 would be taken for an old 3.
        source.filter := replace(source.filter, format('"{%s}"', of_filter[i]), format('"{=%s}"', renumbered[i]));
    end loop;
    source.filter := replace(source.filter, '"{=', '"{');
    source.key_attnums := embed._renumbered(source.relation, source.key_attnums, before, source.keys);
    source.column_attnums := embed._renumbered(source.relation, source.column_attnums, before, source.columns);
    source.into_attnum := (embed._renumbered(source.relation, array[source.into_attnum], before, array[source.into_column]))[1];
    source.watch_attnums := embed._stored_attnums(source.relation, source.column_attnums || renumbered);
    update embed.source x
    set relation_oid = source.relation, key_attnums = source.key_attnums, column_attnums = source.column_attnums,
        watch_attnums = source.watch_attnums, into_attnum = source.into_attnum, filter = source.filter
    where x.id = source.id
    returning * into source;
    return source;
end
$$;

-- What stands in the way of a source whose table is there, a sentence; null if nothing does.
create or replace function embed._obstacle(source embed.source) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    again constant text := format('call embed.disable(%L, drop_vectors => true) and enable it again', source.relation::text);
    lost text;
begin
    if not exists (select from pg_class where oid = source.vectors) then
        return format('the table that holds the vectors of %s was dropped; call embed.enable again to make it anew', source.relation);
    end if;
    select string_agg(n.name, ', ' order by n.name) into lost
    from unnest(source.keys || source.columns || source.into_column, source.key_attnums || source.column_attnums || source.into_attnum) as n (name, attnum)
    where n.name is not null and embed._column_name(source.relation, n.attnum) is null;
    if lost is null and (source.filter is not null and embed._filter_sql(source) is null
        or exists (select from unnest(source.watch_attnums) as w (attnum) where embed._column_name(source.relation, w.attnum) is null))
    then
        lost := 'a column of its filter';
    end if;
    if lost is not null then
        return format('%s of %s was dropped; %s with the columns that are there', lost, source.relation, again);
    end if;
    select string_agg(format('%s from %s to %s', a.attname, format_type(i.atttypid, -1), format_type(a.atttypid, -1)), ', ') into lost
    from unnest(source.key_attnums) with ordinality as k (attnum, place)
    join pg_attribute a on a.attrelid = source.relation and a.attnum = k.attnum
    join pg_attribute i on i.attrelid = format('embed.inbox_%s', source.id)::regclass and i.attname = 'k' || k.place
    where embed._base_type(a.atttypid) <> i.atttypid;
    if lost is not null then
        return format('the key of %s changed its type, %s; %s', source.relation, lost, again);
    end if;
    select string_agg(format('%s is now of type %s', a.attname, format_type(a.atttypid, -1)), ', ') into lost
    from unnest(source.column_attnums) as c (attnum)
    join pg_attribute a on a.attrelid = source.relation and a.attnum = c.attnum
    join pg_type t on t.oid = embed._base_type(a.atttypid)
    where t.typcategory <> 'S';
    if lost is not null then
        return format('%s of %s, which is no text; make it text, varchar, char or citext again, or %s', lost, source.relation, again);
    end if;
    return null;
end
$$;

-- Bring a source in line with its table. Returns what happened: 'same', 'changed', 'gone' (the
-- table was dropped and all of ours with it), or a sentence that says what stands in the way.
create or replace function embed._refresh(source_id integer) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    s embed.source;
    now_is text;
    obstacle text;
    changed boolean;
begin
    select * into s from embed.source x where x.id = source_id;
    if not found then
        return 'gone';
    end if;
    now_is := embed._structure(s);
    changed := now_is is null or s.relation_oid <> s.relation
        or now_is is distinct from (select t.structure from embed.source_state t where t.source = s.id)
        or exists (select from embed._missing_triggers(s));
    -- Whoever enables or disables writes the same functions, and so may another worker: the next
    -- look is early enough.
    if (changed or embed._obstacle(s) is not null) and not pg_try_advisory_xact_lock(1701667428, 2) then
        return case when now_is is null then 'gone' else coalesce(embed._obstacle(s), 'same') end;
    end if;
    if now_is is null then
        begin
            perform embed._forget(s, true);
        exception when dependent_objects_still_exist then
            -- A view of somebody's on the vectors: then they stay, and it with them.
            perform embed._forget(s, false);
        end;
        return 'gone';
    end if;

    if s.relation_oid <> s.relation then
        s := embed._renumber(s);
        now_is := embed._structure(s);
    end if;
    obstacle := embed._obstacle(s);
    if obstacle is not null then
        perform embed._silence_capture(s.id);
        delete from embed.sweep_request r where r.source = s.id;
        -- Should it be as it was again, that is a change.
        update embed.source_state t set structure = null where t.source = s.id and t.structure is not null;
        return obstacle;
    end if;
    -- What a trigger asked for that did not fit any more: it is seen to now.
    update embed.sweep_request r set reason = 'table changed' where r.source = s.id and r.reason = 'columns changed';
    if not changed then
        return 'same';
    end if;

    update embed.source x
    set columns = array(select embed._column_name(s.relation, c.attnum) from unnest(s.column_attnums) with ordinality as c (attnum, place) order by c.place),
        into_column = embed._column_name(s.relation, s.into_attnum)
    where x.id = s.id
    returning * into s;
    perform embed._write_capture(s);
    begin
        perform embed._attach_capture(s, wait => false);
        perform embed._guard_vectors(s, wait => false);
        perform embed._grant_worker(s);
    exception when lock_not_available then
        now_is := null;  -- so that the next look tries again
    end;
    update embed.source_state t set structure = now_is where t.source = s.id;
    insert into embed.sweep_request (source, reason)
    select s.id, 'table changed'
    where not exists (select from embed.sweep_request r where r.source = s.id);
    return 'changed';
end
$$;

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
    priorities constant smallint[] := array[0, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20];
begin
    for source, version, paused, sweep in
        select
            s.id,
            coalesce((select max(r.id) from embed.sweep_request r where r.source = s.id and r.reason = 'columns changed'), s.version),
            s.paused,
            exists (select from embed.sweep_request r where r.source = s.id)
        from embed.source s
        order by s.id
    loop
        work := false;
        if not paused then
            begin
                execute format(
                    'select exists (select from embed.inbox_%1$s where ctid > $1)
                        or exists (
                            select
                            from unnest($2, $3) as c (priority, after)
                            cross join lateral (
                                select from embed.queue_%1$s q
                                where q.priority = c.priority and q.due < ''infinity'' and q.due <= now() and q.due >= c.after
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
            end;
        end if;
        return next;
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
returns table (source integer, relation text, name text, model text, paused boolean, waiting bigint, dead bigint, oldest double precision, due boolean)
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
                        + (select count(*) from (select from embed.queue_%1$s q where q.priority = any ($2) and q.due < 'infinity' limit $1) as x),
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
            using bound, array[0, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]::smallint[], source;
        exception
            -- It is being dropped.
            when undefined_table or lock_not_available then continue;
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

-- The two statements that stand between a question and its answer, as functions: PostgreSQL keeps the
-- plans of a function for the session, behind a transaction pooler too, where a prepared statement
-- would not be found again.
--
-- Lease the oldest unanswered questions; whoever asks waits, so nothing is waited for here.
--
-- With a lock for each that embed.await can wait for, where this session is the worker's own from one
-- statement to the next (keep_lock): behind a transaction pooler it would stay with somebody else.
create or replace function embed._claim_questions(
    most integer, lease double precision, worker integer, keep_lock boolean,
    out id uuid, out model text, out text text, out role text, out hash bytea, out waited double precision, out locked boolean
) returns setof record
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with waiting as materialized (
        select q.id
        from embed.question q
        where q.role <> 'rerank'
        and q.embedding is null
        and q.scores is null
        and q.error is null
        and q.due <= clock_timestamp()
        order by q.due
        limit most
        for update skip locked
    )
    update embed.question q
    set due = clock_timestamp() + make_interval(secs => lease), claimed_by = worker
    from waiting w
    where q.id = w.id
    returning q.id, q.model, q.text, q.role, embed.text_hash(q.text),
        extract(epoch from clock_timestamp() - q.asked_at)::double precision,
        keep_lock and pg_try_advisory_lock(embed._question_lock(q.id));
end
$$;

-- The lock of a question that is being answered. In the answer's transaction, and gone with its end: whoever
-- waited sees the answer then. The transaction's own takes the place of the session's.
create or replace function embed._question_lock(id uuid) returns bigint
language sql immutable
set search_path = pg_catalog, pg_temp
return uuid_hash_extended(id, 1701667433);

create or replace function embed._unlock_questions(ids uuid[], locked boolean[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_advisory_xact_lock(embed._question_lock(a.id)), pg_advisory_unlock(embed._question_lock(a.id))
    from unnest(ids, locked) as a (id, locked)
    where a.locked;
end
$$;

-- Keep vectors for the next who asks the same. What is there already is left out before the insert,
-- and found by a bitmap: ON CONFLICT would find it by the index whose finds are counted as hits (see
-- embed._cached_answer), and is for two workers that answer the same at the same moment.
create or replace function embed._keep_answers(
    hashes bytea[], vectors @extschema:vector@.vector[], terms text[], shares text[], lost integer[], fingerprint integer
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_indexscan = off
set enable_indexonlyscan = off
as $$
#variable_conflict use_column
begin
    insert into embed.question_cache (fingerprint, hash, embedding, terms, shares, lost)
    select distinct on (a.hash)
        _keep_answers.fingerprint, a.hash, a.embedding, a.terms::integer[], a.shares::real[], a.lost
    from unnest(
        hashes, vectors, _keep_answers.terms, _keep_answers.shares, _keep_answers.lost
    ) as a (hash, embedding, terms, shares, lost)
    where not exists (
        select
        from embed.question_cache c
        where c.fingerprint = _keep_answers.fingerprint and c.hash = a.hash
    )
    on conflict on constraint question_cache_pkey do nothing;
end
$$;

-- Write vectors, unless the question was withdrawn or its lease has gone to another worker, and keep
-- them for the next who asks the same. Arrays of unequal length, which an array of arrays cannot hold, travel as text.
create or replace function embed._answer_questions(
    ids uuid[], hashes bytea[], vectors @extschema:vector@.vector[], terms text[], shares text[], lost integer[],
    fingerprint integer, keep boolean, worker integer, locked boolean[]
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    perform embed._unlock_questions(ids, locked);
    if keep then
        perform embed._keep_answers(hashes, vectors, terms, shares, lost, fingerprint);
    end if;
    update embed.question q
    set embedding = a.embedding, terms = a.terms::integer[], shares = a.shares::real[], lost = a.lost
    from unnest(
        ids, vectors, _answer_questions.terms, _answer_questions.shares, _answer_questions.lost
    ) as a (id, embedding, terms, shares, lost)
    where q.id = a.id
    and q.claimed_by = worker
    and q.embedding is null
    and q.error is null;
end
$$;
