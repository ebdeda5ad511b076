-- The rows of a search: runs the statements of a plan.

-- After a change of the model, vectors of the old model cannot be compared. Sixteen pages
-- anywhere in the table tell about how much that is (80 vectors of 384 dimensions, 0.1 ms).
create or replace function embed._notice_awaiting(plan record) returns void
language plpgsql stable
as $$
declare
    pages constant bigint := pg_catalog.pg_relation_size(plan.vectors)
        operator(pg_catalog./) pg_catalog.current_setting('block_size')::bigint;
    page constant bigint := pg_catalog.floor(
        pg_catalog.random() operator(pg_catalog.*) greatest(pages operator(pg_catalog.-) 15, 1)
    );
    share integer;
begin
    execute plan.awaiting into share
    using pg_catalog.format('(%s,0)', page)::tid, pg_catalog.format('(%s,0)', page operator(pg_catalog.+) 16)::tid;
    if share operator(pg_catalog.>) 0 then
        raise notice 'about % %% of the vectors of % are of another model and are not compared until they are '
        'embedded again',
            share, plan.relation
            using hint = 'The view embed.status shows how many are left.';
    end if;
end
$$;

-- Whether rows of a source wait for a worker, to a caller who may read its queue. A search does not wait for
-- embed.disable in a transaction that is open: it says no then. Not a definer's function: the tables belong to the role
-- that enabled the source, and a policy of his would run with the definer's rights.
create or replace function embed._rows_wait(source integer) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    lock_timeout_of_caller constant text := current_setting('lock_timeout');
    result boolean;
begin
    if not coalesce(
        has_table_privilege(to_regclass(format('embed.inbox_%s', source)), 'select')
        and has_table_privilege(to_regclass(format('embed.queue_%s', source)), 'select')
        and has_table_privilege('embed.sweep_request', 'select'),
        false
    ) then
        return false;
    end if;
    perform set_config('lock_timeout', '100ms', true);
    execute format(
        'select exists (select from embed.inbox_%1$s) '
        'or exists (select from embed.queue_%1$s where due < ''infinity'')',
        source
    ) into result;
    result := result or exists (select from embed.sweep_request r where r.source = _rows_wait.source);
    perform set_config('lock_timeout', lock_timeout_of_caller, true);
    return result;
exception when lock_not_available then
    return false;
end
$$;

-- Refuses a question's vector that cannot be compared.
create or replace function embed._check_question(
    question @extschema:vector@.vector, dimensions integer, relation text
) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if question is null then
        raise exception 'the question is null' using errcode = 'EW003', hint = 'Give a text or a vector.';
    end if;
    if @extschema:vector@.vector_dims(question) <> dimensions then
        raise exception 'the question has % dimensions, but the vectors of % have '
        '%', @extschema:vector@.vector_dims(question), relation, dimensions
            using errcode = 'EW005',
            hint = format(
                'Make it with the model of the table: embed.query(…, of => %L). To change that model: '
                'embed.begin_switch(%1$L, model).', relation
            );
    end if;
    if @extschema:vector@.vector_norm(question) = 0 then
        raise exception 'the question is the zero vector, which has no direction to compare'
            using errcode = 'EW003', hint = 'Give the vector of a text, as embed.query makes it.';
    end if;
end
$$;

-- Runs the statements of a plan.
--
-- It looks at the nearest 100 passages, and at eight times as many where these have too few rows. What a first look
-- found stays first, whatever a deeper one finds: so page 2 goes on where page 1 ended, also where PostgreSQL uses the
-- index for the first and compares all vectors for the second. With an index that stops early
-- (hnsw.max_scan_tuples, under a filter or policy that few rows pass), all vectors are compared: k rows were asked for.
--
-- Ranked by words, too, with weight, the first look is joined by the 100 passages with most of the question's words:
-- of 1,000 long texts with a code each, the one with the question's code was not among the nearest 100. The rows
-- of a look are ranked by all passages that it found. The question's part:
-- its terms, and the shares of its scripts. Without a question the words alone rank, and those that have none of them
-- are not found.
--
-- The scan may be in relaxed order, because each look sorts what it found. In strict order, pgvector drops what it
-- finds too late. For ten questions to 100,000 random vectors under a condition of 10 %, it found 26 of the 100 nearest
-- rows, and 56 in relaxed order. ef_search is one for all pages: with a value for each, 8 of 100 rows came twice.
drop function if exists embed._search_rows(
    anyelement, @extschema:vector@.vector, integer, record, text[], double precision, integer[],
    @extschema:vector@.sparsevec
);
create or replace function embed._search_rows(
    source anyelement, question @extschema:vector@.vector, k integer, skip integer, plan record,
    leave_out text[] default null, weight double precision default 0, terms integer[] default null,
    scripts @extschema:vector@.sparsevec default null
) returns table (
    "row" anyelement, score real, similarity real, bm25 real, passage text, passage_start integer, passage_end integer
)
language plpgsql stable
set hnsw.iterative_scan = relaxed_order
set hnsw.ef_search = 250
set hnsw.max_scan_tuples = 20000
set hnsw.scan_mem_multiplier = 1
as $$
declare
    rescored constant boolean := weight > 0;
    of_a_row constant integer := case when rescored then 50 else 1 end;
    statement text := case when question is null then plan.by_words else coalesce(plan.by_index, plan.by_scan) end;
    look integer := 1;
    look_at bigint := 100;
    seen bigint;
    seen_by_words bigint;
    rows_found bigint := 0;
    new_rows bigint;
    new_places tid[];
    new_distances double precision[];
    places tid[] := '{}';
    distances double precision[] := '{}';
    looks integer[] := '{}';
    words record;
begin
    if not pg_catalog.has_table_privilege(plan.vectors, 'select') then
        raise exception 'permission denied for table %', plan.vectors
            using errcode = 'insufficient_privilege',
            detail = 'Everybody may read the vectors of rows whose text he may read, but here it was revoked.',
            hint = pg_catalog.format('As the owner: grant select on %s to public.', plan.vectors);
    end if;
    perform embed._notice_awaiting(plan);
    if question is null then
        words := embed._weights(plan, terms, places);
    end if;
    loop
        if question is null then
            execute statement into seen, new_rows, new_places, new_distances
            using words.idf, look_at, leave_out, plan.given, of_a_row, places;
            new_distances := pg_catalog.array_fill(null::double precision, array[pg_catalog.cardinality(new_places)]);
        else
            execute statement into seen, new_rows, new_places, new_distances
            using question, look_at, leave_out, plan.given, of_a_row, places;
        end if;
        rows_found := rows_found operator(pg_catalog.+) new_rows;
        places := places operator(pg_catalog.||) new_places;
        distances := distances operator(pg_catalog.||) new_distances;
        looks := looks operator(pg_catalog.||)
            pg_catalog.array_fill(look, array[pg_catalog.cardinality(new_places)]);
        if rescored and look = 1 then
            words := embed._weights(plan, terms, places);
            new_places := '{}';
            if question is not null and plan.by_stage is not null and words.rarest is not null then
                execute plan.by_stage into new_places
                using embed._words_token(plan.source), words.rarest, words.idf, 100;
                if pg_catalog.cardinality(new_places) > 0 then
                    execute plan.by_places into seen_by_words, new_rows, new_places, new_distances
                    using question, 100, leave_out, plan.given, of_a_row, '{}'::tid[], new_places;
                end if;
            elsif question is not null and plan.by_both is not null then
                execute plan.by_both into seen_by_words, new_rows, new_places, new_distances
                using question, 100, leave_out, plan.given, of_a_row, '{}'::tid[], words.idf;
            end if;
            if pg_catalog.cardinality(new_places) > 0 then
                select
                    places operator(pg_catalog.||) coalesce(pg_catalog.array_agg(n.place), '{}'),
                    distances operator(pg_catalog.||) coalesce(pg_catalog.array_agg(n.distance), '{}')
                into places, distances
                from unnest(new_places, new_distances) as n (place, distance)
                where n.place operator(pg_catalog.<>) all (places);
                looks := pg_catalog.array_fill(look, array[pg_catalog.cardinality(places)]);
            end if;
        end if;
        exit when rows_found >= k + skip;
        look := look + 1;
        if seen = look_at then
            look_at := look_at * 8;
        elsif statement is distinct from plan.by_scan and question is not null then
            statement := plan.by_scan;
        else
            exit;
        end if;
    end loop;
    -- A first row was asked for while its worker loaded the model: nothing was found, and nothing said why.
    if rows_found operator(pg_catalog.=) 0 and embed._rows_wait(plan.source) then
        raise notice 'no row was found, but rows of % wait for a worker', plan.relation
            using hint = 'Ask again when they are embedded. The view embed.status shows how many wait.';
    end if;
    if rescored then
        return query execute plan.rescored
        using places, distances, looks, k, skip, words.idf, words.codes, scripts, weight;
    else
        return query execute plan.hits using places, distances, looks, k, skip;
    end if;
end
$$;
