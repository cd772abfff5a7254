"""Print the table of a sweep, also of one that is still running: `python src/sweep_table.py SWEEP_FOLDER`."""

from catalyzer.commands.sweep_table import main

if __name__ == "__main__":
    main()
