-- migrate_server
-- What this server is, and whether pgvector is installed here or could be.
select
    current_setting('server_version_num')::integer as version_number,
    current_setting('server_version') as version,
    (select extversion from pg_catalog.pg_extension where extname = 'vector') as installed,
    (select default_version from pg_catalog.pg_available_extensions where name = 'vector') as available,
    pg_catalog.pg_is_in_recovery() as replica,
    pg_catalog.current_database() as database,
    current_user as role,
    current_setting('server_encoding') as encoding,
    (
        select source from pg_catalog.pg_settings where name = 'default_transaction_read_only' and setting = 'on'
    ) as read_only_by;

-- migrate_extension
-- Install an extension; needs the right to.
create extension if not exists {extension};

-- migrate_schema
-- The schema, made before Alembic looks for its version table in it.
create schema if not exists embed;

-- migrate_extension_schema
-- The schema that an extension lives in.
select n.nspname
from pg_catalog.pg_extension e
join pg_catalog.pg_namespace n on n.oid = e.extnamespace
where e.extname = %(name)s;

-- migrate_load_vector
-- Load pgvector's library, so that its settings (hnsw.*) are known to the functions that set them.
select pg_catalog.count(*) from pg_catalog.pg_extension where '[1]'::{vector} is not null;

-- migrate_role
-- Which role SET ROLE has chosen.
select pg_catalog.current_setting('role');

-- migrate_as_owner
-- Act as the owner of the schema embed until the end of the transaction, if this role may.
select pg_catalog.set_config('role', o.rolname, true)
from pg_catalog.pg_namespace n
join pg_catalog.pg_roles o on o.oid = n.nspowner
where n.nspname = 'embed' and o.rolname <> current_user
and pg_catalog.pg_has_role(
    o.oid, case when pg_catalog.current_setting('server_version_num')::integer < 160000 then 'member' else 'set' end
);

-- migrate_as
-- Act as another role again until the end of the transaction.
select pg_catalog.set_config('role', %(role)s, true);

-- migrate_misowned
-- Statements that give to the owner of the schema what this role made there in an earlier run.
select x.statement
from (
    select format(
            'alter %%s %%s owner to %%I', case c.relkind when 'v' then 'view' when 'S' then 'sequence' else 'table' end,
            c.oid::regclass, pg_catalog.pg_get_userbyid(n.nspowner)
        ) as statement
    from pg_catalog.pg_namespace n
    join pg_catalog.pg_class c on c.relnamespace = n.oid
    where n.nspname = 'embed' and c.relname = any (%(relations)s) and c.relkind in ('r', 'v', 'S')
    and c.relowner <> n.nspowner and c.relowner = current_user::regrole
    and not exists (
        select from pg_catalog.pg_depend d
        where d.classid = 'pg_catalog.pg_class'::regclass
        and d.objid = c.oid
        and d.deptype in ('a', 'i')
        and c.relkind = 'S'
    )
    union all
    select format('alter function %%s owner to %%I', p.oid::regprocedure, pg_catalog.pg_get_userbyid(n.nspowner))
    from pg_catalog.pg_namespace n
    join pg_catalog.pg_proc p on p.pronamespace = n.oid
    where n.nspname = 'embed' and p.proname = any (%(functions)s)
    and p.proowner <> n.nspowner and p.proowner = current_user::regrole
) as x;

-- migrate_namesakes
-- Functions in our schema of somebody who owns neither it nor the server, but those of sources. A call of
-- ours could find one of them, and would run it as the role that migrates.
select string_agg(p.oid::regprocedure::text, ', ' order by p.oid)
from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
join pg_catalog.pg_roles o on o.oid = p.proowner
where n.nspname = 'embed'
and not o.rolsuper
and o.oid <> n.nspowner
and o.oid is distinct from (
    select c.relowner from pg_catalog.pg_class c where c.oid = pg_catalog.to_regclass('embed.source')
)
and p.proname !~ '^source_[0-9]+_(insert|update|delete|truncate|row|open|visible|refresh|compact|words)$'
and not exists (
    select
    from pg_catalog.pg_depend d
    where d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
);

-- migrate_open_functions
-- Functions that are made now can be called by everybody, even where the role's own defaults say otherwise.
alter default privileges in schema embed grant execute on functions to public;

-- migrate_close_functions
-- Leave the role's defaults as they were.
alter default privileges in schema embed revoke execute on functions from public;

-- migrate_remember_tables
-- Remember which columns the migrations gave to our tables, for embed._lost_columns; once a version.
insert into embed.setting as s (name, value)
select
    'tables',
    jsonb_build_object(
        'version', v.version_num,
        'columns', (
            select jsonb_object_agg(
                c.relname,
                (
                    select jsonb_object_agg(a.attname, t.typname)
                    from pg_catalog.pg_attribute a
                    join pg_catalog.pg_type t on t.oid = a.atttypid
                    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                )
            )
            from pg_catalog.pg_class c
            where c.relnamespace = 'embed'::regnamespace and c.relkind = 'r' and c.relname = any (%(relations)s)
        )
    )::text
from embed.schema_version v
on conflict (name) do update
set value = excluded.value
where s.value::jsonb ->> 'version' is distinct from excluded.value::jsonb ->> 'version';

-- migrate_sources
-- Every enabled table.
select id, relation::text from embed.source order by id;

-- migrate_older
-- The workers that were made for an older version of the schema and may live, null if there are none. One
-- that is connecting again has no lock for a moment: it counts for a minute after its last sign of life.
select string_agg(format('process %%s on %%s', w.pid, w.host), ', ' order by w.id)
from embed.worker_session w
where (w.version is null or w.version < %(version)s)
and (w.seen_at > now() - interval '60 s' or exists (select from embed.worker x where x.id = w.id));

-- migrate_filters
-- Mend the filters that embedworker stored on PostgreSQL 15 with the name of their table.
update embed.source s
set filter = embed._unqualified(s.filter), version = nextval('embed.seq')
where s.filter <> embed._unqualified(s.filter);

-- migrate_model
-- Make a model of the catalog known to the database.
-- What an administrator measured stays.
insert into embed.model as m (name, dimensions, max_tokens, query_prefix, passage_prefix, pooling, question_offset)
values (
    %(name)s, %(dimensions)s, %(max_tokens)s, %(query_prefix)s, %(passage_prefix)s, %(pooling)s,
    %(question_offset)s::real[]
)
on conflict (name) do update
set dimensions = excluded.dimensions, max_tokens = excluded.max_tokens, query_prefix = excluded.query_prefix,
    passage_prefix = excluded.passage_prefix, pooling = excluded.pooling,
    question_offset = coalesce(m.question_offset, excluded.question_offset);

-- migrate_reranker
-- Make a cross-encoder of the catalog known to the database.
insert into embed.reranker (name, max_tokens)
values (%(name)s, %(max_tokens)s)
on conflict (name) do update set max_tokens = excluded.max_tokens;

-- migrate_use_reranker
-- The cross-encoder of a new database; what an administrator chose stays.
insert into embed.setting (name, value)
values ('reranker', %(name)s)
on conflict (name) do nothing;

-- migrate_use_model
-- Set the default model.
select embed.use_model(%(name)s);

-- migrate_roles
-- Make the roles that logins can be members of; those that this role may not make.
select embed._make_roles();

-- migrate_version
-- The version of the schema, as Alembic keeps it.
select (select v.version_num from embed.schema_version v) as version;

-- migrate_found
-- Whether a schema embed is there (none, empty), and whether this program made it (ours, foreign).
select
    case
        when n.oid is null then 'none'
        when exists (
            select
            from pg_catalog.pg_attribute a
            where a.attrelid = pg_catalog.to_regclass('embed.schema_version') and a.attname = 'version_num'
        )
        and pg_catalog.to_regclass('embed.seq') is not null
        and pg_catalog.to_regclass('embed.worker_id') is not null then 'ours'
        when exists (
            select
            from pg_catalog.pg_depend d
            where d.refclassid = 'pg_catalog.pg_namespace'::regclass and d.refobjid = n.oid
        ) then 'foreign'
        else 'empty'
    end
from (select pg_catalog.to_regnamespace('embed')::oid as oid) as n;

-- migrate_strangers
-- What others made in the schema embed or upon it, and would be dropped with it; null if nothing.
with ours as (
    select 'pg_catalog.pg_class'::regclass as classid, c.oid as objid
    from pg_catalog.pg_class c
    where c.relnamespace = 'embed'::regnamespace
    union all
    select 'pg_catalog.pg_proc'::regclass, p.oid from pg_catalog.pg_proc p where p.pronamespace = 'embed'::regnamespace
    union all
    select 'pg_catalog.pg_type'::regclass, t.oid from pg_catalog.pg_type t where t.typnamespace = 'embed'::regnamespace
),
upon as (
    select d.classid::regclass as classid, d.objid,
        -- The table, view or index that it is a part of.
        coalesce(r.ev_class, f.adrelid, nullif(n.conrelid, 0), g.tgrelid, p.polrelid) as relation
    from ours o
    join pg_catalog.pg_depend d on d.refclassid = o.classid and d.refobjid = o.objid and d.deptype = 'n'
    left join pg_catalog.pg_rewrite r on d.classid = 'pg_catalog.pg_rewrite'::regclass and r.oid = d.objid
    left join pg_catalog.pg_attrdef f on d.classid = 'pg_catalog.pg_attrdef'::regclass and f.oid = d.objid
    left join pg_catalog.pg_constraint n on d.classid = 'pg_catalog.pg_constraint'::regclass and n.oid = d.objid
    left join pg_catalog.pg_trigger g on d.classid = 'pg_catalog.pg_trigger'::regclass and g.oid = d.objid
    left join pg_catalog.pg_policy p on d.classid = 'pg_catalog.pg_policy'::regclass and p.oid = d.objid
    -- On enabled tables and their vectors, these are ours.
    where (g.tgname is null or g.tgname !~ '^embed_[0-9]+_')
    and (p.polname is null or p.polname <> 'embed_source')
)
select pg_catalog.string_agg(distinct x.what, ', ')
from (
    select case
            when u.classid = 'pg_catalog.pg_rewrite'::regclass then format('view %%s', u.relation::regclass)
            else pg_catalog.pg_describe_object(u.classid, u.objid, 0)
        end
    from upon u
    where not exists (select from ours o where o.classid = u.classid and o.objid = u.objid)
    and not exists (
        select from pg_catalog.pg_depend d
        where d.classid = u.classid and d.objid = u.objid and d.deptype = 'e' -- of dblink
    )
    and not exists (select from ours o where o.classid = 'pg_catalog.pg_class'::regclass and o.objid = u.relation)
    union all
    select format('table %%s', c.oid::regclass)
    from pg_catalog.pg_class c
    where c.relnamespace = 'embed'::regnamespace and c.relkind in ('r', 'p', 'f', 'm', 'v')
    and c.relname <> all (%(relations)s) and c.relname !~ '^(inbox|queue|state)_[0-9]+$'
    -- vectors
    and not exists (select from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polname = 'embed_source')
    union all
    select format('function %%s', p.oid::regprocedure)
    from pg_catalog.pg_proc p
    where p.pronamespace = 'embed'::regnamespace
    and p.proname !~ '^(_|source_[0-9]+_)'
    and p.proname <> all (%(functions)s)
    and not exists (
        select from pg_catalog.pg_depend d
        where d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
    )
) as x (what);

-- migrate_scan_settings
-- Have scans of an index give as many rows as are asked for; what this role may not set.
select embed._set_scan_settings();

-- migrate_grants
-- Give the roles that there are what they need.
select embed._grant_roles();

-- migrate_document
-- Enable the ready table.
select embed.enable('embed.document', array['title', 'content']);

-- migrate_drop
-- Everything of ours in this database.
drop schema if exists embed cascade;
