"""What a caller can prepare for functions that run with somebody else's rights.

``note`` counts in a sequence, which a rolled back transaction does not take back: each time it runs
as another than the one who logged in.
"""

from collections.abc import Iterator, Sequence

from psycopg import sql

from embedworker.queue.source import Connection

# Settings that callers are meant to set.
OURS = {"query_timeout", "rerank_timeout", "notify", "worker_grace"}

_NOTE = """
create schema trap;
grant usage, create on schema trap to public;
create sequence trap.gained;
grant usage on sequence trap.gained to public;
create function trap.note() returns text language plpgsql as $$
begin
    if current_user operator(pg_catalog.<>) session_user then
        raise warning 'trapped %', pg_catalog.current_setting('embed.trapped_by', true);
        perform pg_catalog.nextval('trap.gained');
    end if;
    return null;
end $$;
"""

_NAMES = """
select distinct w[1]
from pg_proc p, regexp_matches(pg_get_functiondef(p.oid), '[a-z_][a-z0-9_]*', 'gi') as w
where p.pronamespace = 'embed'::regnamespace and p.prokind = 'f'
"""

_TEMPORARY = """
do $$
declare n name;
begin
    for n in
        select distinct x.name
        from (
            select relname from pg_catalog.pg_class
            where relnamespace in ('pg_catalog'::regnamespace, 'embed'::regnamespace)
            union select typname from pg_catalog.pg_type where typnamespace = 'pg_catalog'::regnamespace
        ) as x (name)
        join known k on lower(k.name) = x.name
    loop
        execute pg_catalog.format('create temporary view %I as select trap.note() as name, trap.note() as value, 1 as id', n);
    end loop;
end $$
"""  # noqa: E501

# The system's functions and operators again, in a schema that comes first in the search_path.
_NAMESAKES_OF_THE_SYSTEM = """
do $$
declare
    f record;
    number int := 0;
begin
    for f in
        select p.proname, pg_get_function_arguments(p.oid) as arguments, pg_get_function_result(p.oid) as result
        from pg_proc p join known k on lower(k.name) = p.proname
        where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f'
    loop
        begin
            execute format(
                'create function trap.%I(%s) returns %s language plpgsql as %L',
                f.proname, f.arguments, f.result,
                'begin perform trap.note(); return' || case when f.result like 'SETOF%' or f.result like 'TABLE%' then '' else ' null' end || '; end'
            );
        exception when others then null; -- of a pseudo-type
        end;
    end loop;
    for f in
        select o.oprname, o.oprleft::regtype as l, o.oprright::regtype as r, o.oprresult::regtype as result
        from pg_operator o
        where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprkind = 'b'
        and o.oprname in ('=', '<>', '<', '>', '<=', '>=', '||', '+', '-', '*', '/', '->', '->>', '#>>', '~')
        and o.oprleft::regtype::text = any ('{text,integer,bigint,smallint,boolean,oid,name,regclass,interval,uuid,bytea,jsonb,real,double precision,timestamp with time zone,text[]}')
        and o.oprright::regtype::text = any ('{text,integer,bigint,smallint,boolean,oid,name,regclass,interval,uuid,bytea,jsonb,real,double precision,timestamp with time zone,text[]}')
    loop
        number := number + 1;
        execute format('create function trap.o%s(%s, %s) returns %s language plpgsql as %L', number, f.l, f.r, f.result, 'begin perform trap.note(); return null; end');
        execute format('create operator trap.%s (leftarg = %s, rightarg = %s, function = trap.o%s)', f.oprname, f.l, f.r, number);
    end loop;
end $$
"""  # noqa: E501

_FUNCTIONS = """
select p.proname, p.pronargdefaults, p.proretset, p.prorettype::regtype::text,
    coalesce(p.proargnames, '{}'),
    coalesce(p.proargmodes::text[], array_fill('i'::text, array[p.pronargs::int])),
    array(select format_type(t, null) from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[])) with ordinality as a (t, n) order by a.n)
from pg_proc p
where p.pronamespace = 'embed'::regnamespace and p.prokind = 'f' and p.prorettype <> 'trigger'::regtype and p.proname !~ '^source_[0-9]'
and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
"""  # noqa: E501

_LIKE = {
    "text": ["name", "character varying"],
    "regclass": ["oid"],
    "regtype": ["oid"],
    "oid": ["regclass"],
    "integer": ["bigint", "smallint"],
    "bigint": ["integer"],
    "smallint": ["integer"],
    "double precision": ["real", "numeric"],
    "real": ["double precision"],
}


def lay(connection: Connection) -> None:
    """Make the schema of the traps, as a superuser."""
    connection.execute(_NOTE.encode())


def was_sprung(connection: Connection) -> bool:
    row = connection.execute("select is_called from trap.gained").fetchone()
    assert row is not None
    return bool(row[0])


def prepare_session(connection: Connection) -> None:
    """Take every name in our functions in every way that a session can; begins a transaction."""
    names = [name for (name,) in connection.execute(_NAMES.encode())]
    names += [f"embed_memo_{slot}" for slot in range(16)]
    connection.execute("create temporary table known (name text)")
    connection.execute("insert into known select unnest(%s::text[])", [names])
    connection.execute(_NAMESAKES_OF_THE_SYSTEM.encode())
    connection.execute(_TEMPORARY.encode())
    # From here on the names of the system may be ours.
    connection.execute("begin")
    for name in sorted({name[:63] for name in names}):
        quoted = sql.Identifier(name)
        connection.execute(
            sql.SQL("prepare {} as select trap.note()").format(quoted), prepare=False
        )
        connection.execute(
            sql.SQL(
                "declare {} scroll cursor for select trap.note()::public.vector, null::int[], null"
            ).format(quoted),
            prepare=False,
        )
        if name.lower() not in OURS:
            connection.execute(
                "select pg_catalog.set_config('embed.' || %s, ''';select trap.note();--', true)",
                [name],
            )
    for key in range(1, 9):
        connection.execute("select pg_catalog.pg_advisory_lock(1701667428, %s)", [key])
    connection.execute("set search_path = trap, pg_catalog, public, pg_temp")


def namesakes(connection: Connection) -> Iterator[str]:
    """Statements that make functions in our schema which may fit a call better than ours."""
    functions = connection.execute(_FUNCTIONS.encode()).fetchall()
    taken = {(row[0], tuple(_inputs(row[5], row[6]))) for row in functions}
    for name, defaults, returns_set, result, names, modes, types in functions:
        inputs = _inputs(modes, types)
        outputs = [
            (names[i], types[i]) for i, mode in enumerate(modes) if mode in "ot" and i < len(names)
        ]
        for variant in _variants(inputs, defaults):
            if (name, tuple(variant)) in taken or "any" in " ".join(variant):
                continue
            taken.add((name, tuple(variant)))
            columns = ", ".join(f'"{column}" {kind}' for column, kind in outputs)
            if outputs and returns_set:
                returns = f"table ({columns})"
                arguments = ", ".join(variant)
            elif outputs:
                returns = result
                arguments = ", ".join(
                    [*variant, *(f'out "{column}" {kind}' for column, kind in outputs)]
                )
            else:
                returns = f"setof {result}" if returns_set else result
                arguments = ", ".join(variant)
            yield (
                f'create function embed."{name}"({arguments}) returns {returns} language plpgsql '
                "as "
                f"$$ begin perform set_config('embed.trapped_by', '{name}({arguments})', false); "
                "perform trap.note(); raise exception 'a namesake ran'; end $$"
            )


def _inputs(modes: Sequence[str], types: Sequence[str]) -> list[str]:
    return [kind for mode, kind in zip(modes, types, strict=True) if mode in "ibv"]


def _variants(inputs: list[str], defaults: int) -> Iterator[list[str]]:
    for left_out in range(1, defaults + 1):
        yield inputs[:-left_out]
    for place, kind in enumerate(inputs):
        for like in _LIKE.get(kind, []):
            yield [*inputs[:place], like, *inputs[place + 1 :]]
