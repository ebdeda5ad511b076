-- Searches that no worker answers.

-- Whether a search that no worker answers is answered by words, as the setting embed.search_without_worker says.
create or replace function embed._answers_by_words() returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    given constant text := coalesce(nullif(current_setting('embed.search_without_worker', true), ''), 'words');
begin
    if given not in ('words', 'error') then
        raise exception 'embed.search_without_worker is %; expected words or error', quote_literal(given)
            using errcode = 'EW003', hint = 'words is the default: the words alone rank the rows.';
    end if;
    return given = 'words';
end
$$;

-- Counts a search that the words alone answer, by a read that the server counts.
create or replace function embed._count_degraded() returns void
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    read text;
begin
    select d.meaning into read from embed.degraded_search d where d.id = 1;
end
$$;

-- Says that the words alone answer a search, and why: by a notice with an SQLSTATE of its own, and by the setting
-- embed.degraded until the transaction ends or another search is answered in full.
create or replace function embed._note_degraded(state text, failure text, advice text) returns void
language plpgsql stable
as $$
begin
    if failure is not null then
        perform embed._count_degraded();
        perform pg_catalog.set_config('embed.degraded', pg_catalog.concat(state, ': ', failure), true);
        raise notice 'the words alone rank the rows: %', failure
            using errcode = 'EW011', hint = coalesce(advice, 'Start a worker with `embedworker run`.');
    elsif pg_catalog.current_setting('embed.degraded', true) operator(pg_catalog.<>) '' then
        perform pg_catalog.set_config('embed.degraded', '', true);
    end if;
end
$$;
