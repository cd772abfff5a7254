"""The command `catalyzer`: an index in a file, made of vectors in files."""

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import catalyzer
from catalyzer.errors import InvalidInput

if TYPE_CHECKING:  # imported where they are used: help comes at once, and not when torch has been loaded
    import numpy as np

    from catalyzer.index import CatalyzerIndex
    from catalyzer.parts import Part

COMMANDS = {
    "make and change an index": {
        "fit": "train on vectors, and make a new index",
        "pretrained": "make a new index with a map that ships with catalyzer, without training",
        "add": "encode vectors and add them to an index",
        "update": "replace vectors in an index",
        "remove": "remove vectors from an index",
        "merge": "add the vectors of other indexes of the same training, with their ids",
    },
    "search": {
        "search": "find the nearest vectors in an index",
        "evaluate": "measure recall and time on your queries",
    },
    "inspect and export": {
        "info": "describe an index",
        "verify": "check everything in an index against its checksums",
        "export": "write the networks of an index, or of a run, as ONNX files",
    },
}
"""What each command does, by groups."""

EXAMPLES = {
    "fit": """
  catalyzer fit photos.catalyzer learn.fvecs --budget 10min           # as many epochs as fit into ten minutes
  catalyzer fit texts.catalyzer wiki.parquet:embedding --bits 256 --metric cosine --method linear  # in seconds
  catalyzer fit large.catalyzer learn.fvecs --ivf 4096                 # 4,096 inverted lists, for millions of vectors""",
    "pretrained": """
  catalyzer pretrained texts.catalyzer all-MiniLM-L6-v2 --bits 256  # for embeddings of this model""",
    "add": """
  catalyzer add photos.catalyzer base.fvecs                                   # ids are consecutive numbers
  catalyzer add texts.catalyzer wiki.parquet:embedding --ids wiki.parquet:id""",
    "update": """
  catalyzer update photos.catalyzer new.fvecs --ids ids.npy""",
    "remove": """
  catalyzer remove photos.catalyzer 17 42
  catalyzer remove photos.catalyzer ids.npy""",
    "merge": """
  catalyzer merge photos.catalyzer more.catalyzer""",
    "search": """
  catalyzer search photos.catalyzer queries.fvecs -k 10 --output found     # found.ivecs has ids, found.fvecs distances
  catalyzer search large.catalyzer queries.fvecs --nprobe 32 --rerank 200  # more accurate and slower than by default""",
    "evaluate": """
  catalyzer evaluate photos.catalyzer --queries q.fvecs --base base.fvecs --recall 0.9
  catalyzer evaluate photos.catalyzer --queries q.fvecs --truth truth.ivecs --rerank 0 100 --figure recall.png""",
    "info": """
  catalyzer info photos.catalyzer --json""",
    "verify": """
  catalyzer verify photos.catalyzer""",
    "export": """
  catalyzer export photos.catalyzer --onnx model.onnx --decoder decoder.onnx
  catalyzer export outputs/my-run --onnx model.onnx  # the networks of a run""",
}
"""Lines for the shell, by command."""

ADD = "{0} is trained; add vectors with: catalyzer add {0} BASE\n"

FIRST_STEPS = """first steps:
  catalyzer fit photos.catalyzer learn.fvecs             # train on vectors like those to be added
  catalyzer add photos.catalyzer base.fvecs              # encode and add vectors, 8 bytes each
  catalyzer search photos.catalyzer queries.fvecs -k 10  # the nearest of each query, as a table

catalyzer COMMAND --help lists the options of a command, with examples.

Vector files are .fvecs, .bvecs, .ivecs, .fbin, .u8bin, .i8bin, .hbin and .npy, also gzipped (.npy.gz). In .npz, .hdf5,
.parquet, .arrow and .safetensors files, name the array after a colon: photos.hdf5:train. A folder of such files is read as one.
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake is one sentence on standard error and exit code 2.

    Args:
        arguments: command line, instead of the process's.
    """
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what can follow
        import argcomplete

        argcomplete.autocomplete(parser)
    options, others = parser.parse_known_args(arguments)
    if others and not (options.run is _fit and all("=" in text and text[0] != "-" for text in others)):
        options.parser.error(f"unrecognized arguments: {' '.join(others)}")
    if others:  # settings behind an option, which argparse leaves over
        options.overrides += others
    from catalyzer.commands.console import ConsoleHandler, one_sentence_errors
    from catalyzer.interrupts import interruptible

    options.before = _identity(options.index)
    handler = ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("catalyzer").setLevel(logging.INFO)
    try:
        with interruptible(lambda: _how_to_go_on(options)), one_sentence_errors():
            options.run(options)
            sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it flushes at the end
        sys.exit(141)


def _how_to_go_on(options: argparse.Namespace) -> str:
    if options.run is not _fit:
        if _identity(options.index) != options.before:
            return f"{options.index} has already been written"
        return f"{options.index} is unchanged; run the same command again"
    return KEPT.format(_training(options)) if _checkpoints(options) else "nothing was trained yet; run the same command again"


def _identity(path: Path) -> tuple[int, ...] | None:
    """The identity of a file, which differs from that of a replacement; None for a missing file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


KEPT = "the training is kept in {}; the same command resumes it"


def _training(options: argparse.Namespace) -> Path:
    """The folder of the training: the user's, or one next to the index until that is written."""
    return options.folder or options.index.with_name(f"{options.index.name}.training")


def _checkpoints(options: argparse.Namespace) -> set[Path]:
    return {*_training(options).glob("checkpoints/*")}


class _Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are one sentence, as all others are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for kind, name in ((int, "a whole number"), (float, "a number")):
            self.register("type", kind, _number(kind, name))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.removeprefix('argument ')}; {self.prog} --help shows what can be given\n")


def _number(kind: type[int] | type[float], name: str) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {name}, got {text!r}") from None

    return number


def _parser() -> argparse.ArgumentParser:
    def command(name: str, run: Any, trusts: bool = True) -> argparse.ArgumentParser:
        about = abouts[name]
        sub = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=f"examples:{EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("index", type=Path, metavar="INDEX", help="file of the index")
        if trusts:
            about_trust = "allow classes of this module, whose code then runs; may be repeated"
            sub.add_argument("--trust", action="append", default=[], metavar="MODULE", help=about_trust)
        sub.set_defaults(run=run, parser=sub)
        return sub

    abouts = {name: about for group in COMMANDS.values() for name, about in group.items()}
    groups = ("\n".join([f"{title}:", *(f"  {name:<12}{group[name]}" for name in group)]) for title, group in COMMANDS.items())
    parser = _Parser(
        "catalyzer",
        usage="catalyzer [-h] [--version] COMMAND INDEX ...",
        description="\n\n".join(["Similarity search with 1 to 512 bytes per vector.", *groups]),
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=catalyzer.__version__)
    # argparse would list the commands without groups.
    commands = parser.add_subparsers(required=True, metavar="COMMAND", prog="catalyzer", help=argparse.SUPPRESS)

    fit = command("fit", _fit, trusts=False)
    fit.add_argument("learn", metavar="LEARN", help="file of vectors to learn from, at least 500")
    about_overrides = "settings of src/train.py, such as quantizer=opq"
    fit.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=about_overrides)
    code = fit.add_argument_group("map and code")
    code.add_argument("--bits", type=int, default=64, help="upper limit for the bits of a code (default: 64)")
    code.add_argument("--metric", choices=["l2", "cosine", "ip"], default="l2", help="ip is the inner product (default: l2)")
    code.add_argument("--max-norm", type=float, help="for ip: largest norm of a vector to add (default: the largest in LEARN)")
    code.add_argument("--d-out", type=dimension, default="auto", help="dimension to map to (default: auto, chosen by the data)")
    code.add_argument("--hidden", type=int, help="width of the networks (default: 768, or 1024 with --no-decoder)")
    code.add_argument("--no-decoder", action="store_true", help="train no decoder; searches then do not rerank")
    about_method = "auto: a network, or a linear map if it finds as much; linear: a linear map, no training (default: auto)"
    code.add_argument("--method", choices=["auto", "linear"], default="auto", help=about_method)
    code.add_argument("--ivf", type=int, default=0, help="number of inverted lists (default: 0, none)")
    training = fit.add_argument_group("training")
    length = training.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="passes over the vectors (default: 20)")
    length.add_argument("--budget", help="time limit for training instead of --epochs: 90s, 10min, 1.5h; 0 trains nothing")
    about_folder = "folder for the training (default: INDEX.training, removed once the index is written)"
    training.add_argument("--folder", type=Path, help=about_folder)
    training.add_argument("--skip-invalid", action="store_true", help="leave out vectors with NaN or infinity")

    pretrained = command("pretrained", _pretrained, trusts=False)
    pretrained.add_argument("name", metavar="NAME", help="what the vectors are; a wrong name lists all that there are")
    pretrained.add_argument("--bits", type=int, help="bits of a code (default: the only size that ships)")

    add = command("add", _add)
    add.add_argument("base", metavar="BASE", help="file of vectors")
    add.add_argument("--ids", help="file of their ids, such as ids.npy or base.parquet:id (default: consecutive numbers)")
    add.add_argument("--skip-invalid", action="store_true", help="leave out vectors with NaN or infinity, and print their rows")

    update = command("update", _update)
    update.add_argument("vectors", metavar="VECTORS", help="file of the new vectors")
    update.add_argument("--ids", required=True, help="file of the ids of the vectors to replace, as for add")

    remove = command("remove", _remove)
    remove.add_argument("ids", nargs="+", metavar="ID", help="numbers, or one file of them, as for add")

    merge = command("merge", _merge)
    merge.add_argument("others", nargs="+", type=Path, metavar="OTHER", help="index files; they are not changed")

    search = command("search", _search)
    search.add_argument("queries", metavar="QUERIES", help="file of vectors")
    search.add_argument("-k", type=int, default=10, help="neighbours per query (default: 10)")
    how = search.add_argument_group("accuracy and speed")
    how.add_argument(
        "--rerank",
        type=int,
        help="candidates to rerank (default: ten times k, from 50 to 500; 0 for a linear map that scans all blocks)",
    )
    how.add_argument("--nprobe", type=int, help="inverted lists to scan per query (default: 16)")
    how.add_argument("--blocks", type=int, help="scan only the first blocks of codes, and rerank by full codes (default: all)")
    how.add_argument("--threads", type=int, help="largest number of threads (default: all)")
    among = search.add_argument_group("which vectors")
    among.add_argument("--ids", metavar="IDS", help="file of ids, as for add: search only these")
    among.add_argument("--exclude", metavar="IDS", help="file of ids: leave these out")
    output = search.add_argument_group("output").add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print a line of JSON for each query")
    output.add_argument("--output", type=Path, metavar="NAME", help="write NAME.ivecs, the ids, and NAME.fvecs, the distances")

    evaluate = command("evaluate", _evaluate)
    evaluate.add_argument("--queries", required=True, metavar="QUERIES", help="file of vectors, preferably 1,000 or more")
    truth = evaluate.add_argument_group("true neighbours")
    against = truth.add_mutually_exclusive_group(required=True)
    against.add_argument("--base", help="file of the vectors in the index, for exact search")
    against.add_argument("--truth", help="instead: file of the ids of each query's true neighbours, nearest first")
    truth.add_argument("--ids", help="file of the ids of BASE, as for add")
    evaluate.add_argument("-k", type=int, default=10, help="neighbours per query (default: 10)")
    grid = evaluate.add_argument_group("settings to try")
    grid.add_argument(
        "--rerank",
        type=int,
        nargs="+",
        help="numbers of candidates to try (default: 0 20 50 100 500, or 0 for a linear map that scans all blocks)",
    )
    grid.add_argument("--nprobe", type=int, nargs="+", help="numbers of lists to try (default: 2 4 8 ... 128)")
    grid.add_argument("--blocks", type=int, nargs="+", help="numbers of first blocks to scan (default: all blocks)")
    grid.add_argument("--threads", type=int, help="largest number of threads (default: all)")
    shown = evaluate.add_argument_group("output")
    target = shown.add_mutually_exclusive_group()
    target.add_argument("--recall", type=float, help="print the fastest settings that reach this R@k, such as 0.9")
    target.add_argument("--overlap", type=float, help="the same for the share of the k true neighbours that are found")
    shown.add_argument("--json", action="store_true", help="as JSON")
    shown.add_argument("--figure", type=Path, metavar="FILE", help="draw recall against time, as .png, .svg or .pdf")

    info = command("info", _info)
    info.add_argument("--json", action="store_true", help="as JSON")
    command("verify", _verify)

    export = command("export", _export)
    export.add_argument("--onnx", type=Path, metavar="FILE", required=True, help="file for the transform: vectors to points")
    export.add_argument("--decoder", type=Path, metavar="FILE", help="file for the decoder: points to vectors")
    export.add_argument("--query", type=Path, metavar="FILE", help="file for the query network, if queries have their own")
    return parser


def dimension(text: str) -> int | str:
    """A number, or auto.

    >>> dimension("24"), dimension("auto")
    (24, 'auto')
    """
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number or auto, got {text!r}") from None


def _fit(options: argparse.Namespace) -> None:
    from catalyzer.files.atomic import locked
    from catalyzer.index import CatalyzerIndex

    with locked(options.index):
        _check_new(options.index)
        index = CatalyzerIndex(
            options.bits,
            options.metric,
            max_norm=options.max_norm,
            d_out=options.d_out,
            hidden=options.hidden,
            decoder=not options.no_decoder,
            method=options.method,
            ivf=options.ivf,
            overrides=options.overrides,
        )
        folder, temporary = _training(options), options.folder is None
        there = {path.name for path in folder.iterdir()} if temporary and folder.exists() else set()
        if there - {"cache"} and "config.yaml" not in there:
            raise InvalidInput(
                f"{folder} is needed for the training but contains other files; move them away, or give --folder"
            )
        before = _checkpoints(options)
        try:
            index.fit(
                options.learn,
                epochs=options.epochs,
                budget=options.budget,
                folder=folder,
                skip_invalid=options.skip_invalid,
            )
            index.save(options.index)
        except BaseException as error:
            temporary = temporary and not _checkpoints(options)
            # What was there before is none of a refused command's, and what Ctrl-C has interrupted is told of by itself.
            if _checkpoints(options) - before and not isinstance(error, KeyboardInterrupt):
                sys.stderr.write(f"{KEPT.format(folder)}\n")
            raise
        finally:
            if temporary:
                shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(ADD.format(options.index))


def _pretrained(options: argparse.Namespace) -> None:
    from catalyzer.files.atomic import locked
    from catalyzer.index import CatalyzerIndex

    with locked(options.index):
        _check_new(options.index)
        CatalyzerIndex.pretrained(options.name, options.bits).save(options.index)
    sys.stdout.write(ADD.format(options.index))


def _check_new(path: Path) -> None:
    if path.exists():
        raise InvalidInput(f"{path} already exists; remove it, or choose another name")


@contextmanager
def _edited(path: Path, trust: list[str]) -> "Iterator[CatalyzerIndex]":
    """The index in a file, locked against other processes; saved at the end, unless there was an error."""
    from catalyzer.files.atomic import locked
    from catalyzer.index import CatalyzerIndex

    with locked(path):
        # Everything is compared with its checksums, since new ones are about to be computed.
        index = CatalyzerIndex.load(path, trust=trust)
        yield index
        index.save(path)


def _add(options: argparse.Namespace) -> None:
    with _edited(options.index, options.trust) as index:
        before = index.ntotal
        skipped = index.add(options.base, options.ids, skip_invalid=options.skip_invalid)
    if len(skipped):
        sys.stdout.write(f"left out {len(skipped):,} invalid rows: {', '.join(map(str, skipped.tolist()))}\n")
    sys.stdout.write(f"added {index.ntotal - before:,} vectors; {options.index} holds {index.ntotal:,}\n")


def _update(options: argparse.Namespace) -> None:
    from catalyzer.index.ids import as_ids

    ids = as_ids(options.ids)
    with _edited(options.index, options.trust) as index:
        index.update(ids, options.vectors)
    sys.stdout.write(f"updated {len(ids):,} vectors; {options.index} holds {index.ntotal:,}\n")


def _remove(options: argparse.Namespace) -> None:
    try:
        ids: Any = [int(text) for text in options.ids]
    except ValueError:
        first = options.ids[0]
        path = Path(first.rpartition(":")[0] or first)
        if len(options.ids) > 1 or not (path.suffix or path.exists()):
            raise InvalidInput(
                f"expected ids, which are whole numbers, or one file of ids; got {' '.join(options.ids)}"
            ) from None
        ids = first
    with _edited(options.index, options.trust) as index:
        removed = index.remove(ids)
    sys.stdout.write(f"removed {removed:,} vectors; {options.index} holds {index.ntotal:,}\n")


def _merge(options: argparse.Namespace) -> None:
    from catalyzer.index import CatalyzerIndex

    with _edited(options.index, options.trust) as index:
        before = index.ntotal
        for other in options.others:
            index.merge(CatalyzerIndex.load(other, trust=options.trust))
    sys.stdout.write(f"added {index.ntotal - before:,} vectors; {options.index} holds {index.ntotal:,}\n")


def _search(options: argparse.Namespace) -> None:
    from catalyzer.index import CatalyzerIndex

    outputs = [] if options.output is None else [Path(f"{options.output}{suffix}") for suffix in (".ivecs", ".fvecs")]
    for path in outputs:
        if path.resolve() in (Path(options.queries).resolve(), options.index.resolve()):
            raise InvalidInput(f"--output {options.output} would replace {path}, an input of this command; give another name")
        if not path.parent.is_dir():
            raise InvalidInput(f"--output {options.output}: there is no folder {path.parent}; create it first")
    index = CatalyzerIndex.load(options.index, mmap=True, trust=options.trust)
    among = {"blocks": options.blocks, "ids": options.ids, "exclude": options.exclude, "threads": options.threads}
    distances, ids = index.search(options.queries, options.k, options.rerank, options.nprobe, **among)
    if outputs:
        _write_files(outputs, distances, ids)
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


def _write_files(files: list[Path], distances: "np.ndarray", ids: "np.ndarray") -> None:
    import numpy as np

    from catalyzer.files.vectors import write_vecs

    most = np.iinfo(np.int32).max
    if max(ids.max(initial=0), -1 - ids.min(initial=0)) > most:
        raise InvalidInput(f"some of the ids found are above {most:,}, the limit of .ivecs files; use --json")
    for file, rows in zip(files, (ids, distances), strict=True):
        write_vecs(file, [rows])
    sys.stdout.write(f"wrote {files[0]} and {files[1]}, {len(ids):,} rows of {ids.shape[1]:,}\n")


def _evaluate(options: argparse.Namespace) -> None:
    from rich.console import Console

    from catalyzer.index import CatalyzerIndex
    from catalyzer.index.evaluation import Share, Time, figure_format

    share: Share = "recall_at_k" if options.overlap is None else "overlap"
    target = options.recall if options.overlap is None else options.overlap
    if target is not None and not 0 < target < 1:
        option = "--recall" if options.overlap is None else "--overlap"
        raise InvalidInput(f"{option} must be a share between 0 and 1, such as 0.9; got {target}")
    if options.figure is not None:
        figure_format(options.figure)
    index = CatalyzerIndex.load(options.index, mmap=True, trust=options.trust)
    grid = {"rerank": options.rerank, "nprobe": options.nprobe, "blocks": options.blocks}
    found = index.evaluate(
        options.queries, options.base, truth=options.truth, ids=options.ids, k=options.k, threads=options.threads, **grid
    )
    fastest, unreached = {}, None
    if target is not None:
        try:
            fastest = {what: asdict(found.cheapest(target, what, share)) for what in get_args(Time)}
        except InvalidInput as error:
            unreached = str(error)
    if options.json:
        sys.stdout.write(json.dumps(found.as_json() | ({"fastest": fastest} if target else {})) + "\n")
    else:
        Console(width=100).print(found.table())
    if options.figure is not None:
        found.draw(options.figure)
    if unreached is not None:
        sys.stdout.flush()
        sys.stderr.write(f"{unreached}\n")
        sys.exit(1)
    if target is not None and not options.json:
        for what, when in (("alone", "one query at a time"), ("together", "many at once")):
            row = found.cheapest(target, what, share)  # type: ignore[arg-type]
            took = f"{getattr(row, share):.1%}, {getattr(row, what):,.0f} µs per query"
            sys.stdout.write(f"fastest with {found.name(share)} ≥ {target:.0%}, {when}: {row} ({took})\n")


def _info(options: argparse.Namespace) -> None:
    from catalyzer.index.file import read

    contents = read(options.index, mmap=True, trust=options.trust)
    facts: dict[str, Any] = {
        "file": str(options.index),
        "size": options.index.stat().st_size,
        "vectors": len(contents.ids),
        "dimension": contents.d,
        "metric": contents.metric.name,
        "bits": contents.codec.quantizer.bits,
        "code_size": contents.codec.quantizer.code_size,
        **{name: None if part is None else _shown(part) for name, part in contents.codec.parts.items()},
        "lists": 0 if contents.lists is None else len(contents.lists),
        "origin": contents.origin,
    }
    if contents.lists is not None:
        facts["longest"] = int(contents.lists.sizes.max())
    held_out = contents.validation
    facts["validation"] = None if held_out is None else asdict(held_out)
    if options.json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    if held_out is not None:
        found = ", ".join(f"R@{k} {share:.1%}" for k, share in held_out.recall.items())
        facts["validation"] = f"{found} ({held_out.queries:,} queries, {held_out.base:,} vectors, {held_out.rerank:,} reranked)"
    facts["size"] = f"{facts['size']:,} bytes"
    for name, value in facts.items():
        sys.stdout.write(f"{name:>10}  {f'{value:,}' if isinstance(value, int) else value or 'none'}\n")


def _verify(options: argparse.Namespace) -> None:
    from catalyzer.index.file import verify

    contents = verify(options.index, options.trust)
    sys.stdout.write(f"{options.index} is intact: {len(contents.ids):,} vectors\n")


def _export(options: argparse.Namespace) -> None:
    files = {name: getattr(options, name) for name in ("onnx", "decoder", "query") if getattr(options, name) is not None}
    if len({path.resolve() for path in (options.index, *files.values())}) <= len(files):
        raise InvalidInput(f"each file needs a different name; got {options.index} {' '.join(map(str, files.values()))}")
    from catalyzer import TrainedRun
    from catalyzer.index.file import read
    from catalyzer.index.onnx import export

    if options.index.is_dir():
        run = TrainedRun.load(options.index, trust=options.trust)
        codec, metric = run.codec, run.metric
    else:
        contents = read(options.index, mmap=True, trust=options.trust)
        codec, metric = contents.codec, contents.metric
    for path, difference in export(codec, metric, **files).items():
        sys.stdout.write(f"wrote {path}, with outputs that differ from torch's by at most {difference:.2g}\n")


def _shown(part: "Part") -> str:
    return f"{type(part).__name__}({', '.join(f'{name}={value!r}' for name, value in part.arguments.items())})"


if __name__ == "__main__":
    main()
