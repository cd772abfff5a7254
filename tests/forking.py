"""Runs commands in processes of their own that do not each spend seconds on imports: this one has imported, and forks.

Standard input has a line of JSON for each: `argv`, `cwd`, `env`, and `out` and `err`, the files for what it prints. Standard
output answers with its exit code, negative for a signal, as `subprocess` has it.
"""

import json
import os
import runpy
import sys
from pathlib import Path

SRC = Path(__file__).parent.parent / "src"


def serve() -> list[str]:
    """Answer until there is nothing more to do; in each fork, become its process and return its arguments."""
    answers = os.fdopen(os.dup(1), "w")  # so that nothing that prints can be taken for an answer
    for line in sys.stdin:
        asked = json.loads(line)
        process = os.fork()
        if not process:
            for path, descriptor in ((os.devnull, 0), (asked["out"], 1), (asked["err"], 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT if descriptor else os.O_RDONLY), descriptor)
            os.chdir(asked["cwd"])
            os.environ.clear()
            os.environ.update(asked["env"])
            sys.path[1:1] = filter(None, asked["env"].get("PYTHONPATH", "").split(os.pathsep))  # as Python does when it starts
            return asked["argv"]
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}\n")
        answers.flush()
    sys.exit()


if __name__ == "__main__":
    sys.path[0] = str(SRC)

    sys.argv = serve()
    runpy.run_path(sys.argv[0], run_name="__main__")
