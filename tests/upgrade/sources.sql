-- What the enabled tables have of ours: functions, triggers, policies and grants.
select p.proname, pg_get_functiondef(p.oid), array(select x::text from unnest(p.proacl) x order by 1)::text from pg_proc p
where p.pronamespace = 'embed'::regnamespace and p.proname ~ '^source_[0-9]+_'
union all
select t.tgname, pg_get_triggerdef(t.oid), null from pg_trigger t where t.tgname ~ '^embed_[0-9]'
union all
select p.polname, format('%s %s %s', p.polrelid::regclass, pg_get_expr(p.polqual, p.polrelid), p.polroles), null
from pg_policy p where p.polname in ('embed_source', 'embed_worker')
union all
select c.oid::regclass::text, '', array(select x::text from unnest(c.relacl) x order by 1)::text from pg_class c
where c.relname ~ '^(queue|inbox|state)_[0-9]+$' or c.relname ~ '_embedding$'
