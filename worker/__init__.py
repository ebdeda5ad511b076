"""embedworker: text columns of PostgreSQL tables, searchable by meaning."""
