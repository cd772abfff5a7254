"""Search in the shards that `src/encode.py` made: `python src/search.py --help`."""

from pathlib import Path

from omegaconf import DictConfig

from catalyzer.commands.console import one_sentence_errors
from catalyzer.commands.hydra_command import hydra_command
from catalyzer.runs.compose import resolved


@hydra_command("search")
def main(config: DictConfig) -> None:
    with one_sentence_errors():
        from catalyzer.runs.settings import Search
        from catalyzer.shards import CodeShards, RayEngine, check_format, local, search, write_neighbours

        settings = Search.check(resolved(config))
        shards = CodeShards.open(Path(settings.codes))
        check_format(shards, settings.format)
        engine = RayEngine(settings.address) if settings.engine == "ray" else local
        found = search(shards, settings.queries, settings.k, settings.rerank, settings.run, engine, settings.trust)
        write_neighbours(Path(settings.output), *found, settings.format)


if __name__ == "__main__":
    main()
