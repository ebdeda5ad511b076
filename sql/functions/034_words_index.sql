-- The first stage of a search by words, for tables that are too large to compare all passages: an index over the terms
-- of the passages, and the function that looks up in it.

-- The places of a passage's terms, without what stands before them (see FIRST in
-- worker/embedworker/model/lexical.py). The index is over this.
create or replace function embed._places(terms @extschema:vector@.sparsevec) returns integer[]
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
begin atomic
    select coalesce(array_agg(t.place), '{}')
    from (
        select split_part(x, ':', 1)::integer as place
        from unnest(string_to_array(btrim(split_part(terms::text, '/', 1), '{}'), ',')) as x
    ) as t
    where t.place > 4;
end;

-- What stands behind "create index concurrently NAME". Its pending list stays: without it, writes cost eight times the
-- WAL. The server estimates nothing by the statistics of an index that has a condition. Without one, EXPLAIN told a
-- reader which words are in rows that row security hides.
create or replace function embed._words_definition(source embed.source) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return format('on %s using gin (embed._places(terms)) where terms is not null', source.vectors);

-- The indexes over the terms of a source's passages, valid ones first.
create or replace function embed._words_indexes(source embed.source)
returns table (index oid, valid boolean)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
    select i.indexrelid, i.indisvalid and i.indpred is not null
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
    join pg_am m on m.oid = c.relam and m.amname = 'gin'
    where i.indrelid = (source).vectors
    and exists (
        select
        from pg_depend d
        where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
        and d.refclassid = 'pg_proc'::regclass
        and d.refobjid = to_regprocedure('embed._places(@extschema:vector@.sparsevec)')
    )
    order by i.indisvalid and i.indpred is not null desc, i.indexrelid;
end;

-- Has workers compute, or remove, the vectors of terms of a source that was enabled before.
create or replace function embed._set_words(source embed.source, wanted boolean) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if source.words = wanted then
        return;
    end if;
    perform embed._require_no_switch(source.id, 'embed.enable with other arguments'::text);
    update embed._own_source s set words = wanted, version = nextval('embed.seq') where s.id = source.id;
    perform embed._read_again(source.id), embed.wake();
end
$$;

-- What decides who may read a table: its owner, row security and grants.
create or replace function embed._rights_mark(relation regclass) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
    select md5(
        concat_ws(
            '|', c.relowner, c.relrowsecurity, c.relforcerowsecurity, c.relacl::text,
            (
                select string_agg(a.attnum || ' ' || a.attacl::text, '|' order by a.attnum)
                from pg_attribute a
                where a.attrelid = c.oid and a.attacl is not null
            )
        )
    )
    from pg_class c
    where c.oid = relation
);

-- The same of roles: members, and who passes row security.
create or replace function embed._roles_mark() returns text
language sql stable
set search_path = pg_catalog, pg_temp
return md5(
    concat_ws(
        '|',
        (
            select string_agg(concat_ws(' ', m.roleid, m.member), ',' order by m.roleid, m.member)
            from pg_auth_members m
        ),
        (select string_agg(r.oid::text, ',' order by r.oid) from pg_roles r where r.rolsuper or r.rolbypassrls)
    )
);

-- Gives a source another token where the one that it has was given under other rights: who has read it may not read
-- the words any more. Workers call it at each look at a table.
create or replace function embed._renew_token(source integer) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    marks constant text[] := array[embed._rights_mark(embed._relation_of(source)), embed._roles_mark()];
begin
    update embed.lexical_state s
    set token = concat_ws('.', replace(gen_random_uuid()::text, '-', ''), marks[1], marks[2])
    where s.source = _renew_token.source
    and array[split_part(s.token, '.', 2), split_part(s.token, '.', 3)] is distinct from marks;
end
$$;

-- The name that the table of a source's vectors has now; null where it was dropped. It runs as its owner, because the
-- owner of a table may have lost the right to read embed.source.
create or replace function embed._name_of_vectors(source integer) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
return (
    select format('%I.%I', n.nspname, c.relname)
    from embed.source s
    join pg_class c on c.oid = s.vectors
    join pg_namespace n on n.oid = c.relnamespace
    where s.id = _name_of_vectors.source
);

-- Writes the function that looks up passages by words. It runs as its owner: the operator && may not look before row
-- security does, so for anybody else the server would read the whole table. Which passages have a word tells something
-- of rows that row security hides. So it answers those only who know the token of the source, which the policy of
-- embed.lexical_state shows to readers of all texts and to nobody else. It gives places, no data. A token counts while
-- the rights to the table are those under which it was given.
-- It asks for the name of the table at each call: embed.cut_over exchanges names, and a schema may be renamed.
create or replace function embed._write_words(source embed.source) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    name constant text := format(
        'embed.source_%s_words(text, integer[], @extschema:vector@.sparsevec, integer)', source.id
    );
begin
    perform embed._check_function(source.id, 'words');
    execute format(
        $q$create or replace function embed.source_%1$s_words(
            token text, places integer[], idf @extschema:vector@.sparsevec, most integer
        ) returns tid[] language plpgsql stable security definer
        set search_path = pg_catalog, pg_temp set enable_seqscan = off as %2$L$q$,
        source.id,
        format(
            'declare
    vectors constant text := embed._name_of_vectors(%1$s);
    best tid[];
begin
    if token is null or vectors is null
        or not exists (select from embed.lexical_state s where s.source = %1$s and s.token = $1)
        or split_part(token, ''.'', 2) is distinct from embed._rights_mark(embed._relation_of(%1$s))
    then
        return ''{}'';
    end if;
    execute format(
        ''select array(
            select v.ctid
            from %%s v
            where embed._places(v.terms) operator(pg_catalog.&&) $1
            order by v.terms operator(@extschema:vector@.<#>) $2
            limit $3
        )'',
        vectors
    ) into best using places, idf, most;
    return best;
end',
            source.id
        )
    );
    perform embed._give_function(source.id, name);
end
$$;
