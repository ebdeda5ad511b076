-- Take embedworker out of the database. Vectors in the application's schemas stay; documents that
-- people put into embed.document would be lost, so they must be moved first.
do $$
begin
    if exists (select from embed.document) then
        raise exception 'embed.document holds rows, which a downgrade would delete'
            using errcode = 'EW006',
            hint = 'Move them to a table of your own, or delete them, then downgrade again.';
    end if;
end
$$;

do $$
declare
    s record;
begin
    for s in select id from embed.source loop
        perform embed._drop_capture(s.id);
    end loop;
end
$$;
