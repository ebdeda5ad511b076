-- Changes of tables since version 0002. The rules of 002_first_day.sql hold.

-- A model that another machine computes. Only embed_admin and the owner may write it, see 090_roles.sql.
alter table embed.model add column endpoint text;

comment on column embed.model.endpoint is
    'Address of the OpenAI-compatible API that makes the vectors; null: the worker loads the model.';

-- It takes another argument.
drop function if exists embed.add_model(text, integer, integer, text, text, text);
