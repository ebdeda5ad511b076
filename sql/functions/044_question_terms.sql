-- The terms of a text, as a worker makes them (question_terms in worker/embedworker/model/lexical.py): for searches
-- that no worker answers, and for embed.mark. tests/integration/test_question_terms.py compares both.

-- Lower case by the rules of Unicode, where this server has them: from PostgreSQL 18 on, or with ICU. Elsewhere by
-- the next best. A server without ICU lists its collations and refuses to use them.
do $do$
declare
    rules text;
begin
    foreach rules in array array['pg_unicode_fast', 'unicode', '"und-x-icu"', 'pg_c_utf8', '"default"'] loop
        begin
            execute format('select lower(''É'' collate pg_catalog.%s)', rules);
            exit;
        exception when undefined_object or feature_not_supported then
            continue;
        end;
    end loop;
    execute format($function$
create or replace function embed._lower(value text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return lower(value collate pg_catalog.%s) collate "C";
    $function$, rules);
end
$do$;

-- The letters and digits of a text in NFKC and in lower case, for a regular expression. They are the characters that
-- Python's \w stands for, of those that such a text can have: no class means them on every server.
create or replace function embed._letters() returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return
    E'\u0030-\u0039\u0061-\u007A\u00DF-\u00F6\u00F8-\u02C1\u02C6-\u02D1\u02EC\u02EE\u0371-\u0373\u0377-\u03F3'
    '\u03F8-\u0481\u048B-\u0559\u0560-\u0588\u05D0-\u05F2\u0620-\u064A\u0660-\u0669\u066E-\u066F\u0671-\u06D3'
    '\u06D5\u06E5-\u06E6\u06EE-\u06FC\u06FF\u0710\u0712-\u072F\u074D-\u07A5\u07B1-\u07EA\u07F4-\u07F5\u07FA'
    '\u0800-\u0815\u081A\u0824\u0828\u0840-\u0858\u0860-\u0887\u0889-\u088E\u08A0-\u08C9\u0904-\u0939\u093D\u0950'
    '\u0960-\u0961\u0966-\u096F\u0971-\u0980\u0985-\u09B9\u09BD\u09CE\u09E0-\u09E1\u09E6-\u09F1\u09F4-\u09F9'
    '\u09FC\u0A05-\u0A39\u0A5C-\u0A6F\u0A72-\u0A74\u0A85-\u0AB9\u0ABD\u0AD0-\u0AE1\u0AE6-\u0AEF\u0AF9'
    '\u0B05-\u0B39\u0B3D\u0B5F-\u0B61\u0B66-\u0B6F\u0B71-\u0B77\u0B83-\u0BB9\u0BD0\u0BE6-\u0BF2\u0C05-\u0C39'
    '\u0C3D\u0C58-\u0C61\u0C66-\u0C6F\u0C78-\u0C7E\u0C80\u0C85-\u0CB9\u0CBD\u0CDD-\u0CE1\u0CE6-\u0CF2'
    '\u0D04-\u0D3A\u0D3D\u0D4E\u0D54-\u0D56\u0D58-\u0D61\u0D66-\u0D78\u0D7A-\u0D7F\u0D85-\u0DC6\u0DE6-\u0DEF'
    '\u0E01-\u0E30\u0E32\u0E40-\u0E46\u0E50-\u0E59\u0E81-\u0EB0\u0EB2\u0EBD-\u0EC6\u0ED0-\u0F00\u0F20-\u0F33'
    '\u0F40-\u0F6C\u0F88-\u0F8C\u1000-\u102A\u103F-\u1049\u1050-\u1055\u105A-\u105D\u1061\u1065-\u1066'
    '\u106E-\u1070\u1075-\u1081\u108E\u1090-\u1099\u10D0-\u10FA\u10FD-\u135A\u1369-\u138F\u13F8-\u13FD'
    '\u1401-\u166C\u166F-\u167F\u1681-\u169A\u16A0-\u16EA\u16EE-\u1711\u171F-\u1731\u1740-\u1751\u1760-\u1770'
    '\u1780-\u17B3\u17D7\u17DC\u17E0-\u17F9\u1810-\u1884\u1887-\u18A8\u18AA-\u191E\u1946-\u19DA\u1A00-\u1A16'
    '\u1A20-\u1A54\u1A80-\u1A99\u1AA7\u1B05-\u1B33\u1B45-\u1B59\u1B83-\u1BA0\u1BAE-\u1BE5\u1C00-\u1C23'
    '\u1C40-\u1C7D\u1C80-\u1C88\u1CE9-\u1CEC\u1CEE-\u1CF3\u1CF5-\u1CF6\u1CFA-\u1D9A\u1E01-\u1FF7\u214E'
    '\u2180-\u2188\u24EB-\u24FF\u2776-\u2793\u2C30-\u2CE4\u2CEC-\u2CEE\u2CF3\u2CFD\u2D00-\u2D67\u2D80-\u2DDE'
    '\u2E2F\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303B-\u303C\u3041-\u3096\u309D-\u309E\u30A1-\u30FA'
    '\u30FC-\u312F\u31A0-\u31BF\u31F0-\u324F\u3400-\u4DBF\u4E00-\uA48C\uA4D0-\uA4FD\uA500-\uA60C\uA610-\uA66E'
    '\uA67F-\uA69B\uA6A0-\uA6EF\uA717-\uA71F\uA723-\uA788\uA78C-\uA801\uA803-\uA805\uA807-\uA80A\uA80C-\uA822'
    '\uA830-\uA835\uA840-\uA873\uA882-\uA8B3\uA8D0-\uA8D9\uA8F2-\uA8F7\uA8FB\uA8FD-\uA8FE\uA900-\uA925'
    '\uA930-\uA946\uA960-\uA97C\uA984-\uA9B2\uA9CF-\uA9D9\uA9E0-\uA9E4\uA9E6-\uAA28\uAA40-\uAA42\uAA44-\uAA4B'
    '\uAA50-\uAA59\uAA60-\uAA76\uAA7A\uAA7E-\uAAAF\uAAB1\uAAB5-\uAAB6\uAAB9-\uAABD\uAAC0\uAAC2-\uAADD'
    '\uAAE0-\uAAEA\uAAF2-\uAAF4\uAB01-\uAB5A\uAB60-\uAB68\uAB70-\uABE2\uABF0-\uD7FB\uFA0E-\uFA29\uFE73'
    '\U00010000-\U000100FA\U00010107-\U00010133\U00010140-\U00010178\U0001018A-\U0001018B\U00010280-\U000102D0'
    '\U000102E1-\U00010375\U00010380-\U0001039D\U000103A0-\U000103CF\U000103D1-\U00010563\U00010597-\U00010855'
    '\U00010858-\U00010876\U00010879-\U0001091B\U00010920-\U00010939\U00010980-\U00010A00\U00010A10-\U00010A35'
    '\U00010A40-\U00010A48\U00010A60-\U00010A7E\U00010A80-\U00010AC7\U00010AC9-\U00010AE4\U00010AEB-\U00010AEF'
    '\U00010B00-\U00010B35\U00010B40-\U00010B91\U00010BA9-\U00010D23\U00010D30-\U00010EA9\U00010EB0-\U00010F45'
    '\U00010F51-\U00010F54\U00010F70-\U00010F81\U00010FB0-\U00010FF6\U00011003-\U00011037\U00011052-\U0001106F'
    '\U00011071-\U00011072\U00011075\U00011083-\U000110AF\U000110D0-\U000110F9\U00011103-\U00011126'
    '\U00011136-\U0001113F\U00011144\U00011147-\U00011172\U00011176\U00011183-\U000111B2\U000111C1-\U000111C4'
    '\U000111D0-\U000111DA\U000111DC\U000111E1-\U0001122B\U00011280-\U000112A8\U000112B0-\U000112DE'
    '\U000112F0-\U000112F9\U00011305-\U00011339\U0001133D\U00011350\U0001135D-\U00011361\U00011400-\U00011434'
    '\U00011447-\U0001144A\U00011450-\U00011459\U0001145F-\U000114AF\U000114C4-\U000114C5\U000114C7-\U000115AE'
    '\U000115D8-\U000115DB\U00011600-\U0001162F\U00011644-\U00011659\U00011680-\U000116AA\U000116B8'
    '\U000116C0-\U0001171A\U00011730-\U0001173B\U00011740-\U0001182B\U000118C0-\U0001192F\U0001193F\U00011941'
    '\U00011950-\U000119D0\U000119E1\U000119E3\U00011A00\U00011A0B-\U00011A32\U00011A3A\U00011A50'
    '\U00011A5C-\U00011A89\U00011A9D\U00011AB0-\U00011C2E\U00011C40\U00011C50-\U00011C6C\U00011C72-\U00011C8F'
    '\U00011D00-\U00011D30\U00011D46\U00011D50-\U00011D89\U00011D98-\U00011EF2\U00011FB0-\U00011FD4'
    '\U00012000-\U0001246E\U00012480-\U00012FF0\U00013000-\U0001342E\U00014400-\U00016A69\U00016A70-\U00016AED'
    '\U00016B00-\U00016B2F\U00016B40-\U00016B43\U00016B50-\U00016E96\U00016F00-\U00016F4A\U00016F50'
    '\U00016F93-\U00016FE1\U00016FE3\U00017000-\U0001BC99\U0001D2E0-\U0001D2F3\U0001D360-\U0001D378'
    '\U0001DF00-\U0001DF1E\U0001E100-\U0001E12C\U0001E137-\U0001E14E\U0001E290-\U0001E2AD\U0001E2C0-\U0001E2EB'
    '\U0001E2F0-\U0001E2F9\U0001E7E0-\U0001E8CF\U0001E922-\U0001E943\U0001E94B-\U0001E959\U0001EC71-\U0001ECAB'
    '\U0001ECAD-\U0001ECAF\U0001ECB1-\U0001ED2D\U0001ED2F-\U0001ED3D\U0001F10B-\U0001F10C\U00020000-\U0003134A';

-- The Latin letters, for a regular expression.
create or replace function embed._latin() returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return E'A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f';

-- The parts of a text that match an expression and begin with a character of the class, with their places from 1.
create or replace function embed._parts(plain text, class text, expression text)
returns table (part text, start integer)
language sql immutable
set search_path = pg_catalog, pg_temp
begin atomic
    select
        m.found[2],
        (sum(length(m.found[1]) + length(m.found[2])) over (order by m.place))::integer - length(m.found[2]) + 1
    from regexp_matches(plain collate "C", '([^' || class || ']*)(' || expression || ')', 'g')
        with ordinality as m (found, place);
end;

-- CRC-32 of a text's bytes in UTF-8, as zlib.crc32: half a byte at a time. PostgreSQL has a function of its own from
-- version 18 on.
create or replace function embed._crc32(value text) returns bigint
language plpgsql immutable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    half constant bigint[] := array[
        0, 498536548, 997073096, 651767980, 1994146192, 1802195444, 1303535960, 1342533948, 3988292384,
        4027552580, 3604390888, 3412177804, 2607071920, 2262029012, 2685067896, 3183342108
    ];
    bytes constant bytea := convert_to(value, 'UTF8');
    crc bigint := 4294967295;
    byte integer;
begin
    for i in 0 .. length(bytes) - 1 loop
        byte := get_byte(bytes, i);
        crc := (crc >> 4) # half[((crc # byte) & 15) + 1];
        crc := (crc >> 4) # half[((crc # (byte >> 4)) & 15) + 1];
    end loop;
    return crc # 4294967295;
end
$$;

-- A Latin word without an English ending: _stem in lexical.py. A longer word than any has none: to look for an ending
-- takes time by the square of the length.
create or replace function embed._stem(word text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return case when length(word) > 64 then word else regexp_replace(
    regexp_replace(
        regexp_replace(
            regexp_replace(
                regexp_replace(
                    regexp_replace(
                        regexp_replace(
                            word collate "C",
                            '^([a-z]{2,})ie[sd]$', '\1y'
                        ),
                        '^([a-z]*(?:ss|sh|ch|x|z))es$', '\1'
                    ),
                    '^([a-z]+[a-hj-rtv-z])s$', '\1'
                ),
                '^([a-z]*[aeiouy][a-z]+)ing$', '\1'
            ),
            '^([a-z]*[aeiouy][a-z]*[a-df-z])ed$', '\1'
        ),
        '^([a-z]+)([bcdfghjkmnpqrtvwx])\2$', '\1\2'
    ),
    '^([a-z]{2,})e$', '\1'
) end;

-- A text with blanks in place of the letters of its Latin words of three letters or more.
create or replace function embed._blank_words(plain text, latin text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return (
    select string_agg(
        m.found[1] || case when length(m.found[2]) < 3 then m.found[2] else repeat(' ', length(m.found[2])) end,
        '' order by m.place
    )
    from regexp_matches(plain collate "C", format('([^%1$s]*)([%1$s]*)', latin), 'g')
        with ordinality as m (found, place)
);

-- The pairs of characters of a run, with their places from 1; the run itself if it is one character. substr would
-- count the characters from the beginning for each pair.
create or replace function embed._pairs(run text) returns table (pair text, place integer)
language sql immutable
set search_path = pg_catalog, pg_temp
begin atomic
    select c.letter || coalesce(lead(c.letter) over (order by c.place), ''), c.place::integer
    from unnest(string_to_array(run, null)) with ordinality as c (letter, place)
    order by c.place
    limit greatest(1, length(run) - 1);
end;

-- The terms of a text in NFKC and in lower case, and what each was made of: its place from 1 and its length. They are
-- those of _terms in lexical.py.
create or replace function embed._terms(plain text) returns table (term text, start integer, length integer)
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    latin constant text := embed._latin();
    joint constant text := format('(?<=[%1$s])[-_.](?=[0-9])|(?<=[0-9])[-_.](?=[%1$s])', latin);
    -- A4/letter is two.
    code constant text := format('[0-9%1$s]+(?:(?:[-_.]|(?<=[0-9])[/:](?=[0-9]))[0-9%1$s]+)*', latin);
    letters constant text := embed._letters();
begin
    return query
    select embed._stem(p.part), p.start, length(p.part)
    from embed._parts(plain, latin, format('[%s]+', latin)) as p
    where length(p.part) >= 3
    union all
    select p.part, p.start, length(p.part)
    from embed._parts(plain, '0-9', '[0-9]+') as p
    where length(p.part) >= 3
    union all
    select '#' || regexp_replace(p.part, joint, '', 'g'), p.start, length(p.part)
    from embed._parts(plain, '0-9' || latin, code) as p
    where p.part ~ '[0-9]' and p.part !~ '^[0-9]+$'
    union all
    -- Pairs of what stands around the Latin words of a run: "는" of "ktx는".
    select c.pair, p.start + c.place - 1, length(c.pair)
    from embed._parts(embed._blank_words(plain, latin), letters, format('[%s]+', letters)) as p,
        embed._pairs(p.part) as c;
end
$$;

-- A question's distinct terms as the numbers of their places, and the shares of the scripts.
create or replace function embed._question_terms(question text, out terms integer[], out shares real[])
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    composed constant text := embed._nfc(question) collate "C";
    plain constant text := embed._lower(normalize(composed, nfkc));
    scripts constant integer[] := array[
        length(regexp_replace(composed, E'[\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e]', '', 'g')),
        length(regexp_replace(composed, format('[%s]', embed._latin()), '', 'g'))
    ];
    total constant integer := 2 * length(composed) - scripts[1] - scripts[2];
begin
    shares := array(select coalesce((length(composed) - s)::real / nullif(total, 0), 0) from unnest(scripts) as s);
    terms := array(
        with term as (
            select '2' || t.term as text, case when t.term like '#%' then 50331648 else 16777216 end as kind
            from embed._terms(plain) as t
            union
            -- Those of the first scheme.
            select c.pair, 0
            from embed._parts(plain, embed._letters(), format('[%s]+', embed._letters())) as p,
                embed._pairs(p.part) as c
        )
        select distinct (
            case kind when 0 then 4 + embed._crc32(t.text) % 16777213 else 5 + embed._crc32(t.text) % 16777211 end
            + t.kind
        )::integer as place
        from term t
        order by place desc
        limit 15000
    );
end
$$;
