-- The counters that workers keep.
--
-- They follow the vector tables: the statement of a worker that writes or removes vectors changes them, too
-- (embed._tally). What a worker does not do itself it finds by a count of the rows (embed._measure): when a
-- source is new, as a sweep begins and as it ends, and, where tables are unlogged, when the server has
-- started again.

-- Adds to the counters of one worker; rows are those that it has just embedded.
create or replace function embed._tally(
    source integer, worker integer, fingerprint integer, vectors bigint, truncated bigint, split bigint, rows bigint
) returns void
language sql
set search_path = pg_catalog, pg_temp
begin atomic
    insert into embed.source_tally as t (source, worker, fingerprint, vectors, truncated, split, recent_rows, recent_at)
    values (
        _tally.source, _tally.worker, _tally.fingerprint, _tally.vectors, _tally.truncated, _tally.split, _tally.rows,
        case when _tally.rows > 0 then now() end
    )
    on conflict on constraint source_tally_pkey do update
    set vectors = t.vectors + excluded.vectors,
        truncated = t.truncated + excluded.truncated,
        split = t.split + excluded.split,
        -- The rate of the last minute, from two windows: the older one ends when the newer is 30 s old.
        recent_rows = case
            when t.recent_at > now() - interval '30 s' then t.recent_rows
            else 0
        end + excluded.recent_rows,
        recent_at = case when t.recent_at > now() - interval '30 s' then t.recent_at else excluded.recent_at end,
        before_rows = case when t.recent_at > now() - interval '30 s' then t.before_rows else t.recent_rows end,
        before_at = case when t.recent_at > now() - interval '30 s' then t.before_at else t.recent_at end;
end;

-- How far the counters of a source are from the truth: drift is what has to be added to the vectors of
-- each fingerprint, unqueued and orphans to their namesakes. Stable, so that all of it is of one moment, at.
create or replace function embed._measure(
    source embed.source, out at timestamptz, out asked timestamptz, out drift jsonb, out unqueued bigint,
    out orphans bigint
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $measure$
#variable_conflict use_variable
declare
    words jsonb;
    kept embed.source_state := (select x from embed.source_state x where x.source = _measure.source.id);
begin
    perform embed._keep_name(source.vectors);
    words := embed._source_sql(source);
    at := clock_timestamp();
    asked := kept.recount_at;
    execute embed._fill(
        $q$with present as (
            select v.fingerprint,
                count(*) filter (where v.chunk = 0) as vectors,
                count(distinct ({v_keys})) filter (where v.truncated) as truncated,
                count(*) filter (where v.chunk = 1) as split
            from {vectors} v
            group by v.fingerprint
        ),
        difference as (
            select x.fingerprint, sum(x.vectors) as vectors, sum(x.truncated) as truncated, sum(x.split) as split
            from (
                select * from present
                union all
                select t.fingerprint, -t.vectors, -t.truncated, -t.split from embed.source_tally t where t.source = $1
            ) as x
            group by x.fingerprint
        )
        select coalesce(jsonb_agg(to_jsonb(d)), '[]')
        from difference d
        where (d.vectors, d.truncated, d.split) <> (0, 0, 0)$q$,
        words
    ) into drift using source.id;
    -- In a case, which is read from its beginning: reading every text of a large table takes long.
    execute embed._fill(
        $q$select count(*) filter (
            where case when v.seq is not null or q.seq is not null or i.waits then false else {text} is not null end
        )
        from {rows} s
        left join {vectors} v on {v_is_s} and v.chunk = 0
        left join {queue} q on {q_is_s}
        left join (select distinct {places}, true as waits from {inbox}) i on {i_is_s}$q$,
        words
    ) into unqueued;
    execute embed._fill(
        $q$select count(*)
        from {vectors} v
        where v.chunk = 0
        and not exists (select from {rows} s where {v_is_s})
        and not exists (select from {queue} q where {q_is_v})
        and not exists (select from {inbox} i where {i_is_v})$q$,
        words
    ) into orphans;
    unqueued := unqueued - kept.unqueued;
    orphans := orphans - kept.orphans;
end
$measure$;
