-- Changes of tables since version 0002. The rules of 002_first_day.sql hold.

-- One row. A search that no worker answers reads it by its key, and the server counts what it finds by a key, in
-- read-only transactions, too.
create table embed.degraded_search (id integer primary key, meaning text not null);
insert into embed.degraded_search values (1, 'a search that no worker answered');
comment on table embed.degraded_search is
    'How often its row was read by its key is how many searches were answered by words alone.';
