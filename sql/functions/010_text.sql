-- How the columns of a row become the one text that is embedded.

create or replace function embed.nonblank(value text) returns text
language sql immutable parallel safe
return case
    -- Everything Unicode calls a blank, the zero-width characters, and the fillers of Hangul: nothing
    -- in them can be found.
    when btrim(value, U&' \0009\000A\000B\000C\000D\001C\001D\001E\001F\0085\00A0\00AD\034F\061C\115F\1160\1680\180E\2000\2001\2002\2003\2004\2005\2006\2007\2008\2009\200A\200B\200C\200D\200E\200F\2028\2029\202F\205F\2060\2061\2062\2063\2064\2800\3000\3164\FEFF\FFA0') = '' then null
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

-- Most text is NFC already, and to see that takes a third of the time of making it so. In plpgsql,
-- since a function in SQL would be written into the statement with its argument twice.
--
-- normalize() sorts the combining characters behind a letter, by insertion, and cannot be
-- interrupted: 100,000 of them took 71 s, and one row of 600,000 would have kept every worker for
-- hours. So a run that is longer than any language writes is broken by a starter that is not seen,
-- as Unicode's Stream-Safe Text Format (UAX #15) does; worker/normalization.py does the same. With
-- that a million of them take 0.6 s. Text that is NFC is left alone and pays nothing, and decomposed
-- Korean as good as nothing: 1.4 ms for 4,000 characters instead of 1.0, 0.3 s for two million.
--
-- The ranges are the characters of Unicode 17 with a combining class, and the five that decompose to
-- one. Written out, since no class of a regular expression means them in every locale; "C", since a
-- column's collation may allow no regular expression.
create or replace function embed._nfc(value text) returns text
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    if value is nfc normalized then
        return value;
    end if;
    return normalize(regexp_replace(value collate "C", format(
        '[%1$s]{30}(?=[%1$s])',
        E'\u0300-\u034E\u0350-\u036F\u0483-\u0487\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7-\u05C9'
        '\u0610-\u061A\u064B-\u065F\u0670\u06D6-\u06DC\u06DF-\u06E4\u06E7\u06E8\u06EA-\u06ED\u0711'
        '\u0730-\u074A\u07EB-\u07F3\u07FD\u0816-\u0819\u081B-\u0823\u0825-\u0827\u0829-\u082D\u0859-\u085B'
        '\u0897-\u089F\u08CA-\u08E1\u08E3-\u08FF\u093C\u094D\u0951-\u0954\u09BC\u09CD\u09FE\u0A3C\u0A4D\u0ABC'
        '\u0ACD\u0B3C\u0B4D\u0BCD\u0C3C\u0C4D\u0C55\u0C56\u0CBC\u0CCD\u0D3B\u0D3C\u0D4D\u0DCA\u0E38-\u0E3A'
        '\u0E48-\u0E4B\u0EB8-\u0EBA\u0EC8-\u0ECB\u0F18\u0F19\u0F35\u0F37\u0F39\u0F71-\u0F75\u0F7A-\u0F7D'
        '\u0F80-\u0F84\u0F86\u0F87\u0FC6\u1037\u1039\u103A\u108D\u135D-\u135F\u1714\u1715\u1734\u17D2\u17DD'
        '\u18A9\u1939-\u193B\u1A17\u1A18\u1A60\u1A75-\u1A7C\u1A7F\u1AB0-\u1ABD\u1ABF-\u1AF0\u1B34\u1B44'
        '\u1B6B-\u1B73\u1BAA\u1BAB\u1BE6\u1BF2\u1BF3\u1C37\u1CD0-\u1CD2\u1CD4-\u1CE0\u1CE2-\u1CE8\u1CED\u1CF4'
        '\u1CF8\u1CF9\u1DC0-\u1DFF\u20D0-\u20DC\u20E1\u20E5-\u20F0\u2CEF-\u2CF1\u2D7F\u2DE0-\u2DFF'
        '\u302A-\u302F\u3099\u309A\uA66F\uA674-\uA67D\uA69E\uA69F\uA6F0\uA6F1\uA806\uA82C\uA8C4\uA8E0-\uA8F1'
        '\uA92B-\uA92D\uA953\uA9B3\uA9C0\uAAB0\uAAB2-\uAAB4\uAAB7\uAAB8\uAABE\uAABF\uAAC1\uAAF6\uABED\uFB1E'
        '\uFE20-\uFE2F\uFF9E\uFF9F\U000101FD\U000102E0\U00010376-\U0001037A\U00010A0D\U00010A0F'
        '\U00010A38-\U00010A3A\U00010A3F\U00010AE5\U00010AE6\U00010D24-\U00010D27\U00010D69-\U00010D6D'
        '\U00010EAB\U00010EAC\U00010ECB-\U00010ECF\U00010EF0-\U00010EFB\U00010EFD-\U00010EFF'
        '\U00010F46-\U00010F50\U00010F82-\U00010F85\U00011046\U00011070\U0001107F\U000110B9\U000110BA'
        '\U00011100-\U00011102\U00011133\U00011134\U00011173\U000111C0\U000111CA\U00011235\U00011236'
        '\U000112E9\U000112EA\U0001133B\U0001133C\U0001134D\U00011366-\U0001136C\U00011370-\U00011374'
        '\U000113CE-\U000113D0\U00011442\U00011446\U0001145E\U000114C2\U000114C3\U000115BF\U000115C0'
        '\U0001163F\U000116B6\U000116B7\U0001172B\U00011839\U0001183A\U0001193D\U0001193E\U00011943\U000119E0'
        '\U00011A34\U00011A47\U00011A99\U00011C3F\U00011D42\U00011D44\U00011D45\U00011D97\U00011F41\U00011F42'
        '\U0001612F\U00016AF0-\U00016AF4\U00016B30-\U00016B36\U00016FF0\U00016FF1\U0001BC9E\U0001D127'
        '\U0001D128\U0001D165-\U0001D169\U0001D16D-\U0001D172\U0001D17B-\U0001D182\U0001D185-\U0001D18B'
        '\U0001D1AA-\U0001D1AD\U0001D242-\U0001D244\U0001D250-\U0001D252\U0001D25B\U0001D25C\U0001D25F'
        '\U0001D280\U0001D281\U0001E000-\U0001E006\U0001E008-\U0001E018\U0001E01B-\U0001E021\U0001E023'
        '\U0001E024\U0001E026-\U0001E02A\U0001E08F\U0001E130-\U0001E136\U0001E2AE\U0001E2EC-\U0001E2EF'
        '\U0001E4EC-\U0001E4EF\U0001E5EE\U0001E5EF\U0001E6E3\U0001E6E6\U0001E6EE\U0001E6EF\U0001E6F5'
        '\U0001E8D0-\U0001E8D6\U0001E944-\U0001E94A'
    ), E'\\&\u034F', 'g'), nfc);
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

-- An SQL expression for a column as text, '' where it is null. By the output function of its type, never
-- by a cast: whoever owns a type may write a cast for it, which would then run with the rights of
-- whoever reads the row. The blanks that a char(n) is filled up with are
-- shown by its output function only. Columns may have different collations, and joined under them they
-- could not be compared with anything.
create or replace function embed._column_sql(relation regclass, attnum smallint, alias text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select format(
        case when embed._base_type(a.atttypid) = 'bpchar'::regtype then '(pg_catalog.rtrim(pg_catalog.format(%L, %I.%I)) collate pg_catalog."C")'
            else '(pg_catalog.format(%L, %I.%I) collate pg_catalog."C")' end,
        '%s', alias, a.attname
    )
    from pg_attribute a
    where a.attrelid = relation and a.attnum = _column_sql.attnum and not a.attisdropped
);

-- An SQL expression for the text of a row of the source called alias; null where there is nothing
-- to embed. NFC, since Korean typed on one system is decomposed on another and must still be found.
create or replace function embed._text_sql(source embed.source, alias text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    parts text[] := '{}';
    rest text := source.template;
    piece text;
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
    if rest is null then
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
        while rest <> '' loop
            piece := substring(rest from '^[^{}]+');
            if piece is not null then
                parts := parts || quote_literal(piece);
                rest := substr(rest, length(piece) + 1);
            elsif rest like '{{%' or rest like '}}%' then
                parts := parts || quote_literal(left(rest, 1));
                rest := substr(rest, 3);
            else
                piece := substring(rest from '^\{(\d+)\}');
                parts := parts || names[piece::integer];
                rest := substr(rest, length(piece) + 3);
            end if;
        end loop;
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

-- The filter with the names that its columns have now; it is stored with their numbers, as "{3}".
-- Null without a filter, and where one of its columns was dropped.
create or replace function embed._filter_sql(source embed.source) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    result text := source.filter;
    place text;
begin
    for place in select distinct m[1] from regexp_matches(source.filter, '"\{(\d+)\}"', 'g') as m loop
        result := replace(
            result, format('"{%s}"', place), quote_ident(embed._column_name(source.relation, place::smallint))
        );
    end loop;
    return result;
end
$$;

-- Where rows of the source are read from: its filter applied, its inheritance children left out.
-- (Children of a plain table have keys of their own that may repeat the parent's; partitions do not.)
-- Null when the table or a column of the filter was dropped.
create or replace function embed._rows_sql(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select case
        when source.filter is null then of_table.rows
        else format('(select %s from %s where (%s))', of_table.columns, of_table.rows, embed._filter_sql(source))
    end
    from (
        select
            format('%s%I.%I', case when c.relkind = 'p' then '' else 'only ' end, n.nspname, c.relname) as rows,
            -- Not *, for which a worker would need the right to read every column.
            (
                select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
                from pg_catalog.pg_attribute a
                where a.attrelid = c.oid and not a.attisdropped
                and a.attnum = any (source.key_attnums || source.column_attnums || source.into_attnum)
            ) as columns
        from pg_catalog.pg_class c
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.oid = source.relation
    ) as of_table
);

-- What makes a text's hash. Sixteen bytes of SHA-256 (md5 is refused by servers in FIPS mode).
create or replace function embed.text_hash(value text) returns bytea
language sql immutable parallel safe
return substr(sha256(convert_to(value, 'UTF8')), 1, 16);

comment on function embed.text_hash(text) is
    'What the column hash of a vector table holds: the text that was embedded, in 16 bytes.';
