"""Make a table or a figure of the paper: `python src/reproduce.py --help`."""

import argparse
import sys
from pathlib import Path

from catalyzer.commands import one_sentence_errors
from catalyzer.reproduce import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS), help="its name in the paper")
    parser.add_argument("--out", type=Path, default=Path("outputs/reproduce"), help="folder (default: outputs/reproduce)")
    arguments = parser.parse_args()
    with one_sentence_errors():
        for path in TARGETS[arguments.target](arguments.out):
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
