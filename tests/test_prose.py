"""README and docs are plain English: short sentences, and the field's words."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.helpers import ROOT

LONGEST = 30
"""Words of a sentence."""

AVOID = {
    "a kill": "SIGKILL, when a process is killed",
    "anew": "again",
    "beside": "next to, compared with, in addition",
    "goes by": "depends on, uses",
    "goes? on": "continue, resume",
    "hands? in": "pass, give",
    "hereby|thereof|therein|whereof": "this, of it, in it",
    "likewise": "also, in the same way",
    "ranked anew": "reranked",
    "stands? for": "represent",
    "way back": "decoder",
    "way through": "pass",
    "whoever|whosoever": "users, readers, anyone who",
    "whole codes?": "full code",
}
"""Words that no page has, as regular expressions, and the usual ones."""

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Sentences outside tables and code, with the line at which their paragraph begins; of a link, its text."""
    in_table = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type in ("table_open", "table_close"):
            in_table = token.type == "table_open"
        if token.type != "inline" or in_table:
            continue
        assert token.map is not None
        assert token.children is not None
        words = "".join(each.content if each.type == "text" else " " for each in token.children if each.type != "code_inline")
        for sentence in re.split(r"(?<=[.!?])[)\"]*\s+", words):
            yield token.map[0] + 1, sentence


def too_long(text: str) -> list[str]:
    counts = ((line, sentence, len(re.findall(r"\w[\w'’.,-]*", sentence))) for line, sentence in sentences(text))
    return [f"line {line}, {count} words: {sentence}" for line, sentence, count in counts if count > LONGEST]


def avoided(text: str) -> list[str]:
    return [
        f"line {line}, {found[0]!r}, better {usual}: {sentence}"
        for line, sentence in sentences(text)
        for word, usual in AVOID.items()
        if (found := re.search(rf"\b({word})\b", sentence, re.IGNORECASE))
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    assert not too_long(page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_words_are_usual(page: Path) -> None:
    assert not avoided(page.read_text())


def test_what_counts_as_a_sentence() -> None:
    words = "word " * LONGEST
    assert not too_long(f"{words}. {words}`{words}`.\n\n| {words}{words} |\n|---|\n| {words}{words} |\n\n    {words}{words}\n")
    assert len(too_long(f"# {words}more\n\n- {words}\n  more: {words}\n")) == 2
    assert avoided("Vectors are [ranked\nanew](docs/index.md).") == [
        "line 1, 'anew', better again: Vectors are  ranked anew .",
        "line 1, 'ranked anew', better reranked: Vectors are  ranked anew .",
    ]
