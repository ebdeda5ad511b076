-- How far the change of a model is, and questions by the model that a table is searched by.

-- Bytes of a table, with its indexes or without; null while another transaction has locked it.
create or replace function embed._disk_bytes(relation regclass, indexes boolean) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
begin
    return case when indexes then pg_total_relation_size(relation) else pg_table_size(relation) end;
exception when lock_not_available then
    return null;
end
$$;

create or replace function embed._disk_bytes(relation regclass) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
return embed._disk_bytes(relation, true);

select embed._ensure_view('embed.switch', $view$
select
    a.relation as source,
    case when w.cut then b.name else a.name end as name,
    coalesce(a.model, embed.default_model()) as from_model,
    coalesce(b.model, embed.default_model()) as to_model,
    case when w.cut then 'cut over' when y.coverage = 1 and y.state <> 'error' then 'ready' else 'filling' end as phase,
    y.coverage, y.pending, y.dead, y.eta, y.error,
    x.coverage as from_coverage, x.pending as from_pending, x.dead as from_dead,
    embed._disk_bytes(case when w.cut then a.vectors else b.vectors end) + case
        when a.into_column is null then 0
        when w.cut then coalesce(x.embedded, 0) * embed._vector_bytes(embed._storage(a), a.dimensions)
        else coalesce(y.embedded, 0) * embed._vector_bytes(embed._storage(b), b.dimensions)
    end as extra_bytes,
    w.judgement, w.forced, w.started_at, w.cut_over_at, w.rolled_back_at,
    embed._storage(a) as from_storage, embed._storage(b) as to_storage
from embed.switch_state w
join embed._watched_sources() as a on a.id = w.source
join embed._watched_sources() as b on b.id = w.successor
cross join lateral embed._status(a, true, false) as x
cross join lateral embed._status(b, true, false) as y
order by w.source
$view$);

comment on view embed.switch is
    'Changes of a model that are under way: phase is filling, ready or cut over. coverage, pending and dead are of the '
    'new vectors, those that begin with from_ of the old ones.';

-- The model whose vectors a table is searched by. The catalog is always as it is now, and tables are as this
-- transaction sees them: where the two differ, the names in its statement mean vectors of another model.
create or replace function embed._model_of(relation regclass) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    s embed.source;
begin
    select x.* into s
    from embed.source x
    join pg_class c on c.oid = x.relation
    where _model_of.relation in (x.relation, x.vectors)
    order by x.vectors = _model_of.relation desc, x.name = c.relname desc, embed._is_standby(x.id), x.id
    limit 1;
    if not found then
        raise exception '% is not enabled', relation
            using errcode = 'EW002', hint = 'Give a table that embed.enable was called for; embed.status lists them.';
    end if;
    perform embed._require_present(s);
    return coalesce(s.model, embed.default_model());
end
$$;

create or replace function embed.query(text text, of regclass) returns @extschema:vector@.vector
language plpgsql stable security invoker cost 1000
set search_path = pg_catalog, pg_temp
as $$
begin
    if not has_function_privilege('embed._question(text, text)'::regprocedure, 'execute') then
        perform embed._require_asker();
    end if;
    return (embed._question(query.text, embed._model_of(query.of))).embedding;
end
$$;

comment on function embed.query(text, regclass) is
    'The vector of a question by the model that a table is searched by at this moment: order by embedding <=> (select '
    'embed.query(''…'', of => ''article'')) limit 10.';
