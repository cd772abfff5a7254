"""Make a pretrained map of a run's folder or of an index: its weights in bfloat16, in a file that ships with the package.

python benchmarks/pretrained.py sift outputs/RUN
python benchmarks/pretrained.py all-MiniLM-L6-v2 texts.catalyzer
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from catalyzer import CatalyzerIndex, TrainedRun
from catalyzer.index import file
from catalyzer.index.pretrained import FOLDER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="what the vectors are")
    parser.add_argument("source", type=Path, help="folder of a run, or file of an index")
    options = parser.parse_args()
    if options.source.is_dir():
        run = TrainedRun.load(options.source)
        index = CatalyzerIndex.from_codec(run.codec, run.metric.name)
    else:
        index = CatalyzerIndex.load(options.source)
    contents = index._trained()
    name = f"{options.name}-{8 * index.codes.shape[1]}"
    for part in contents.codec.parts.values():
        if isinstance(part, torch.nn.Module):
            part.load_state_dict({key: w.bfloat16().float() if w.ndim == 2 else w for key, w in part.state_dict().items()})
    path = FOLDER / f"{name}.catalyzer"
    file.write(path, replace(contents.only(np.empty(0, int)), last_id=-1, origin=name))
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
