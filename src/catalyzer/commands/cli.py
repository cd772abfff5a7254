"""The command `catalyzer`: an index in a file, from vectors in files."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import catalyzer
from catalyzer.errors import InvalidInput

if TYPE_CHECKING:  # imported where they are used: help comes at once, and not when torch has been loaded
    import numpy as np

EXAMPLES = """examples:
  catalyzer fit photos.catalyzer learn.fvecs                 train on vectors like those to come
  catalyzer fit photos.catalyzer learn.fvecs --budget 10min  for as many epochs as ten minutes allow
  catalyzer add photos.catalyzer base.fvecs                  code vectors, 8 bytes each
  catalyzer search photos.catalyzer queries.fvecs -k 10      a table; --json, or --output NAME for NAME.ivecs and NAME.fvecs
  catalyzer fit large.catalyzer learn.fvecs --ivf 4096       codes in 4096 lists, for millions of vectors
  catalyzer search large.catalyzer queries.fvecs --nprobe 32 look at 32 of them for each query
  catalyzer info photos.catalyzer                            what is in it
  catalyzer verify photos.catalyzer                          compare all of it with its checksums
  catalyzer export index=photos.catalyzer onnx=model.onnx    its network for other programs; run=FOLDER for that of a run

Vectors are read from .fvecs, .bvecs, .ivecs, .fbin, .u8bin, .i8bin and .npy files.
"""

EXPORT = "index=FILE or run=FOLDER; onnx=FILE for the catalyzer; where wanted, decoder=FILE and query=FILE"


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake is one sentence on standard error and exit code 2.

    Args:
        arguments: in place of those of the process.
    """
    options = _parser().parse_args(arguments)
    from catalyzer.commands.console import ConsoleHandler, one_sentence_errors

    handler = ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("catalyzer").setLevel(logging.INFO)
    try:
        with one_sentence_errors():
            options.run(options)
            sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it flushes at the end
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    def command(name: str, run: Any, about: str, index: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        if index:
            sub.add_argument("index", type=Path, metavar="INDEX", help="the index's file")
        sub.set_defaults(run=run)
        return sub

    parser = argparse.ArgumentParser(
        "catalyzer",
        description="Similarity search in 8 bytes a vector.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=catalyzer.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = command("fit", _fit, "train on vectors, and make a new index")
    fit.add_argument("learn", metavar="LEARN", help="file of vectors to learn from, at least 500")
    fit.add_argument("--bits", type=int, default=64, help="of a code, at most (64)")
    fit.add_argument("--metric", choices=["l2", "cosine", "ip"], default="l2", help="l2, cosine, or ip: inner product (l2)")
    fit.add_argument("--d-out", type=dimension, default="auto", help="dimension of the sphere (auto: what suits the data)")
    fit.add_argument("--hidden", type=int, default=1024, help="width of the networks (1024)")
    fit.add_argument("--no-decoder", action="store_true", help="learn no way back: no searches in two stages")
    fit.add_argument("--ivf", type=int, default=0, help="put codes into so many lists, for searches in a few of them (0: none)")
    length = fit.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="passes over the vectors (20)")
    length.add_argument("--budget", help="instead of epochs, the time that training may take: 90s, 10min, 1.5h")
    fit.add_argument("--folder", help="keep the training here, so that the same command goes on with one that was killed")
    fit.add_argument("--skip-invalid", action="store_true", help="leave out vectors with NaN or infinity")

    add = command("add", _add, "code vectors and add them to an index")
    add.add_argument("base", metavar="BASE", help="file of vectors")
    add.add_argument("--ids", help="file of their ids, .npy of shape (n,) or .ivecs of dimension 1; else they are numbered on")
    add.add_argument(
        "--skip-invalid", action="store_true", help="leave out vectors with NaN or infinity, and report their rows"
    )

    search = command("search", _search, "find the nearest vectors of an index")
    search.add_argument("queries", metavar="QUERIES", help="file of vectors")
    search.add_argument("-k", type=int, default=10, help="how many for each query (10)")
    search.add_argument("--rerank", type=int, help="candidates that are decoded and ranked anew (500; 0 without a decoder)")
    search.add_argument("--nprobe", type=int, help="of an index with lists: how many are searched for each query (16)")
    output = search.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="a line of JSON for each query")
    output.add_argument("--output", type=Path, metavar="NAME", help="write NAME.ivecs, the ids, and NAME.fvecs, the distances")

    info = command("info", _info, "say what is in an index")
    info.add_argument("--json", action="store_true", help="as JSON")
    command("verify", _verify, "compare all of an index with its checksums")

    export = command("export", _export, "write the networks of an index, or of a run, as ONNX files", index=False)
    export.add_argument("settings", nargs="+", metavar="KEY=PATH", help=EXPORT)
    return parser


def dimension(text: str) -> int | str:
    """A number, or auto.

    >>> dimension("24"), dimension("auto")
    (24, 'auto')
    """
    return text if text == "auto" else int(text)


def _fit(options: argparse.Namespace) -> None:
    from catalyzer.files.atomic import locked
    from catalyzer.index import CatalyzerIndex

    with locked(options.index):
        if options.index.exists():
            raise InvalidInput(f"{options.index} is there already; remove it, or choose another name")
        index = CatalyzerIndex(
            options.bits,
            options.metric,
            d_out=options.d_out,
            hidden=options.hidden,
            decoder=not options.no_decoder,
            ivf=options.ivf,
        )
        index.fit(
            options.learn,
            epochs=options.epochs,
            budget=options.budget,
            folder=options.folder,
            skip_invalid=options.skip_invalid,
        )
        index.save(options.index)
    _print_facts(_facts(options.index))


def _add(options: argparse.Namespace) -> None:
    from catalyzer.files.atomic import locked
    from catalyzer.index import CatalyzerIndex

    with locked(options.index):
        # All is read and compared with its checksums, which are about to be made anew.
        index = CatalyzerIndex.load(options.index)
        before = index.ntotal
        skipped = index.add(options.base, _read_ids(options.ids), skip_invalid=options.skip_invalid)
        index.save(options.index)
    if len(skipped):
        sys.stdout.write(f"left out {len(skipped):,} invalid rows: {', '.join(map(str, skipped.tolist()))}\n")
    sys.stdout.write(f"added {index.ntotal - before:,} vectors; {options.index} holds {index.ntotal:,}\n")


def _read_ids(path: str | None) -> "np.ndarray | None":
    import numpy as np

    from catalyzer.files.vectors import open_vectors

    if path is None:
        return None
    if not path.endswith(".npy"):
        ids = open_vectors(path)[:]
        return ids[:, 0] if ids.shape[1] == 1 else ids
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidInput(f"{path}: not a readable .npy file ({error})") from None


def _search(options: argparse.Namespace) -> None:
    from catalyzer.index import CatalyzerIndex

    index = CatalyzerIndex.load(options.index, mmap=True)
    distances, ids = index.search(options.queries, options.k, options.rerank, options.nprobe)
    if options.output is not None:
        _write_files(options.output, distances, ids)
        return
    one, several = ("distance", "distances") if index.metric == "l2" else ("similarity", "similarities")
    if not options.json:
        sys.stdout.write(f"{'query':>10} {'rank':>6} {'id':>20} {one:>14}\n")
    for query, (distance_row, id_row) in enumerate(zip(distances, ids, strict=True)):
        found = int((id_row != -1).sum())
        values, names = distance_row[:found].tolist(), id_row[:found].tolist()
        if options.json:
            sys.stdout.write(json.dumps({"query": query, "ids": names, several: values}) + "\n")
            continue
        for rank, (name, value) in enumerate(zip(names, values, strict=True), 1):
            sys.stdout.write(f"{query:>10} {rank:>6} {name:>20} {value:>14.6g}\n")


def _write_files(name: Path, distances: "np.ndarray", ids: "np.ndarray") -> None:
    import numpy as np

    from catalyzer.files.vectors import write_vecs

    most = np.iinfo(np.int32).max
    if abs(ids).max(initial=0) > most:
        raise InvalidInput(f"some of the ids found are beyond {most:,}, more than .ivecs files can hold; use --json")
    files = [Path(f"{name}{suffix}") for suffix in (".ivecs", ".fvecs")]
    for file, rows in zip(files, (ids, distances), strict=True):
        try:
            write_vecs(file, [rows])
        except OSError as error:
            raise InvalidInput(f"{file} cannot be written ({error.strerror or error})") from None
    sys.stdout.write(f"wrote {files[0]} and {files[1]}, {len(ids):,} rows of {ids.shape[1]:,}\n")


def _info(options: argparse.Namespace) -> None:
    facts = _facts(options.index)
    if options.json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        _print_facts(facts)


def _verify(options: argparse.Namespace) -> None:
    from catalyzer.index.file import verify

    contents = verify(options.index)
    sys.stdout.write(f"{options.index} is whole: {len(contents.ids):,} vectors\n")


def _export(options: argparse.Namespace) -> None:
    given = {key: Path(path).expanduser() for key, _, path in (text.partition("=") for text in options.settings) if path}
    sources, files = given.keys() & {"index", "run"}, given.keys() - {"index", "run"}
    complete = len(sources) == 1 and "onnx" in files and files <= {"onnx", "decoder", "query"}
    if not complete or len(given) < len(options.settings):
        raise InvalidInput(f"expected {EXPORT}; got {' '.join(options.settings)}")
    if len({path.resolve() for path in given.values()}) < len(given):
        raise InvalidInput(f"each of the files needs a name of its own; got {' '.join(options.settings)}")
    from catalyzer import TrainedRun
    from catalyzer.index.file import read
    from catalyzer.index.metric import Metric
    from catalyzer.index.onnx import export

    if "run" in given:
        run = TrainedRun.load(given.pop("run"))
        codec, metric = run.codec(run.settings), Metric("l2")
    else:
        contents = read(given.pop("index"), mmap=True)
        codec, metric = contents.codec, contents.metric
    for path, difference in export(codec, metric, **given).items():
        sys.stdout.write(f"wrote {path}, whose outputs differ from torch's by at most {difference:.2g}\n")


def _facts(path: Path) -> dict[str, Any]:
    from catalyzer.index.file import read

    contents = read(path, mmap=True)
    return {
        "file": str(path),
        "size": path.stat().st_size,
        "vectors": len(contents.ids),
        "dimension": contents.d,
        "metric": contents.metric.name,
        "code_size": contents.lattice.code_size,
        "lattice": repr(contents.lattice),
        "decoder": contents.codec.decoder is not None,
        "lists": 0 if contents.lists is None else len(contents.lists),
        **({} if contents.lists is None else {"longest": int(contents.lists.sizes.max())}),
    }


def _print_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        text = ("no", "yes")[value] if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else value
        sys.stdout.write(f"{name:>10}  {text}\n")


if __name__ == "__main__":
    main()
