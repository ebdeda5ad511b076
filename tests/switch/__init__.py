"""A change of the model while applications write and ask and workers die."""
