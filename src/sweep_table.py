"""Print the table of a sweep, also of one that is still running: `python src/sweep_table.py SWEEP_FOLDER`."""

import argparse
from pathlib import Path

import catalyzer
from catalyzer.commands.console import one_sentence_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Print the jobs of a sweep, the best recall@10 first, and write them into its folder as sweep.csv."
    )
    parser.add_argument("--version", action="version", version=catalyzer.__version__)
    parser.add_argument("folder", type=Path, help="folder of the sweep, such as outputs/2026-01-31_12-00-00-000_sweep")
    folder = parser.parse_args().folder
    with one_sentence_errors():
        from catalyzer.runs.sweeps import Sweep

        sweep = Sweep.load(folder)
        sweep.print()
        sweep.save()


if __name__ == "__main__":
    main()
