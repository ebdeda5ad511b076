"""Connections, the embedded server, migrations and the named queries."""
