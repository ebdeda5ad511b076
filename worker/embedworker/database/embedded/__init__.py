"""The PostgreSQL server that embedworker brings along, used when no database is named."""
