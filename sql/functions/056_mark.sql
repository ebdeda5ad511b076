-- Marking the words of a question in a passage.

create or replace function embed.mark(
    hit text, question text, open text default '<mark>', close text default '</mark>', html boolean default false
) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    asked constant text[] := array(
        select distinct t.term from embed._terms(embed._lower(normalize(embed._nfc(question), nfkc))) as t
    );
    -- What is marked as a whole: a character, or one with those that belong to it. Of a text in NFKC they are single.
    pieces text[];
    folded text;
    origins integer[];
    marked integer[];
begin
    if hit is nfkc normalized and length(embed._lower(hit)) = length(hit) then
        folded := embed._lower(hit);
        pieces := string_to_array(hit, null);
    else
        -- Each is folded by itself, so that its place is known: NFKC makes several of some characters. Of many marks
        -- behind one character (see embed._nfc) 30 belong to it.
        pieces := array(
            select m[1]
            from regexp_matches(hit collate "C", E'(.[\u0300-\u036F\u1160-\u11FF\u3099\u309A]{0,30})', 'g') as m
        );
        select string_agg(f.letter, '' order by c.place, f.nth), array_agg(c.place order by c.place, f.nth)
        into folded, origins
        from unnest(pieces) with ordinality as c (text, place)
        cross join lateral unnest(string_to_array(embed._lower(normalize(c.text, nfkc)), null))
            with ordinality as f (letter, nth);
    end if;
    marked := array(
        select distinct coalesce(origins[at], at)
        from embed._terms(folded) as t
        left join (
            select n.start + i as start
            from embed._parts(folded, '0-9', '[0-9]+') as n, generate_series(0, length(n.part) - 2) as i
            where length(n.part) >= 3
        ) as number on number.start = t.start and t.term ~ '^[0-9]{2}$'
        cross join generate_series(t.start, t.start + t.length - 1) as at
        where t.term = any (asked)
        -- A part of a longer code, of E-110 as of E-119, would mark half of another.
        and t.term !~ '^[0-9a-z]$' and number.start is null
    );
    return coalesce((
        select string_agg(
            concat(
                case when p.marked and not p.before then open end,
                case when html then embed._html(p.text) else p.text end,
                case when p.marked and not p.behind then close end
            ),
            '' order by p.place
        )
        from (
            select
                c.text, c.place, m.place is not null as marked,
                coalesce(lag(m.place is not null) over (order by c.place), false) as before,
                coalesce(lead(m.place is not null) over (order by c.place), false) as behind
            from unnest(pieces) with ordinality as c (text, place)
            left join unnest(marked) as m (place) on m.place = c.place
        ) as p
    ), hit);
end
$$;

comment on function embed.mark(text, text, text, text, boolean) is
    'A passage with the words of a question marked: select embed.mark(hit.passage, ''question'', html => true). They '
    'are the terms by which embed.search ranks: Latin words with any ending, numbers, codes, and pairs of characters '
    'of all else. html => true escapes the passage for HTML; without it, escape it yourself.';

create or replace function embed._html(value text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return replace(
    replace(replace(replace(replace(value, '&', '&amp;'), '<', '&lt;'), '>', '&gt;'), '"', '&quot;'), chr(39), '&#39;'
);
