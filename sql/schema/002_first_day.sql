-- Changes of tables since version 0001, one section per subject.
--
-- This file runs once in each database, before the functions are written; what is here must not call
-- them. Workers of version 0001 go on while it runs and afterwards, so it may add tables and columns,
-- and may take nothing away that they use: that belongs into finish/0002.sql, which runs when none of
-- them is alive. All of it is one transaction with the functions.
--
-- A function whose result or parameter names change, and a view that loses a column, must be dropped
-- here, because `create or replace` refuses that: drop function if exists embed.name(types).

-- The version of the schema that a worker was made for; null for workers of version 0001.
alter table embed.worker_session add column version text;

-- Whether embed.restrict_questions() is in force. It was kept as a right of PUBLIC alone, which a dump
-- without grants loses.
insert into embed.setting (name, value)
select 'questions', 'restricted'
from pg_catalog.pg_proc p
where p.oid = pg_catalog.to_regprocedure('embed.query(text, text)')
and not pg_catalog.has_function_privilege('public', p.oid, 'execute');

-- The memo of questions (embed._answer). Nobody is granted anything on this table.
create table embed.memo_secret (value text not null default replace(pg_catalog.gen_random_uuid()::text, '-', ''));
insert into embed.memo_secret default values;
comment on table embed.memo_secret is
    'A part of the name of the setting that keeps a question''s vector until the transaction ends.';

-- Counters of embed.status.
--
-- How many rows have vectors, by what made them. A worker changes its own entries in the statement that
-- writes or removes the vectors, so a crash takes both back or neither, and no worker waits for another.
-- The entries of worker 0 hold what workers that are gone have counted, and corrections.
create table embed.source_tally (
    source integer not null references embed.source (id) on delete cascade,
    worker integer not null,
    fingerprint integer not null,
    vectors bigint not null default 0,
    truncated bigint not null default 0,
    split bigint not null default 0,
    recent_rows bigint not null default 0,
    recent_at timestamptz,
    before_rows bigint not null default 0,
    before_at timestamptz,
    primary key (source, worker, fingerprint)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

comment on table embed.source_tally is 'Counters of embed.status; written by workers only.';
comment on column embed.source_tally.recent_rows is
    'Rows embedded since recent_at, which is at most 30 s before the last of them; before_rows are those of the window '
    'before.';

alter table embed.source_state
    add column unqueued bigint not null default 0,
    add column orphans bigint not null default 0,
    add column counted_at timestamptz,
    add column recount_at timestamptz not null default now();

comment on column embed.source_state.unqueued is 'Rows with text and without a vector that no sweep has queued yet.';
comment on column embed.source_state.orphans is 'Vectors without a row that no sweep has queued yet.';
comment on column embed.source_state.counted_at is 'When a worker last compared the counters with the rows themselves.';
comment on column embed.source_state.recount_at is 'When somebody last asked a worker to do that.';

-- The two processes of one `embedworker run`.
alter table embed.worker_session add column process integer;

comment on column embed.worker_session.process is
    'Process number of the `embedworker run` that this lane belongs to; its own, or that of its parent.';
