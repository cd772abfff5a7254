"""Search in the shards that `src/encode.py` made: `python src/search.py --help`."""

from catalyzer.commands.search import main

if __name__ == "__main__":
    main()
