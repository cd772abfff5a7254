"""The commands: those of `src/*.py`, and `catalyzer`."""
