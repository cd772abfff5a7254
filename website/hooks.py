"""Hooks of MkDocs: the site has the repository's pages where they stand, and references made of `--help` and of conf/."""

import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
AS_THEY_ARE = ("*.md", "docs/**/*", "conf/**/*.yaml", "src/catalyzer/**/*.py")  # pages, and what they link to


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs_dir."""
    for path in sorted(path for pattern in AS_THEY_ARE for path in ROOT.glob(pattern) if path.is_file()):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        page, resources = MarkdownExporter().from_filename(path, {"output_files_dir": path.stem})
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, content in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    files.append(File.generated(config, "reference/commands.md", content="\n".join(commands())))
    files.append(File.generated(config, "reference/settings.md", content="\n".join(settings())))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links to a notebook lead to its page."""
    return markdown.replace(".ipynb)", ".md)")


class Examples(Extension):
    """Examples in docstrings are blocks of code."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^>>> (?:.+\n?)+", "```pycon\n\\g<0>\n```\n", obj.docstring.value, flags=re.MULTILINE)


def help_of(*command: str) -> str:
    """What a command prints for `--help`."""
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT / "src")}
    arguments = [sys.executable, *command, "--help"]
    return subprocess.run(arguments, env=environment, cwd=ROOT, check=True, capture_output=True, text=True).stdout.rstrip()


def commands() -> Iterator[str]:
    """Lines of the reference of the commands."""
    yield "# Commands\n\nWhat each command prints for `--help`.\n"
    about = help_of("-m", "catalyzer")
    yield f"## catalyzer\n\n```text\n{about}\n```\n"
    for name in re.findall(r"^    (\w+) ", about.partition("COMMAND\n")[2].partition("\n\n")[0], re.MULTILINE):
        yield f"### catalyzer {name}\n\n```text\n{help_of('-m', 'catalyzer', name)}\n```\n"
    for path in sorted((CONF / "hydra/help").glob("*.yaml")):
        # Groups and keys, which follow, have a page of their own.
        about = re.split(r"\n\n(?:Groups|Keys) ", help_of(f"src/{path.stem}.py"))[0]
        yield f"## src/{path.stem}.py\n\n```text\n{about}\n```\n\nThe [settings](settings.md) are its arguments.\n"


def settings() -> Iterator[str]:
    """Lines of the reference of the settings: the comments of conf/, key by key."""
    yield (
        "# Settings\n\nThe command line sets each key by `KEY=VALUE`, and takes another option of a group by `GROUP=OPTION`. "
        "This page is made of the comments in `conf/`. `???` marks a key that must be given, `${KEY}` the value of another key."
    )
    yield "\n## Commands\n"
    for path in sorted(CONF.glob("*.yaml"), key=lambda path: (path.stem != "settings", path.stem)):
        yield from option(path, f"conf/{path.name}", "")
    for group in sorted({path.parent for path in CONF.glob("*/*.yaml")} | {CONF / "hydra/launcher"}):
        name = group.relative_to(CONF).as_posix()
        yield f"\n## {name}\n"
        for path in sorted(group.glob("*.yaml")):
            yield from option(path, f"{name}={path.stem}", f"{name.replace('/', '.')}.")


def option(path: Path, title: str, prefix: str) -> Iterator[str]:
    """Lines about one file: what it says of itself, and a table of its keys."""
    package, head, body = re.fullmatch(r"(# @package .*\n)?((?:#.*\n)*)((?s:.*))", path.read_text(encoding="utf-8")).groups()
    yield f"\n### `{title}`\n\n{escaped(' '.join(line[1:].strip() for line in head.splitlines()))}\n"
    if path.parent.name in ("experiment", "scale"):  # they override keys that are explained where they are from
        yield f"```yaml\n{body}```\n"
        return
    prefix, parents, in_table, in_text = "" if package == "# @package _global_\n" else prefix, [], False, False
    if groups := re.findall(r"^  - (\w+): (\S+)", body, re.MULTILINE):
        yield f"Groups: {', '.join(f'`{group}={taken}`' for group, taken in groups)}"
    # Hydra's own settings are in Hydra's documentation.
    for line in re.sub(r"^(defaults|hydra):\n(?: .*\n|\n)*", "", body, flags=re.MULTILINE).splitlines():
        if line.startswith("# "):  # about the keys that follow
            yield f"{'' if in_text else chr(10)}{escaped(line[2:])}"
            in_table, in_text = False, True
        if not (key := re.fullmatch(r"( *)(\w+): *(.*?)(?: *# (.*))?", line)):
            continue
        indent, name, value, about = key.groups()
        parents = [*parents[: len(indent) // 2], name]
        if name == "defaults":
            yield f"With the keys of `{value.strip('[]')}`."
        elif value or about:
            if not in_table:
                yield "\n| key | value | meaning |\n|---|---|---|"
            in_table, in_text = True, False
            shown = f"`{value}`" if value else ""
            yield f"| `{prefix}{'.'.join(parents)}` | {linked(shown)} | {escaped(about or 'the class')} |"


def linked(code: str) -> str:
    """A class of ours as a link to what is said of it."""
    return re.sub(r"`(catalyzer\.[\w.]+)`", r"[`\1`][\1]", code)


def escaped(text: str) -> str:
    """A comment as Markdown that shows what it says."""
    return html.escape(re.sub(r"([\\`*_{}\[\]|])", r"\\\1", text), quote=False)
