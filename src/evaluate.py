"""Measure another quantizer on the networks of a finished run: `python src/evaluate.py --help`."""

from catalyzer.commands.evaluate import main

if __name__ == "__main__":
    main()
