-- How the columns of a row become the one text that is embedded.

create or replace function embed.nonblank(value text) returns text
language sql immutable parallel safe
return case
    -- Everything Unicode calls a blank, the zero-width characters, and the fillers of Hangul: nothing
    -- in them can be found.
    when btrim(
        value,
        U&' \0009\000A\000B\000C\000D\001C\001D\001E\001F\0085\00A0\00AD\034F\061C\115F\1160\1680\180E\2000'
        '\2001\2002\2003\2004\2005\2006\2007\2008\2009\200A\200B\200C\200D\200E\200F\2028\2029\202F\205F\2060'
        '\2061\2062\2063\2064\2800\3000\3164\FEFF\FFA0'
    ) = '' then null
    else value
end;

comment on function embed.nonblank(text) is
    'The text itself, or null where there is nothing to read in it.';

-- The current name of a column, which may have been renamed since; null when it was dropped.
create or replace function embed._column_name(relation regclass, attnum smallint) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select a.attname::text
    from pg_catalog.pg_attribute a
    where a.attrelid = relation and a.attnum = _column_name.attnum and not a.attisdropped
);

-- Template as written by a person ("{title}: {content}") to the stored form ("{1}: {2}").
-- Doubled braces stand for themselves.
create or replace function embed._template_normalise(template text, columns text[]) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    rest text := template;
    result text := '';
    part text;
    place integer;
    used boolean[] := array_fill(false, array[cardinality(columns)]);
begin
    if template is null then
        return null;
    end if;
    loop
        part := substring(rest from '^[^{}]+');
        if part is not null then
            result := result || part;
            rest := substr(rest, length(part) + 1);
        elsif rest like '{{%' or rest like '}}%' then
            result := result || left(rest, 2);
            rest := substr(rest, 3);
        elsif rest like '{%}%' then
            part := substring(rest from '^\{([^}]*)\}');
            place := array_position(columns, part);
            if place is null then
                raise exception 'template names {%}, which is not among the enabled columns %', part, columns
                    using errcode = 'EW003',
                    hint = 'Write {column} for a column given in columns, and {{ or }} for a brace.';
            end if;
            used[place] := true;
            result := result || '{' || place || '}';
            rest := substr(rest, length(part) + 3);
        elsif rest = '' then
            exit;
        else
            raise exception 'template has a single brace at %', quote_literal(left(rest, 20))
                using errcode = 'EW003',
                hint = 'Write {column} for a column, and {{ or }} for a brace.';
        end if;
    end loop;
    if false = any (used) then
        raise exception 'template does not use the column %', columns[array_position(used, false)]
            using errcode = 'EW003',
            hint = 'Use every enabled column in the template, or leave the column out.';
    end if;
    return result;
end
$$;

-- What a domain is made of, through any number of domains; another type is itself.
create or replace function embed._base_type(type oid) returns oid
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    with recursive base as (
        select t.oid, t.typtype, t.typbasetype from pg_type t where t.oid = _base_type.type
        union all
        select t.oid, t.typtype, t.typbasetype from base b join pg_type t on b.typtype = 'd' and t.oid = b.typbasetype
    )
    select b.oid from base b where b.typtype <> 'd';
end;

-- Whether a column of this type can be enabled: texts, enums, and arrays of these.
create or replace function embed._is_text(type oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select coalesce(e.typcategory, t.typcategory) in ('S', 'E')
    from pg_type t
    left join pg_type e on t.typcategory = 'A' and e.oid = embed._base_type(t.typelem)
    where t.oid = embed._base_type(_is_text.type)
);

-- An SQL expression for a column as text, '' where it is null. By the output function of its type, never
-- by a cast: the owner of a type may write a cast for it, which would then run with the rights of
-- the role that reads the row. The blanks that a char(n) is filled up with are
-- shown by its output function only. An array is its elements, with commas. Columns may have different collations, and
-- joined under them they could not be compared with anything.
create or replace function embed._column_sql(relation regclass, attnum smallint, alias text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select format(
        case
            when b.oid = 'bpchar'::regtype
                then '(pg_catalog.rtrim(pg_catalog.format(%L, %I.%I)) collate pg_catalog."C")'
            when b.typcategory = 'A'
                then '(pg_catalog.format(%L, pg_catalog.array_to_string(%I.%I, '', '')) collate pg_catalog."C")'
            else '(pg_catalog.format(%L, %I.%I) collate pg_catalog."C")'
        end,
        '%s', alias, a.attname
    )
    from pg_attribute a
    join pg_type b on b.oid = embed._base_type(a.atttypid)
    where a.attrelid = relation and a.attnum = _column_sql.attnum and not a.attisdropped
);

-- What the text of a row called alias is put together from, in order: SQL expressions for columns, and words around
-- them, which have no column. A column without a template is '' where there is nothing to read in it, and a line break
-- stands before it where a column before it has text. No row where a column was dropped.
create or replace function embed._text_pieces(
    source embed.source, alias text, out "column" text, out expression text
) returns setof record
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    given text;
    rest text := source.template;
    names constant text[] := array(
        select embed._column_name(source.relation, c.attnum)
        from unnest(source.column_attnums) with ordinality as c (attnum, place)
        order by c.place
    );
    columns constant text[] := array(
        select embed._column_sql(source.relation, c.attnum, alias)
        from unnest(source.column_attnums) with ordinality as c (attnum, place)
        order by c.place
    );
    piece text;
    earlier text;
begin
    if array_position(columns, null) is not null then
        return;
    end if;
    if rest is null then
        for i in 1 .. cardinality(columns) loop
            given := format('embed.nonblank(%s) is not null', columns[i]);
            if earlier is not null then
                "column" := null;
                expression := format('case when %s and (%s) then E''\n'' else '''' end', given, earlier);
                return next;
            end if;
            "column" := names[i];
            expression := format('coalesce(embed.nonblank(%s), '''')', columns[i]);
            return next;
            earlier := concat_ws(' or ', earlier, given);
        end loop;
        return;
    end if;
    while rest <> '' loop
        piece := coalesce(substring(rest from '^[^{}]+'), substring(rest from '^(\{\{|\}\})'));
        if piece is not null then
            "column" := null;
            expression := quote_literal(case when piece in ('{{', '}}') then left(piece, 1) else piece end);
        else
            piece := substring(rest from '^\{\d+\}');
            "column" := names[btrim(piece, '{}')::integer];
            expression := columns[btrim(piece, '{}')::integer];
        end if;
        return next;
        rest := substr(rest, length(piece) + 1);
    end loop;
end
$$;

-- An SQL expression for the text of a row of the source called alias; null where there is nothing
-- to embed. NFC, since Korean typed on one system is decomposed on another and must still be found.
create or replace function embed._text_sql(source embed.source, alias text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    parts text[];
    composed text;
    names text[] := array(
        select embed._column_sql(source.relation, c.attnum, alias)
        from unnest(source.column_attnums) with ordinality as c (attnum, place)
        order by c.place
    );
begin
    if array_position(names, null) is not null then
        return null;
    end if;
    if source.template is null then
        if cardinality(names) = 1 then
            composed := format('embed.nonblank(%s)', names[1]);
        else
            composed := format(
                'nullif(pg_catalog.concat_ws(E''\n'', %s), %L)',
                (select string_agg(format('embed.nonblank(%s)', n), ', ') from unnest(names) as n),
                ''
            );
        end if;
    else
        parts := array(
            select p.expression
            from embed._text_pieces(source, alias) with ordinality as p ("column", expression, n)
            order by p.n
        );
        -- The words around the columns are no text of the row's: all columns blank is blank.
        composed := format(
            'case when %s then pg_catalog.concat(%s) end',
            (select string_agg(format('embed.nonblank(%s) is not null', n), ' or ') from unnest(names) as n),
            array_to_string(parts, ', ')
        );
    end if;
    if getdatabaseencoding() = 'UTF8' then
        composed := format('embed._nfc(%s)', composed);
    end if;
    return composed;
end
$$;

-- What makes a text's hash. Sixteen bytes of SHA-256 (md5 is refused by servers in FIPS mode).
create or replace function embed.text_hash(value text) returns bytea
language sql immutable parallel safe
return substr(sha256(convert_to(value, 'UTF8')), 1, 16);

comment on function embed.text_hash(text) is
    'What the column hash of a vector table holds: the text that was embedded, in 16 bytes.';
