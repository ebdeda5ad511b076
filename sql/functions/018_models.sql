-- The models: which are known, and which is the default.

create or replace function embed.default_model() returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
return (select value from embed.setting where name = 'default_model');

comment on function embed.default_model() is 'The model used where none is named.';

create or replace function embed.add_model(
    name text, dimensions integer, max_tokens integer default 512,
    query_prefix text default '', passage_prefix text default '', pooling text default 'mean',
    endpoint text default null
) returns void
language plpgsql
as $$
declare
    used record;
begin
    perform embed._require_role(
        'embed_admin', pg_catalog.has_table_privilege('embed.model', 'update'), 'embed.add_model'
    );
    if coalesce(btrim(add_model.name), '') = '' then
        raise exception 'the name of the model is blank'
            using errcode = 'EW003',
            hint = 'Give a name of the hub (owner/model) or a folder of the worker''s machine.';
    end if;
    if add_model.dimensions is null or add_model.dimensions not between 1 and 16000 then
        raise exception 'dimensions is %, expected 1 to 16000', coalesce(add_model.dimensions::text, 'null')
            using errcode = 'EW003', hint = 'Give the length of the model''s vectors, hidden_size in its config.json.';
    end if;
    if add_model.max_tokens is null or add_model.max_tokens < 1 then
        raise exception 'max_tokens is %, expected 1 or more', coalesce(add_model.max_tokens::text, 'null')
            using errcode = 'EW003', hint = 'Give the length of the model''s window, or leave it out for 512.';
    end if;
    if add_model.query_prefix is null or add_model.passage_prefix is null then
        raise exception 'a prefix is null'
            using errcode = 'EW003', hint = 'Leave out what the model does not want.';
    end if;
    if add_model.pooling is null or add_model.pooling not in ('mean', 'cls', 'max', 'lasttoken') then
        raise exception 'pooling % is not known', quote_nullable(add_model.pooling)
            using errcode = 'EW003',
            hint = 'Give mean, cls, max or lasttoken, as the model''s 1_Pooling/config.json says.';
    end if;
    -- No user, no question mark: a key belongs into the worker's environment, and not into a table.
    if add_model.endpoint !~ '^https?://[^/@?#[:space:]]+(/[^@?#[:space:]]*)?$' then
        raise exception 'the endpoint is no address of an API'
            using errcode = 'EW003',
            hint =
                'Give http://host:port/v1 or https://host/v1 without a key, and name its host in EMBEDWORKER_ENDPOINTS '
                'of the workers.';
    end if;
    -- A worker keeps the model as it was when it loaded it. Two workers that loaded it before and after a change made
    -- the vectors of one table in turn, without end. A table that is enabled in an open transaction counts, too.
    perform pg_catalog.pg_advisory_xact_lock(embed._lock_global(), embed._turn_enable());
    select s.relation, embed._is_standby(s.id) as waits into used
    from embed.model m
    join embed.source s on coalesce(s.model, embed.default_model()) = m.name
    where m.name = add_model.name and s.relation <> 'embed.document'::regclass
    and (m.dimensions, m.max_tokens, m.query_prefix, m.passage_prefix, m.pooling) is distinct from (
        add_model.dimensions, add_model.max_tokens, add_model.query_prefix, add_model.passage_prefix, add_model.pooling
    )
    order by waits -- a table that answers by it comes first
    limit 1;
    if found then
        raise exception 'the model % is used by %, and would make other vectors', quote_literal(add_model.name),
            used.relation
            using errcode = 'EW003',
            hint = case when used.waits
                then format('First call embed.end_switch(%L), which drops the vectors by it.', used.relation::text)
                else 'Disable the tables that use it, call embed.add_model again, restart the workers, and enable the '
                'tables. Only its endpoint may be changed while it is used.'
            end;
    end if;
    insert into embed.model (name, dimensions, max_tokens, query_prefix, passage_prefix, pooling, endpoint)
    values (
        add_model.name, add_model.dimensions, add_model.max_tokens, add_model.query_prefix, add_model.passage_prefix,
        add_model.pooling, add_model.endpoint
    )
    on conflict on constraint model_pkey do update
    set dimensions = excluded.dimensions, max_tokens = excluded.max_tokens, query_prefix = excluded.query_prefix,
        passage_prefix = excluded.passage_prefix, pooling = excluded.pooling, endpoint = excluded.endpoint,
        question_offset = case when model.dimensions = excluded.dimensions then model.question_offset end;
end
$$;

comment on function embed.add_model(text, integer, integer, text, text, text, text) is
    'Makes a model known that is not in the built-in list; name is a hub name or a folder of the worker''s machine. '
    'With endpoint, an OpenAI-compatible API makes its vectors, and max_tokens counts characters.';

-- All questions of an E5 model point in nearly one direction: the mean of 60 Korean ones has a length of 0.90. With a
-- fifth of it taken out, nDCG@10 of three Korean sets rose by 0.0012, 0.0018 and 0.0072 (standard errors 0.0015, 0.0021
-- and 0.0020). English questions lost 0.0049 (0.0018) by a mean of both languages, so they stay as they are.
create or replace function embed.center_questions(
    model text, mean @extschema:vector@.vector, share double precision default 0.2
) returns void
language plpgsql
as $$
declare
    dims integer;
begin
    perform embed._require_role(
        'embed_admin', pg_catalog.has_table_privilege('embed.model', 'update'), 'embed.center_questions'
    );
    select m.dimensions into dims from embed.model m where m.name = center_questions.model;
    if not found then
        raise exception 'model % is not known', quote_nullable(center_questions.model)
            using errcode = 'EW003', hint = 'See embed.model for what is, or add it with embed.add_model(…).';
    end if;
    if mean is null or @extschema:vector@.vector_dims(mean) <> dims then
        raise exception 'the mean has % dimensions, but the model % makes %',
            coalesce(@extschema:vector@.vector_dims(mean)::text, 'no'), quote_literal(center_questions.model), dims
            using errcode = 'EW003', hint = 'Give the mean of the vectors of many Korean questions by this model.';
    end if;
    if @extschema:vector@.vector_norm(mean) > 1.01 then
        raise exception 'the mean has the length %, expected at most 1', @extschema:vector@.vector_norm(mean)
            using errcode = 'EW003', hint = 'Give the mean of vectors of the length 1, not their sum.';
    end if;
    -- With all of it, a question that is the mean itself has no direction.
    if share is null or not share between 0 and 0.9 then
        raise exception 'share is %, expected 0 to 0.9', coalesce(share::text, 'null')
            using errcode = 'EW003', hint = '0.2 was measured; 0 leaves the questions as they are.';
    end if;
    update embed.model m
    set question_offset = (
        mean operator(@extschema:vector@.*)
        pg_catalog.array_fill(share::real, array[dims])::@extschema:vector@.vector
    )::real[]
    where m.name = center_questions.model;
end
$$;

comment on function embed.center_questions(text, @extschema:vector@.vector, double precision) is
    'Has embed.search subtract a share of the mean of many questions'' vectors from the vector of a Korean question '
    'whose words count, too. `embedworker models measure NAME` computes the mean. share => 0 turns it off. Measure '
    'before and after with `embedworker eval`.';

-- A question's vector without what all questions of the model have in common.
create or replace function embed._centered(question @extschema:vector@.vector, model text)
returns @extschema:vector@.vector
language sql stable security definer
set search_path = pg_catalog, pg_temp
return coalesce(
    (
        select question operator(@extschema:vector@.-) m.question_offset::@extschema:vector@.vector
        from embed.model m
        where m.name = _centered.model
        and cardinality(m.question_offset) = @extschema:vector@.vector_dims(question)
    ),
    question
);

create or replace function embed.reranker() returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
return (select value from embed.setting where name = 'reranker');

comment on function embed.reranker() is 'The cross-encoder that embed.search(…, rerank => n) uses.';

create or replace function embed.use_reranker(name text, max_tokens integer default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform embed._require_role(
        'embed_admin', pg_catalog.has_table_privilege('embed.setting', 'update'), 'embed.use_reranker'
    );
    if max_tokens < 1 then
        raise exception 'max_tokens is %, expected at least 1', max_tokens
            using errcode = 'EW003',
            hint = 'It is how many tokens of question and passage together are read, often 512.';
    elsif max_tokens is not null then
        insert into embed.reranker (name, max_tokens)
        values (use_reranker.name, use_reranker.max_tokens)
        on conflict on constraint reranker_pkey do update set max_tokens = excluded.max_tokens;
    elsif not exists (select from embed.reranker r where r.name = use_reranker.name) then
        raise exception 'the reranker % is not known', coalesce(quote_literal(use_reranker.name), 'null')
            using errcode = 'EW003',
            hint =
                'See embed.reranker for what is, or say how many tokens it reads: embed.use_reranker(name, max_tokens '
                '=> 512).';
    end if;
    insert into embed.setting (name, value) values ('reranker', use_reranker.name)
    on conflict on constraint setting_pkey do update set value = excluded.value;
end
$$;

comment on function embed.use_reranker(text, integer) is
    'Chooses the cross-encoder of embed.search(…, rerank => n). A hub name or a folder of the worker''s machine that '
    'is not in the built-in list is made known by saying max_tokens.';

-- A function with one argument would make a call with one argument ambiguous.
drop function if exists embed.use_model(text);
create or replace function embed.use_model(name text, switch boolean default false) returns void
language plpgsql
as $$
declare
    missing text;
begin
    perform embed._require_role(
        'embed_admin', pg_catalog.has_table_privilege('embed.setting', 'update'), 'embed.use_model'
    );
    -- A table that is enabled in an open transaction takes the default model, too.
    perform pg_catalog.pg_advisory_xact_lock(embed._lock_global(), embed._turn_enable());
    if not exists (select from embed.model m where m.name = use_model.name) then
        raise exception 'model % is not known', quote_literal(use_model.name)
            using errcode = 'EW003', hint = 'See embed.model for what is, or add it with embed.add_model(…).';
    end if;
    if switch then
        perform embed._begin_switches(use_model.name);
        return;
    end if;
    if exists (
        select from embed.source s join embed.model m on m.name = use_model.name
        where s.model is null and s.dimensions <> m.dimensions
        and s.relation <> 'embed.document'::regclass
    ) then
        raise exception 'sources that follow the default model have vectors of other dimensions than %',
            quote_literal(use_model.name)
            using errcode = 'EW005',
            hint =
                'Call embed.use_model(name, switch => true), which fills new vectors beside them. One embed.cut_over '
                'then changes all these tables together. Or disable them with drop_vectors => true first, or name '
                'their model in embed.enable.';
    end if;
    perform embed._require_no_switch(s.id, 'embed.use_model'::text)
    from embed.source s
    where s.model is null and use_model.name <> embed.default_model();
    insert into embed.setting (name, value) values ('default_model', use_model.name)
    on conflict on constraint setting_pkey do update set value = excluded.value
    where setting.value <> excluded.value;
    if found then
        -- By the counters: a superuser who calls it, as migrate does, reads no table of others.
        select pg_catalog.string_agg(
            pg_catalog.format('%s (%s rows)', s.relation, t.vectors), ', ' order by s.relation::text
        )
        into missing
        from embed.source s
        cross join lateral (
            select pg_catalog.sum(x.vectors) as vectors from embed.source_tally x where x.source = s.id
        ) as t
        where s.model is null and t.vectors > 0;
        if missing is not null then
            raise notice 'search finds none of these rows until a worker has embedded them again: %', missing
                using hint = 'embed.use_model(name, switch => true) fills the new vectors while the old ones answer. '
                'One embed.cut_over then changes all these tables together.';
        end if;
        update embed._own_source s set version = nextval('embed.seq') where s.model is null;
        insert into embed.sweep_request (source, reason)
        select s.id, 'model changed'
        from embed.source s
        where s.model is null;
        perform embed.wake();
    end if;
end
$$;

comment on function embed.use_model(text, boolean) is
    'Sets the default model of this database; workers embed the sources that follow it again, and a notice says which '
    'rows are not found meanwhile. With switch => true the old vectors answer while the new ones are filled: '
    'embed.cut_over of one of the tables then changes all of them and the default model, once all are complete.';

-- The number of a fingerprint; the notes are those of the latest worker. It is made from the digest: vectors
-- outlive this schema (dropped and migrated again, or adopted by another database), and a number from a
-- sequence would then stand for another model.
--
-- Two statements, because workers may register one fingerprint at once: the second sees what the first met.
-- No advisory lock, because every login may hold one and keep workers from starting.
create or replace function embed._register_fingerprint(
    digest text, model text, revision text, query_prefix text, passage_prefix text, pooling text, dimensions integer,
    max_tokens integer, notes jsonb
) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    number constant integer := (
        'x' || left(encode(sha256(convert_to(digest, 'UTF8')), 'hex'), 8)
    )::bit(32)::integer & 2147483647;
    found_number integer;
begin
    insert into embed.fingerprint (
        id, digest, model, revision, query_prefix, passage_prefix, pooling, dimensions, max_tokens, notes
    )
    overriding system value
    values (number, digest, model, revision, query_prefix, passage_prefix, pooling, dimensions, max_tokens, notes)
    on conflict do nothing;
    update embed.fingerprint f
    set notes = _register_fingerprint.notes, created_at = clock_timestamp()
    where f.digest = _register_fingerprint.digest
    returning f.id into found_number;
    if found_number is null then
        raise exception 'the number % stands for another model', number
            using errcode = 'unique_violation', hint = 'This is a bug of embedworker; please report it.';
    end if;
    return found_number;
end
$$;
