-- Who may ask questions, and how many.

-- Gives the right to ask to everybody, or takes it away, as the setting questions says.
create or replace function embed._open_questions() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    -- embed.query says itself who may ask.
    grant execute on function embed.query(text, text), embed.query(text, regclass) to public;
    if exists (select from embed.setting where name = 'questions' and value = 'restricted') then
        revoke execute on function embed._question(text, text), embed._rerank(text, text[]) from public;
    else
        grant execute on function embed._question(text, text), embed._rerank(text, text[]) to public;
    end if;
end
$$;

-- Everybody who can connect may ask questions, each of which costs a worker some milliseconds.
create or replace function embed.restrict_questions(restricted boolean default true) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform embed._require_owner('embed.setting');
    if to_regrole('embed_search') is null then
        raise exception 'the role embed_search does not exist'
            using errcode = 'EW003',
            hint =
                'Run `embedworker migrate` as a role that may create roles, or create role embed_search, then migrate.';
    end if;
    insert into embed.setting (name, value) values ('questions', case when restricted then 'restricted' else 'open' end)
    on conflict on constraint setting_pkey do update set value = excluded.value;
    perform embed._open_questions();
end
$$;

comment on function embed.restrict_questions(boolean) is
    'Lets only members of embed_search ask questions; false lets everybody again.';

-- A token bucket for each login role, see embed._charge_question. Changing a limit fills its buckets.
-- Limits of roles that were dropped go at the next call: a new role may get an old one's number.
create or replace function embed.limit_questions(a_minute integer, role regrole default null) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    perform embed._require_role(
        'embed_admin', has_table_privilege('embed.question_limit', 'insert'), 'embed.limit_questions'
    );
    if a_minute < 1 then
        raise exception 'a limit of % questions a minute', a_minute
            using errcode = 'EW003',
            hint = 'Give at least 1, or null for no limit; who may ask at all is for embed.restrict_questions().';
    end if;
    delete from embed.question_limit l
    where l.role <> 0 and not exists (select from pg_roles r where r.oid = l.role);
    delete from embed.question_allowance b
    where limit_questions.role is null
        or b.role = limit_questions.role
        or not exists (select from pg_roles r where r.oid = b.role);
    if limit_questions.role is null and a_minute is null then
        delete from embed.question_limit l where l.role = 0;
    else
        insert into embed.question_limit (role, a_minute)
        values (coalesce(limit_questions.role, 0), limit_questions.a_minute)
        on conflict on constraint question_limit_pkey do update
        set a_minute = excluded.a_minute;
    end if;
end
$$;

comment on function embed.limit_questions(integer, regrole) is
    'At most so many questions a minute of a login role, a minute''s worth of them at once; without a role, of each '
    'that has no limit of its own. Null: no limit. A question asked before is free while its vector is kept, and '
    'reranking counts as a question.';
