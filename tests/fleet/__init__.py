"""A fleet of workers on a Ray cluster whose workers, machines and command are killed."""
