"""Code a file of vectors of any size into shards: `python src/encode.py --help`."""

from catalyzer.commands.encode import main

if __name__ == "__main__":
    main()
