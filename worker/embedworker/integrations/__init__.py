"""embedworker inside SQLAlchemy and Alembic."""
