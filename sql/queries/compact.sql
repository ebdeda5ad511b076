-- queue_bloat
-- Bytes of a queue with its indexes, its rows as the server counts them, those that an old snapshot
-- keeps among them, whether this role may have it rewritten, and the file that a rewrite exchanges.
-- Looks at no page of it.
select
    pg_catalog.pg_total_relation_size(c.oid) as size,
    coalesce(pg_catalog.pg_stat_get_live_tuples(c.oid), 0)
        + coalesce(pg_catalog.pg_stat_get_dead_tuples(c.oid), 0) as rows,
    coalesce(pg_catalog.has_function_privilege(p.oid, 'execute'), false) as ours,
    pg_catalog.pg_relation_filenode(c.oid) as file
from pg_catalog.pg_class c
left join pg_catalog.pg_proc p
    on p.oid = pg_catalog.to_regprocedure(pg_catalog.format('embed.source_%%s_compact()', %(source)s))
where c.oid = pg_catalog.to_regclass(pg_catalog.format('embed.queue_%%s', %(source)s));

-- queue_compact
-- Rewrite a queue and its indexes as its owner; not while another session uses it.
select {compact}();
