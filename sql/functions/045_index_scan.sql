-- How far pgvector looks into an HNSW index. By default it takes the nearest 40 vectors and stops, so
-- a condition, a join or row security that most of them do not pass leaves too few rows: `limit 10`
-- gave 2 rows of a customer who has 500 of 10,122, and `limit 20 offset 60` gave none.
--
-- strict_order and not relaxed_order: PostgreSQL does not sort what it takes from the index, so
-- relaxed pages came out of order. It costs some recall: 0.975 instead of 0.988 for the rows 61 to 80
-- of a tenth of 20,000.
--
-- With ef_search = 200, 0.944 of the rows 61 to 80 of 100,000 were right, with 250 0.965. The first page takes 5.3 for
-- 4.9 ms. With 300 it takes 6.5 ms.
--
-- The last two bound a scan whose condition hardly any row passes. Of 100,000 rows, pgvector's own
-- bounds gave no row of the 61st to 80th of a tenth of a percent, and 0.58 of the right ones of one
-- percent; with these all rows came. A scan of 21,700 vectors filled 4 MB, which is work_mem, so ten
-- times as much holds 200,000.
--
-- embed.search has its own, since it compares all vectors where the index gives too few rows.
create or replace function embed._scan_settings() returns table (name text, wanted text)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
values
    ('hnsw.iterative_scan', 'strict_order'),
    ('hnsw.ef_search', '250'),
    ('hnsw.max_scan_tuples', '200000'),
    ('hnsw.scan_mem_multiplier', '10')
$$;

-- Whether a value of such a setting does what the wanted one does; null is pgvector's own default.
create or replace function embed._scan_suffices(value text, wanted text) returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
return case
    when value is null then false
    when wanted ~ '^\d+$' then value ~ '^\d+(\.\d+)?$' and value::double precision >= wanted::double precision
    else value in ('strict_order', 'relaxed_order')
end;

-- What is stored for the sessions of this database: of a role, or of all where role is 0.
create or replace function embed._stored_scan_settings() returns table (name text, value text, role oid, here boolean)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
select w.name, substr(c.setting, strpos(c.setting, '=') + 1), s.setrole, s.setdatabase <> 0
from pg_db_role_setting s
cross join lateral unnest(s.setconfig) as c (setting)
join embed._scan_settings() w on w.name = split_part(c.setting, '=', 1)
where s.setdatabase in (0, (select d.oid from pg_database d where d.datname = current_database()))
$$;

-- What a new session of every role gets (role 0), and of each login that has a setting of its own.
-- What stands in the server's configuration is seen unless this session's role has its own.
create or replace function embed._scan_settings_in_force() returns table (name text, wanted text, role oid, value text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    perform '[1]'::@extschema:vector@.vector; -- loads pgvector, so that its settings are known
    return query
    with general as (
        select w.name, w.wanted, coalesce(
            (
                select t.value
                from embed._stored_scan_settings() t
                where t.name = w.name and t.role = 0
                order by t.here desc
                limit 1
            ),
            (
                select p.setting
                from pg_settings p
                where p.name = w.name and p.source in ('configuration file', 'command line')
            )
        ) as value
        from embed._scan_settings() w
    )
    select g.name, g.wanted, 0::oid, g.value
    from general g
    union all
    select g.name, g.wanted, r.oid, own.value
    from general g
    cross join pg_roles r
    cross join lateral (
        select t.value
        from embed._stored_scan_settings() t
        where t.name = g.name and t.role = r.oid
        order by t.here desc
        limit 1
    ) as own
    where r.rolcanlogin;
end
$$;

-- Sets them for the database; called by every migrate. What somebody else has set for it stays, and
-- so does what the server's configuration has where it suffices. embed.setting remembers which are
-- ours. The result is what this role may not set, as statements for the owner of the database.
create or replace function embed._set_scan_settings() returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    w record;
    statement text;
    refused text;
begin
    for w in
        select f.name, f.wanted
        from embed._scan_settings_in_force() f
        left join embed._stored_scan_settings() t on t.name = f.name and t.role = 0 and t.here
        left join embed.setting s on s.name = f.name
        where f.role = 0
        and case
            when t.value is null then not embed._scan_suffices(f.value, f.wanted)
            else t.value = s.value and t.value <> f.wanted
        end
    loop
        statement := format('alter database %I set %s = %L;', current_database(), w.name, w.wanted);
        begin
            execute statement;
            insert into embed.setting as s (name, value)
            values (w.name, w.wanted)
            on conflict on constraint setting_pkey do update
            set value = excluded.value;
        exception when insufficient_privilege then
            refused := concat_ws(' ', refused, statement);
        end;
    end loop;
    return refused;
end
$$;

-- The reverse, of what is ours.
create or replace function embed._reset_scan_settings() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    w record;
begin
    for w in
        select t.name
        from embed._stored_scan_settings() t
        join embed.setting s on s.name = t.name and s.value = t.value
        where t.role = 0 and t.here
    loop
        begin
            execute format('alter database %I reset %s', current_database(), w.name);
        exception when insufficient_privilege then
            raise notice 'the setting % of the database stays', w.name
                using hint = format(
                    'As the owner of the database: alter database %I reset %s;', current_database(), w.name
                );
        end;
    end loop;
end
$$;

-- Gives a vector back, and sets them for the transaction where they are not in force. For the
-- helpers of SQLAlchemy, which know what they compare with an index: as `(select embed._far(…))` it is
-- evaluated before the scan begins.
create or replace function embed._far(question @extschema:vector@.vector) returns @extschema:vector@.vector
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    perform set_config(w.name, w.wanted, true)
    from embed._scan_settings() w
    where not embed._scan_suffices(current_setting(w.name, true), w.wanted);
    return question;
end
$$;

revoke execute on function
    embed._set_scan_settings(),
    embed._reset_scan_settings()
from public;
