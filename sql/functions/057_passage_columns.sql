-- Where in the columns of a row a passage stands.

-- A statement that finds the parts of a passage: $1 is the row, $2 and $3 are the passage's range. This function runs
-- as its owner, because it reads embed.source. It returns no data of the table.
create or replace function embed._passage_columns_sql(row_type regtype, name text) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    s constant embed.source := embed._find_source(row_type, name);
    nfc constant text := case when getdatabaseencoding() = 'UTF8' then 'embed._nfc' else '' end;
begin
    perform embed._check_structure(s);
    return embed._fill(
        $sql$
        with r as (select ($1).*), piece (n, name, value) as (
            {pieces}
        ), placed as (
            select
                p.n, p.name, {nfc}(p.value) as value,
                pg_catalog.length({nfc}(coalesce(pg_catalog.string_agg(p.value, '') over (
                    order by p.n rows between unbounded preceding and 1 preceding
                ), ''))) as begun,
                pg_catalog.length({nfc}(pg_catalog.string_agg(p.value, '') over (order by p.n))) as ended
            from piece p
        ), found as (
            select
                f.n, f.name, f.value,
                greatest($2 operator(pg_catalog.-) f.begun, 0) as first,
                least($3, f.ended) operator(pg_catalog.-) f.begun as last
            from placed f
            where f.name is not null and greatest($2, f.begun) operator(pg_catalog.<) least($3, f.ended)
        )
        select
            f.name, f.first, f.last,
            pg_catalog.substr(f.value, f.first operator(pg_catalog.+) 1, f.last operator(pg_catalog.-) f.first)
        from found f
        order by f.n
        $sql$,
        jsonb_build_object(
            'nfc', nfc,
            'pieces', (
                select string_agg(
                    format('select %s, %L::pg_catalog.text, %s from r', p.n, p."column", p.expression),
                    E'\n union all ' order by p.n
                )
                from embed._text_pieces(s, 'r') with ordinality as p ("column", expression, n)
            )
        )
    );
end
$$;

create or replace function embed.passage_columns(
    "row" anyelement, passage_start integer, passage_end integer, name text default null
) returns table (column_name text, column_start integer, column_end integer, part text)
language plpgsql stable
as $$
begin
    return query execute embed._passage_columns_sql(pg_catalog.pg_typeof("row"), name)
        using "row", greatest(passage_start, 0), greatest(passage_end, passage_start, 0);
end
$$;

comment on function embed.passage_columns(anyelement, integer, integer, text) is
    'The parts of a passage, by column. Give it "row", passage_start and passage_end of a hit of embed.search. '
    'column_start and column_end are characters of the column''s text in NFC, from 0, the end excluded. Words '
    'that only the template adds belong to no column. A column that the passage does not reach has no line.';
