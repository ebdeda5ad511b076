-- source_list
-- Every source with what its statements are made of: names as they are now, quoted by the server.
select
    s.id,
    s.name,
    format('%%I.%%I', n.nspname, c.relname) as relation,
    c.relkind = 'p' as partitioned,
    (select format('%%I.%%I', vn.nspname, vc.relname) from pg_catalog.pg_class vc join pg_catalog.pg_namespace vn on vn.oid = vc.relnamespace
        where vc.oid = s.vectors) as vectors,
    array(select quote_ident(k.name) from unnest(s.keys) with ordinality as k (name, place) order by k.place) as vector_keys,
    array(select quote_ident(embed._column_name(s.relation, k.attnum)) from unnest(s.key_attnums) with ordinality as k (attnum, place)
        order by k.place) as source_keys,
    array(select format_type(a.atttypid, a.atttypmod) from pg_catalog.pg_attribute a
        where a.attrelid = to_regclass('embed.queue_' || s.id) and a.attname ~ '^k[0-9]+$' order by a.attnum) as key_types,
    embed._rows_sql(s) as rows,
    embed._text_sql(s, 's') as text,
    quote_ident(embed._column_name(s.relation, s.into_attnum)) as into_column,
    s.chunk,
    coalesce(s.model, embed.default_model()) as model,
    s.dimensions,
    s.paused,
    s.version,
    t.fingerprint
from embed.source s
join embed.source_state t on t.source = s.id
left join pg_catalog.pg_class c on c.oid = s.relation
left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
order by s.id;

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
update embed.source_state set index_state = %(index_state)s where source = %(source)s and index_state is distinct from %(index_state)s;

-- source_request_sweep
-- Ask for a sweep.
insert into embed.sweep_request (source, reason) values (%(source)s, %(reason)s);

-- fingerprint_register
-- The number of a fingerprint; the notes are those of the latest worker. It is made from the digest:
-- vectors outlive this schema (dropped and migrated anew, or adopted by another database), and a
-- number from a sequence would then stand for another model. One after the other: of two keys, on
-- conflict minds but one.
insert into embed.fingerprint (id, digest, model, revision, query_prefix, passage_prefix, pooling, dimensions, max_tokens, notes)
overriding system value
select
    ('x' || left(encode(sha256(convert_to(%(digest)s, 'UTF8')), 'hex'), 8))::bit(32)::integer & 2147483647,
    %(digest)s, %(model)s, %(revision)s, %(query_prefix)s, %(passage_prefix)s, %(pooling)s, %(dimensions)s, %(max_tokens)s, %(notes)s
from (select pg_advisory_xact_lock(1701667428, 4)) as turn
on conflict (digest) do update set notes = excluded.notes, created_at = now()
returning id;

-- models_in_use
-- The models that questions and rows may need.
select s.model from embed.source s where s.model is not null
union
select embed.default_model();

-- model_card
-- What the database knows of a model.
select name, dimensions, max_tokens, query_prefix, passage_prefix, pooling from embed.model where name = %(name)s;
