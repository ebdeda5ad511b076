-- The statements of a search: how to search a source, for the caller to run.
--   by_index   the nearest passages through HNSW; null where there is no index
--   by_scan    the same by comparing all, with ties in the order of the key
--   by_words   the passages with most of the question's words; of these $1 is the idf of the terms
--   by_stage   places of the passages with most of the words by the index over terms: $1 token of the source, $2 places
--              of the rarest terms, $3 idf, $4 how many; null where there is no index
--   by_places  the passages at the places $7
--   by_both    the same with the distance of each to the question, $7 is the idf; null for a large table
--              all: $1 question, $2 passages to look at, $3 key to leave out, $4 values of the conditions,
--              $5 of each row so many passages, $6 places that were found before, whose rows are left out
--   hits       the rows of what was found: $1 places, $2 distances, $3 which look found each,
--              $4 rows wanted, $5 rows to skip
--   rescored   the same ranked by words, too, null like all by words for a source without: $6 weights of the
--              question's terms, $7 its codes, $8 shares of the scripts in the question, $9 weight of words
--   counted    how many passages were found, and how many of them have each term: $1 places, $2 terms
--   of_row     the mean of a row's own vectors, and whether the row has text: $1 key
--   awaiting   how many in a hundred vectors are of another model: between the places $1 and $2
-- and given, the values of the conditions, with what embed._check_matching needs.
drop function if exists embed._search_plan(regtype, text, integer, boolean);
create or replace function embed._search_plan(
    row_type regtype, name text, k integer, leave_out boolean, matching jsonb default null,
    out source integer, out lexical real, out relation text, out vectors regclass, out model text,
    out dimensions integer, out by_index text, out by_scan text, out by_words text, out by_both text, out by_stage text,
    out by_places text, out hits text, out rescored text, out counted text, out of_row text, out awaiting text,
    out key_names text[], out key_types text[], out given text[], out checks jsonb
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $plan$
declare
    s embed.source;
    active integer;
    class record;
    of_keys record;
    distance text;
    candidates text;
    looked text;
    looked_at_places text;
    ordered constant text := E'\n    order by ';
    best_first text;
    found_rows text;
    conditions text;
    pages text;
    index_type text;
begin
    s := embed._find_source(row_type, name);
    if k is null or k not between 1 and 1000 then
        raise exception 'k is %, expected 1 to 1000', coalesce(k::text, 'null')
            using errcode = 'EW003', hint = 'k is the number of rows wanted.';
    end if;
    perform embed._check_structure(s), embed._keep_name(s.vectors);
    select t.fingerprint into active from embed.source_state t where t.source = s.id;
    if active is null then
        raise exception 'no worker has embedded % yet', s.relation
            using errcode = 'EW001', detail = embed._live_workers(),
            hint = case when exists (select from embed.worker w where 'passages' = any (w.lanes))
                then 'Try again in a moment. The view embed.status shows how far it is, and the worker''s log what '
                'keeps it.'
                else 'Start a worker: embedworker run. The view embed.status shows how far it is.'
            end;
    end if;
    source := s.id;
    lexical := case when s.words then s.lexical else 0 end;
    relation := s.relation::text;
    vectors := s.vectors;
    model := coalesce(s.model, embed.default_model());
    dimensions := s.dimensions;

    select
        case c.relkind when 'p' then '' else 'only ' end as only_it,
        format('%I.%I', n.nspname, c.relname) as full_name,
        quote_ident(c.relname) as alias,
        case when s.into_column is null then format('v.%I', 'embedding') else 's.embedding' end as embedding
    into class
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = s.relation;

    select
        array_agg(x.vector_name order by x.place) as names,
        array_agg(x.type_name order by x.place) as types,
        string_agg(format('%s.%s as k%s', class.alias, x.row_name, x.place), ', ' order by x.place) as of_rows,
        string_agg(format('v.%s as k%s', x.vector_name, x.place), ', ' order by x.place) as of_vectors,
        string_agg('k' || x.place, ', ' order by x.place) as list,
        string_agg(format('s.k%s %s v.%s', x.place, x.equal, x.vector_name), ' and ' order by x.place) as row_is_vector,
        string_agg(format('%s.%s %s hit.k%s', class.alias, x.row_name, x.equal, x.place), ' and '
        '' order by x.place) as row_is_hit,
        string_agg(format('%s.%s %s ($1[%s])::%s', class.alias, x.row_name, x.equal, x.place, x.type_name), ' and '
        '' order by x.place) as row_is_given,
        string_agg(format('v.%s %s ($3[%s])::%s', x.vector_name, x.equal, x.place, x.type_name), ' and '
        '' order by x.place) as vector_is_given
    into of_keys
    from embed._keys(s) as x;
    key_names := of_keys.names;
    key_types := of_keys.types;

    select c.conditions, c.given, c.checks into conditions, given, checks
    from embed._conditions(s, matching, class.alias) as c;

    -- Filter and conditions stand beside the table alone, under the table's own name, so that they mean what they
    -- meant when they were given. Nothing that an outer query names can get between.
    looked := format(
        ' as distance
    from %1$s v
    join (select %2$s%3$s from %4$s%5$s%6$s) s on %7$s
    where v.fingerprint operator(pg_catalog.=) %8$s%9$s
',
        s.vectors, of_keys.of_rows,
        case when s.into_column is null then ''
            else format(', %s.%I as embedding', class.alias, embed._present_column(s.relation, s.into_attnum)) end,
        class.only_it, class.full_name,
        ' where ' || nullif(concat_ws(' and ', '(' || embed._filter_sql(s) || ')', conditions), ''),
        of_keys.row_is_vector, active,
        case when s.into_column is null then '' else ' and s.embedding is not null' end
        || case when leave_out then format(' and not (%s)', of_keys.vector_is_given) else '' end
    );
    best_first := format(
        $q$
    limit $2
), passage as (
    select
        *,
        pg_catalog.row_number() over of_row as nth,
        pg_catalog.first_value(distance) over of_row as nearest,
        pg_catalog.bool_or(place operator(pg_catalog.=) any ($6)) over (partition by %1$s) as known
    from candidate
    where distance operator(pg_catalog.<) 'NaN'
    window of_row as (partition by %1$s order by distance, chunk)
), ranked as (
    select *, pg_catalog.dense_rank() over (order by nearest, %1$s) as rank
    from passage
    where nth operator(pg_catalog.<=) $5 and not known
)
select
    (select pg_catalog.count(*) from candidate),
    coalesce(pg_catalog.max(rank), 0),
    coalesce(pg_catalog.array_agg(place order by rank, nth), '{}'),
    coalesce(pg_catalog.array_agg(distance order by rank, nth), '{}')
from ranked$q$,
        of_keys.list
    );
    looked_at_places := looked || ' and v.ctid operator(pg_catalog.=) any ($7)' || ordered;
    looked := looked || ordered;
    candidates := format(
        'with candidate as materialized (
    select v.ctid as place, %s, v.chunk, ', of_keys.of_vectors
    );
    distance := format('%s operator(@extschema:vector@.<=>) $1', class.embedding);
    -- + 0 keeps the index away, which PostgreSQL 17 would use before it sorts by the rest.
    by_scan := concat(
        candidates, distance, looked,
        format('(%s) operator(pg_catalog.+) 0, %s, chunk', distance, of_keys.list), best_first
    );
    select x.type into index_type from embed._vector_indexes(s) as x where x.method = 'hnsw' and x.valid limit 1;
    if found then
        -- The distance alone: before PostgreSQL 17 a second sort key keeps the index from being used.
        by_index := concat(
            candidates, distance, looked,
            format(
                '%s operator(@extschema:vector@.<=>) %s',
                embed._index_expression(class.embedding, index_type, s.dimensions),
                embed._index_expression('$1', index_type, s.dimensions)
            ),
            best_first
        );
    end if;
    if s.words then
        by_words := concat(
            candidates, 'nullif(v.terms operator(@extschema:vector@.<#>) $1, 0)', looked,
            format('distance, %s, chunk', of_keys.list), best_first
        );
    end if;
    by_places := concat(candidates, distance, looked_at_places, 'distance', best_first);
    if s.words and exists (select from embed._words_indexes(s) as x where x.valid) then
        by_stage := format('select embed.source_%s_words($1, $2, $3, $4)', s.id);
    end if;
    -- To read the words of 8,000 passages takes as long as to compare their vectors.
    if s.words and embed._guess_rows(s.vectors) <= 10000 then
        by_both := concat(
            candidates,
            format(
                'case when (v.terms operator(@extschema:vector@.<#>) $7) operator(pg_catalog.<) 0 then %s end', distance
            ),
            looked, format('v.terms operator(@extschema:vector@.<#>) $7, %s, chunk', of_keys.list), best_first
        );
    end if;

    found_rows := format(
        $q$select
    (%1$s.*)::%2$s,
    hit.score::pg_catalog.float4,
    hit.similarity::pg_catalog.float4,
    hit.bm25::pg_catalog.float4,
    pg_catalog.substr(
        %3$s, hit.passage_start operator(pg_catalog.+) 1, hit.passage_end operator(pg_catalog.-) hit.passage_start
    ),
    hit.passage_start,
    hit.passage_end
from scored as hit
join %4$s%2$s on %5$s
order by hit.nth$q$,
        class.alias, class.full_name,
        embed._text_sql(s, (select c.relname::text from pg_class c where c.oid = s.relation)),
        class.only_it, of_keys.row_is_hit
    );
    -- The rows that a first look found stand before those that only a deeper one found, or else the pages of a search
    -- would overlap. In a later look a row may have a better score by its words; it is lowered to what is before it.
    pages := format(
        $q$, ordered as (
    select *, pg_catalog.row_number() over (order by look, score desc, %1$s) as nth
    from best
), scored as (
    select
        %1$s, nth, passage_start, passage_end, similarity, bm25,
        pg_catalog.min(score) over (order by nth rows unbounded preceding) as score
    from ordered
    order by nth
    limit $4
    offset $5
)
$q$,
        of_keys.list
    );
    hits := format(
        $q$with best as (
    select
        %1$s, v.passage_start, v.passage_end, found.look,
        1 operator(pg_catalog.-) found.distance as similarity,
        1 operator(pg_catalog.-) found.distance as score,
        null::pg_catalog.float8 as bm25
    from unnest($1, $2, $3) as found (place, distance, look)
    join %2$s v on v.ctid operator(pg_catalog.=) found.place
)$q$,
        of_keys.of_vectors, s.vectors
    ) || pages || found_rows;
    if s.words then
        rescored := embed._rescored_sql(s.vectors, of_keys.of_vectors, of_keys.list) || pages || found_rows;
        counted := embed._counted_sql(s.vectors);
    end if;

    if leave_out then
        of_row := format(
            $q$select
    (select %1$s from %2$s v where v.fingerprint operator(pg_catalog.=) %3$s and %4$s),
    s.has_text
from (select %5$s%6$s, %7$s is not null as has_text from %8$s%9$s where (%10$s) and %11$s) s$q$,
            case when s.into_column is null then '@extschema:vector@.avg(v.embedding)' else 's.embedding' end,
            s.vectors, active, of_keys.row_is_vector, of_keys.of_rows,
            case when s.into_column is null then ''
                else format(', %s.%I as embedding', class.alias, embed._present_column(s.relation, s.into_attnum)) end,
            embed._text_sql(s, (select c.relname::text from pg_class c where c.oid = s.relation)),
            class.only_it, class.full_name, coalesce(embed._filter_sql(s), 'true'), of_keys.row_is_given
        );
    end if;

    awaiting := format(
        'select (100 operator(pg_catalog.*) pg_catalog.count(*) filter (where v.fingerprint operator(pg_catalog.<>) '
        '%s) operator(pg_catalog./) greatest(pg_catalog.count(*), 1))::integer from %s v where v.ctid '
        'operator(pg_catalog.>=) $1 and v.ctid operator(pg_catalog.<) $2',
        active, s.vectors
    );
end
$plan$;
