-- statistics_state
-- What counts now of a source.
select version, passages, average_length, scheme from embed.lexical_state where source = %(source)s;

-- statistics_try_lock
-- One count of a source at a time; held by the session.
select pg_try_advisory_lock(1701667432, %(source)s);

-- statistics_unlock
-- Let another worker count.
select pg_advisory_unlock(1701667432, %(source)s);

-- statistics_begin
-- A version never used before, and how many pages of passages there are; null without the table.
select
    nextval('embed.seq'),
    (pg_relation_size(to_regclass(%(vectors)s)) / current_setting('block_size')::integer)::integer;

-- statistics_read
-- The terms of the passages on some pages, as pgvector sends them; null where a passage has none.
select {sparsevec_send}(v.terms)
from {vectors} v
where v.ctid >= format('(%%s,0)', %(first)s::bigint)::tid
and v.ctid < format('(%%s,0)', %(last)s::bigint)::tid;

-- statistics_write
-- A part of a version that does not count yet.
insert into embed.lexical_term (source, version, term, frequency)
select %(source)s, %(version)s, t.term, t.frequency
from unnest(%(terms)s::integer[], %(frequencies)s::real[]) as t (term, frequency);

-- statistics_switch
-- From here on this version counts, unless there is a later one by now, or embed.cut_over has exchanged the names and
-- vectors of another source were read.
insert into embed.lexical_state as t (source, version, passages, average_length, scheme)
select %(source)s, %(version)s, %(passages)s, %(average_length)s, %(scheme)s
where {vectors_hold}
on conflict (source) do update
set version = excluded.version,
    passages = excluded.passages,
    average_length = excluded.average_length,
    scheme = excluded.scheme,
    token = excluded.token,
    counted_at = now()
where t.version < excluded.version
returning embed._renew_token(source);

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

-- terms_read
-- Passages on some pages whose vectors of terms are of an older scheme, with their texts: only where the
-- vectors were made of the text that is there now. The others wait in the queue.
with old as materialized (
    select v.ctid as place, v.seq, {v_keys_as_places}, v.passage_start, v.passage_end, v.hash
    from {vectors} v
    where v.ctid >= format('(%%s,0)', %(first)s::bigint)::tid
    and v.ctid < format('(%%s,0)', %(last)s::bigint)::tid
    and (v.terms is null or (v.terms {inner} %(mark)b) > -%(value)s::double precision)
),
job as materialized (
    -- One look at a text, however many passages of it are here.
    select {j_places}, j.hash,
        array_agg(j.place::text) as at, array_agg(j.seq) as seqs,
        array_agg(j.passage_start) as starts, array_agg(j.passage_end) as ends
    from old j
    group by {j_places}, j.hash
)
select p.at, p.seq, substr(x.text, p.first + 1, p.last - p.first)
from job j
cross join lateral (
    select {text} as text
    from {rows} s
    where {s_is_j}
    limit 1
) as x
cross join lateral unnest(j.at, j.seqs, j.starts, j.ends) as p (at, seq, first, last)
where embed.text_hash(x.text) = j.hash;

-- terms_clear
-- Remove the vectors of terms on some pages. Nobody is waited for.
with mine as materialized (
    select v.ctid as place
    from {vectors} v
    where v.ctid >= format('(%%s,0)', %(first)s::bigint)::tid
    and v.ctid < format('(%%s,0)', %(last)s::bigint)::tid
    and v.terms is not null
    and {vectors_hold} -- not those of a source in whose searches words count
    for update skip locked
)
update {vectors} v
set terms = null
from mine m
where v.ctid = m.place;

-- terms_write
-- Their new vectors of terms, where no worker has written the passage since. Nobody is waited for.
with made as (
    select * from unnest(%(places)s::tid[], %(seqs)s::bigint[], %(terms)b::{sparsevec}[]) as m (place, seq, terms)
),
mine as materialized (
    select v.ctid as place, m.terms
    from made m
    join {vectors} v on v.ctid = m.place
    where v.seq = m.seq
    for update of v skip locked
)
update {vectors} v
set terms = m.terms
from mine m
where v.ctid = m.place;
