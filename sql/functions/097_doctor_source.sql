-- What embed.doctor checks of each source.

-- One source. What cannot be looked at is a problem of its own and hides nothing else.
create or replace function embed._doctor_source(source embed.source) returns table (
    "check" text, state text, detail text, advice text
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $doctor$
declare
    t embed.source_state := (select x from embed.source_state x where x.source = _doctor_source.source.id);
    s record;
    unfit text;
    disabled text;
    enabling text;
    others bigint;
    largest bigint;
    built text;
    plan text;
    moved constant boolean := (
        select x.extnamespace is distinct from to_regnamespace(embed._vector_schema())
        from pg_extension x
        where x.extname = 'vector'
    );
begin
    perform set_config('lock_timeout', '100ms', true); -- as embed._status does; embed.doctor takes it back
    "check" := 'table';
    state := 'ok';
    detail := format('%s', source.columns);
    begin
        perform embed._check_structure(source);
        -- What is hidden from a role that only looks is no problem of a worker.
        unfit := coalesce(
            embed._obstacle(source), embed._foreign(source), embed._unlogged(source),
            case
                when pg_has_role((select c.relowner from pg_class c where c.oid = source.relation), 'usage')
                    or pg_has_role(coalesce(to_regrole('embed_worker'), current_user::regrole), 'usage')
                    then embed._hidden_rows(source)
            end
        );
        -- Such a sentence goes on with what to do.
        advice := substring(unfit from '; (.*)');
        unfit := substring(unfit from '^(.*?)(?:; |$)');
        if unfit is null and t.error is not null then
            unfit := split_part(t.error, E'\n', 1);
            advice := concat_ws(
                ' ', substring(t.error from '\nHINT:\s+([^\n]+)'),
                case
                    when unfit like 'an open transaction has locked%'
                        then 'select pg_terminate_backend(pid) ends it.'
                end,
                format(
                    'That is how the work of a worker on it ended (%s). Mend what it names; a worker that runs tries '
                    'again within a minute, and its log says more.',
                    date_trunc('second', t.error_at)
                )
            );
        end if;
    exception when others then
        get stacked diagnostics unfit = message_text, advice = pg_exception_hint;
    end;
    if unfit is not null then
        state := 'problem';
        detail := unfit;
        return next;
        return;
    end if;
    return next;

    "check" := 'triggers';
    -- Each by name: ALL would be the foreign keys', too, which only a superuser may.
    select string_agg(r.names || ' on ' || r.relation, ', '), string_agg(r.statement, ' ') into disabled, enabling
    from (
        select
            g.tgrelid::regclass::text as relation,
            string_agg(g.tgname, ', ' order by g.tgname) as names,
            format(
                'alter table %s %s;',
                g.tgrelid::regclass,
                string_agg(format('enable trigger %I', g.tgname), ', ' order by g.tgname)
            ) as statement
        from pg_trigger g
        where g.tgname ~ format('^embed_%s_(insert|update|delete|row|truncate)$', source.id)
        and g.tgenabled not in ('O', 'A')
        group by g.tgrelid
        order by g.tgrelid::regclass::text
    ) as r;
    select string_agg(m.trigger_name, ', ') into unfit from embed._missing_triggers(source) as m;
    state := case when disabled is null and unfit is null then 'ok' else 'problem' end;
    detail := coalesce('missing: ' || unfit, 'disabled: ' || disabled, 'present and enabled');
    advice := case
        when unfit is not null
            then 'A running worker puts them back within a minute, once no transaction holds the table.'
        when disabled is not null
            then format(
                'As the owner: %s then select embed.sweep(%L), which finds what was missed.',
                enabling,
                source.relation::text
            )
    end;
    return next;

    "check" := 'model';
    select m.name, m.dimensions into s from embed.model m where m.name = coalesce(source.model, embed.default_model());
    state := case when s.dimensions = source.dimensions then 'ok' else 'problem' end;
    detail := format('%s, %s dimensions', s.name, source.dimensions);
    if state <> 'ok' then
        detail := format('%s makes %s dimensions, the vectors have %s', s.name, s.dimensions, source.dimensions);
        advice := format(
            'Call embed.disable(%L, name => %L, drop_vectors => true) and enable the table again, or name a model '
            'that fits.',
            source.relation::text, source.name
        );
    elsif t.fingerprint is null then
        -- A model is loaded within minutes even where it is fetched first.
        state := case when exists (
            select from embed.worker w where 'passages' = any (w.lanes) and w.started_at > now() - interval '10 minutes'
        ) then 'warning' else 'problem' end;
        detail := detail || ', not loaded by any worker yet';
        advice := case state
            when 'warning' then 'A worker that started a moment ago may be at it; if not, its log says why.'
            else 'Start a worker; if one runs, its log says why the model cannot be loaded.'
        end;
    else
        detail := detail || coalesce(
            (
                select format(', %s on %s', f.notes ->> 'dtype', f.notes ->> 'device')
                    || coalesce(' (a batch: ' || (f.notes ->> 'times') || ')', '')
                from embed.fingerprint f
                where f.id = t.fingerprint and f.notes ? 'dtype'
            ),
            ''
        );
        advice := null;
    end if;
    return next;

    -- Of other dimensions, the server refuses to compare them.
    select d.name, d.dimensions into s from embed.model d where d.name = embed.default_model();
    if source.model <> s.name and source.dimensions = s.dimensions and not embed._is_standby(source.id) then
        "check" := 'questions';
        state := 'warning';
        detail := format('embed.query(…) without of gives vectors of %s, which cannot be compared with these', s.name);
        advice := format(
            'Wherever a statement compares vectors of %s, write embed.query(…, of => %L). embed.search does so by '
            'itself.',
            source.relation,
            (
                select case c.relname when source.name then c.oid::regclass::text else source.vectors::text end
                from pg_class c
                where c.oid = source.relation
            )
        );
        return next;
    end if;

    select * into s
    from embed._status(source, (select exists (select from embed.worker w where 'passages' = any (w.lanes))), false);

    "check" := 'queue';
    detail := case when s.rows is not null then format('%s of %s rows embedded, ', s.embedded, s.rows) else '' end
        || format('%s wait, the oldest for %s', s.pending, coalesce(date_trunc('second', s.oldest_wait)::text, '-'));
    state := case
        when s.state in ('stalled', 'no worker', 'error') and s.pending > 0 then 'problem'
        when source.paused then 'warning'
        else 'ok'
    end;
    advice := case
        when source.paused then format('It is paused: select embed.resume(%L).', source.relation::text)
        when state = 'ok' then null
        when s.state = 'no worker' then 'Start a worker: embedworker run.'
        when s.state = 'error' then 'The error of embed.status keeps it: see what the worker''s log says.'
        else 'Nothing has been embedded for minutes: see what the worker''s log says.'
    end;
    return next;

    "check" := 'dead rows';
    detail := s.dead::text;
    state := case when s.dead = 0 then 'ok' else 'problem' end;
    advice := case
        when s.dead > 0
            then format(
                'The view embed.failure says why; when that is mended, select embed.retry(%L).', source.relation::text
            )
    end;
    return next;

    if not embed._may_count(source) then
        "check" := 'vectors';
        detail := format(
            'not seen, because the role %s may not read %s', quote_ident(current_user), source.relation
        );
        state := 'skipped';
        advice := null;
        return next;
        return;
    end if;

    "check" := 'fingerprints';
    -- A large table by the counters of embed.status.
    if embed._is_small(source, 1000) then
        execute format(
            'select count(*) filter (where v.fingerprint <> $1), count(*) from %s v where v.chunk = 0', source.vectors
        )
        into others, largest using t.fingerprint;
    else
        select coalesce(sum(y.vectors) filter (where y.fingerprint <> t.fingerprint), 0), coalesce(sum(y.vectors), 0)
        into others, largest
        from embed.source_tally y
        where y.source = _doctor_source.source.id;
    end if;
    detail := case
        when others = 0 then 'all vectors are of one model'
        else format('vectors of %s of %s rows are of another model or revision', others, largest)
    end;
    state := case when others = 0 then 'ok' else 'warning' end;
    advice := case
        when others > 0 then
            'Search does not show those. A worker computes them again. If none does: select embed.sweep of the table.'
    end;
    return next;

    "check" := 'index';
    if largest <= 10000 then
        -- Rows may have several vectors, and no worker counts what was written by hand.
        execute format('select count(*) from (select from %s limit 20000) x', source.vectors) into largest;
    end if;
    built := coalesce(embed._index_state(source), 'none');
    detail := built;
    if built = 'invalid' then
        state := 'problem';
        advice := concat(
            'A build was broken off. A worker that owns the table builds it again within minutes. As the owner: '
            'set statement_timeout = 0; drop index concurrently '
                || (select x.index::regclass from embed._vector_indexes(source) as x where not x.valid limit 1) || ';',
            ' create index concurrently ' || embed._index_definition(source) || ';'
        );
    elsif built = 'none' and (largest > 10000 or t.index_state like 'failed%') then
        state := 'warning';
        detail := format('none for %s vectors: every search reads all of them', largest);
        if t.index_state like 'failed%' then
            state := 'problem';
            detail := format('%s; %s', detail, t.index_state);
        end if;
        advice := case
            when embed._index_definition(source) is null
                then format(
                    'An index holds at most 4,000 dimensions, and these have %s: use a model of fewer.',
                    source.dimensions
                )
            when exists (select from pg_class c where c.oid = source.relation and c.relkind = 'p')
                and source.into_column is not null
                then format(
                    'The server builds none beside writers on a partitioned table. As the owner, when writes can wait: '
                    'create index %s;',
                    embed._index_definition(source)
                )
            else format(
                'A worker that owns the table builds one by itself. As the owner: set statement_timeout = 0; '
                'set maintenance_work_mem = %L; create index concurrently %s;',
                embed._build_memory(source, largest),
                embed._index_definition(source)
            )
        end;
    elsif built = 'valid' and largest > 10000 and not moved then
        plan := embed._plan_of_search(source);
        state := case when plan like '%"Index Name"%' then 'ok' else 'warning' end;
        detail := case when state = 'ok' then 'valid and used' else 'valid, but the planner does not use it' end;
        advice := case when state <> 'ok' then 'See whether enable_indexscan is off, and analyze the table.' end;
    else
        state := 'ok';
        advice := null;
        detail := case built when 'none' then 'none needed for so few rows' else built end;
    end if;
    return next;

    return query select d.* from embed._doctor_size(source) as d;

    "check" := 'sweep';
    select w.phase, w.finished_at into s from embed.sweep_state w where w.source = _doctor_source.source.id;
    detail := case
        when s.finished_at is null then 'none finished yet'
        else format('last finished at %s', date_trunc('second', s.finished_at))
    end;
    state := case
        when coalesce(s.finished_at, source.created_at) < now() - interval '3 days' then 'warning'
        else 'ok'
    end;
    advice := case
        when state <> 'ok' then 'Workers sweep every night for what triggers cannot see: see why none did.'
    end;
    return next;
end
$doctor$;
