-- demo_lock
-- One demonstration at a time in a database; goes with the session.
select pg_catalog.pg_try_advisory_lock(1701667428, 20);

-- demo_state
-- What is in the database already: our schema, and whether the names of the demonstration are taken.
select
    pg_catalog.to_regclass('embed.source') is not null as migrated,
    pg_catalog.to_regclass('demo.article') is not null
    and pg_catalog.obj_description(
        pg_catalog.to_regclass('demo.article'), 'pg_class'
    ) is distinct from %(mark)s as taken;

-- demo_others
-- The default model, and whether vectors of others than the demonstration are made with it.
select
    embed.default_model(),
    exists (
        select
        from embed.source s
        where s.model is null
        and s.relation is distinct from pg_catalog.to_regclass('demo.article')
        and (s.relation <> 'embed.document'::regclass or exists (select from embed.document))
    );

-- demo_disable
-- Forget the demonstration's table, if it is left from before.
select embed.disable(s.relation, drop_vectors => true)
from (select distinct x.relation from embed.source x where x.relation = pg_catalog.to_regclass('demo.article')) as s;

-- demo_drop
-- The table itself.
drop table if exists demo.article;

-- demo_schema_empty
-- Whether the schema was made by us and nothing is left in it.
select exists (
    select
    from pg_catalog.pg_namespace n
    where n.nspname = 'demo'
    and pg_catalog.obj_description(n.oid, 'pg_namespace') = %(mark)s
    and not exists (select from pg_catalog.pg_class c where c.relnamespace = n.oid)
);

-- demo_drop_schema
-- Refused by the server when something of others is in it.
drop schema if exists demo;

-- demo_schema_there
-- Whether there is a schema of the name.
select pg_catalog.to_regnamespace('demo') is not null;

-- demo_create_schema
-- The schema of the demonstration.
create schema demo;

-- demo_mark_schema
-- So that it is known as ours.
comment on schema demo is {mark};

-- demo_create
-- An ordinary table, as an application has it.
create table demo.article (
    id bigint generated always as identity primary key,
    lang text not null,
    title text not null,
    content text not null
);

-- demo_mark
-- So that the next demonstration knows it may drop it.
comment on table demo.article is {mark};

-- demo_fill
-- The sample articles.
insert into demo.article (lang, title, content)
select *
from unnest(%(langs)s::text[], %(titles)s::text[], %(contents)s::text[]);

-- demo_enable
-- The one call that makes it searchable.
select embed.enable('demo.article', array['title', 'content']);

-- demo_enable_with
-- The same with a model that is not the database's default.
select embed.enable('demo.article', array['title', 'content'], model => %(model)s);

-- demo_progress
-- How many articles have a vector that search would use, and what stands in the way.
select
    (select pg_catalog.count(*) from demo.article_embedding e where e.chunk = 0 and e.fingerprint = t.fingerprint),
    (select pg_catalog.count(*) from demo.article),
    t.error
from embed.source s
join embed.source_state t on t.source = s.id
where s.relation = 'demo.article'::regclass;

-- demo_wait
-- Allow for a worker that is still starting, or loading its model.
select pg_catalog.set_config('embed.query_timeout', '1min', false),
    pg_catalog.set_config('embed.worker_grace', '1min', false);

-- demo_search
-- The articles nearest to a question.
select (s."row").title, s.score
from embed.search(
    null::demo.article, %(question)s, k => 3
) as s;

-- demo_insert
-- What an application does.
insert into demo.article (lang, title, content)
values (
    'ko', %(title)s,
    %(content)s
);

-- demo_update
-- What an application does.
update demo.article
set content = %(content)s
where title = %(title)s;

-- demo_delete
-- What an application does.
delete from demo.article
where title = %(title)s;

-- demo_key
-- The key of an article.
select id from demo.article where title = %(title)s;

-- demo_vector
-- Which change of an article its vector is of; no row where it has none.
select seq from demo.article_embedding where id = %(id)s and chunk = 0;

-- demo_status
-- How far the table is.
select rows, embedded, pending, state, coverage
from embed.status
where source = 'demo.article'::regclass;
