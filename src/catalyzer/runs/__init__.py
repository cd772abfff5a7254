"""A run: its settings, how its parts are built, the experiment, its folder, and sweeps of runs."""
