-- Changes of tables since version 0002. The rules of 002_first_day.sql hold.

-- A change of the model of a source: which source holds the vectors of the other model, and which of the two
-- answers now.
create table embed.switch_state (
    source integer primary key references embed.source (id) on delete cascade,
    successor integer not null unique references embed.source (id) on delete cascade,
    cut boolean not null default false,
    together boolean not null default false,
    forced boolean not null default false,
    judgement jsonb,
    started_at timestamptz not null default now(),
    cut_over_at timestamptz,
    rolled_back_at timestamptz
);

comment on table embed.switch_state is
    'Changes of a model that are under way, a row each; written by embed.begin_switch and its like.';
comment on column embed.switch_state.cut is 'Whether the successor answers.';
comment on column embed.switch_state.together is
    'Begun by embed.use_model(…, switch => true): all of these are cut over in one transaction.';
comment on column embed.switch_state.judgement is 'What `embedworker switch judge` measured last.';
