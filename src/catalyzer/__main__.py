"""`python -m catalyzer` is the command `catalyzer`."""

from catalyzer.commands.cli import main

if __name__ == "__main__":
    main()
