"""The life of a worker: its connections, its two lanes, its end."""
