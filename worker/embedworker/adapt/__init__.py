"""A model of one's own: trained on the questions of a table, and used only if it is better."""
