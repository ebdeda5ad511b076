"""Chaos: real workers and writers, while processes are killed, stopped, and servers restarted."""
