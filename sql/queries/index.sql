-- index_facts
-- The indexes over a source's vectors that take the place of HNSW, the best first: whether each can be used, and
-- whether somebody builds it.
select format('%%I.%%I', n.nspname, c.relname) as index, c.relname, x.valid, x.building
from embed.source s
cross join lateral embed._vector_indexes(s) as x
join pg_catalog.pg_class c on c.oid = x.index
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where s.id = %(source)s
and x.method <> 'ivfflat';

-- index_definition
-- What the index is over, null where there can be none, as what type it holds a vector, and in what
-- schema it will be.
select embed._index_definition(s), embed._index_type(s), n.nspname
from embed.source s
join pg_catalog.pg_class c on c.oid = case when s.into_column is null then s.vectors else s.relation end
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where s.id = %(source)s;

-- index_count
-- How many vectors there are, counted no further than needed.
select count(*) from (select from {table} where {column} is not null limit %(enough)s) as counted;

-- index_size
-- How many vectors there are, and the memory that a build needs, in bytes.
select count({column}), embed._graph_bytes(count({column}), %(dimensions)s, %(type)s) from {table};

-- index_memory
-- Give the session the memory of a build, but never less than the server gives to every other, and
-- return what it has: bytes, and how many processes may help. The server counts the pages of the
-- table alone for these, and most vectors lie outside of it.
select
    pg_catalog.pg_size_bytes(
        pg_catalog.set_config(
            'maintenance_work_mem',
            (
                greatest(%(bytes)s, pg_catalog.pg_size_bytes(pg_catalog.current_setting('maintenance_work_mem'))) + 1023
            ) / 1024 || 'kB',
            false
        )
    ),
    pg_catalog.current_setting('max_parallel_maintenance_workers')::integer,
    pg_catalog.set_config('min_parallel_table_scan_size', '0', false);

-- index_alone
-- Build without the help of other processes.
select pg_catalog.set_config('max_parallel_maintenance_workers', '0', false);

-- index_create
-- Built beside the running application: neither reads nor writes wait for it.
create index concurrently {index} {definition};

-- index_drop
-- What a build that failed has left behind.
drop index concurrently if exists {index};

-- index_broken
-- Whether this is the name of an index that cannot be used. embed.cut_over exchanges the names of indexes.
select exists (
    select from pg_catalog.pg_index i
    where i.indexrelid = pg_catalog.to_regclass(%(index)s) and not i.indisvalid
);

-- index_progress
-- How far the build of an index over a table is: the share of the pages that is read, and whom it
-- waits for.
select
    p.phase,
    p.blocks_done / nullif(p.blocks_total, 0)::double precision as share,
    a.pid,
    a.application_name,
    extract(epoch from clock_timestamp() - a.xact_start)::double precision as seconds
from pg_catalog.pg_stat_progress_create_index p
left join pg_catalog.pg_stat_activity a on a.pid = nullif(p.current_locker_pid, 0)
where p.relid = %(table)s::regclass
and p.datname = current_database()
and p.command like 'CREATE INDEX%%';

-- index_words
-- The index over the terms of a source's passages: those to drop, whether one is wanted, whether one can be used, the
-- name and the definition of a new one, and how many passages there are, as the planner would guess.
select
    array(
        select format('%%I.%%I', n.nspname, c.relname)
        from embed._words_indexes(s) as x
        join pg_catalog.pg_class c on c.oid = x.index
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where not (x.valid and s.words)
    ) as superfluous,
    s.words as wanted,
    exists (select from embed._words_indexes(s) as x where x.valid) as valid,
    exists (
        select
        from pg_catalog.pg_stat_progress_create_index p
        where p.relid = s.vectors and p.datname = current_database()
    ) as building,
    format('%%s_%%s_words', left(v.relname, 40), s.id) as name,
    n.nspname as schema,
    embed._words_definition(s) as definition,
    embed._guess_rows(s.vectors) as passages
from embed.source s
join pg_catalog.pg_class v on v.oid = s.vectors
join pg_catalog.pg_namespace n on n.oid = v.relnamespace
where s.id = %(source)s;

-- index_words_memory
-- Give the session the memory of a build of the index over words, but never less than the server gives to every other.
select pg_catalog.set_config(
    'maintenance_work_mem',
    greatest(%(bytes)s, pg_catalog.pg_size_bytes(pg_catalog.current_setting('maintenance_work_mem'))) / 1024 || 'kB',
    false
);
