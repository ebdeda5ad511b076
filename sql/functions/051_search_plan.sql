-- The statements of a search: how to search a source, for the caller to run.
--   by_index   the nearest passages through an index; null where there is none, or only an ivfflat
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
    words jsonb;
    stored text := '';
    is_stored text := '';
    distance text;
    candidates text;
    looked text;
    looked_at_places text;
    ordered constant text := E'\n    order by ';
    best_first text;
    found_rows text;
    conditions text;
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
            using errcode = 'EW001',
            detail = embed._live_workers('passages'::text, null::text, s.id),
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
        case c.relkind when 'p' then '' else 'only ' end || format('%I.%I', n.nspname, c.relname) as rows,
        format('%I.%I', n.nspname, c.relname) as row_type,
        quote_ident(c.relname) as alias,
        case c.relname when 'hit' then 'found' else 'hit' end as hit, -- what stands beside the table
        embed._text_sql(s, c.relname::text) as text
    into class
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = s.relation;
    if s.into_column is not null then
        stored := format(', %s.%I as embedding', class.alias, embed._present_column(s.relation, s.into_attnum));
        is_stored := ' and s.embedding is not null';
    end if;

    select c.conditions, c.given, c.checks into conditions, given, checks
    from embed._conditions(s, matching, class.alias) as c;

    -- From embed._keys, because embed._key_sql has words for every statement, which takes 0.4 ms longer.
    select
        array_agg(x.vector_name order by x.place),
        array_agg(x.type_name order by x.place),
        to_jsonb(class) || jsonb_build_object(
            'vectors', s.vectors::text,
            'active', active,
            'stored', stored,
            'is_stored', is_stored,
            'embedding', case when s.into_column is null then 'v.embedding' else 's.embedding' end,
            'filter', coalesce(embed._filter_sql(s), 'true'),
            'where', ' where ' || nullif(concat_ws(' and ', '(' || embed._filter_sql(s) || ')', conditions), ''),
            'keys', string_agg('k' || x.place, ', ' order by x.place),
            'row_keys', string_agg(format('%s.%s as k%s', class.alias, x.row_name, x.place), ', ' order by x.place),
            'vector_keys', string_agg(format('v.%s as k%s', x.vector_name, x.place), ', ' order by x.place),
            'row_is_vector', string_agg(
                format('s.k%s %s v.%s', x.place, x.equal, x.vector_name), ' and ' order by x.place
            ),
            'row_is_hit', string_agg(
                format('%s.%s %s %s.k%s', class.alias, x.row_name, x.equal, class.hit, x.place),
                ' and ' order by x.place
            ),
            'row_is_given', string_agg(
                format('%s.%s %s ($1[%s])::%s', class.alias, x.row_name, x.equal, x.place, x.type_name),
                ' and ' order by x.place
            ),
            'vector_is_given', string_agg(
                format('v.%s %s ($3[%s])::%s', x.vector_name, x.equal, x.place, x.type_name), ' and ' order by x.place
            )
        )
    into key_names, key_types, words
    from embed._keys(s) as x;

    -- Filter and conditions stand beside the table alone, under the table's own name, so that they mean what they
    -- meant when they were given. Nothing that an outer query names can get between.
    looked := embed._fill(
        $q$ as distance
    from {vectors} v
    join (select {row_keys}{stored} from {rows}{where}) s on {row_is_vector}
    where v.fingerprint operator(pg_catalog.=) {active}{is_stored}$q$
        || case when leave_out then ' and not ({vector_is_given})' else '' end || E'\n',
        words
    );
    best_first := embed._fill(
        $q$
    limit $2
), passage as (
    select
        *,
        pg_catalog.row_number() over of_row as nth,
        pg_catalog.first_value(distance) over of_row as nearest,
        pg_catalog.bool_or(place operator(pg_catalog.=) any ($6)) over (partition by {keys}) as known
    from candidate
    where distance operator(pg_catalog.<) 'NaN'
    window of_row as (partition by {keys} order by distance, chunk)
), ranked as (
    select *, pg_catalog.dense_rank() over (order by nearest, {keys}) as rank
    from passage
    where nth operator(pg_catalog.<=) $5 and not known
)
select
    (select pg_catalog.count(*) from candidate),
    coalesce(pg_catalog.max(rank), 0),
    coalesce(pg_catalog.array_agg(place order by rank, nth), '{}'),
    coalesce(pg_catalog.array_agg(distance order by rank, nth), '{}')
from ranked$q$,
        words
    );
    looked_at_places := looked || ' and v.ctid operator(pg_catalog.=) any ($7)' || ordered;
    looked := looked || ordered;
    candidates := embed._fill(
        'with candidate as materialized (
    select v.ctid as place, {vector_keys}, v.chunk, ',
        words
    );
    distance := (words ->> 'embedding') || ' operator(@extschema:vector@.<=>) $1';
    -- + 0 keeps the index away, which PostgreSQL 17 would use before it sorts by the rest.
    by_scan := concat(
        candidates, distance, looked,
        format('(%s) operator(pg_catalog.+) 0, %s, chunk', distance, words ->> 'keys'), best_first
    );
    select x.type into index_type from embed._vector_indexes(s) as x where x.method <> 'ivfflat' and x.valid limit 1;
    if found then
        -- The distance alone: before PostgreSQL 17 a second sort key keeps the index from being used.
        by_index := concat(
            candidates, distance, looked,
            format(
                '%s operator(@extschema:vector@.<=>) %s',
                embed._index_expression(words ->> 'embedding', index_type, s.dimensions),
                embed._index_expression('$1', index_type, s.dimensions)
            ),
            best_first
        );
    end if;
    if s.words then
        by_words := concat(
            candidates, 'nullif(v.terms operator(@extschema:vector@.<#>) $1, 0)', looked,
            format('distance, %s, chunk', words ->> 'keys'), best_first
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
            looked, format('v.terms operator(@extschema:vector@.<#>) $7, %s, chunk', words ->> 'keys'), best_first
        );
    end if;

    -- The rows that a first look found stand before those that only a deeper one found, or else the pages of a search
    -- would overlap. In a later look a row may have a better score by its words; it is lowered to what is before it.
    found_rows := embed._fill(
        $q$, ordered as (
    select *, pg_catalog.row_number() over (order by look, score desc, {keys}) as nth
    from best
), scored as (
    select
        {keys}, nth, passage_start, passage_end, similarity, bm25,
        pg_catalog.min(score) over (order by nth rows unbounded preceding) as score
    from ordered
    order by nth
    limit $4
    offset $5
)
select
    ({alias}.*)::{row_type},
    {hit}.score::pg_catalog.float4,
    {hit}.similarity::pg_catalog.float4,
    {hit}.bm25::pg_catalog.float4,
    pg_catalog.substr(
        {text}, {hit}.passage_start operator(pg_catalog.+) 1,
        {hit}.passage_end operator(pg_catalog.-) {hit}.passage_start
    ),
    {hit}.passage_start,
    {hit}.passage_end
from scored as {hit}
join {rows} on {row_is_hit}
order by {hit}.nth$q$,
        words
    );
    hits := embed._fill(
        $q$with best as (
    select
        {vector_keys}, v.passage_start, v.passage_end, found.look,
        1 operator(pg_catalog.-) found.distance as similarity,
        1 operator(pg_catalog.-) found.distance as score,
        null::pg_catalog.float8 as bm25
    from unnest($1, $2, $3) as found (place, distance, look)
    join {vectors} v on v.ctid operator(pg_catalog.=) found.place
)$q$,
        words
    ) || found_rows;
    if s.words then
        rescored := embed._rescored_sql(s.vectors, words ->> 'vector_keys', words ->> 'keys') || found_rows;
        counted := embed._counted_sql(s.vectors);
    end if;

    if leave_out then
        of_row := embed._fill(
            $q$select
    (
        select {vector} from {vectors} v
        where v.fingerprint operator(pg_catalog.=) {active} and {row_is_vector}
    ),
    s.has_text
from (
    select {row_keys}{stored}, {text} is not null as has_text from {rows}
    where ({filter}) and {row_is_given}
) s$q$,
            words || jsonb_build_object(
                'vector', case when stored = '' then '@extschema:vector@.avg(v.embedding)' else 's.embedding' end
            )
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
