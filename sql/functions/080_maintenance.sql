-- What an administrator does by hand. Like a trigger, these only append to the inbox: no transaction
-- that is left open can hold a lock that a worker needs.

create or replace function embed._sources(relation regclass, name text) returns setof embed.source
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select * from embed.source s
    where s.relation = _sources.relation and (_sources.name is null or s.name = _sources.name)
    order by s.id;
    if not found then
        raise exception '% is not enabled%', relation, coalesce(' under the name ' || quote_literal(name), '')
            using errcode = 'EW002', hint = 'See the view embed.status for what is.';
    end if;
end
$$;

create or replace function embed.retry(relation regclass, name text default null) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    s embed.source;
    revived bigint;
    total bigint := 0;
begin
    for s in select * from embed._sources(relation, name) loop
        execute format(
            'insert into embed.inbox_%1$s (%2$s, priority) select %2$s, 0 from embed.queue_%1$s where due = ''infinity'' order by seq',
            s.id, (select string_agg(format('k%s', i), ', ' order by i) from generate_subscripts(s.keys, 1) as i)
        );
        get diagnostics revived = row_count;
        total := total + revived;
    end loop;
    if total > 0 then
        perform embed.wake();
    end if;
    return total;
end
$$;

comment on function embed.retry(regclass, text) is
    'Has the dead rows of a table tried again; returns how many there are.';

create or replace function embed.sweep(relation regclass, name text default null)
returns table (missing bigint, stale bigint, orphaned bigint, altered bigint)
language plpgsql
set search_path = pg_catalog, pg_temp
as $sweep$
declare
    s embed.source;
    keys record;
    active integer;
    n record;
begin
    missing := 0;
    stale := 0;
    orphaned := 0;
    altered := 0;
    for s in select * from embed._sources(relation, name) loop
        perform embed._check_structure(s);
        select t.fingerprint into active from embed.source_state t where t.source = s.id;
        select
            string_agg(format('s.%s as k%s', x.row_name, x.place), ', ' order by x.place) as of_rows,
            string_agg(format('v.%s as k%s', x.vector_name, x.place), ', ' order by x.place) as of_vectors,
            string_agg(format('v.k%s %s r.k%s', x.place, x.equal, x.place), ' and ' order by x.place) as vector_is_row,
            string_agg(format('v.%s %s s.%s', x.vector_name, x.equal, x.row_name), ' and ' order by x.place) as vector_is_source,
            string_agg(format('q.k%s %s coalesce(r.k%s, v.k%s)', x.place, x.equal, x.place, x.place), ' and ' order by x.place) as queue_is_either,
            string_agg(format('coalesce(r.k%1$s, v.k%1$s, q.k%1$s) as k%1$s', x.place), ', ' order by x.place) as either,
            string_agg(format('i.k%1$s %2$s f.k%1$s', x.place, x.equal), ' and ' order by x.place) as inbox_is_found,
            string_agg('k' || x.place, ', ' order by x.place) as list
        into keys
        from embed._keys(s) as x;
        -- offset 0: composing a text costs most of the time, so it is done once a row, not once a use.
        -- A full join for orphans; keys are never null, so a null k1 says which side is absent.
        -- What lies in the inbox, or in the queue unclaimed, will be read anew anyway. A claimed row may
        -- have been read before the change that the triggers did not see: it goes in again.
        -- Of a dead row the failed text is not kept, but its vector was removed; so without a vector it
        -- stays dead, with one its text has come back some other way.
        execute format(
            $q$with r as materialized (
                select %17$s, embed.text_hash(t.text) as hash
                from (select %1$s, %2$s as text%3$s from %4$s s offset 0) t
                where t.text is not null
            ), v as materialized (
                select %5$s,
                    (array_agg(v.hash))[1] as hash, (array_agg(v.checksum))[1] as checksum,
                    bool_and(v.fingerprint = coalesce($1, v.fingerprint)) as same_model,
                    count(*) = max(v.chunk) + 1 and count(distinct v.hash) = 1 and bool_and(%6$s) as intact
                from %7$s
                group by %8$s
            ), found as materialized (
                select
                    %9$s,
                    q.seq is not null and q.claimed_by is null and q.due < 'infinity' as waits,
                    case
                        when r.k1 is null and v.k1 is null then case when q.due = 'infinity' then 'orphaned' end
                        when r.k1 is null then 'orphaned'
                        when v.k1 is null then case when q.due = 'infinity' then null else 'missing' end
                        when r.hash <> v.hash or not v.same_model then 'stale'
                        when not v.intact%10$s then 'altered'
                    end as fault
                from r
                full join v on %11$s
                full join embed.queue_%12$s q on %13$s
            ), put as (
                insert into embed.inbox_%12$s (%14$s, priority)
                select %15$s, 20
                from found f
                where f.fault is not null and not f.waits
                and not exists (select from embed.inbox_%12$s i where %16$s)
                returning 1
            )
            select
                count(*) filter (where fault = 'missing') as missing,
                count(*) filter (where fault = 'stale') as stale,
                count(*) filter (where fault = 'orphaned') as orphaned,
                count(*) filter (where fault = 'altered') as altered,
                (select count(*) from put) as put
            from found$q$,
            keys.of_rows, embed._text_sql(s, 's'),
            case when s.into_column is null then ''
                else format(', s.%I as embedding', embed._column_name(s.relation, s.into_attnum)) end,
            embed._rows_sql(s), keys.of_vectors,
            case when s.into_column is null then 'v.checksum = substr(sha256(@extschema:vector@.vector_send(v.embedding)), 1, 8)' else 'true' end,
            s.vectors || ' v',
            (select string_agg(format('v.%s', x.vector_name), ', ' order by x.place) from embed._keys(s) as x),
            keys.either,
            case when s.into_column is null then ''
                else ' or r.embedding is null or v.checksum <> substr(sha256(@extschema:vector@.vector_send(r.embedding)), 1, 8)' end,
            keys.vector_is_row, s.id, keys.queue_is_either, keys.list, 'f.' || replace(keys.list, ', ', ', f.'), keys.inbox_is_found,
            't.' || replace(keys.list, ', ', ', t.') || case when s.into_column is null then '' else ', t.embedding' end
        ) into n using active;
        missing := missing + n.missing;
        stale := stale + n.stale;
        orphaned := orphaned + n.orphaned;
        altered := altered + n.altered;
        if n.put > 0 then
            perform embed.wake();
        end if;
    end loop;
    return next;
end
$sweep$;

comment on function embed.sweep(regclass, text) is
    'Compares every row of a table with its vector and has a worker repair what differs: rows without a vector, vectors of an older text or of another model, vectors without a row, vectors changed by hand. Returns how many of each.';
