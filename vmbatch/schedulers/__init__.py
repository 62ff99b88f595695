"""Batch systems: read a hook call into a Job, tell whether a job lives, spell the exit codes."""
