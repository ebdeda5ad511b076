-- Numbers that several functions share. The planner writes their values into a query, so a call costs nothing.
-- tests/integration/test_constants.py holds Python and sql/queries to them.

-- Advisory locks have two keys. The first says what is locked; ARCHITECTURE.md lists who takes which.
create or replace function embed._lock_global() returns integer language sql immutable parallel safe return 1701667428;
create or replace function embed._lock_worker() returns integer language sql immutable parallel safe return 1701667429;
create or replace function embed._lock_sweep() returns integer language sql immutable parallel safe return 1701667430;
create or replace function embed._lock_terms() returns integer language sql immutable parallel safe return 1701667432;
create or replace function embed._lock_count() returns integer language sql immutable parallel safe return 1701667434;

-- The seed of the hash that makes a lock of a question's number.
create or replace function embed._lock_question() returns integer
language sql immutable parallel safe return 1701667433;

-- The second key of embed._lock_global().
create or replace function embed._turn_notify() returns integer language sql immutable parallel safe return 1;
create or replace function embed._turn_enable() returns integer language sql immutable parallel safe return 2;
create or replace function embed._turn_migrate() returns integer language sql immutable parallel safe return 3;
create or replace function embed._turn_evaluate() returns integer language sql immutable parallel safe return 5;
create or replace function embed._turn_demo() returns integer language sql immutable parallel safe return 20;

-- Priorities of a queue row: a change, an attempt that did not end, what a sweep found.
create or replace function embed._priorities() returns smallint[] language sql immutable parallel safe
return '{0, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}'::smallint[];
