"""Make a table or a figure of the paper: `python src/reproduce.py --help`."""

from catalyzer.commands.reproduce import main

if __name__ == "__main__":
    main()
