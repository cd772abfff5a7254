"""Runs Python in processes of their own that do not each spend seconds on imports: this one has imported, and forks.

Standard input has a line of JSON for each: `argv`, which is a script or `-c` and code, with arguments; `cwd`; `env`; and `out`
and `err`, the files or pipes for what it prints. Standard output answers with its process id, which is that of a session of its
own, and in the end with its exit code, negative for a signal, as `subprocess` has it.
"""

import gc
import json
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path

SRC = Path(__file__).parent.parent / "src"


def serve() -> list[str]:
    """Answer until there is nothing more to do; in each fork, become its process and return its arguments."""
    answers = os.fdopen(os.dup(1), "w")  # so that nothing that prints can be taken for an answer
    for line in sys.stdin:
        asked = json.loads(line)
        process = os.fork()
        if not process:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by jobs in the background
            for path, descriptor in ((os.devnull, 0), (asked["out"], 1), (asked["err"], 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT if descriptor else os.O_RDONLY), descriptor)
            os.chdir(asked["cwd"])
            os.environ.clear()
            os.environ.update(asked["env"])
            tempfile.tempdir = None  # chosen anew, by the environment
            sys.path[1:1] = filter(None, asked["env"].get("PYTHONPATH", "").split(os.pathsep))  # as Python does when it starts
            return asked["argv"]
        print(process, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), file=answers, flush=True)
    sys.exit()


if __name__ == "__main__":
    sys.path[0] = str(SRC)
    # What commands import when they need it.
    import catalyzer.index
    import catalyzer.lattice.kernels
    import catalyzer.reproduce
    import catalyzer.runs.experiment
    import catalyzer.runs.sweeps
    import catalyzer.shards  # noqa: F401

    gc.freeze()  # so that no fork looks through, and copies, all this
    sys.argv = serve()
    if sys.argv[0] == "-c":
        exec(compile(sys.argv.pop(1), "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
