"""The command line: one module for each command or group; prints, nothing else."""
