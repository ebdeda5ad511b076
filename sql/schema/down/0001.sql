-- Take embedworker out of the database. Vectors in the application's schemas stay; documents that
-- people put into embed.document would be lost, so they must be moved first. Our own tables may be
-- incomplete: then `embedworker migrate` advises this.
do $$
declare
    holds_rows boolean := false;
begin
    if to_regclass('embed.document') is not null then
        execute 'select exists (select from embed.document)' into holds_rows;
    end if;
    if holds_rows then
        raise exception 'embed.document holds rows, which a downgrade would delete'
            using errcode = 'EW006',
            hint = 'Move them to a table of your own, or delete them, then downgrade again.';
    end if;
end
$$;

-- The settings of the database that migrate made. Without embed.setting nobody knows which these were.
do $$
begin
    if to_regclass('embed.setting') is not null and to_regprocedure('embed._reset_scan_settings()') is not null then
        perform embed._reset_scan_settings();
    end if;
end
$$;

do $$
declare
    signature regprocedure;
begin
    for signature in
        select p.oid::regprocedure
        from pg_proc p
        where p.pronamespace = to_regnamespace('embed') and p.proname ~ '^source_[0-9]+_'
    loop
        -- What depends on them goes with them: triggers, and the policy of the vectors.
        execute format('drop function %s cascade', signature);
    end loop;
end
$$;
