-- The exact counts of a source, which read every row.

-- The counts of one source:
--   rows      have text and pass the filter
--   embedded  of these, have a vector of the active fingerprint and nothing waiting
--   dead      of these, given up after the last attempt
--   stale     of the others, have a vector that is of another fingerprint or of an older text
--   removing  vectors whose row is gone or has no text left
--   truncated rows of which a part was too long for the model's window and is not in a vector
--   split     rows in several passages
-- Whether there is text is asked only of rows without a good vector: reading every text of a
-- large table takes long, and a worker found text where it made a vector.
create or replace function embed._count(
    source embed.source, fingerprint integer,
    out rows bigint, out embedded bigint, out stale bigint, out dead bigint, out removing bigint,
    out truncated bigint, out split bigint, out rows_per_second real, out oldest timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $count$
declare
    words constant jsonb := embed._source_sql(source);
    orphans bigint;
    recent bigint;
    since timestamptz;
begin
    execute embed._fill(
        $q$select
            count(*) filter (where r.state <> 'empty'),
            count(*) filter (where r.state = 'embedded'),
            count(*) filter (where r.state = 'stale'),
            count(*) filter (where r.state = 'dead'),
            count(*) filter (where r.state = 'empty' and r.has_vector)
        from (
            select
                v.fingerprint is not null as has_vector,
                case
                    when v.fingerprint = $1 and q.seq is null and i.waits is null and {is_stored} then 'embedded'
                    when {text} is null then 'empty'
                    when q.due = 'infinity' and i.waits is null then 'dead'
                    when v.fingerprint is not null then 'stale'
                    else 'missing'
                end as state
            from {rows} s
            left join {vectors} v on {v_is_s} and v.chunk = 0
            left join {queue} q on {q_is_s}
            left join (select distinct {places}, true as waits from {inbox}) i on {i_is_s}
        ) r$q$,
        words
    ) into rows, embedded, stale, dead, removing using fingerprint;
    execute embed._fill(
        $q$select
            count(*) filter (where not exists (select from {rows} s where {v_is_s})),
            count(*) filter (where v.embedded_at > clock_timestamp() - interval '60 s'),
            min(v.embedded_at) filter (where v.embedded_at > clock_timestamp() - interval '60 s')
        from {vectors} v
        where v.chunk = 0$q$,
        words
    ) into orphans, recent, since;
    removing := removing + orphans;
    execute embed._fill(
        $q$select count(distinct ({v_keys})) filter (where v.truncated), count(*) filter (where v.chunk = 1)
        from {vectors} v
        where (v.truncated or v.chunk = 1)
        and exists (select from {rows} s where {v_is_s})$q$,
        words
    ) into truncated, split;
    -- Rows of the last minute; of a run that began within it, of the time since, at least a second.
    rows_per_second := recent / greatest(extract(epoch from clock_timestamp() - since), 1);
    rows_per_second := coalesce(rows_per_second, 0);
    execute embed._fill(
        $q$select least(
            (select min(i.at) from {inbox} i),
            (select min(q.since) from {queue} q where q.due < 'infinity'),
            (select min(r.at) from embed.sweep_request r where r.source = {id})
        )$q$,
        words
    ) into oldest;
end
$count$;

-- Whether this role may read what embed._count reads: keys, texts and vectors.
create or replace function embed._may_count(source embed.source) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return has_table_privilege(source.vectors, 'select')
        and has_table_privilege(format('embed.inbox_%s', source.id), 'select')
        and has_table_privilege(format('embed.queue_%s', source.id), 'select')
        and (
            select bool_and(has_column_privilege(source.relation, a.attnum, 'select'))
            from pg_attribute a
            where a.attrelid = source.relation and not a.attisdropped
            and a.attnum = any (
                source.key_attnums || source.column_attnums || source.watch_attnums || source.into_attnum
            )
        );
end
$$;

drop function if exists embed._count_waiting(embed.source);

-- Whether a source can be counted in a moment: neither its table nor its vectors have so many rows.
create or replace function embed._is_small(source embed.source, bound integer) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    small boolean;
begin
    execute format(
        'select (select count(*) from (select from %s s limit $1) x) < $1 and (select count(*) from (select from %s v '
        'limit $1) x) < $1',
        embed._rows_sql(source), source.vectors
    ) into small using bound;
    return small;
end
$$;

-- How many rows a table has, as the planner would guess.
create or replace function embed._guess_rows(relation regclass) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select case
        when c.relkind = 'p' then greatest(c.reltuples, 0)
        when c.reltuples >= 0 and c.relpages > 0 then c.reltuples * (pg_relation_size(c.oid) / 8192.0) / c.relpages
        else pg_relation_size(c.oid) / 8192.0 * 40
    end::bigint
    from pg_class c
    where c.oid = relation
);
