-- source_list
-- These sources, or all for null, with what their statements are made of: names as they are now, quoted by the
-- server.
select
    s.id,
    s.name,
    -- Null of a table that was dropped, whose source could not be struck yet.
    case when c.oid is not null then format('%%I.%%I', n.nspname, c.relname) end as relation,
    c.relkind = 'p' as partitioned,
    (
        select format('%%I.%%I', vn.nspname, vc.relname)
        from pg_catalog.pg_class vc
        join pg_catalog.pg_namespace vn on vn.oid = vc.relnamespace
        where vc.oid = s.vectors
    ) as vectors,
    array(
        select quote_ident(k.name) from unnest(s.keys) with ordinality as k (name, place) order by k.place
    ) as vector_keys,
    array(
        select quote_ident(embed._column_name(s.relation, k.attnum))
        from unnest(s.key_attnums) with ordinality as k (attnum, place)
        order by k.place
    ) as source_keys,
    array(
        select format_type(a.atttypid, a.atttypmod)
        from pg_catalog.pg_attribute a
        where a.attrelid = to_regclass('embed.queue_' || s.id) and a.attname ~ '^k[0-9]+$'
        order by a.attnum
    ) as key_types,
    embed._rows_sql(s) as rows,
    embed._text_sql(s, 's') as text,
    embed._fault_sql(s) as fault,
    quote_ident(embed._column_name(s.relation, s.into_attnum)) as into_column,
    s.chunk,
    coalesce(s.model, embed.default_model()) as model,
    s.dimensions,
    s.paused,
    s.version,
    t.fingerprint,
    coalesce(embed._key_sql(s), '{{}}') as words,
    s.words as with_terms,
    coalesce(embed._storage(s), 'vector') as storage,
    embed._twin(s.id) as twin
from embed.source s
join embed.source_state t on t.source = s.id
left join pg_catalog.pg_class c on c.oid = s.relation
left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where %(sources)s::integer[] is null or s.id = any (%(sources)s::integer[])
order by s.id;

-- source_known
-- Whether a source is still there.
select from embed.source where id = %(source)s;

-- source_refresh
-- Bring a source in line with its table and say how it went.
select embed._refresh_source(%(source)s);

-- source_hold
-- Have the name stand for the enabled table, all of whose rows are seen, until the transaction ends.
select embed._hold(%(source)s, %(relation)s);

-- source_error
-- Remember, or forget, what stops a source; written only when it changes, and not while somebody
-- disables the source in an open transaction.
with free as (
    select t.source
    from embed.source_state t
    where t.source = %(source)s and t.error is distinct from %(error)s::text
    for no key update skip locked
)
update embed.source_state t
set error = %(error)s, error_at = case when %(error)s::text is null then null else now() end
from free
where t.source = free.source;

-- source_fingerprint
-- Make the fingerprint of a loaded model the active one of a source; says whether it was another.
update embed.source_state t
set fingerprint = %(fingerprint)s
from embed.source_state old
where t.source = %(source)s and old.source = t.source and old.fingerprint is distinct from %(fingerprint)s
returning old.fingerprint is not null as replaced;

-- source_index_state
-- What became of the source's index.
update embed.source_state set index_state = %(index_state)s
where source = %(source)s and index_state is distinct from %(index_state)s;

-- source_request_sweep
-- Ask for a sweep.
insert into embed.sweep_request (source, reason) values (%(source)s, %(reason)s);

-- fingerprint_register
-- The number of a fingerprint, which is entered if it is new.
select embed._register_fingerprint(
    %(digest)s, %(model)s, %(revision)s, %(query_prefix)s, %(passage_prefix)s, %(pooling)s, %(dimensions)s,
    %(max_tokens)s, %(notes)s
);

-- models_in_use
-- The models that questions and rows may need.
select s.model from embed.source s where s.model is not null
union
select embed.default_model();

-- question_models
-- The models that serve tables, and those that will once a switch is cut over.
select distinct coalesce(s.model, embed.default_model()) from embed.source s;

-- model_default
-- The model that is used where none is named.
select embed.default_model();

-- model_center
-- Say what the vectors of a model's questions have in common.
select embed.center_questions(%(model)s, %(mean)s, %(share)s);

-- model_card
-- What the database knows of a model.
select name, dimensions, max_tokens, query_prefix, passage_prefix, endpoint from embed.model where name = %(name)s;
