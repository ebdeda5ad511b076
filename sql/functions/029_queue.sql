-- The tables in which the changes of a source wait: its inbox and its queue.

create or replace function embed._make_queue(source embed.source) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    k_list text;
    k_columns text;
    persistence constant text := (
        select case c.relpersistence when 'u' then 'unlogged' else '' end
        from pg_class c
        where c.oid = source.relation
    );
begin
    select string_agg('k' || k.place, ', ' order by k.place),
        embed._declared(source.relation, source.key_attnums, array_agg('k' || k.place order by k.place))
    into k_list, k_columns
    from unnest(source.key_attnums) with ordinality as k (attnum, place);
    -- The application appends here and does nothing else: no unique key to conflict on, so no wait
    -- for anybody and no serialisation failure at any isolation level. No index at all, which made
    -- the triggers of a COPY of 100,000 rows half as expensive again; workers read it in the order of its
    -- pages. Deleting is allowed to a table without a key only with this identity, where a
    -- publication holds all tables.
    execute format(
        'create %s table embed.inbox_%s (
            %s, priority smallint not null default 0, at timestamptz not null default now())
         with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
            autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000)',
        persistence, source.id, k_columns
    );
    execute format('alter table embed.inbox_%s replica identity full', source.id);
    -- due is lease, back-off and dead letter (infinity) in one; priority 0 is a fresh change, 11
    -- to 19 an attempt that did not end, 20 a backfill.
    execute format(
        'create %s table embed.queue_%s (
            %s, seq bigint not null, due timestamptz not null default now(), attempts smallint not null default 0,
            priority smallint not null default 0, claimed_by integer, error text,
            since timestamptz not null default now(), primary key (%s))
         with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
            autovacuum_vacuum_cost_delay = 0)',
        persistence, source.id, k_columns, k_list
    );
    execute format('create index on embed.queue_%1$s (priority, due) where due < ''infinity''', source.id);
    -- Serves the count and the list of dead rows; rows that are not have no part in it.
    execute format('create index on embed.queue_%1$s (since) where due = ''infinity''', source.id);
end
$$;
