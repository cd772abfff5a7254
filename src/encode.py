"""Code a file of vectors of any size into shards: `python src/encode.py --help`."""

from omegaconf import DictConfig

from catalyzer.commands.console import one_sentence_errors
from catalyzer.commands.hydra_command import hydra_command
from catalyzer.runs.compose import resolved


@hydra_command("encode")
def main(config: DictConfig) -> None:
    with one_sentence_errors():
        from catalyzer.runs.settings import Encode

        settings = Encode.check(resolved(config))

        from catalyzer.shards import RayEngine, encode, local

        engine = RayEngine(settings.address) if settings.engine == "ray" else local
        encode(settings.run, settings.input, settings.output, settings.shard_size, engine, settings.trust)


if __name__ == "__main__":
    main()
