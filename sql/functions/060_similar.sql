-- Similarity of like with like: rows with rows by their stored vectors, text with text.

-- The values of a key as text, in the order of the key's columns. They arrive as json because that
-- takes a scalar, row(…), an array and an object of names alike, and keeps a bigint exact.
create or replace function embed._key_values(
    key jsonb, key_text text, key_type regtype, names text[], types text[], relation text
) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    n constant integer := cardinality(names);
    given text[];
    plain text[] := array(select (parse_ident(x))[1] from unnest(names) as x);
begin
    if n = 1 and format_type(key_type, -1) = types[1] then
        given := array[key_text];
    elsif jsonb_typeof(key) = 'array' then
        given := array(
            select e #>> '{}' from jsonb_array_elements(key) with ordinality as a (e, place) order by a.place
        );
    elsif jsonb_typeof(key) = 'object' then
        if key ?& plain then
            given := array(select key ->> p from unnest(plain) with ordinality as u (p, place) order by u.place)
                || array(select j from jsonb_object_keys(key) as j where j <> all (plain));
        else
            -- row(…) has the fields f1, f2, ….
            given := array(
                select key ->> ('f' || i) from generate_series(1, (select count(*) from jsonb_object_keys(key))) as i
            );
        end if;
    else
        given := array[key #>> '{}'];
    end if;
    if cardinality(given) <> n or array_position(given, null) is not null then
        raise exception 'the key % does not fit the key of %: (%)', coalesce(key_text, 'null'), relation,
            array_to_string(names, ', ')
            using errcode = 'EW003',
            hint = case n
                when 1 then 'Give its value.'
                else 'Give its values in that order, for example: row(1, ''a''), or as json by name.'
            end;
    end if;
    return given;
end
$$;

create or replace function embed.similar(
    source anyelement, key anycompatible, k integer default 10, name text default null
)
returns table (
    "row" anyelement, score real, similarity real, passage text, passage_start integer, passage_end integer
)
language plpgsql stable
as $$
declare
    plan record;
    given text[];
    own @extschema:vector@.vector;
    has_text boolean;
begin
    perform embed._require_rows(pg_catalog.pg_typeof(source));
    plan := embed._search_plan(pg_catalog.pg_typeof(source), name, k, true);
    given := embed._key_values(
        pg_catalog.to_jsonb(key), key::text, pg_catalog.pg_typeof(key), plan.key_names, plan.key_types, plan.relation
    );
    begin
        execute plan.of_row into own, has_text using given;
    exception when data_exception then
        raise exception 'the key % does not fit the key of %: %', pg_catalog.array_to_string(given, ', '),
            plan.relation, sqlerrm
            using errcode = 'EW003', hint = 'Give a value of the key column''s type.';
    end;
    if has_text is null then
        raise exception '% has no row with the key %', plan.relation, pg_catalog.array_to_string(given, ', ')
            using errcode = 'EW003', hint = 'The row must exist, pass the source''s filter and be visible to you.';
    elsif own is null then
        raise exception 'the row of % with the key % has no vector%', plan.relation,
            pg_catalog.array_to_string(given, ', '),
            case when has_text then ' yet' else ', since it has no text' end
            using errcode = 'EW002', hint = case
                when has_text
                    then 'A worker will embed it; embed.status shows how many wait, embed.failure what failed.'
                else 'Compare it with others once its text columns hold something.' end;
    end if;
    return query
    select s."row", s.score, s.similarity, s.passage, s.passage_start, s.passage_end
    from embed._search_rows(source, own, k, 0, plan, given) as s;
end
$$;

comment on function embed.similar(anyelement, anycompatible, integer, text) is
    'The k rows of a table nearest in meaning to the row with the given key, which is left out; a key of several '
    'columns is given as row(…). Of a row in several passages, the mean is compared.';

-- The most natural first try, embed.similar('article', 1).
create or replace function embed.similar(source text, key anycompatible, k integer default 10, name text default null)
returns table (
    "row" text, score real, similarity real, passage text, passage_start integer, passage_end integer
)
language plpgsql stable
as $$
begin
    perform embed._refuse_name('similar', source);
end
$$;

comment on function embed.similar(text, anycompatible, integer, text) is
    'Answers with the call to write: a table is given by a null of its row type, as in embed.similar(null::article, '
    '1).';

create or replace function embed.similarity(a text, b text, model text default null) returns real
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- One prefix on both sides: the model was trained to put a question near its answer, not near
    -- itself, so with two different prefixes a text would not be most like itself.
    return 1 - (embed.query(a, model) operator(@extschema:vector@.<=>) embed.query(b, model));
end
$$;

comment on function embed.similarity(text, text, text) is
    'Cosine similarity of two texts, the same for (a, b) and (b, a). It orders pairs; cosines of the default model lie '
    'between 0.7 and 1.0 even for texts that have nothing in common.';
