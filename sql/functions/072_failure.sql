-- embed.failure: the rows that could not be embedded.

create or replace function embed._failures() returns table (
    source regclass, name text, key jsonb, attempts integer, error text, since timestamptz, retry_at timestamptz,
    dead boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    lock_timeout_of_caller constant text := current_setting('lock_timeout');
    s embed.source;
    queue regclass;
begin
    perform embed._require_role('embed_monitor', embed._may_look(), 'embed.failure');
    for s in select * from embed.source x order by x.id loop
        queue := to_regclass(format('embed.queue_%s', s.id));
        continue when queue is null;
        source := s.relation;
        name := s.name;
        begin
            perform set_config('lock_timeout', '100ms', true); -- as embed._status does
            if not has_table_privilege(queue, 'select') then
                return query execute format(
                    $q$
                    select $1, $2, null::jsonb, q.attempts::integer, $3, q.since,
                        nullif(q.due, 'infinity'), q.due = 'infinity'
                    from %s q
                    where q.due = 'infinity' or q.attempts > 0 and q.claimed_by is null
                    order by q.since$q$,
                    queue
                )
                using s.relation, s.name, 'not shown to this role, because an error may quote the text';
                continue;
            end if;
            for key, attempts, error, since, retry_at, dead in
                execute format(
                    $q$
                    select jsonb_build_object(%1$s), q.attempts, q.error, q.since,
                        nullif(q.due, 'infinity'), q.due = 'infinity'
                    from embed.queue_%2$s q
                    where q.error is not null or q.due = 'infinity'
                    order by q.since$q$,
                    (
                        select string_agg(format('%L, q.k%s', k.name, k.place), ', ' order by k.place)
                        from unnest(s.keys) with ordinality as k (name, place)
                    ),
                    s.id
                )
            loop
                return next;
            end loop;
        exception when lock_not_available then
            raise notice 'failed rows of % are not shown, because %', s.relation, embed._locked_text(s);
        when others then
            raise notice 'failed rows of % are not shown, because %', s.relation, sqlerrm;
        end;
    end loop;
    perform set_config('lock_timeout', lock_timeout_of_caller, true);
end
$$;

select embed._ensure_view('embed.failure', 'select * from embed._failures()');

comment on view embed.failure is
    'Rows that could not be embedded, and why; a dead one is tried again when its text changes or by embed.retry.';
comment on column embed.failure.error is 'The reason of the last attempt; may quote the text.';
comment on column embed.failure.key is 'Null where this role may not read the table''s queue.';
comment on column embed.failure.retry_at is 'When it is tried again; null for a dead row.';
comment on column embed.failure.dead is 'Given up after the last attempt.';
