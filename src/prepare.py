"""Make a dataset that `src/train.py` reads: `python src/prepare.py --help`."""

from catalyzer.commands.prepare import main

if __name__ == "__main__":
    main()
