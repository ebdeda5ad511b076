-- loopback_install
-- Install dblink in our own schema, which is always there, and goes with everything else of ours.
create extension dblink schema embed;

-- loopback_restrict
-- Take the functions of a dblink that was installed for us away from everybody else.
select embed._loopback_close_dblink();

-- loopback_hosts
-- Under which hosts this server may reach itself, besides what people say.
select
    (
        select pg_catalog.btrim(pg_catalog.split_part(s.setting, ',', 1))
        from pg_catalog.pg_settings s
        where s.name = 'unix_socket_directories' and s.setting <> ''
    ) as socket_folder,
    pg_catalog.host(pg_catalog.inet_server_addr()) as address;

-- loopback_login
-- Make or renew the role, its password, the foreign servers and the user mappings.
select embed._loopback_login(%(host)s, %(primary)s::jsonb);

-- loopback_try
-- Point the foreign server to a host and connect through it; null when that works.
select embed._loopback_try(%(host)s);

-- loopback_check
-- Connect through the foreign server as it is; null when that works.
select embed._loopback_check();

-- loopback_check_primary
-- Connect through the foreign server that standbys use; null when that works.
select embed._loopback_check_primary();

-- loopback_renewable
-- Whether this role may renew the connection; the function is there where dblink is.
select coalesce(
    pg_catalog.has_function_privilege(pg_catalog.to_regprocedure('embed._loopback_renew()'), 'execute'), false
);

-- loopback_renew
-- Point the foreign server to this server again where it leads elsewhere.
select r.renewed, r.problem from embed._loopback_renew() as r;

-- loopback_ready
-- Remember that the loopback works, and for which database it was made.
insert into embed.setting (name, value)
select 'loopback', d.oid::text
from pg_catalog.pg_database d
where d.datname = pg_catalog.current_database()
on conflict (name) do update
set value = excluded.value;

-- loopback_problem
-- Remember what stands in the way: embed.query says it as its hint.
insert into embed.setting (name, value)
values ('loopback_problem', %(problem)s)
on conflict (name) do update
set value = excluded.value;

-- loopback_no_problem
-- Forget what stood in the way.
delete from embed.setting
where name = 'loopback_problem';

-- loopback_take_down
-- Drop the role and the foreign server.
select embed._loopback_take_down();
