-- embed.enable and its reverse.

-- The key by which rows are known: the primary key, or else the smallest usable unique index.
create or replace function embed._key_attnums(relation regclass, wanted text[]) returns smallint[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    found_key smallint[];
begin
    select array(select x.attnum from unnest(i.indkey::smallint[]) with ordinality as x (attnum, place)
                 where x.place <= i.indnkeyatts order by x.place)
    into found_key
    from pg_index i
    where i.indrelid = relation
    and i.indisunique and i.indimmediate and i.indisvalid
    and i.indpred is null and i.indexprs is null
    and not exists (
        select from unnest(i.indkey::smallint[]) with ordinality as x (attnum, place)
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = x.attnum
        where x.place <= i.indnkeyatts and not a.attnotnull
    )
    and (
        wanted is null
        or (
            select array_agg(a.attname::text order by a.attname::text collate "C")
            from pg_attribute a
            where a.attrelid = i.indrelid
            and a.attnum = any ((i.indkey::smallint[])[0:i.indnkeyatts - 1])
        ) = array(select w from unnest(wanted) as w order by w collate "C")
    )
    order by i.indisprimary desc, i.indnkeyatts, i.indexrelid
    limit 1;
    if found_key is null then
        raise exception 'table % has no usable key%', relation, coalesce(' ' || wanted::text, '')
            using errcode = 'EW003',
            detail = 'Rows must be known by a primary key, or by a unique index whose columns are all not null (not partial, not on an expression, not deferrable).',
            hint = case
                when wanted is null then format('Add one: alter table %s add primary key (…);', relation)
                else 'Leave the key out to take the primary key, or make these columns unique and not null.'
            end;
    end if;
    return found_key;
end
$$;

-- pg_get_viewdef, with every name qualified that is not of the system.
create or replace function embed._definition(view regclass) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return pg_get_viewdef(view);

-- What makes a filter known to the server as the view embed_probe_rows, over an empty copy of the
-- table: the table itself would have to be locked for the renaming that follows.
create or replace function embed._probe_sql(relation regclass, filter text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select format(
        'create temporary table embed_probe (like %s); create temporary view embed_probe_rows as select 1 as one from pg_temp.embed_probe as %I where (%s)',
        relation, c.relname, filter
    )
    from pg_class c
    where c.oid = relation
);

-- Not with a search_path of its own: the filter was written for the caller's.
create or replace function embed._probe_filter(relation regclass, filter text) returns void
language plpgsql
as $$
declare
    one_statement refcursor;
begin
    if filter is null then
        return;
    end if;
    -- A cursor takes no more than one statement, so the filter cannot go on with another; and it cannot
    -- be a union, of no columns here and of one in the view.
    open one_statement for execute pg_catalog.format('select from %s where (%s)', relation, filter);
    close one_statement;
    execute embed._probe_sql(relation, filter);
exception when others then
    raise exception 'filter % is not a condition over the columns of %: %', pg_catalog.quote_literal(filter), relation, sqlerrm
        using errcode = 'EW003', hint = 'Give a condition over columns of the table, as in WHERE, for example: published and lang = ''ko''.';
end
$$;

-- The probed filter as PostgreSQL understands it: names of functions and operators qualified, columns
-- as "{3}", the third of the table, so that neither search_path nor a rename changes what it means.
create or replace function embed._read_filter(relation regclass, filter text, out stored text, out attnums smallint[])
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    probe constant regclass := to_regclass('pg_temp.embed_probe');
    rows constant regclass := to_regclass('pg_temp.embed_probe_rows');
    wrong constant text := 'Give a condition over columns of the table, as in WHERE, for example: published and lang = ''ko''.';
    col record;
begin
    attnums := '{}';
    if filter is null then
        return;
    end if;
    stored := (select r.ev_action::text from pg_rewrite r where r.ev_class = rows);
    if stored like '%:hasSubLinks true%' then
        raise exception 'filter % asks more than the row itself', quote_literal(filter)
            using errcode = 'EW003',
            detail = 'A change of other rows or tables would go unnoticed.',
            hint = wrong;
    end if;
    -- A view records which columns it reads and follows their names; nothing else in the server does.
    for col in
        select distinct p.attname, a.attnum
        from pg_rewrite r
        join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
            and d.refclassid = 'pg_class'::regclass and d.refobjid = probe
        join pg_attribute p on p.attrelid = d.refobjid and p.attnum = d.refobjsubid and p.attnum > 0
        join pg_attribute a on a.attrelid = relation and a.attname = p.attname
        where r.ev_class = rows
    loop
        attnums := attnums || col.attnum;
        execute format('alter table pg_temp.embed_probe rename column %I to %I', col.attname, format('{%s}', col.attnum));
    end loop;
    stored := substring(pg_get_viewdef(rows) from '^.*?\n  WHERE (.*);$');
    drop view pg_temp.embed_probe_rows;
    drop table pg_temp.embed_probe;
    if cardinality(attnums) = 0
        or strpos(stored, format('%I.*', (select c.relname from pg_class c where c.oid = relation))) > 0
    then
        raise exception 'filter % names no column of %', quote_literal(filter), relation
            using errcode = 'EW003', hint = wrong;
    end if;
end
$$;

-- Columns of a table as text that declares them again: "k1 bigint, k2 text collate …". Without
-- length limits, which the table may widen later, and without domains: a CHECK that a domain gets
-- would run as whoever puts a key in, and where it raises nothing of the key could be written.
create or replace function embed._declared(relation regclass, attnums smallint[], names text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select string_agg(
        format('%I %s', names[k.place], format_type(t.oid, -1))
            || coalesce(
                (
                    select format(' collate %I.%I', n.nspname, c.collname)
                    from pg_collation c join pg_namespace n on n.oid = c.collnamespace
                    where c.oid = a.attcollation and a.attcollation <> t.typcollation
                ),
                ''
            ),
        ', ' order by k.place
    )
    from unnest(attnums) with ordinality as k (attnum, place)
    join pg_attribute a on a.attrelid = relation and a.attnum = k.attnum
    join pg_type t on t.oid = embed._base_type(a.atttypid)
);

-- A virtual generated column has no value of its own in a trigger; what it is computed from has.
create or replace function embed._stored_attnums(relation regclass, attnums smallint[]) returns smallint[]
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select array_agg(distinct coalesce(d.refobjsubid, a.attnum)::smallint)
    from pg_attribute a
    left join pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum and a.attgenerated::text = 'v'
    left join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid
        and d.refclassid = 'pg_class'::regclass and d.refobjid = relation and d.refobjsubid > 0
        and d.refobjsubid <> a.attnum
    where a.attrelid = relation and a.attnum = any (attnums)
);

create or replace function embed.default_model() returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (select value from embed.setting where name = 'default_model');

comment on function embed.default_model() is 'The model used where none is named.';

-- A name of at most 63 bytes, cut between characters.
create or replace function embed._bounded_name(base text, suffix text) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    while octet_length(base) + octet_length(suffix) > 63 loop
        base := left(base, -1);
    end loop;
    return base || suffix;
end
$$;

create or replace function embed.enable(
    relation regclass,
    columns text[],
    name text default null,
    model text default null,
    template text default null,
    into_column text default null,
    chunk boolean default true,
    filter text default null,
    key text[] default null
) returns regclass
language plpgsql
as $$
begin
    perform embed._probe_filter(relation, filter);
    return embed._enable(relation, columns, name, model, template, into_column, chunk, filter, key);
end
$$;

comment on function embed.enable(regclass, text[], text, text, text, text, boolean, text, text[]) is
    'Makes a table searchable by the meaning of the given text columns; returns the table that holds the vectors.';

create or replace function embed._enable(
    relation regclass, columns text[], name text, model text, template text, into_column text, chunk boolean, filter text, key text[]
) returns regclass
language plpgsql
set search_path = pg_catalog, pg_temp
as $enable$
declare
    -- Parameters share their names with columns of embed.source.
    a_relation constant regclass := relation;
    a_name constant text := coalesce(_enable.name, (select c.relname from pg_class c where c.oid = a_relation));
    a_model embed.model;
    old embed.source;
    new embed.source;
    class record;
    bad record;
    vector_schema text := (select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector');
    found_dims integer;
    k_columns text;
    k_list text;
    persistence text;
begin
    select c.relkind, c.relpersistence, c.relname, n.nspname into class
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = a_relation;

    -- What is asked for must make sense before anything is touched.
    if class.relkind not in ('r', 'p') then
        raise exception '% is not a table', a_relation
            using errcode = 'EW003',
            detail = 'Changes are captured by triggers, which views, materialised views and foreign tables do not have.',
            hint = 'Enable the table that holds the text.';
    end if;
    if class.relpersistence = 't' then
        raise exception '% is a temporary table, which no worker can see', a_relation
            using errcode = 'EW003', hint = 'Use an ordinary table.';
    end if;
    if class.nspname in ('pg_catalog', 'information_schema') or (class.nspname = 'embed' and class.relname <> 'document') then
        raise exception '% belongs to the system', a_relation
            using errcode = 'EW003', hint = 'Enable a table of your own.';
    end if;
    if coalesce(cardinality(columns), 0) = 0 then
        raise exception 'no columns were given for %', a_relation
            using errcode = 'EW003', hint = 'Name the text columns: embed.enable(''article'', array[''title'', ''content'']).';
    end if;

    if btrim(a_name) = '' then
        raise exception 'the name is blank'
            using errcode = 'EW003', hint = 'Leave name out, or say what this set of vectors is for.';
    end if;
    if chunk is null then
        raise exception 'chunk is null'
            using errcode = 'EW003', hint = 'Leave it out, or give false for one vector a row however long its text.';
    end if;

    select c.name, a.attnum, format_type(a.atttypid, a.atttypmod) as type_name
    into bad
    from unnest(columns) as c (name)
    left join pg_attribute a
        on a.attrelid = a_relation and a.attname = c.name and a.attnum > 0 and not a.attisdropped
    left join pg_type b on b.oid = embed._base_type(a.atttypid)
    where a.attnum is null or b.typcategory <> 'S'
    limit 1;
    if found then
        if bad.attnum is null then
            raise exception 'table % has no column %', a_relation, quote_ident(coalesce(bad.name, 'NULL'))
                using errcode = '42703',
                hint = 'Its text columns: ' || coalesce((
                    select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
                    from pg_attribute a join pg_type t on t.oid = a.atttypid
                    where a.attrelid = a_relation and a.attnum > 0 and not a.attisdropped and t.typcategory = 'S'
                ), 'none') || '.';
        end if;
        raise exception 'column % of % is of type %, expected a text type', quote_ident(bad.name), a_relation, bad.type_name
            using errcode = 'EW003',
            hint = 'Enable text, varchar, char or citext columns; for others add a generated text column.';
    end if;
    if (select count(distinct c) from unnest(columns) as c) <> cardinality(columns) then
        raise exception 'a column is named twice in %', columns using errcode = 'EW003', hint = 'Name every column once.';
    end if;

    select * into a_model from embed.model m where m.name = coalesce(_enable.model, embed.default_model());
    if not found then
        raise exception 'model % is not known', quote_literal(coalesce(_enable.model, embed.default_model()))
            using errcode = 'EW003',
            detail = 'Known: ' || (select string_agg(m.name, ', ' order by m.name) from embed.model m) || '.',
            hint = 'Add another with embed.add_model(name, dimensions, max_tokens, query_prefix, passage_prefix, pooling).';
    end if;

    -- One enable at a time, and the table stands still while it is looked at.
    perform pg_advisory_xact_lock(1701667428, 2);

    new.relation := a_relation;
    new.relation_oid := a_relation;
    new.name := a_name;
    new.columns := columns;
    new.column_attnums := array(
        select a.attnum
        from unnest(columns) with ordinality as c (name, place)
        join pg_attribute a on a.attrelid = a_relation and a.attname = c.name
        order by c.place
    );
    new.key_attnums := embed._key_attnums(a_relation, key);
    select array_agg(a.attname::text order by k.place),
        array_agg(format_type(embed._base_type(a.atttypid), -1) order by k.place)
    into new.keys, new.key_types
    from unnest(new.key_attnums) with ordinality as k (attnum, place)
    join pg_attribute a on a.attrelid = a_relation and a.attnum = k.attnum;
    select format('%I', a.attname) as name, format_type(a.atttypid, a.atttypmod) as type_name,
        case t.typcategory when 'A' then 'array type' when 'C' then 'composite type' else 'domain' end as kind,
        case when t.typcategory in ('A', 'C') then '' else format(' over %s', format_type(t.oid, null)) end as more
    into bad
    from unnest(new.key_attnums) as k (attnum)
    join pg_attribute a on a.attrelid = a_relation and a.attnum = k.attnum
    join pg_type t on t.oid = embed._base_type(a.atttypid)
    where t.typcategory in ('A', 'C')
    -- Whose operators want two of the very same type, and the domain is another.
    or t.typtype in ('e', 'r', 'm') and t.oid <> a.atttypid;
    if found then
        raise exception 'the key column % of % is of the % %', bad.name, a_relation, bad.kind, bad.type_name || bad.more
            using errcode = 'EW003', hint = 'Give another unique key with key => …, or add one of a plain type.';
    end if;
    new.template := embed._template_normalise(template, columns);
    select f.stored, new.column_attnums || f.attnums into new.filter, new.watch_attnums
    from embed._read_filter(a_relation, filter) as f;
    new.watch_attnums := embed._stored_attnums(a_relation, new.watch_attnums);
    new.chunk := chunk and into_column is null;
    new.model := _enable.model;
    new.dimensions := a_model.dimensions;
    new.into_column := into_column;

    if into_column is not null then
        select a.attnum, a.atttypmod into new.into_attnum, found_dims
        from pg_attribute a
        join pg_type t on t.oid = a.atttypid
        where a.attrelid = a_relation and a.attname = into_column and not a.attisdropped
        and t.typname = 'vector' and a.attnotnull = false;
        if not found then
            raise exception 'table % has no nullable column % of type vector(%)', a_relation, quote_ident(into_column), a_model.dimensions
                using errcode = 'EW003',
                hint = format('Add it: alter table %s add column %I %I.vector(%s);', a_relation, into_column, vector_schema, a_model.dimensions);
        end if;
        if found_dims <> a_model.dimensions then
            raise exception 'column % of % has % dimensions, but model % makes %', quote_ident(into_column), a_relation, found_dims, a_model.name, a_model.dimensions
                using errcode = 'EW005', hint = 'Use a column of the model''s dimensions, or another model.';
        end if;
    end if;

    -- A table that was dropped and made again: its vectors can be used for the new one.
    perform embed._forget(s, drop_vectors => false)
    from embed.source s
    where s.vectors = to_regclass(format('%I.%I', class.nspname, embed._bounded_name(a_name, '_embedding')))
    and not exists (select from pg_class c where c.oid = s.relation);

    select * into old from embed.source s where s.relation = a_relation and s.name = a_name;
    if found and old.relation_oid <> old.relation then
        perform embed._refresh(old.id);
        select * into old from embed.source s where s.id = old.id;
    end if;
    if old.id is not null then
        if (old.into_column is null) <> (into_column is null) or old.into_column <> into_column
            or (old.key_attnums, old.key_types) is distinct from (new.key_attnums, new.key_types)
        then
            raise exception '% is enabled already, with another %', a_relation,
                case when (old.key_attnums, old.key_types) is distinct from (new.key_attnums, new.key_types) then 'key'
                    else 'place for its vectors' end
                using errcode = 'EW003', hint = format('Call embed.disable(%L, drop_vectors => true) first.', a_relation::text);
        end if;
        if old.chunk <> new.chunk then
            raise exception '% is enabled already, with chunk => %', a_relation, old.chunk
                using errcode = 'EW003',
                detail = 'Which of its vectors would have to be made anew is not known.',
                hint = format('Call embed.disable(%L, drop_vectors => true) first.', a_relation::text);
        end if;
        if old.dimensions <> new.dimensions then
            raise exception 'vectors of % have % dimensions, but model % makes %', a_relation, old.dimensions, a_model.name, new.dimensions
                using errcode = 'EW005',
                hint = format('Call embed.disable(%L, drop_vectors => true) first, then enable it with the new model.', a_relation::text);
        end if;
        if (old.columns, old.column_attnums, old.watch_attnums, old.template, old.filter, old.model)
            is not distinct from
            (new.columns, new.column_attnums, new.watch_attnums, new.template, new.filter, new.model)
            and exists (select from pg_class c where c.oid = old.vectors)
            and not exists (select from embed._missing_triggers(old))
        then
            return case when into_column is null then old.vectors else a_relation end;
        end if;
        update embed.source s
        set columns = new.columns, column_attnums = new.column_attnums, watch_attnums = new.watch_attnums,
            template = new.template, filter = new.filter, model = new.model,
            vectors = case when exists (select from pg_class c where c.oid = old.vectors) then old.vectors
                else embed._make_vectors(old) end,
            version = nextval('embed.seq')
        where s.id = old.id
        returning * into new;
        perform embed._write_capture(new);
        perform embed._attach_capture(new);
        perform embed._guard_vectors(new);
        perform embed._grant_worker(new);
        insert into embed.sweep_request (source, reason) values (new.id, 'enabled anew');
        perform embed.wake();
        return case when into_column is null then new.vectors else a_relation end;
    end if;

    if new.keys && array['chunk', 'passage_start', 'passage_end', 'truncated', 'embedding', 'terms', 'fingerprint', 'hash', 'checksum', 'seq', 'embedded_at'] then
        raise exception 'a key column of % has the name of a column of its vector table', a_relation
            using errcode = 'EW003',
            detail = 'Taken: chunk, passage_start, passage_end, truncated, embedding, terms, fingerprint, hash, checksum, seq, embedded_at.',
            hint = 'Give another unique key with key => …, or rename the column.';
    end if;
    select string_agg('k' || k.place, ', ' order by k.place),
        embed._declared(a_relation, new.key_attnums, array_agg('k' || k.place order by k.place))
    into k_list, k_columns
    from unnest(new.key_attnums) with ordinality as k (attnum, place);
    persistence := case class.relpersistence when 'u' then 'unlogged' else '' end;

    insert into embed.source (name, relation, relation_oid, vectors, keys, key_attnums, key_types, columns, column_attnums,
        watch_attnums, template, filter, into_column, into_attnum, chunk, model, dimensions)
    values (new.name, new.relation, new.relation_oid, new.relation, new.keys, new.key_attnums, new.key_types, new.columns,
        new.column_attnums, new.watch_attnums, new.template, new.filter, new.into_column, new.into_attnum, new.chunk,
        new.model, new.dimensions)
    returning * into new;
    insert into embed.source_state (source) values (new.id);

    -- The application appends here and does nothing else: no unique key to conflict on, so no wait
    -- for anybody and no serialisation failure at any isolation level. No index at all, which made
    -- the triggers of a COPY of 100,000 rows half as dear again; workers read it in the order of its
    -- pages. Deleting is allowed to a table without a key only with this identity, where a
    -- publication holds all tables.
    execute format(
        'create %s table embed.inbox_%s (%s, priority smallint not null default 0, at timestamptz not null default now())
         with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000)',
        persistence, new.id, k_columns
    );
    execute format('alter table embed.inbox_%s replica identity full', new.id);
    -- due is lease, back-off and dead letter (infinity) in one; priority 0 is a fresh change, 11
    -- to 19 an attempt that did not end, 20 a backfill.
    execute format(
        'create %s table embed.queue_%s (%s, seq bigint not null, due timestamptz not null default now(), attempts smallint not null default 0,
            priority smallint not null default 0, claimed_by integer, error text, since timestamptz not null default now(), primary key (%s))
         with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0)',
        persistence, new.id, k_columns, k_list
    );
    execute format('create index on embed.queue_%1$s (priority, due) where due < ''infinity''', new.id);
    -- Serves the count and the list of dead rows; rows that are not have no part in it.
    execute format('create index on embed.queue_%1$s (since) where due = ''infinity''', new.id);

    update embed.source s set vectors = embed._make_vectors(new) where s.id = new.id returning * into new;
    perform embed._write_capture(new);
    perform embed._attach_capture(new);
    perform embed._guard_vectors(new);
    perform embed._grant_worker(new);
    update embed.source_state t set structure = embed._structure(new) where t.source = new.id;
    insert into embed.sweep_request (source, reason) values (new.id, 'enabled');
    perform embed.wake();
    return case when into_column is null then new.vectors else a_relation end;
end
$enable$;


-- Makes the table of the vectors, or takes one that is left from an earlier registration.
create or replace function embed._make_vectors(source embed.source) returns regclass
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    vector_schema text := (select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector');
    class record;
    vectors text;
begin
    select c.relpersistence, n.nspname into class
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = source.relation;
    vectors := case when source.into_column is null
        then format('%I.%I', class.nspname, embed._bounded_name(source.name, '_embedding'))
        else format('embed.state_%s', source.id) end;
    if to_regclass(vectors) is not null then
        -- Its vectors are used where their text has not changed.
        perform embed._check_adoptable(to_regclass(vectors), source);
        return to_regclass(vectors);
    end if;
    execute format(
        'create %s table %s (%s, chunk integer not null default 0, passage_start integer not null, passage_end integer not null,
            truncated boolean not null default false, %s terms @extschema:vector@.sparsevec(16777216),
            fingerprint integer not null, hash bytea not null, checksum bytea not null, seq bigint not null,
            embedded_at timestamptz not null default now(), primary key (%s, chunk))',
        case class.relpersistence when 'u' then 'unlogged' else '' end, vectors,
        embed._declared(source.relation, source.key_attnums, source.keys),
        case when source.into_column is null then format('embedding %I.vector(%s) not null,', vector_schema, source.dimensions) else '' end,
        embed._each('%1$I', source.keys, ', ')
    );
    execute format(
        'comment on table %s is %L', vectors,
        format('Vectors of %s, kept by embedworker; a row without its source row is on its way out.', source.relation)
    );
    return vectors::regclass;
end
$$;

create or replace function embed._check_adoptable(vectors regclass, source embed.source) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    wanted text[] := array(
        select format('%s %s', source.keys[i], source.key_types[i]) from generate_subscripts(source.keys, 1) as i
    ) || array['chunk integer', 'passage_start integer', 'passage_end integer', 'truncated boolean']
      || case when source.into_column is null then array['embedding vector'] else '{}' end
      || array['terms sparsevec', 'fingerprint integer', 'hash bytea', 'checksum bytea', 'seq bigint', 'embedded_at timestamp with time zone'];
    present text[] := array(
        select format('%s %s', a.attname, case when t.typname in ('vector', 'sparsevec') then t.typname::text else format_type(a.atttypid, -1) end)
        from pg_attribute a join pg_type t on t.oid = a.atttypid
        where a.attrelid = vectors and a.attnum > 0 and not a.attisdropped
    );
    dims integer := (select a.atttypmod from pg_attribute a where a.attrelid = vectors and a.attname = 'embedding');
    lacks text := (
        select string_agg(w, ', ') from unnest(wanted) as w where w <> all (present)
    );
begin
    if lacks is null and not exists (select from pg_class c where c.oid = vectors and c.relkind = 'r') then
        lacks := 'being a table';
    elsif lacks is null and not exists (
        select
        from pg_index i
        where i.indrelid = vectors and i.indisunique and i.indimmediate and i.indisvalid and i.indpred is null
        and array(
            select a.attname::text from pg_attribute a where a.attrelid = vectors and a.attnum = any (i.indkey) order by a.attname
        ) = array(select k::name::text from unnest(source.keys || array['chunk']) as k order by k::name)
    ) then
        lacks := format('a unique key (%s, chunk)', embed._each('%1$I', source.keys, ', '));
    end if;
    if lacks is not null then
        raise exception 'table % exists and is not a vector table of %', vectors, source.relation
            using errcode = '42P07',
            detail = format('Missing: %s.', lacks),
            hint = 'Rename it, or call embed.enable with another name => ….';
    end if;
    if source.into_column is null and dims <> source.dimensions then
        raise exception 'vectors in % have % dimensions, but the model makes %', vectors, dims, source.dimensions
            using errcode = 'EW005', hint = 'Drop or rename that table, or enable with a model of its dimensions.';
    end if;
    -- Its owner could have put a trigger on it, which would run as the worker, and reads past row
    -- security. So it must be of somebody who could do that anyhow.
    if not exists (
        select
        from pg_class c
        join pg_roles o on o.oid = c.relowner
        where c.oid = vectors
        and (
            o.rolsuper
            or o.rolname = current_user
            or o.oid = (select r.relowner from pg_class r where r.oid = source.relation)
            or o.oid = (select n.nspowner from pg_namespace n where n.nspname = 'embed')
        )
    ) then
        raise exception 'table % exists and belongs to somebody else', vectors
            using errcode = '42501',
            detail = format('Its owner is %s, that of %s another.', (select c.relowner::regrole from pg_class c where c.oid = vectors), source.relation),
            hint = 'Give it to the owner of the table with ALTER TABLE … OWNER TO if its triggers and vectors can be trusted, or drop or rename it.';
    end if;
    if exists (select from embed.source s where s.vectors = _check_adoptable.vectors and s.id <> source.id) then
        raise exception 'table % holds the vectors of another source', vectors
            using errcode = '42P07', hint = 'Call embed.enable with another name => ….';
    end if;
end
$$;

-- Whoever may read the text of a row may read its vector, and no other: everybody is granted SELECT,
-- and a policy asks the source, so that what is granted, revoked or restricted there later counts
-- here, too. (The vectors, and the terms even more, tell what a text says.)
--
-- It asks through functions whose bodies no catalog knows: a policy that names the table would forbid
-- its owner to drop the table or a column. open is asked once a statement: a reader of the texts whom
-- no row security stops may see all. Asked row by row, visible took 9 us a vector. It reads the text
-- columns and not only the key, so that a role without the right to them is refused.
-- A worker does not wait for the lock.
create or replace function embed._guard_vectors(source embed.source, wait boolean default true) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    guarded boolean := exists (
        select
        from pg_class c join pg_policy p on p.polrelid = c.oid and p.polname = 'embed_source'
        where c.oid = source.vectors and c.relrowsecurity
    );
    -- A worker that is not the owner (090_roles.sql) must see and write all of them.
    open_to_worker boolean := to_regrole('embed_worker') is null or exists (
        select from pg_policy p where p.polrelid = source.vectors and p.polname = 'embed_worker'
    );
    readable text := (
        select string_agg(
            format('pg_catalog.has_column_privilege(t, %s::smallint, ''select'')', c.attnum), ' and ' order by c.place
        )
        from unnest(source.column_attnums) with ordinality as c (attnum, place)
    );
begin
    if not wait and not (guarded and open_to_worker) then
        execute format('lock table %s in access exclusive mode nowait', source.vectors);
    end if;
    execute format(
        'create or replace function embed.source_%s_open() returns boolean language plpgsql stable as %L',
        source.id,
        -- By the number only where the name is gone: a dump that is restored has other numbers.
        format(
            'declare t constant oid := coalesce(pg_catalog.to_regclass(%L), %s); begin return not pg_catalog.row_security_active(t) and %s; end',
            source.relation::text, source.relation::oid, readable
        )
    );
    execute format(
        'create or replace function embed.source_%s_visible(%s) returns boolean language plpgsql stable as %L',
        source.id,
        -- Not as _declared has them: a parameter has no collation of its own, but that of the argument.
        (
            select string_agg(format('%s %s', x.queue_name, x.type_name), ', ' order by x.place) from embed._keys(source) as x
        ),
        format(
            'begin return exists (select %s from %s s where %s); end',
            (select string_agg(format('s.%I', embed._column_name(source.relation, c.attnum)), ', ') from unnest(source.column_attnums) as c (attnum)),
            source.relation,
            (select string_agg(format('s.%s %s $%s', x.row_name, x.equal, x.place), ' and ') from embed._keys(source) as x)
        )
    );
    if not guarded then
        execute format('alter table %s enable row level security', source.vectors);
        if exists (select from pg_policy p where p.polrelid = source.vectors and p.polname = 'embed_source') then
            execute format('drop policy embed_source on %s', source.vectors);
        end if;
        execute format(
            'create policy embed_source on %s for select using ((select embed.source_%s_open()) or embed.source_%2$s_visible(%s))',
            source.vectors, source.id, embed._each('%1$I', source.keys, ', ')
        );
        execute format('grant select on %s to public', source.vectors);
    end if;
    if not open_to_worker then
        execute format('create policy embed_worker on %s to embed_worker using (true) with check (true)', source.vectors);
    end if;
end
$$;

-- Takes everything of a source out, but the column that into_column named.
create or replace function embed._forget(source embed.source, drop_vectors boolean) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform embed._drop_capture(source.id);
    execute format('drop table if exists embed.inbox_%1$s, embed.queue_%1$s', source.id);
    delete from embed.sweep_request r where r.source = source.id;
    delete from embed.lexical_term t where t.source = source.id;
    delete from embed.source x where x.id = source.id;
    if (drop_vectors or source.into_column is not null) and exists (select from pg_class c where c.oid = source.vectors) then
        execute format('drop table %s', source.vectors);
    end if;
end
$$;

create or replace function embed.disable(relation regclass, drop_vectors boolean default false, name text default null) returns void
language plpgsql
as $$
declare
    s embed.source;
    any_found boolean := false;
begin
    perform pg_catalog.pg_advisory_xact_lock(1701667428, 2);
    for s in
        select * from embed.source x
        where x.relation = disable.relation and (disable.name is null or x.name = disable.name)
    loop
        any_found := true;
        perform embed._forget(s, drop_vectors);
        if drop_vectors and embed._column_name(relation, s.into_attnum) is not null then
            execute format('update %s set %I = null where %2$I is not null', relation, embed._column_name(relation, s.into_attnum));
        end if;
    end loop;
    if not any_found then
        raise exception '% is not enabled%', relation, coalesce(' under the name ' || quote_literal(disable.name), '')
            using errcode = 'EW002', hint = 'See the view embed.status for what is.';
    end if;
    perform embed.wake();
end
$$;

comment on function embed.disable(regclass, boolean, text) is
    'Stops keeping vectors of a table; the vectors stay unless drop_vectors is true.';

create or replace function embed.pause(relation regclass) returns void
language plpgsql
as $$
begin
    update embed.source s set paused = true, version = nextval('embed.seq') where s.relation = pause.relation;
    if not found then
        raise exception '% is not enabled', relation using errcode = 'EW002', hint = 'See the view embed.status for what is.';
    end if;
    perform embed.wake();
end
$$;

comment on function embed.pause(regclass) is 'Changes are still captured, but not worked on until embed.resume.';

create or replace function embed.resume(relation regclass) returns void
language plpgsql
as $$
begin
    update embed.source s set paused = false, version = nextval('embed.seq') where s.relation = resume.relation;
    if not found then
        raise exception '% is not enabled', relation using errcode = 'EW002', hint = 'See the view embed.status for what is.';
    end if;
    perform embed.wake();
end
$$;

comment on function embed.resume(regclass) is 'Takes a paused table up again.';

create or replace function embed.add_model(
    name text, dimensions integer, max_tokens integer default 512,
    query_prefix text default '', passage_prefix text default '', pooling text default 'mean'
) returns void
language plpgsql
as $$
begin
    if coalesce(btrim(add_model.name), '') = '' then
        raise exception 'the name of the model is blank'
            using errcode = 'EW003', hint = 'Give a name of the hub (owner/model) or a folder of the worker''s machine.';
    end if;
    if add_model.dimensions is null or add_model.dimensions not between 1 and 16000 then
        raise exception 'dimensions is %, expected 1 to 16000', coalesce(add_model.dimensions::text, 'null')
            using errcode = 'EW003', hint = 'Give the length of the model''s vectors, hidden_size in its config.json.';
    end if;
    if add_model.max_tokens is null or add_model.max_tokens < 1 then
        raise exception 'max_tokens is %, expected 1 or more', coalesce(add_model.max_tokens::text, 'null')
            using errcode = 'EW003', hint = 'Give the length of the model''s window, or leave it out for 512.';
    end if;
    if add_model.query_prefix is null or add_model.passage_prefix is null then
        raise exception 'a prefix is null'
            using errcode = 'EW003', hint = 'Leave out what the model does not want.';
    end if;
    if add_model.pooling is null or add_model.pooling not in ('mean', 'cls', 'max', 'lasttoken') then
        raise exception 'pooling % is not known', quote_nullable(add_model.pooling)
            using errcode = 'EW003', hint = 'Give mean, cls, max or lasttoken, as the model''s 1_Pooling/config.json says.';
    end if;
    insert into embed.model (name, dimensions, max_tokens, query_prefix, passage_prefix, pooling)
    values (add_model.name, add_model.dimensions, add_model.max_tokens, add_model.query_prefix, add_model.passage_prefix, add_model.pooling)
    on conflict on constraint model_pkey do update
    set dimensions = excluded.dimensions, max_tokens = excluded.max_tokens, query_prefix = excluded.query_prefix,
        passage_prefix = excluded.passage_prefix, pooling = excluded.pooling;
end
$$;

comment on function embed.add_model(text, integer, integer, text, text, text) is
    'Makes a model known that is not in the built-in list; name is a hub name or a folder of the worker''s machine.';

create or replace function embed.reranker() returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (select value from embed.setting where name = 'reranker');

comment on function embed.reranker() is 'The cross-encoder that embed.search(…, rerank => n) uses.';

create or replace function embed.use_reranker(name text, max_tokens integer default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if max_tokens < 1 then
        raise exception 'max_tokens is %, expected at least 1', max_tokens
            using errcode = 'EW003', hint = 'It is how many tokens of question and passage together are read, often 512.';
    elsif max_tokens is not null then
        insert into embed.reranker (name, max_tokens)
        values (use_reranker.name, use_reranker.max_tokens)
        on conflict on constraint reranker_pkey do update set max_tokens = excluded.max_tokens;
    elsif not exists (select from embed.reranker r where r.name = use_reranker.name) then
        raise exception 'the reranker % is not known', coalesce(quote_literal(use_reranker.name), 'null')
            using errcode = 'EW003',
            hint = 'See embed.reranker for what is, or say how many tokens it reads: embed.use_reranker(name, max_tokens => 512).';
    end if;
    insert into embed.setting (name, value) values ('reranker', use_reranker.name)
    on conflict on constraint setting_pkey do update set value = excluded.value;
end
$$;

comment on function embed.use_reranker(text, integer) is
    'Chooses the cross-encoder of embed.search(…, rerank => n). A hub name or a folder of the worker''s machine that is not in the built-in list is made known by saying max_tokens.';

create or replace function embed.use_model(name text) returns void
language plpgsql
as $$
begin
    if not exists (select from embed.model m where m.name = use_model.name) then
        raise exception 'model % is not known', quote_literal(use_model.name)
            using errcode = 'EW003', hint = 'See embed.model for what is, or add it with embed.add_model(…).';
    end if;
    if exists (
        select from embed.source s join embed.model m on m.name = use_model.name
        where s.model is null and s.dimensions <> m.dimensions
        and s.relation <> 'embed.document'::regclass
    ) then
        raise exception 'sources that follow the default model have vectors of other dimensions than %', quote_literal(use_model.name)
            using errcode = 'EW005', hint = 'Disable them with drop_vectors => true first, or name their model in embed.enable.';
    end if;
    insert into embed.setting (name, value) values ('default_model', use_model.name)
    on conflict on constraint setting_pkey do update set value = excluded.value
    where setting.value <> excluded.value;
    if found then
        update embed.source s set version = nextval('embed.seq') where s.model is null;
        insert into embed.sweep_request (source, reason) select s.id, 'model changed' from embed.source s where s.model is null;
        perform embed.wake();
    end if;
end
$$;

comment on function embed.use_model(text) is
    'Sets the default model of this database; sources that follow it are embedded anew.';
