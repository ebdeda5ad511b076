-- connection_prepare
-- Bound the wait for locks on this connection, have dates written in the one unambiguous form (keys
-- travel as text), and say which types of pgvector exist, in whatever schema.
with bounded as materialized (
  select
    pg_catalog.set_config('lock_timeout', %(lock_timeout)s, false) as lock_timeout,
    pg_catalog.set_config('DateStyle', 'ISO', false) as date_style
)
select t.typname, t.oid, t.typarray
from bounded
left join (
  pg_catalog.pg_extension e
  join pg_catalog.pg_depend d
    on d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
    and d.refobjid = e.oid
    and d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
    and d.deptype = 'e'
  join pg_catalog.pg_type t
    on t.oid = d.objid
    and t.typname in ('vector', 'halfvec', 'sparsevec')
) on e.extname = 'vector';
