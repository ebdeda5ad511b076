-- What the views and errors say of the workers that answer, and of the questions that wait.

-- Sentences for an error: the live workers of a lane and the models they reported, and the last error of the source,
-- or of a source with this model. A login that may not look at embed.source_state learns only that there is one.
drop function if exists embed._live_workers();
create or replace function embed._live_workers(lane text, model text, source integer default null) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    does constant text := case lane when 'questions' then 'answer questions' else 'embed rows' end;
    workers text;
    failure text;
begin
    select case
            when count(*) = 0 then 'No worker is connected to this database.'
            when count(*) filter (where x.serves) = 0 then format('Workers are connected, but none to %s.', does)
            else format(
                'Connected workers that %s: %s, the newest for %s s. Models loaded: %s.',
                does, count(*) filter (where x.serves),
                greatest(0, extract(epoch from clock_timestamp() - max(x.started_at) filter (where x.serves))::integer),
                coalesce(string_agg(distinct x.model, ', ') filter (where x.serves), 'none yet')
            )
        end
    into workers
    from (select w.started_at, w.model, lane = any (w.lanes) as serves from embed.worker w) as x;
    select format('embed.status says of %s: %s', s.relation, split_part(t.error, E'\n', 1)) into failure
    from embed.source_state t
    join embed.source s on s.id = t.source
    where t.error is not null
    and case when _live_workers.source is null
        then coalesce(s.model, embed.default_model()) = _live_workers.model
        else s.id = _live_workers.source
    end
    order by t.error_at desc
    limit 1;
    if failure is not null and not has_table_privilege(embed._login(), 'embed.source_state', 'select') then
        failure := 'The view embed.status has an error of such a table.';
    end if;
    return concat_ws(' ', workers, failure);
end
$$;

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
    embed._live_workers(text, text, integer),
    embed._question_counts()
from public;
