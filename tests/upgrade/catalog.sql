-- Everything of ours in a database but what belongs to one source, a row each. Of rights, what they come to: a
-- function without a list of rights has the default one, and who has a right as PUBLIC needs no grant of his own.
select format('function %s returns %s: %s', p.oid::regprocedure, pg_get_function_result(p.oid),
    pg_get_functiondef(p.oid)), array(select x::text from unnest(coalesce(p.proacl, acldefault('f', p.proowner))) x order by 1)::text,
    obj_description(p.oid, 'pg_proc')
from pg_proc p
where p.pronamespace = 'embed'::regnamespace and p.proname !~ '^source_[0-9]+_'
and not exists (
    select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
)
union all
select format('column %s.%s %s %s %s', c.oid::regclass, a.attname, format_type(a.atttypid, a.atttypmod),
    a.attnotnull, pg_get_expr(d.adbin, d.adrelid)), a.attacl::text, col_description(c.oid, a.attnum)
from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
where c.relnamespace = 'embed'::regnamespace and c.relname !~ '^(queue|inbox|state)_[0-9]+'
union all
select format('relation %s %s %s %s %s', c.oid::regclass, c.relkind, c.relpersistence, c.relrowsecurity,
    c.reloptions), array(select x::text from unnest(c.relacl) x order by 1)::text,
    obj_description(c.oid, 'pg_class')
from pg_class c
where c.relnamespace = 'embed'::regnamespace and c.relname !~ '^(queue|inbox|state)_[0-9]+'
union all
select format('view %s: %s', c.oid::regclass, pg_get_viewdef(c.oid)), null, null
from pg_class c
where c.relnamespace = 'embed'::regnamespace and c.relkind = 'v'
union all
select format('constraint %s on %s: %s', n.conname, n.conrelid::regclass, pg_get_constraintdef(n.oid)), null, null
from pg_constraint n
join pg_class c on c.oid = n.conrelid
where n.connamespace = 'embed'::regnamespace and c.relname !~ '^(queue|inbox|state)_[0-9]+'
union all
select format('index %s', pg_get_indexdef(i.indexrelid)), null, null
from pg_index i
join pg_class c on c.oid = i.indrelid
where c.relnamespace = 'embed'::regnamespace and c.relname !~ '^(queue|inbox|state)_[0-9]+'
union all
select format('policy %s on %s: %s %s %s %s', p.polname, p.polrelid::regclass, p.polcmd, p.polroles::regrole[],
    pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)), null, obj_description(p.oid, 'pg_policy')
from pg_policy p
join pg_class c on c.oid = p.polrelid
where c.relnamespace = 'embed'::regnamespace and c.relname !~ '^(queue|inbox|state)_[0-9]+'
union all
select format('type %s', t.oid::regtype), t.typacl::text, null
from pg_type t
where t.typnamespace = 'embed'::regnamespace and t.typname !~ '^_?(queue|inbox|state)_[0-9]+'
union all
select format('schema for %s', r.role), array(
        select p.privilege from unnest(array['usage', 'create']) as p (privilege)
        where has_schema_privilege(r.role, n.oid, p.privilege)
    )::text, obj_description(n.oid, 'pg_namespace')
from pg_namespace n
cross join (
    select 'public' as role
    union all
    select rolname from pg_roles where rolname in ('embed_worker', 'embed_admin', 'embed_monitor', 'embed_search')
) as r
where n.nspname = 'embed'
union all
select 'defaults', d.defaclacl::text, null from pg_default_acl d
