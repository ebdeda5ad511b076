-- connection_prepare
-- Bound the wait for locks on this connection, have the server notice within a minute that we are
-- gone, and say which types of pgvector exist, in whatever schema. Dates and numbers are written so
-- that they can be read back, since keys travel as text, and a backslash in a pattern of our
-- functions means what it says, whatever the database has set. Nor does what it has set for idle or
-- long sessions of applications end ours, which wait for work, build indexes and migrate; PostgreSQL 15
-- and 16 know no transaction_timeout. Only a process that is suspended leaves a transaction idle for a minute: its
-- session is ended, or it kept its locks, such as that of a sweep, until it wakes.
-- Where it is serializable, two workers at the questions undid each other's claims.
-- Row security is off where every row must be seen: an error then, instead of rows that are missing in
-- silence. Not for members of embed_worker, whom policies let see all; where one does not,
-- embed._hidden_rows says so.
-- What a worker commits need not wait for the disk, nor for a standby that is away: three commits stand
-- between an INSERT and its vector. A crash takes the last of them, in their order: a row waits in the
-- inbox or the queue again, without its vector, and is done once more.
-- embed.writing tells the triggers of an application that a worker writes, see embed._notice_triggers.
-- Only in a session of our own. A pooler makes up process numbers, since it has to route what cancels
-- a statement; what is set here would go to the next user of the session.
with session as materialized (
  select
    pg_catalog.pg_backend_pid() = %(pid)s as own,
    case
      when pg_catalog.pg_has_role(pg_catalog.to_regrole('embed_worker'), 'usage')
        and not (r.rolsuper or r.rolbypassrls) then 'on'
      else %(row_security)s
    end as row_security
  from pg_catalog.pg_roles r
  where r.rolname = current_user
),
settled as materialized (
  select
    own,
    row_security,
    case when own then pg_catalog.set_config('lock_timeout', %(lock_timeout)s, false) end as lock_timeout,
    case when own then pg_catalog.set_config('row_security', row_security, false) end as row_security_set,
    case when own and not %(synchronous)s then pg_catalog.set_config('synchronous_commit', 'off', false) end as commits,
    case when own and %(writing)s then pg_catalog.set_config('embed.writing', 'on', false) end as writing,
    case when own then pg_catalog.set_config('DateStyle', 'ISO', false) end as date_style,
    case when own then pg_catalog.set_config('extra_float_digits', '1', false) end as float_digits,
    case when own then pg_catalog.set_config('standard_conforming_strings', 'on', false) end as strings,
    case when own then pg_catalog.set_config('default_transaction_isolation', 'read committed', false) end as isolation,
    case when own and %(patient)s then pg_catalog.set_config('statement_timeout', '0', false) end as one_statement,
    case when own then pg_catalog.set_config('idle_session_timeout', '0', false) end as idle_session,
    case
        when own then pg_catalog.set_config('idle_in_transaction_session_timeout', '60s', false)
    end as idle_in_transaction,
    case when own and pg_catalog.current_setting('transaction_timeout', true) is not null
      then pg_catalog.set_config('transaction_timeout', '0', false) end as whole_transaction,
    case when own then pg_catalog.set_config('tcp_keepalives_idle', '30', false) end as idle,
    case when own then pg_catalog.set_config('tcp_keepalives_interval', '10', false) end as interval,
    case when own then pg_catalog.set_config('tcp_keepalives_count', '3', false) end as count
  from session
)
select s.own, s.row_security, t.typname, t.oid, t.typarray
from settled s
left join (
  pg_catalog.pg_extension e
  join pg_catalog.pg_depend d
    on d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
    and d.refobjid = e.oid
    and d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
    and d.deptype = 'e'
  join pg_catalog.pg_type t
    on t.oid = d.objid
    and t.typname in ('vector', 'halfvec', 'sparsevec')
) on e.extname = 'vector';

-- connection_settle
-- The same for one transaction, where the session may be another after each.
select
  pg_catalog.set_config('lock_timeout', %(lock_timeout)s, true),
  pg_catalog.set_config('row_security', %(row_security)s, true),
  case when not %(synchronous)s then pg_catalog.set_config('synchronous_commit', 'off', true) end,
  case when %(writing)s then pg_catalog.set_config('embed.writing', 'on', true) end,
  pg_catalog.set_config('DateStyle', 'ISO', true),
  pg_catalog.set_config('extra_float_digits', '1', true),
  pg_catalog.set_config('standard_conforming_strings', 'on', true),
  case when %(patient)s then pg_catalog.set_config('statement_timeout', '0', true) end,
  pg_catalog.set_config('idle_in_transaction_session_timeout', '60s', true),
  case when pg_catalog.current_setting('transaction_timeout', true) is not null
    then pg_catalog.set_config('transaction_timeout', '0', true) end;

-- connection_at_work
-- Whether the server is at work for a connection that hears nothing.
select exists (
  select
  from pg_catalog.pg_stat_activity a
  where a.state = 'active'
  and case when %(pid)s::integer is null then a.application_name = %(application_name)s else a.pid = %(pid)s end
);

-- connection_stay
-- The transaction that holds a lock waits for it, does nothing else, and is not to be ended for that.
select
  pg_catalog.set_config('lock_timeout', '0', true),
  pg_catalog.set_config('statement_timeout', '0', true),
  pg_catalog.set_config('idle_in_transaction_session_timeout', '0', true),
  case when pg_catalog.current_setting('transaction_timeout', true) is not null
    then pg_catalog.set_config('transaction_timeout', '0', true) end;

-- connection_timeout
-- What a time-out is set to here, where that is known, and who is connected.
select
  pg_catalog.current_setting(%(name)s, true),
  pg_catalog.quote_ident(current_user),
  pg_catalog.quote_ident(pg_catalog.current_database());

-- server_used
-- Whether other sessions are connected to this server, in any database. Loopbacks end with their sessions.
select exists (
    select
    from pg_catalog.pg_stat_activity a
    where a.backend_type = 'client backend'
    and a.pid <> pg_catalog.pg_backend_pid()
    and a.application_name <> 'embedworker question'
);
