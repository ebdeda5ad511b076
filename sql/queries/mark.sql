-- search_marked
-- Passages with the words of a question between two control characters, in the order they were given.
select embed.mark(p.passage, %(question)s, E'\x01', E'\x02')
from unnest(%(passages)s::text[]) with ordinality as p (passage, place)
order by p.place;
