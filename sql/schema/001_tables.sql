-- The schema embed: what is searchable (source), by which model, and who is working on it.
--
-- Three kinds of table, by who writes them, so that nobody ever waits for anybody:
--   source, model, setting      written by people, through functions; the worker only reads them
--   inbox_N, sweep_request,     appended to by the application's triggers, emptied by the worker;
--   question                    an append never conflicts, never waits, at any isolation level
--   queue_N, source_state, …    written by workers only
--
-- @extschema:vector@ is replaced by the schema that pgvector lives in.

create schema if not exists embed;

comment on schema embed is 'embedworker: text columns searchable by meaning';

-- One sequence numbers every change of every source: a number is never used twice, so a late
-- completion of an older text can never be taken for a newer one (a counter per row that restarts
-- after a delete can).
create sequence embed.seq;

-- Workers; the number is also the key of the advisory lock that shows one is alive.
create sequence embed.worker_id as integer cycle;

create table embed.setting (
    name text primary key,
    value text not null
);

comment on table embed.setting is
    'Settings of this database: default_model, reranker, and what migrate found out about it.';

create table embed.model (
    name text primary key,
    dimensions integer not null check (dimensions between 1 and 16000),
    max_tokens integer not null check (max_tokens > 0),
    query_prefix text not null,
    passage_prefix text not null,
    pooling text not null check (pooling in ('mean', 'cls', 'max', 'lasttoken'))
);

comment on table embed.model is
    'Models that can be named in embed.enable: dimensions, window, prefixes and pooling.';

-- Cross-encoders: they read a question and a passage together, and make no vector.
create table embed.reranker (
    name text primary key,
    max_tokens integer not null check (max_tokens > 0)
);

comment on table embed.reranker is
    'Models that can be named in embed.use_reranker, and how many tokens of question and passage together they read.';

-- What exactly made a vector. Two vectors are comparable when this is the same.
create table embed.fingerprint (
    id integer generated always as identity primary key,
    digest text not null unique,
    model text not null,
    revision text not null,
    query_prefix text not null,
    passage_prefix text not null,
    pooling text not null,
    dimensions integer not null,
    max_tokens integer not null,
    notes jsonb not null default '{}',
    created_at timestamptz not null default now()
);

comment on column embed.fingerprint.notes is
    'Engine and number format; fp32 and bf16 vectors of one model may mix (cosine within 3e-5).';

create table embed.source (
    id integer generated always as identity primary key,
    name text not null,
    relation regclass not null,
    relation_oid oid not null,
    vectors regclass not null,
    keys text[] not null,
    key_attnums smallint[] not null,
    key_types text[] not null,
    columns text[] not null,
    column_attnums smallint[] not null,
    watch_attnums smallint[] not null,
    template text,
    filter text,
    into_column text,
    into_attnum smallint,
    chunk boolean not null,
    model text references embed.model (name),
    dimensions integer not null,
    lexical real not null default 0.2 check (lexical >= 0),
    paused boolean not null default false,
    version bigint not null default nextval('embed.seq'),
    created_at timestamptz not null default now(),
    unique (relation, name)
);

comment on table embed.source is 'What is enabled, a row each; written by embed.enable and its like.';
comment on column embed.source.relation_oid is
    'Differs from relation after pg_restore: then names, not column numbers, are to be trusted.';
comment on column embed.source.template is
    'How several columns become one text, {1} being the first of columns; null joins them by lines.';
comment on column embed.source.model is 'null follows the setting default_model.';
comment on column embed.source.version is 'Changes with every change of the row.';

-- What workers found out about a source. Apart from source, so that an administrator's open
-- transaction on source never holds up a worker.
create table embed.source_state (
    source integer primary key references embed.source (id) on delete cascade,
    fingerprint integer references embed.fingerprint (id),
    error text,
    error_at timestamptz,
    structure text,
    index_state text
);

comment on column embed.source_state.fingerprint is
    'The active one: search compares a question only with vectors made by it.';

create table embed.worker_session (
    id integer primary key,
    host text not null,
    pid integer not null,
    lanes text[] not null,
    model text,
    backend integer not null,
    lock_held boolean not null,
    started_at timestamptz not null default now(),
    seen_at timestamptz not null default now(),
    embedded bigint not null default 0,
    rows_per_second real not null default 0
);

-- How often terms occur in the passages of a source, see worker/embedworker/model/lexical.py. Written again as
-- another version; lexical_state says which one counts.
create table embed.lexical_state (
    source integer primary key references embed.source (id) on delete cascade,
    version bigint not null,
    passages real not null,
    average_length real not null,
    counted_at timestamptz not null default now()
);

comment on column embed.lexical_state.average_length is 'Terms of a passage.';

-- No reference to source: each row would be checked. term is a place in the vectors, from 1.
create table embed.lexical_term (
    source integer not null,
    version bigint not null,
    term integer not null,
    frequency real not null,
    primary key (source, version, term)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000);

comment on column embed.lexical_term.frequency is
    'Passages that have the term; scaled, where a sample was counted.';

comment on table embed.worker_session is
    'Workers that registered. The view embed.worker shows those that are alive.';
comment on column embed.worker_session.lock_held is
    'false behind a transaction pooler, where a session lock says nothing: there, leases alone count.';

-- Asked for by embed.enable, embed.sweep, a TRUNCATE, or a trigger that no longer fits its table.
create table embed.sweep_request (
    id bigint primary key default nextval('embed.seq'),
    source integer not null,
    reason text not null,
    at timestamptz not null default now()
);

-- The sweep that is under way, or the last one. cursor is the key where it goes on.
create table embed.sweep_state (
    source integer primary key references embed.source (id) on delete cascade,
    phase text not null check (phase in ('rows', 'orphans', 'done')),
    cursor text[],
    visited bigint not null default 0,
    missing bigint not null default 0,
    stale bigint not null default 0,
    orphaned bigint not null default 0,
    started_at timestamptz not null default now(),
    finished_at timestamptz
);

-- Questions waiting for their vector, or for the scores of passages. Unlogged: a question does not
-- outlive a crash of the server.
create unlogged table embed.question (
    id uuid primary key,
    model text not null,
    text text not null,
    role text not null default 'query' check (role in ('query', 'passage', 'rerank')),
    passages text[],
    asked_at timestamptz not null default clock_timestamp(),
    due timestamptz not null default clock_timestamp(),
    claimed_by integer,
    embedding @extschema:vector@.vector,
    terms integer[],
    shares real[],
    lost integer,
    scores real[],
    error text
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Serves the claim of unanswered questions.
create index question_due on embed.question (due) where embedding is null and scores is null and error is null;

comment on column embed.question.passages is
    'What is to be scored: texts that the asker may read, which go with the request.';
comment on column embed.question.terms is
    'The answer''s other part: the places of the question''s terms, and the shares of the scripts.';
comment on column embed.question.lost is
    'Tokens of the question behind the end of the model''s window, which are not in the vector.';

-- How many questions a login role may ask a minute; 0, which is no role, for all that are not named.
create table embed.question_limit (
    role regrole primary key,
    a_minute integer check (a_minute > 0)
);

comment on table embed.question_limit is
    'Written by embed.limit_questions. A role whose a_minute is null has no limit, the general one neither.';

-- The rest of it: a bucket of tokens for each role that has asked. Unlogged: full after a crash.
create unlogged table embed.question_allowance (
    role oid primary key,
    tokens double precision not null,
    at timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Vectors of recent questions, by what made them and a hash of the text: the text itself is not kept.
create table embed.question_cache (
    fingerprint integer not null references embed.fingerprint (id) on delete cascade,
    hash bytea not null,
    embedding @extschema:vector@.vector not null,
    terms integer[] not null,
    shares real[] not null,
    lost integer not null default 0,
    cached_at timestamptz not null default now(),
    primary key (fingerprint, hash)
);

-- Serves the eviction of the oldest.
create index question_cache_cached_at on embed.question_cache (cached_at);

-- A ready table for people who have none yet; enabled by the migration.
create table embed.document (
    id bigint generated by default as identity primary key,
    collection text,
    title text,
    content text not null,
    metadata jsonb not null default '{}',
    created_at timestamptz not null default now()
);

comment on table embed.document is
    'A ready table: insert a document, and it can be searched. Title and content are embedded together.';
