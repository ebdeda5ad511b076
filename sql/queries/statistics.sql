-- statistics_state
-- What counts now of a source.
select version, passages, average_length from embed.lexical_state where source = %(source)s;

-- statistics_try_lock
-- One count of a source at a time; held by the session.
select pg_try_advisory_lock(1701667432, %(source)s);

-- statistics_unlock
-- Let another worker count.
select pg_advisory_unlock(1701667432, %(source)s);

-- statistics_begin
-- A version never used before, and how many pages of passages there are.
select
    nextval('embed.seq'),
    (pg_relation_size(%(vectors)s::text::regclass) / current_setting('block_size')::integer)::integer;

-- statistics_read
-- The terms of the passages on some pages, as pgvector sends them.
select {sparsevec_send}(v.terms)
from {vectors} v
where v.ctid >= format('(%%s,0)', %(first)s::bigint)::tid
and v.ctid < format('(%%s,0)', %(last)s::bigint)::tid
and v.terms is not null;

-- statistics_write
-- A part of a version that does not count yet.
insert into embed.lexical_term (source, version, term, frequency)
select %(source)s, %(version)s, t.term, t.frequency
from unnest(%(terms)s::integer[], %(frequencies)s::real[]) as t (term, frequency);

-- statistics_switch
-- From here on this version counts, unless there is a later one by now.
insert into embed.lexical_state as t (source, version, passages, average_length)
values (%(source)s, %(version)s, %(passages)s, %(average_length)s)
on conflict (source) do update
set version = excluded.version,
    passages = excluded.passages,
    average_length = excluded.average_length,
    counted_at = now()
where t.version < excluded.version;

-- statistics_delete
-- A part of the versions that count no more. Never waits: what is locked is being deleted.
delete from embed.lexical_term t
where t.ctid = any (array(
    select x.ctid
    from embed.lexical_term x
    where x.source = %(source)s
    and x.version < %(version)s
    limit %(limit)s
    for update skip locked
));

-- statistics_drop
-- What was written of a version that will never count.
delete from embed.lexical_term where source = %(source)s and version = %(version)s;
