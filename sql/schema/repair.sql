-- Run by every `embedworker migrate`. Our columns of pgvector's type go when pgvector is dropped with
-- CASCADE, by itself or with its schema. What was in these two tables is made again when it is asked for.
do $$
begin
    if not exists (
        select from pg_catalog.pg_attribute a where a.attrelid = 'embed.question'::regclass and a.attname = 'embedding'
    ) then
        alter table embed.question add column embedding @extschema:vector@.vector;
    end if;
    if not exists (
        select
        from pg_catalog.pg_attribute a
        where a.attrelid = 'embed.question_cache'::regclass and a.attname = 'embedding'
    ) then
        truncate embed.question_cache;
        alter table embed.question_cache add column embedding @extschema:vector@.vector not null;
    end if;
end
$$;
