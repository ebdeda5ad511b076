-- What must hold before the names of two sources are exchanged, see embed.cut_over.

-- What the source that answers finds and the other would not. A row that was changed just now, and that the
-- other will embed in a moment, is not counted: where many write there is always one.
create or replace function embed._lacking(serving embed.source, other embed.source) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    words jsonb := embed._source_sql(serving);
    lacking bigint;
begin
    select words || jsonb_build_object(
        'other', other.vectors::text,
        'other_inbox', format('embed.inbox_%s', other.id),
        'other_queue', format('embed.queue_%s', other.id),
        'o_is_v', string_agg(format('o.%s %s v.%s', quote_ident(other.keys[x.place]), x.equal, x.vector_name), ' and ')
    )
    into words
    from embed._keys(serving) as x;
    execute embed._fill(
        $q$select count(*)
        from {vectors} v
        where v.chunk = 0 and v.fingerprint = $1
        and exists (select from {rows} s where {v_is_s})
        and not exists (select from {other} o where {o_is_v} and o.chunk = 0 and o.fingerprint = $2)
        and not (
            v.embedded_at > clock_timestamp() - interval '5 s'
            and (
                exists (select from {other_inbox} i where {i_is_v})
                or exists (select from {other_queue} q where {q_is_v} and q.due < 'infinity')
            )
        )$q$,
        words
    )
    into lacking
    using
        (select t.fingerprint from embed.source_state t where t.source = serving.id),
        (select t.fingerprint from embed.source_state t where t.source = other.id);
    return lacking;
end
$$;

-- Refuses a cut after which rows would be missing.
create or replace function embed._require_complete(serving embed.source, other embed.source) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    lacking bigint;
    reason text := case
        when (select t.fingerprint from embed.source_state t where t.source = other.id) is null
            then 'no worker has begun with it'
        when exists (select from embed.sweep_request r where r.source = other.id)
            or not exists (select from embed.sweep_state x where x.source = other.id and x.phase = 'done')
            then 'the sweep that fills it is not over'
    end;
begin
    if reason is null then
        lacking := embed._lacking(serving, other);
        if lacking = 0 then
            return;
        end if;
        reason := format('it lacks %s rows that are found now', lacking);
    end if;
    raise exception 'the vectors of % by % are not complete: %', serving.relation,
        quote_literal(coalesce(other.model, embed.default_model())), reason
        using errcode = 'EW010',
        hint = 'Wait until embed.switch says ready; embed.failure shows rows that cannot be embedded. force => true '
        'goes on without them.';
end
$$;

-- Refuses a cut to what was judged to be worse. The bound is that of 95 in 100.
create or replace function embed._require_judgement(judgement jsonb) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    tolerated constant text := coalesce(nullif(current_setting('embed.switch_tolerance', true), ''), '0.01');
    lower_bound constant numeric := (judgement ->> 'lower')::numeric;
begin
    if tolerated !~ '^[0-9]+(\.[0-9]+)?$' then
        raise exception 'embed.switch_tolerance is %; expected a number from 0 on', quote_literal(tolerated)
            using errcode = 'EW003', hint = 'It is how much nDCG may be lost: set embed.switch_tolerance = ''0.01''.';
    end if;
    if lower_bound < - tolerated::numeric then
        raise exception 'the other model may be worse by % nDCG@10, and % are allowed', round(- lower_bound, 4),
            tolerated
            using errcode = 'EW010',
            detail = format(
                'Over %s questions the difference was %s, with a margin of %s.',
                judgement ->> 'questions', to_char((judgement ->> 'difference')::numeric, 'SG0.0000'),
                round((judgement ->> 'difference')::numeric - lower_bound, 4)
            ),
            hint = 'Judge with more questions, allow more with embed.switch_tolerance, or call with force => true.';
    end if;
end
$$;

-- Refuses while something of the application's is bound to one of the tables, or of the columns: a view, a function
-- with a parsed body, a policy, a foreign key, a publication. They bind the table and not its name, so they would go on
-- with the vectors that no longer answer.
drop function if exists embed._require_no_views(embed.source, embed.source);
create or replace function embed._require_unbound(a embed.source, b embed.source) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    what constant text := coalesce(
        'the column ' || quote_ident(a.into_column) || format(' of %s', a.relation), format('the table %s', a.vectors)
    );
    tables constant oid[] := case when a.into_attnum is null then array[a.vectors, b.vectors]
        else array[a.relation]::oid[] end;
    bound constant text := (
        select string_agg(
            distinct coalesce('view ' || r.ev_class::regclass, pg_describe_object(d.classid, d.objid, 0)), ', '
        )
        from pg_depend d
        left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
        left join pg_policy p on d.classid = 'pg_policy'::regclass and p.oid = d.objid
        left join pg_constraint k on d.classid = 'pg_constraint'::regclass and k.oid = d.objid
        where d.refclassid = 'pg_class'::regclass and d.refobjid = any (tables)
        and (a.into_attnum is null or d.refobjsubid in (a.into_attnum, b.into_attnum))
        and (
            r.ev_class <> all (tables)
            or p.polrelid <> all (tables)
            or k.contype = 'f' and k.conrelid <> all (tables)
            or d.classid in ('pg_proc'::regclass, 'pg_publication_rel'::regclass)
        )
    );
begin
    if bound is not null then
        raise exception 'bound to %: %', what, bound
            using errcode = 'EW010',
            detail =
                'These bind a table or column, not its name: after the cut they would read vectors of the other model.',
            hint = 'In one transaction: drop them, call this, and create them again.';
    end if;
end
$$;
