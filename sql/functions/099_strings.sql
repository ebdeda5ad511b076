-- The bodies of our functions have backslashes in ordinary strings. A database with standard_conforming_strings = off
-- would read them otherwise, and every search by text would fail.
do $$
declare
    f regprocedure;
begin
    for f in
        select p.oid::regprocedure
        from pg_proc p
        where p.pronamespace = 'embed'::regnamespace and p.prokind = 'f' and strpos(p.prosrc, chr(92)) > 0
        and pg_has_role(p.proowner, 'usage')
    loop
        execute format('alter function %s set standard_conforming_strings = on', f);
    end loop;
end
$$;
