"""Verbs: Typer, exit codes, nothing else."""
