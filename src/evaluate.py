"""Measure another quantizer on the catalyzer of a finished run: `python src/evaluate.py --help`."""

import hydra
from omegaconf import DictConfig

from catalyzer.commands.console import one_sentence_errors, register_resolvers, resolved

register_resolvers()


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    with one_sentence_errors():
        from catalyzer.runs.settings import Evaluation

        values = resolved(config)
        for part_of_quantizer in ("bits", "seed"):
            del values[part_of_quantizer]
        evaluation = Evaluation.check(values)

        from catalyzer.runs.trained_run import evaluate_run

        evaluate_run(evaluation)


if __name__ == "__main__":
    main()
