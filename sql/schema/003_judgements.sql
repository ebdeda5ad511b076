-- Changes of tables since version 0002, one section per subject. The rules of 002_first_day.sql hold.

-- What people asked and which rows were right. A key is the text of each key column, as to_jsonb writes it, so that
-- these tables serve tables of every key. No column holds a text of a row.
create table embed.judgement (
    id bigint generated always as identity primary key,
    relation regclass not null,
    question text not null check (question <> '' and length(question) <= 2000),
    key text[] not null,
    grade smallint not null check (grade between 0 and 3),
    source text not null check (source in ('click', 'person', 'file', 'reranker')),
    asker text,
    judged_at timestamptz not null default now()
);
-- A row, a question and a source stand there once. A question or a key may be too long for an index, so hashes stand
-- for them.
create unique index judgement_once on embed.judgement (
    relation, hashtextextended(question, 0), hashtextextended(question, 1), hash_array_extended(key, 0), source
);

comment on table embed.judgement is
    'Questions and the rows that answer them: embedworker judgements import, clicks, people.';
comment on column embed.judgement.key is 'The text of each key column, in the order of the key.';
comment on column embed.judgement.grade is '0 is a row that does not answer the question, 1 to 3 are rows that do.';
comment on column embed.judgement.asker is
    'Who asked, as embed.search_logged was told; null for other sources than clicks.';

create table embed.question_log (
    relation regclass primary key,
    days integer not null check (days between 1 and 3650)
);
comment on table embed.question_log is
    'Tables whose questions are kept, and for how many days; written by embed.log_questions.';

create table embed.logged_search (
    id uuid primary key,
    relation regclass not null,
    question text not null,
    keys jsonb not null,
    asker text,
    searched_at timestamptz not null default now()
);
-- The worker deletes what is too old.
create index logged_search_by_age on embed.logged_search (relation, searched_at);
comment on table embed.logged_search is
    'Searches by embed.search_logged: the question and the keys shown, never a text of a row.';

-- Applications only append, so none waits for another. No key refers to the search: to check one would lock it.
create table embed.choice (
    search uuid not null,
    key text[] not null,
    chosen_at timestamptz not null default now()
);
comment on table embed.choice is
    'Rows that people chose, until a worker makes judgements of them; written by embed.chosen.';
