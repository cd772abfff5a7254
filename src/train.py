"""Train a catalyzer (or fit a baseline), code the base, search it, and print recall: `python src/train.py --help`."""

from catalyzer.commands.train import command

if __name__ == "__main__":
    command()
