-- Changes of tables since version 0002, one section per subject. The rules of 002_first_day.sql hold.

-- Terms of the second scheme: Latin words and codes as wholes (worker/embedworker/model/lexical.py).
alter table embed.lexical_state add column scheme smallint not null default 1;

comment on column embed.lexical_state.scheme is
    'The oldest scheme of the vectors of terms that were counted; of 1, workers compute the vectors again. 0: there '
    'are none.';

alter table embed.source add column words boolean not null default true;

comment on column embed.source.words is 'Whether words count in searches. If not, its vectors of terms are null.';

-- Who knows it may look up passages by words, see embed._write_words.
alter table embed.lexical_state add column token text not null default replace(
    pg_catalog.gen_random_uuid()::text, '-', ''
);

comment on column embed.lexical_state.token is 'Another one after each count.';

-- It returns other columns.
drop function if exists embed._idf(integer[], real, real[]);

-- The answers that are kept hold the terms of the first scheme alone.
delete from embed.question_cache;

-- They have one argument more.
drop function if exists embed.enable(regclass, text[], text, text, text, text, boolean, text, text[]);
drop function if exists embed._enable(regclass, text[], text, text, text, text, boolean, text, text[]);
