"""Measure another quantizer on the networks of a finished run: `python src/evaluate.py --help`."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from catalyzer.commands.console import one_sentence_errors
from catalyzer.commands.hydra_command import hydra_command
from catalyzer.runs.compose import resolved


@hydra_command("evaluate")
def main(config: DictConfig) -> None:
    with one_sentence_errors():
        from catalyzer.errors import InvalidInput
        from catalyzer.runs.build import fit_to_classes
        from catalyzer.runs.settings import Evaluation
        from catalyzer.runs.trained_run import evaluate_run

        values = resolved(config)
        overrides = list(HydraConfig.get().overrides.task)
        for part_of_quantizer in ("bits", "seed"):
            given = [text for text in overrides if text.startswith(f"{part_of_quantizer}=")]
            if given and "quantizer" not in values:
                raise InvalidInput(f"{given[0]} is for another quantizer than the run's; add quantizer=NAME, or leave it out")
            del values[part_of_quantizer]
        fit_to_classes(values, overrides)
        evaluate_run(Evaluation.check(values))


if __name__ == "__main__":
    main()
