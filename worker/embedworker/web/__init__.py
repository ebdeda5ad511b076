"""A page for people: how far the tables are, what failed, and a box to search in."""
