-- What the views and errors say of the workers that answer, and of the questions that wait.

-- A sentence for an error: the workers whose lock is held, or who cannot hold one and were seen.
create or replace function embed._live_workers() returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select case count(*)
        when 0 then 'No worker is connected to this database.'
        when 1 then '1 worker is connected; it may be loading its model, or not serve questions.'
        else count(*) || ' workers are connected; they may be loading their model, or not serve questions.'
    end
    from embed.worker_session w
    where case
        when w.lock_held then exists (
            select
            from pg_locks l
            where l.locktype = 'advisory'
            and l.classid::bigint = embed._lock_worker()
            and l.objid = w.id::oid
            and l.objsubid = 2
            and l.granted and l.database = (select d.oid from pg_database d where d.datname = current_database())
        )
        else w.seen_at > clock_timestamp() - interval '1 minute'
    end
);

-- How many questions wait and since when, how many answers are kept, and how often one was found since the
-- server counts. For those who may see how it goes, but not what is asked. The answers are not counted
-- by their primary key: that would be a find. degraded is how many searches the words alone answered.
drop function if exists embed._question_counts();
create or replace function embed._question_counts(
    out waiting bigint, out oldest timestamptz, out cached bigint, out hits bigint, out degraded bigint
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select
        (select count(*) from embed.question q where q.embedding is null and q.error is null),
        (select min(q.asked_at) from embed.question q where q.embedding is null and q.error is null),
        (select count(c.cached_at) from embed.question_cache c),
        pg_stat_get_tuples_fetched('embed.question_cache_pkey'::regclass),
        pg_stat_get_tuples_fetched('embed.degraded_search_pkey'::regclass);
end;

revoke execute on function
    embed._live_workers(),
    embed._question_counts()
from public;
