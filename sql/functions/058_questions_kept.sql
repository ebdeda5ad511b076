-- Questions that are kept, and what people chose: the judgements of a table.
-- A search is logged only where the owner of the table said so. docs/data.md tells what is kept and for how long.

-- The owner of a table reads and writes what was asked of it; nobody else but the worker does.
create or replace function embed._owns(relation regclass) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return coalesce(
    (select pg_has_role(c.relowner, 'usage') from pg_class c where c.oid = _owns.relation), false
);

select embed._ensure_policy(t.relation, 'owner', 'using (embed._owns(relation)) with check (embed._owns(relation))')
from unnest(array['embed.judgement', 'embed.question_log', 'embed.logged_search']::regclass[]) as t (relation);
grant select, insert, update, delete on embed.judgement to public;
grant select, insert, update, delete on embed.question_log to public;
grant select, delete on embed.logged_search to public;
select embed._hide_statistics(t.relation)
from unnest('{embed.judgement,embed.question_log,embed.logged_search}'::regclass[]) as t (relation);

create or replace function embed.erase_questions(relation regclass, asker text default null) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    searches bigint;
    judgements bigint;
begin
    perform embed._require_owner(relation);
    delete from embed.logged_search l
    where l.relation = erase_questions.relation and (erase_questions.asker is null or l.asker = erase_questions.asker);
    get diagnostics searches = row_count;
    delete from embed.judgement j
    where j.relation = erase_questions.relation and j.source = 'click'
    and (erase_questions.asker is null or j.asker = erase_questions.asker);
    get diagnostics judgements = row_count;
    return searches + judgements;
end
$$;

comment on function embed.erase_questions(regclass, text) is
    'Deletes the logged questions of a table and the judgements by clicks: all of them, or those of one asker. Returns '
    'how many rows it deleted.';

create or replace function embed.log_questions(relation regclass, days integer default 30) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform embed._sources(relation, null), embed._require_owner(relation);
    if days is null or days not between 0 and 3650 then
        raise exception 'days is %, expected 0 to 3650', coalesce(days::text, 'null')
            using errcode = 'EW003',
            hint = '30 keeps a question for 30 days; 0 keeps none and deletes those that are there.';
    end if;
    if days = 0 then
        delete from embed.question_log l where l.relation = log_questions.relation;
        perform embed.erase_questions(relation);
    else
        insert into embed.question_log (relation, days) values (log_questions.relation, log_questions.days)
        on conflict on constraint question_log_pkey do update set days = excluded.days;
    end if;
end
$$;

comment on function embed.log_questions(regclass, integer) is
    'Keeps the questions that embed.search_logged asks of a table, with the keys of the rows shown, for so many days. '
    'It is off until this is called. days => 0 turns it off, and deletes the questions and the judgements by clicks.';

-- Writes one search down and returns its id; null where the table keeps none. It runs as its owner, so it asks for the
-- role of the session: only a role that may read something of the table adds to its log. Such a role can call it
-- with any keys. One of another form would stop embed._learn for all tables, so it is not kept.
create or replace function embed._log_search(relation regclass, question text, keys jsonb, asker text) returns uuid
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    id constant uuid := gen_random_uuid();
begin
    if pg_is_in_recovery() or current_setting('transaction_read_only')::boolean
    or coalesce(jsonb_typeof(keys), '') <> 'array' or length(keys::text) > 100000 then
        return null;
    end if;
    if jsonb_array_length(keys) > 1000
    or exists (select from jsonb_array_elements(keys) as k (shown) where jsonb_typeof(k.shown) <> 'array')
    or exists (select from jsonb_array_elements(keys) as k (shown) where k.shown = '[]')
    or jsonb_path_exists(keys, '$[*][*] ? (@.type() != "string")') then
        return null;
    end if;
    insert into embed.logged_search (id, relation, question, keys, asker)
    select id, l.relation, left(btrim(_log_search.question), 2000), _log_search.keys, left(_log_search.asker, 200)
    from embed.question_log l
    where l.relation = _log_search.relation and btrim(_log_search.question) <> ''
    and has_any_column_privilege(
        case current_setting('role') when 'none' then session_user else current_setting('role')::name end,
        l.relation, 'select'
    );
    return case when found then id end;
end
$$;

-- The key of a row as the tables above hold it.
create or replace function embed._key_of(found_row jsonb, columns text[]) returns text[]
language sql immutable
set search_path = pg_catalog, pg_temp
return array(select found_row ->> c.name from unnest(columns) with ordinality as c (name, place) order by c.place);

-- Which table a search of this row type asks, and the columns of its key.
create or replace function embed._keys_shown(
    row_type regtype, name text, out relation regclass, out columns text[]
)
language sql stable security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select s.relation, array_agg(a.attname::text order by k.place)
    from embed._find_source(row_type, name) as s
    cross join lateral unnest(s.key_attnums) with ordinality as k (attnum, place)
    join pg_attribute a on a.attrelid = s.relation and a.attnum = k.attnum
    group by s.relation;
end;

create or replace function embed.search_logged(
    source anyelement, question text, k integer default 10, name text default null,
    lexical double precision default null, rerank integer default null, matching jsonb default null,
    skip integer default 0, asker text default null
) returns table (
    "row" anyelement, score real, similarity real, bm25 real, reranked real,
    passage text, passage_start integer, passage_end integer, search_id uuid
)
language plpgsql volatile
as $$
declare
    shown record;
begin
    perform embed._require_rows(pg_catalog.pg_typeof(source));
    shown := embed._keys_shown(pg_catalog.pg_typeof(source), name);
    return query
    with found as materialized (
        select f.*
        from embed.search(source, question, k, name, lexical, rerank, matching, skip) with ordinality
            as f ("row", score, similarity, bm25, reranked, passage, passage_start, passage_end, place)
    ), logged as materialized (
        select embed._log_search(
            shown.relation, question,
            (
                select pg_catalog.jsonb_agg(
                    embed._key_of(pg_catalog.to_jsonb(f."row"), shown.columns) order by f.place
                )
                from found f
            ),
            asker
        ) as id
    )
    select f."row", f.score, f.similarity, f.bm25, f.reranked, f.passage, f.passage_start, f.passage_end, l.id
    from found f, logged l
    order by f.place;
end
$$;

comment on function embed.search_logged(
    anyelement, text, integer, text, double precision, integer, jsonb, integer, text
) is
    'embed.search with one more column, search_id, for embed.chosen. It keeps the question and the keys shown where '
    'the owner of the table called embed.log_questions; elsewhere, and in a read-only transaction, search_id is null. '
    'asker says who asked, in words of the application, so that embed.erase_questions finds the questions of a person.';

-- Appends what was chosen. Whatever is wrong with it, the application goes on.
create or replace function embed._chosen(search_id uuid, key text[]) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if search_id is null or cardinality(key) is null or cardinality(key) not between 1 and 32
    or length(key::text) > 10000 or array_position(key, null) is not null
    or current_setting('transaction_read_only')::boolean then
        return false;
    end if;
    -- Not of a search that nobody logged: any login could fill the disk.
    insert into embed.choice (search, key)
    select search_id, key where exists (select from embed.logged_search l where l.id = search_id);
    return found;
exception when others then
    raise warning 'a choice was not kept: %', sqlerrm;
    return false;
end
$$;

create or replace function embed.chosen(search_id uuid, key anyelement) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    written constant jsonb := to_jsonb(key);
begin
    return embed._chosen(
        search_id,
        case
            when jsonb_typeof(written) = 'array' then array(
                select e.value
                from jsonb_array_elements_text(written) with ordinality as e (value, place)
                order by e.place
            )
            else array[written #>> '{}']
        end
    );
exception when others then
    raise warning 'a choice was not kept: %', sqlerrm;
    return false;
end
$$;

comment on function embed.chosen(uuid, anyelement) is
    'Call it when somebody opens or accepts a row of embed.search_logged: with the search_id and the key of the row, '
    'or an array for a key of several columns. It appends a row, waits for nobody and never fails: it returns whether '
    'the choice was kept. A worker makes a judgement of it within a minute.';

create or replace function embed.chosen(search_id uuid, key text) returns boolean
language sql
set search_path = pg_catalog, pg_temp
return embed._chosen(search_id, array[key]);

comment on function embed.chosen(uuid, text) is 'The same for a key that is a text, as in embed.chosen(id, ''a-17'').';
