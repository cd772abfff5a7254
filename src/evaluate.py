"""Measure another quantizer on the networks of a finished run: `python src/evaluate.py --help`."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from catalyzer.commands.console import one_sentence_errors
from catalyzer.commands.hydra_command import hydra_command
from catalyzer.runs.compose import resolved


@hydra_command("evaluate")
def main(config: DictConfig) -> None:
    with one_sentence_errors():
        from catalyzer.runs.build import fit_to_classes
        from catalyzer.runs.settings import Evaluation
        from catalyzer.runs.trained_run import evaluate_run

        values = resolved(config)
        for part_of_quantizer in ("bits", "seed"):
            del values[part_of_quantizer]
        fit_to_classes(values, list(HydraConfig.get().overrides.task))
        evaluate_run(Evaluation.check(values))


if __name__ == "__main__":
    main()
