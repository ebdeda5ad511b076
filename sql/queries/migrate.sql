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
    current_setting('server_encoding') as encoding;

-- migrate_lock
-- Concurrent upgrades run one after the other.
select pg_catalog.pg_advisory_xact_lock(1701667428, 3);

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

-- migrate_follow_vector
-- The functions that name the schema of pgvector, as they have to be where it was moved since. Those
-- that name dblink, perhaps of the same schema, are written by every migrate; those of one source
-- name that of its table.
select replace(pg_get_functiondef(p.oid), x.before, %(schema)s)
from (
    select substring(f.prosrc from '''(.*)''') as before
    from pg_proc f
    where f.oid = to_regprocedure('embed._vector_schema()')
) x
join pg_proc p on strpos(p.prosrc, x.before) > 0
where x.before <> %(schema)s
and p.pronamespace = 'embed'::regnamespace
and p.prokind = 'f'
and strpos(p.prosrc, '.dblink') = 0
and p.proname !~ '^source_[0-9]+_';

-- migrate_model
-- Make a model of the catalog known to the database.
insert into embed.model (name, dimensions, max_tokens, query_prefix, passage_prefix, pooling)
values (%(name)s, %(dimensions)s, %(max_tokens)s, %(query_prefix)s, %(passage_prefix)s, %(pooling)s)
on conflict (name) do update
set dimensions = excluded.dimensions, max_tokens = excluded.max_tokens, query_prefix = excluded.query_prefix,
    passage_prefix = excluded.passage_prefix, pooling = excluded.pooling;

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

-- migrate_default_model
-- The model this database uses where none is named.
select embed.default_model();

-- migrate_use_model
-- Set the default model.
select embed.use_model(%(name)s);

-- migrate_roles
-- Make the roles that logins can be members of; those that this role may not make.
select embed._make_roles();

-- migrate_version
-- The version of the schema, as Alembic keeps it.
select (select v.version_num from embed.schema_version v) as version;

-- migrate_made
-- Whether there is a schema of ours, of whatever version.
select pg_catalog.to_regclass('embed.schema_version') is not null;

-- migrate_grants
-- Give the roles that there are what they need.
select embed._grant_roles();

-- migrate_document
-- Enable the ready table, once.
select embed.enable('embed.document', array['title', 'content'])
where not exists (select from embed.source where relation = 'embed.document'::regclass);

-- migrate_drop
-- Everything of ours in this database.
drop schema if exists embed cascade;
