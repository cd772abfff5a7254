"""What `src/*.py` and the command `catalyzer` do."""
