"""What a database says about sources, queues and workers, for the page and for assistants."""
