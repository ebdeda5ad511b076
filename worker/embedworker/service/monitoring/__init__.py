"""How a worker is seen from outside: metrics, health, readiness, backlog and their endpoint."""
