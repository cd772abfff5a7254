"""A run: its settings, how its parts are built, the experiment, its folder, and sweeps of runs."""

ERROR_FILE = "error.txt"
"""In the folder of a job of a sweep: why it failed."""
