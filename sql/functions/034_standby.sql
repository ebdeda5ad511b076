-- Which of the two sources of a switch does not answer.

create or replace function embed._is_standby(source integer) returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
return exists (
    select from embed.switch_state w
    where _is_standby.source = case when w.cut then w.source else w.successor end
);

-- The vectors that the other side of a switch has by the same model, as a query whose column sent is what a checksum is
-- of. What is there of a text is taken and not computed again. Null where there are none, where their numbers have
-- fewer bytes, and where a column of the table itself holds them.
create or replace function embed._twin(source integer) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
return (
    select format(
        '(select *, @extschema:vector@.%I(embedding) as sent from %I.%I)', embed._storage(o) || '_send', n.nspname,
        c.relname
    )
    from embed.switch_state w
    join embed.source s on s.id = _twin.source and s.id in (w.source, w.successor)
    join embed.source o on o.id in (w.source, w.successor) and o.id <> s.id
    join pg_class c on c.oid = o.vectors
    join pg_namespace n on n.oid = c.relnamespace
    where o.into_attnum is null
    and coalesce(o.model, embed.default_model()) = coalesce(s.model, embed.default_model())
    and embed._storage(o) in ('vector', embed._storage(s))
);

-- Refuses to change a source that is one side of a switch: the sides would no longer hold the same rows.
create or replace function embed._require_no_switch(source integer, call text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from embed.switch_state w where _require_no_switch.source in (w.source, w.successor)) then
        raise exception '% is refused while the model of the table is being changed', call
            using errcode = 'EW010', hint = 'Call embed.end_switch first; the view embed.switch shows how far it is.';
    end if;
end
$$;

-- The name that a column has now. The catalog is always as it is now, and a table of it is as the transaction sees it.
create or replace function embed._present_column(relation regclass, attnum smallint) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (pg_identify_object_as_address('pg_class'::regclass, relation, attnum)).object_names[3];

-- Refuses a transaction that began before the model of a source was changed: a name in its statement means
-- vectors of another model than the one that it sees.
create or replace function embed._require_present(source embed.source) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if (case when source.into_column is null
        then (
            select to_regclass(format('%I.%I', n.nspname, embed._bounded_name(source.name, '_embedding')))
                <> source.vectors
            from pg_class c
            join pg_namespace n on n.oid = c.relnamespace
            where c.oid = source.relation
        )
        else embed._present_column(source.relation, source.into_attnum)
            <> embed._column_name(source.relation, source.into_attnum)
        end)
    then
        raise exception 'the model of % was changed after this transaction began', source.relation
            using errcode = 'serialization_failure', hint = 'Repeat the transaction.';
    end if;
end
$$;
