-- Search: rows of a table by the meaning of a question, typed as the table's own rows.
--
-- Everything that touches the application's data runs with the caller's rights, so row security
-- applies by itself. What must be known of embed's own tables is read by _search_plan, which runs as
-- its owner and returns statements, not data: it reads no table of anybody else, whose owner could give a
-- column a type that is cast by a function of his. The functions that run those statements have no
-- search_path of their own: a policy of the table may call functions that rely on the caller's.
-- Instead every name in the statements is qualified, operators too.

-- Each key column of a source: its name in the table now, its name in the vector table, in the
-- queue, its type, and the operator by which its own index compares it (citext's is not text's).
create or replace function embed._keys(
    source embed.source,
    out place integer, out row_name text, out vector_name text, out queue_name text, out type_name text, out equal text
) returns setof record
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    select
        k.place::integer,
        quote_ident(embed._column_name((source).relation, k.attnum)),
        quote_ident((source).keys[k.place]),
        'k' || k.place,
        -- -1 and not null: without it char(8) would come out as character, which is char(1).
        format_type(a.atttypid, -1),
        format('operator(%I.%s)', n.nspname, o.oprname)
    from unnest((source).key_attnums) with ordinality as k (attnum, place)
    join pg_class q on q.relname = format('queue_%s', (source).id) and q.relnamespace = 'embed'::regnamespace
    join pg_attribute a on a.attrelid = q.oid and a.attname = 'k' || k.place
    join pg_index i on i.indrelid = q.oid and i.indisprimary
    join pg_opclass c on c.oid = i.indclass[k.place - 1]
    join pg_amop m on m.amopfamily = c.opcfamily and m.amoplefttype = c.opcintype
        and m.amoprighttype = c.opcintype and m.amopstrategy = 3
    join pg_operator o on o.oid = m.amopopr
    join pg_namespace n on n.oid = o.oprnamespace
    order by k.place;
end;

-- The table's columns and the places of its vectors as they are now; an error says what is gone.
create or replace function embed._check_structure(source embed.source) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    again constant text := format('Call embed.disable(%L) and then embed.enable with the columns that are there.', source.relation::text);
begin
    if not exists (select from pg_class where oid = source.relation) then
        raise exception 'the table of the source % was dropped', quote_literal(source.name)
            using errcode = 'EW004', hint = format('Forget it with embed.disable(%s::regclass).', source.relation::oid);
    end if;
    if not exists (select from pg_class where oid = source.vectors) then
        raise exception 'the vector table of % was dropped', source.relation
            using errcode = 'EW004', hint = again;
    end if;
    if exists (
        select
        from unnest(source.key_attnums || source.column_attnums || source.into_attnum) as c (attnum)
        where c.attnum is not null and embed._column_name(source.relation, c.attnum) is null
    ) or (source.filter is not null and embed._filter_sql(source) is null) then
        raise exception 'an enabled column of % was dropped', source.relation
            using errcode = 'EW004', hint = again;
    end if;
end
$$;

-- The source that a row type and perhaps a name stand for.
create or replace function embed._find_source(row_type regtype, name text) returns embed.source
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    result embed.source;
    root regclass;
    a_relation regclass := (
        select c.oid
        from pg_type t join pg_class c on c.oid = t.typrelid
        where t.oid = row_type and c.relkind in ('r', 'p')
    );
begin
    if a_relation is null then
        raise exception 'the first argument is of type %, expected a row of a table', row_type
            using errcode = 'EW003', hint = 'Give a null of the table''s type, for example: null::article.';
    end if;
    -- Enabled several times, a table is known by the source that bears its name, or else by the oldest.
    select s.* into result
    from embed.source s join pg_class c on c.oid = s.relation
    where s.relation = a_relation and (_find_source.name is null or s.name = _find_source.name)
    order by s.name = c.relname desc, s.id
    limit 1;
    if found then
        return result;
    end if;
    if exists (select from embed.source s where s.relation = a_relation) then
        raise exception '% is not enabled under the name %', a_relation, quote_literal(name)
            using errcode = 'EW002',
            hint = 'It is under: ' || (select string_agg(quote_literal(s.name), ', ' order by s.id) from embed.source s where s.relation = a_relation) || '.';
    end if;
    select a.relid into root
    from pg_partition_ancestors(a_relation) as a join embed.source s on s.relation = a.relid
    limit 1;
    if found then
        raise exception '% is not enabled, but % is, of which it is a partition', a_relation, root
            using errcode = 'EW002', hint = format('Give null::%s.', root);
    end if;
    raise exception '% is not enabled', a_relation
        using errcode = 'EW002', hint = format('Call embed.enable(%L, array[…]) with the text columns to search.', a_relation::text);
end
$$;

-- How to search a source, as statements for the caller to run:
--   by_index   the nearest passages through HNSW; null where there is no index
--   by_scan    the same by comparing all, with ties in the order of the key
--              both: $1 question, $2 passages to look at, $3 rows wanted, $4 key to leave out, $5 of
--              each row so many passages
--   hits       the rows of what was found: $1 places, $2 distances, $3 rows wanted
--   rescored   the same ranked by words, too: $4 idf of the question's terms, $5 the highest BM25,
--              $6 shares of the scripts in the question, $7 weight
--   counted    how many passages were found, and how many of them have each term: $1 places, $2 terms
--   of_row     the mean of a row's own vectors, and whether the row has text: $1 key
--   awaiting   how many in a hundred vectors are of another model: between the places $1 and $2
create or replace function embed._search_plan(
    row_type regtype, name text, k integer, leave_out boolean,
    out source integer, out lexical real,
    out relation text, out vectors regclass, out model text, out dimensions integer, out depth integer,
    out by_index text, out by_scan text, out hits text, out rescored text, out counted text, out of_row text, out awaiting text,
    out key_names text[], out key_types text[]
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
    template text;
    found_rows text;
begin
    s := embed._find_source(row_type, name);
    if k is null or k not between 1 and 1000 then
        raise exception 'k is %, expected 1 to 1000', coalesce(k::text, 'null')
            using errcode = 'EW003', hint = 'k is the number of rows wanted.';
    end if;
    perform embed._check_structure(s);
    select t.fingerprint into active from embed.source_state t where t.source = s.id;
    if active is null then
        raise exception 'no worker has embedded % yet', s.relation
            using errcode = 'EW001', detail = embed._live_workers(),
            hint = case when exists (select from embed.worker w where 'passages' = any (w.lanes))
                then 'Try again in a moment. The view embed.status shows how far it is, and the worker''s log what keeps it.'
                else 'Start a worker: embedworker run. The view embed.status shows how far it is.'
            end;
    end if;
    source := s.id;
    lexical := s.lexical;
    relation := s.relation::text;
    vectors := s.vectors;
    model := coalesce(s.model, embed.default_model());
    dimensions := s.dimensions;
    -- Of a row in several passages, several may be among the nearest.
    depth := case when s.chunk then 2 * k + 10 else k end;

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
        string_agg(format('%s.%s %s hit.k%s', class.alias, x.row_name, x.equal, x.place), ' and ' order by x.place) as row_is_hit,
        string_agg(format('%s.%s %s ($1[%s])::%s', class.alias, x.row_name, x.equal, x.place, x.type_name), ' and ' order by x.place) as row_is_given,
        string_agg(format('v.%s %s ($4[%s])::%s', x.vector_name, x.equal, x.place, x.type_name), ' and ' order by x.place) as vector_is_given
    into of_keys
    from embed._keys(s) as x;
    key_names := of_keys.names;
    key_types := of_keys.types;

    -- The filter stands beside the table alone, under the table's own name, so that it means what it
    -- meant when it was given. Nothing that an outer query names can get between.
    distance := format('%s operator(@extschema:vector@.<=>) $1', class.embedding);
    template := format(
        $q$with candidate as materialized (
    select v.ctid as place, %1$s, v.chunk, %2$s as distance
    from %3$s v
    join (select %4$s%5$s from %6$s%7$s%8$s) s on %9$s
    where v.fingerprint operator(pg_catalog.=) %10$s%11$s
    order by %13$s
    limit $2
), passage as (
    select
        *,
        pg_catalog.row_number() over of_row as nth,
        pg_catalog.first_value(distance) over of_row as nearest
    from candidate
    where distance operator(pg_catalog.<>) 'NaN'
    window of_row as (partition by %12$s order by distance, chunk)
), ranked as (
    select *, pg_catalog.dense_rank() over (order by nearest, %12$s) as rank
    from passage
    where nth operator(pg_catalog.<=) $5
)
select
    (select pg_catalog.count(*) from candidate),
    pg_catalog.max(rank),
    pg_catalog.array_agg(place order by rank, nth),
    pg_catalog.array_agg(distance order by rank, nth)
from ranked
where rank operator(pg_catalog.<=) $3$q$,
        of_keys.of_vectors, distance, s.vectors, of_keys.of_rows,
        case when s.into_column is null then ''
            else format(', %s.%I as embedding', class.alias, embed._column_name(s.relation, s.into_attnum)) end,
        class.only_it, class.full_name,
        coalesce(' where (' || embed._filter_sql(s) || ')', ''),
        of_keys.row_is_vector, active,
        case when s.into_column is null then '' else ' and s.embedding is not null' end
        || case when leave_out then format(' and not (%s)', of_keys.vector_is_given) else '' end,
        of_keys.list,
        -- Put in below, by replace: another format() would read the percent signs of names.
        chr(1)
    );
    -- + 0 keeps the index away, which PostgreSQL 17 would use before it sorts by the rest.
    by_scan := replace(template, chr(1), format('(%s) operator(pg_catalog.+) 0, %s, chunk', distance, of_keys.list));
    if exists (
        select
        from pg_index i
        join pg_class c on c.oid = i.indexrelid
        join pg_am m on m.oid = c.relam
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        where i.indrelid = case when s.into_column is null then s.vectors else s.relation end
        and m.amname = 'hnsw' and i.indisvalid and i.indpred is null
        and a.attnum = coalesce(s.into_attnum, (select e.attnum from pg_attribute e where e.attrelid = s.vectors and e.attname = 'embedding'))
    ) then
        -- The distance alone: before PostgreSQL 17 a second sort key keeps the index from being used.
        by_index := replace(template, chr(1), distance);
    end if;

    found_rows := format(
        $q$select
    (%1$s.*)::%2$s,
    hit.score::pg_catalog.float4,
    hit.similarity::pg_catalog.float4,
    hit.bm25::pg_catalog.float4,
    pg_catalog.substr(%3$s, hit.passage_start operator(pg_catalog.+) 1, hit.passage_end operator(pg_catalog.-) hit.passage_start),
    hit.passage_start,
    hit.passage_end
from scored as hit
join %4$s%2$s on %5$s
order by hit.score desc, %6$s$q$,
        class.alias, class.full_name,
        embed._text_sql(s, (select c.relname::text from pg_class c where c.oid = s.relation)),
        class.only_it, of_keys.row_is_hit,
        'hit.' || replace(of_keys.list, ', ', ', hit.')
    );
    hits := format(
        $q$with scored as (
    select
        %1$s, v.passage_start, v.passage_end,
        1 operator(pg_catalog.-) found.distance as similarity,
        1 operator(pg_catalog.-) found.distance as score,
        null::pg_catalog.float8 as bm25
    from unnest($1, $2) as found (place, distance)
    join %2$s v on v.ctid operator(pg_catalog.=) found.place
    order by score desc, %3$s
    limit $3
)
$q$,
        of_keys.of_vectors, s.vectors, of_keys.list
    ) || found_rows;
    -- A passage in another script than the question's shares no term with it, however well it answers:
    -- as far as the scripts differ, it gets what the others have on average. (Left at 0, the right
    -- English article fell from the first place to the eighth behind Korean ones.) From half of its
    -- letters in common on it gets nothing: names in Latin letters would raise a Korean passage (0.9456
    -- instead of 0.9463 NDCG@10 on belebele-ko-ko).
    rescored := format(
        $q$with hit as materialized (
    select
        %1$s, v.chunk, v.passage_start, v.passage_end,
        1 operator(pg_catalog.-) found.distance as similarity,
        coalesce((v.terms operator(@extschema:vector@.<#>) $4) operator(pg_catalog./) (operator(pg_catalog.-) $5), 0) as words,
        coalesce(operator(pg_catalog.-) (v.terms operator(@extschema:vector@.<#>) $6), 0) as same
    from unnest($1, $2) as found (place, distance)
    join %2$s v on v.ctid operator(pg_catalog.=) found.place
), neutral as materialized (
    select coalesce(
        pg_catalog.sum(words operator(pg_catalog.*) same) operator(pg_catalog./) nullif(pg_catalog.sum(same), 0), 0
    ) as words
    from hit
), passage as (
    select
        hit.*,
        hit.words operator(pg_catalog.+) (greatest(0, 1 operator(pg_catalog.-) (2 operator(pg_catalog.*) hit.same)) operator(pg_catalog.*) neutral.words) as bm25
    from hit, neutral
), best as (
    select distinct on (%3$s) *, similarity operator(pg_catalog.+) ($7 operator(pg_catalog.*) bm25) as score
    from passage
    order by %3$s, score desc, chunk
), scored as (
    select *
    from best
    order by score desc, %3$s
    limit $3
)
$q$,
        of_keys.of_vectors, s.vectors, of_keys.list
    ) || found_rows;
    -- l2_normalize for its by-product, a copy that is not fetched from TOAST anew for every term.
    counted := format(
        $q$with hit as materialized (
    select @extschema:vector@.l2_normalize(v.terms) as terms
    from unnest($1) as found (place)
    join %1$s v on v.ctid operator(pg_catalog.=) found.place
), asked as materialized (
    select q.place, pg_catalog.format('{%%s:1}/16777216', q.term)::@extschema:vector@.sparsevec as term
    from unnest($2) with ordinality as q (term, place)
)
select
    (select pg_catalog.count(*) from hit),
    pg_catalog.array_agg(
        (select pg_catalog.count(*) from hit where (hit.terms operator(@extschema:vector@.<#>) asked.term) operator(pg_catalog.<) 0)
        order by asked.place
    )
from asked$q$,
        s.vectors
    );

    if leave_out then
        of_row := format(
            $q$select
    (select %1$s from %2$s v where v.fingerprint operator(pg_catalog.=) %3$s and %4$s),
    s.has_text
from (select %5$s%6$s, %7$s is not null as has_text from %8$s%9$s where (%10$s) and %11$s) s$q$,
            case when s.into_column is null then '@extschema:vector@.avg(v.embedding)' else 's.embedding' end,
            s.vectors, active, of_keys.row_is_vector, of_keys.of_rows,
            case when s.into_column is null then ''
                else format(', %s.%I as embedding', class.alias, embed._column_name(s.relation, s.into_attnum)) end,
            embed._text_sql(s, (select c.relname::text from pg_class c where c.oid = s.relation)),
            class.only_it, class.full_name, coalesce(embed._filter_sql(s), 'true'), of_keys.row_is_given
        );
    end if;

    awaiting := format(
        'select (100 operator(pg_catalog.*) pg_catalog.count(*) filter (where v.fingerprint operator(pg_catalog.<>) %s) operator(pg_catalog./) greatest(pg_catalog.count(*), 1))::integer from %s v where v.ctid operator(pg_catalog.>=) $1 and v.ctid operator(pg_catalog.<) $2',
        active, s.vectors
    );
end
$plan$;

-- After a change of the model, what is not embedded anew yet cannot be compared. Sixteen pages
-- anywhere in the table tell about how much that is (80 vectors of 384 dimensions, 0.1 ms).
create or replace function embed._notice_awaiting(plan record) returns void
language plpgsql stable
as $$
declare
    pages constant bigint := pg_catalog.pg_relation_size(plan.vectors) operator(pg_catalog./) pg_catalog.current_setting('block_size')::bigint;
    page constant bigint := pg_catalog.floor(pg_catalog.random() operator(pg_catalog.*) greatest(pages operator(pg_catalog.-) 15, 1));
    share integer;
begin
    execute plan.awaiting into share
    using pg_catalog.format('(%s,0)', page)::tid, pg_catalog.format('(%s,0)', page operator(pg_catalog.+) 16)::tid;
    if share operator(pg_catalog.>) 0 then
        raise notice 'about % %% of the vectors of % are of another model and are not compared until they are embedded anew',
            share, plan.relation
            using hint = 'The view embed.status shows how many are left.';
    end if;
end
$$;

-- Refuses a question's vector that cannot be compared.
create or replace function embed._check_question(question @extschema:vector@.vector, dimensions integer, relation text) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if question is null then
        raise exception 'the question is null' using errcode = 'EW003', hint = 'Give a text or a vector.';
    end if;
    if @extschema:vector@.vector_dims(question) <> dimensions then
        raise exception 'the question has % dimensions, but the vectors of % have %', @extschema:vector@.vector_dims(question), relation, dimensions
            using errcode = 'EW005', hint = 'Make it with the same model: embed.query(text, model).';
    end if;
    if @extschema:vector@.vector_norm(question) = 0 then
        raise exception 'the question is the zero vector, which has no direction to compare'
            using errcode = 'EW003', hint = 'Give the vector of a text, as embed.query makes it.';
    end if;
end
$$;

-- Runs the statements of a plan. With an index that stops early (hnsw.max_scan_tuples, under a filter
-- or policy that few rows pass) and too few rows, all vectors are compared: k rows were asked for.
--
-- Ranked by words, too, with weight, the rows come from the RESCORED nearest passages, of a row all that
-- are among them. The question's part: its terms, and the shares of its scripts.
create or replace function embed._search_rows(
    source anyelement, question @extschema:vector@.vector, k integer, plan record, leave_out text[] default null,
    weight double precision default 0, terms integer[] default null, scripts @extschema:vector@.sparsevec default null
) returns table (
    "row" anyelement, score real, similarity real, bm25 real, passage text, passage_start integer, passage_end integer
)
language plpgsql stable
set hnsw.iterative_scan = strict_order
set hnsw.ef_search = 200
as $$
declare
    rescored constant boolean := weight > 0;
    wanted constant integer := case when rescored then greatest(k, 50) else k end;
    statement text := coalesce(plan.by_index, plan.by_scan);
    look_at bigint := case when rescored then greatest(plan.depth, 2 * wanted) else plan.depth end;
    seen bigint;
    rows_found bigint;
    places tid[];
    distances double precision[];
    passages real;
    frequencies real[];
    words record;
begin
    if not pg_catalog.has_table_privilege(plan.vectors, 'select') then
        raise exception 'permission denied for table %', plan.vectors
            using errcode = 'insufficient_privilege',
            detail = 'Everybody may read the vectors of rows whose text he may read, but here it was revoked.',
            hint = pg_catalog.format('As the owner: grant select on %s to public.', plan.vectors);
    end if;
    perform embed._notice_awaiting(plan);
    loop
        execute statement into seen, rows_found, places, distances
        using question, look_at, wanted, leave_out, case when rescored then wanted else 1 end;
        exit when rows_found >= k;
        if seen = look_at then
            look_at := look_at * 8;
        elsif statement is distinct from plan.by_scan then
            statement := plan.by_scan;
        else
            exit;
        end if;
    end loop;
    if rescored then
        select c.passages, c.frequencies into passages, frequencies from embed._term_counts(plan.source, terms) as c;
        if passages is null then
            execute plan.counted into passages, frequencies using places, terms;
        end if;
        words := embed._idf(terms, passages, frequencies);
        return query execute plan.rescored using places, distances, k, words.idf, words.highest, scripts, weight;
    else
        return query execute plan.hits using places, distances, k;
    end if;
end
$$;

-- Which sources' text columns the caller may read. The list itself is nobody's secret; the rights are
-- looked up as the caller.
create or replace function embed._text_columns(out source integer, out relation oid, out attnum smallint) returns setof record
language sql stable security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select s.id, s.relation, c.attnum
    from embed.source s, unnest(s.column_attnums) as c (attnum);
end;

create or replace function embed._readable_sources() returns integer[]
language sql stable
set search_path = pg_catalog, pg_temp
return array(
    select c.source
    from embed._text_columns() as c
    group by c.source, c.relation
    having not row_security_active(c.relation)
    and bool_and(coalesce(has_column_privilege(c.relation, c.attnum, 'select'), false))
);

-- How often a word occurs in a table tells something of its texts, to somebody from whom row security
-- hides a part of them more than he may know: whether a name is in a hidden row.
alter table embed.lexical_state enable row level security;
alter table embed.lexical_term enable row level security;
create policy reader on embed.lexical_state for select using (source = any ((select embed._readable_sources())::integer[]));
create policy reader on embed.lexical_term for select using (source = any ((select embed._readable_sources())::integer[]));
grant select on embed.lexical_state, embed.lexical_term to public;

-- How many passages a table has and how many of them have each term; null where the caller may not
-- know or nothing is counted yet. Then those that were found for the question stand in for all.
create or replace function embed._term_counts(source integer, terms integer[], out passages real, out frequencies real[])
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    counted bigint;
begin
    select t.passages, t.version into passages, counted from embed.lexical_state t where t.source = _term_counts.source;
    if found then
        frequencies := array(
            select coalesce(t.frequency, 0)
            from unnest(terms) with ordinality as q (term, place)
            left join embed.lexical_term t on t.source = _term_counts.source and t.version = counted and t.term = q.term
            order by q.place
        );
    end if;
end
$$;

-- The question's part in BM25: what each of its terms weighs, and the most that a passage can have,
-- one that is full of every term.
create or replace function embed._idf(
    terms integer[], passages real, frequencies real[],
    out idf @extschema:vector@.sparsevec, out highest double precision
)
language sql immutable
set search_path = pg_catalog, pg_temp
begin atomic
    select
        ('{' || coalesce(string_agg(w.term || ':' || w.idf, ',' order by w.term), '') || '}/16777216')::@extschema:vector@.sparsevec,
        -- 2.2 is k1 + 1, the limit of a term's weight as it becomes more frequent.
        coalesce(sum(w.idf) * 2.2, 0)
    from (
        select q.term, ln(1 + (passages - q.frequency + 0.5) / (q.frequency + 0.5))::real as idf
        from unnest(terms, frequencies) as q (term, frequency)
    ) as w;
end;

-- The rows in the order of a cross-encoder, the first of them at least: it reads question and passage
-- together, which costs much more than comparing vectors, and tells better. Rows behind the first
-- "rerank" keep their order behind those; their scores are lowered where they would come between.
create or replace function embed._reranked_rows(
    source anyelement, question text, k integer, rerank integer, embedding @extschema:vector@.vector, plan record,
    weight double precision, terms integer[], scripts @extschema:vector@.sparsevec
) returns table (
    "row" anyelement, score real, similarity real, bm25 real, reranked real, passage text, passage_start integer, passage_end integer
)
language plpgsql stable
as $$
begin
    return query
    with found as materialized (
        select f.*
        from embed._search_rows(source, embedding, greatest(k, rerank), plan, null, weight, terms, scripts)
            with ordinality as f ("row", score, similarity, bm25, passage, passage_start, passage_end, place)
    ), answer as materialized (
        select embed._rerank(
            question, array(select f.passage from found f where f.place operator(pg_catalog.<=) rerank order by f.place)
        ) as scores
    ), ranked as materialized (
        select f.*, a.scores[f.place::integer] as reranked
        from found f, answer a
    ), gap as materialized (
        select greatest(
            0,
            (pg_catalog.max(r.score) filter (where r.reranked is null))::double precision
            operator(pg_catalog.-) pg_catalog.min(r.reranked)::double precision operator(pg_catalog.+) 0.001::double precision
        ) as width
        from ranked r
    )
    select
        r."row",
        coalesce(r.reranked, (r.score operator(pg_catalog.-) g.width)::real),
        r.similarity, r.bm25, r.reranked, r.passage, r.passage_start, r.passage_end
    from ranked r, gap g
    order by r.reranked desc nulls last, r.place
    limit k;
end
$$;

create or replace function embed.search(
    source anyelement, question text, k integer default 10, name text default null, lexical double precision default null,
    rerank integer default null
) returns table (
    "row" anyelement, score real, similarity real, bm25 real, reranked real, passage text, passage_start integer, passage_end integer
)
language plpgsql stable
as $$
declare
    plan record;
    asked record;
    weight double precision;
    scripts @extschema:vector@.sparsevec;
begin
    if rerank not between 0 and 200 then
        raise exception 'rerank is %, expected 0 to 200', rerank
            using errcode = 'EW003', hint = 'It is how many of the best rows a cross-encoder reads, 20 for example; 0 is none.';
    end if;
    -- A wrong k is refused as it was given.
    plan := embed._search_plan(pg_catalog.pg_typeof(source), name, case when rerank > k and k > 0 then rerank else k end, false);
    weight := coalesce(lexical, plan.lexical);
    if not weight between 0 and 1000 then
        raise exception 'lexical is %, expected a weight of 0 or more', lexical
            using errcode = 'EW003', hint = '0 ranks by meaning alone; 0.2 is the default.';
    end if;
    asked := embed._question(question, plan.model);
    perform embed._check_question(asked.embedding, plan.dimensions, plan.relation);
    if weight > 0 and pg_catalog.cardinality(asked.terms) > 0 then
        scripts := pg_catalog.format('{1:%s,2:%s}/16777216', asked.shares[1], asked.shares[2]);
    else
        weight := 0;
    end if;
    if rerank > 0 then
        return query
        select *
        from embed._reranked_rows(source, question, k, rerank, asked.embedding, plan, weight, asked.terms, scripts);
    else
        return query
        select f."row", f.score, f.similarity, f.bm25, null::real, f.passage, f.passage_start, f.passage_end
        from embed._search_rows(source, asked.embedding, k, plan, null, weight, asked.terms, scripts) as f;
    end if;
end
$$;

comment on function embed.search(anyelement, text, integer, text, double precision, integer) is
    'The k rows of a table nearest in meaning to a question, with the best passage of each: select (s."row").* from embed.search(null::article, ''question'', k => 10) s. score, by which they are ranked, is similarity (cosine) + lexical × bm25 (0 to 1: how much of the question''s words is there); lexical => 0 ranks by meaning alone. rerank => 20 has a cross-encoder read the best 20, whose score is then what it says (reranked); where it does not answer in time (embed.rerank_timeout, 5s) the order stays as it was, with a notice. score orders the rows of one search and says nothing by itself.';

create or replace function embed.search(source anyelement, question @extschema:vector@.vector, k integer default 10, name text default null)
returns table (
    "row" anyelement, score real, similarity real, bm25 real, reranked real, passage text, passage_start integer, passage_end integer
)
language plpgsql stable
as $$
declare
    plan record;
begin
    plan := embed._search_plan(pg_catalog.pg_typeof(source), name, k, false);
    perform embed._check_question(question, plan.dimensions, plan.relation);
    return query
    select f."row", f.score, f.similarity, f.bm25, null::real, f.passage, f.passage_start, f.passage_end
    from embed._search_rows(source, question, k, plan) as f;
end
$$;

comment on function embed.search(anyelement, @extschema:vector@.vector, integer, text) is
    'The k rows of a table nearest to a vector that the table''s model made.';

create or replace function embed.set_lexical(relation regclass, weight double precision, name text default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if weight is null or not weight between 0 and 1000 then
        raise exception 'the weight is %, expected 0 or more', coalesce(weight::text, 'null')
            using errcode = 'EW003', hint = '0 ranks by meaning alone; 0.2 is the default.';
    end if;
    perform embed._sources(relation, name);
    update embed.source s
    set lexical = weight
    where s.relation = set_lexical.relation and (set_lexical.name is null or s.name = set_lexical.name);
end
$$;

comment on function embed.set_lexical(regclass, double precision, text) is
    'How much the words of a question count in the searches of a table that say nothing of it, beside its meaning; 0 is not at all, 0.2 the default.';
