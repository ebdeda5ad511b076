-- The table that holds the vectors of a source.

-- Says which triggers of the application will fire when a vector is written into a column of its table, and how
-- they can tell that from the application's own updates: a worker's sessions have embed.writing = on.
create or replace function embed._notice_triggers(source embed.source) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    apart constant text := 'current_setting(''embed.writing'', true) is distinct from ''on''';
    names text;
    statements text;
begin
    if source.into_attnum is null then
        return;
    end if;
    select
        string_agg(quote_ident(x.tgname), ', ' order by x.tgname),
        string_agg(
            case
                when x.definition like 'CREATE CONSTRAINT %'
                    then format('drop trigger %I on %s; ', x.tgname, source.relation)
                else ''
            end
                || regexp_replace(
                    regexp_replace(x.definition, '^CREATE TRIGGER', 'create or replace trigger'),
                    case when x.has_when then ' WHEN [(]' else ' EXECUTE FUNCTION' end,
                    case
                        when x.has_when then format(' when (%s and ', apart)
                        else format(' when (%s) execute function', apart)
                    end
                ),
            '; ' order by x.tgname
        )
    into names, statements
    from (
        select t.tgname, t.tgqual is not null as has_when, pg_get_triggerdef(t.oid) as definition
        from pg_trigger t
        where t.tgrelid = source.relation and not t.tgisinternal
        and t.tgenabled in ('O', 'A')
        and t.tgtype & 16 > 0 -- UPDATE
        and (cardinality(t.tgattr::smallint[]) = 0 or source.into_attnum = any (t.tgattr::smallint[]))
        and t.tgname !~ '^embed_[0-9]+_'
    ) x
    where x.definition not like '%embed.writing%';
    if names is not null then
        raise notice 'every vector that a worker writes into % fires triggers of your own: %',
            format('%s.%I', source.relation, source.into_column), names
            using hint = format('To have them leave out what a worker writes: %s;', statements);
    end if;
end
$$;

-- Columns that a table of vectors lacks, with their types; null if none.
create or replace function embed._lacking_columns(vectors regclass, source embed.source) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set quote_all_identifiers = off
as $$
declare
    wanted text[] := array(
        select format('%s %s', source.keys[i], source.key_types[i]) from generate_subscripts(source.keys, 1) as i
    ) || array['chunk integer', 'passage_start integer', 'passage_end integer', 'truncated boolean']
      || case when source.into_column is null then array['embedding vector'] else '{}' end
      || array[
          'terms sparsevec',
          'fingerprint integer',
          'hash bytea',
          'checksum bytea',
          'seq bigint',
          'embedded_at timestamp with time zone'
      ];
    present text[] := array(
        select format(
            '%s %s',
            a.attname,
            case
                when t.typname = 'halfvec' then 'vector'
                when t.typname in ('vector', 'sparsevec') then t.typname
                else format_type(a.atttypid, -1)
            end
        )
        from pg_attribute a join pg_type t on t.oid = a.atttypid
        where a.attrelid = vectors and a.attnum > 0 and not a.attisdropped
    );
begin
    return (select string_agg(w, ', ') from unnest(wanted) as w where w <> all (present));
end
$$;

-- Makes the table of the vectors, or takes one that is left from an earlier registration. Without a storage it is that
-- of the table that is left, or vector.
drop function if exists embed._make_vectors(embed.source);
create or replace function embed._make_vectors(source embed.source, storage text) returns regclass
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    vector_schema text := (
        select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector'
    );
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
        perform embed._check_adoptable(to_regclass(vectors), source, storage);
        return to_regclass(vectors);
    end if;
    if source.into_column is null then
        perform embed._require_schema((select n.oid from pg_namespace n where n.nspname = class.nspname), 'create');
    end if;
    execute format(
        'create %s table %s (%s, chunk integer not null default 0,
            passage_start integer not null, passage_end integer not null, truncated boolean not null default false,
            %s terms @extschema:vector@.sparsevec(16777216), fingerprint integer not null,
            hash bytea not null, checksum bytea not null, seq bigint not null,
            embedded_at timestamptz not null default now(), primary key (%s, chunk))',
        case class.relpersistence when 'u' then 'unlogged' else '' end, vectors,
        embed._declared(source.relation, source.key_attnums, source.keys),
        case
            when source.into_column is null
                then format(
                    'embedding %I.%I(%s) not null,', vector_schema, coalesce(storage, 'vector'), source.dimensions
                )
            else ''
        end,
        embed._each('%1$I', source.keys, ', ')
    );
    -- pgvector keeps vectors outside of their rows. Inside, to compare all of 100,000 vectors of 384 dimensions took 53
    -- for 134 ms, and a search among 9,000 passages 12.6 for 22.8 ms. The table takes 6 % more. Of a longer vector, not
    -- even two would fit into a page.
    if source.into_column is null
        and embed._vector_bytes(coalesce(storage, 'vector'), source.dimensions) <= 3200 then
        execute format('alter table %s alter column embedding set storage main', vectors);
    end if;
    execute format(
        'comment on table %s is %L', vectors,
        format('Vectors of %s, kept by embedworker; a row without its source row is on its way out.', source.relation)
    );
    return vectors::regclass;
end
$$;

drop function if exists embed._check_adoptable(regclass, embed.source);
create or replace function embed._check_adoptable(vectors regclass, source embed.source, storage text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    dims integer := (select a.atttypmod from pg_attribute a where a.attrelid = vectors and a.attname = 'embedding');
    lacks text := embed._lacking_columns(vectors, source);
    held constant text := (
        select t.typname
        from pg_attribute a join pg_type t on t.oid = a.atttypid
        where a.attrelid = vectors and a.attname = 'embedding'
    );
begin
    if lacks is null and not exists (select from pg_class c where c.oid = vectors and c.relkind = 'r') then
        lacks := 'being a table';
    elsif lacks is null and not exists (
        select
        from pg_index i
        where i.indrelid = vectors and i.indisunique and i.indimmediate and i.indisvalid and i.indpred is null
        and array(
            select a.attname::text
            from pg_attribute a
            where a.attrelid = vectors and a.attnum = any (i.indkey)
            order by a.attname
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
    if source.into_column is null and storage <> held then
        raise exception 'table % exists and its vectors are of type %, not %', vectors, held, storage
            using errcode = 'EW003', hint = 'Leave storage out to go on with them, or drop or rename that table.';
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
            detail = format(
                'Its owner is %s, that of %s another.',
                (select c.relowner::regrole from pg_class c where c.oid = vectors),
                source.relation
            ),
            hint =
                'Give it to the owner of the table with ALTER TABLE … OWNER TO if its triggers and vectors can be '
                'trusted, or drop or rename it.';
    end if;
    if exists (select from embed.source s where s.vectors = _check_adoptable.vectors and s.id <> source.id) then
        raise exception 'table % holds the vectors of another source', vectors
            using errcode = '42P07', hint = 'Call embed.enable with another name => ….';
    end if;
end
$$;
