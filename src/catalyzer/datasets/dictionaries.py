"""The definitions of WordNet and of GCIDE, as Debian ships the two dictionaries."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from catalyzer.errors import DamagedFile, InvalidInput

PACKAGES = "apt install wordnet-base dict-gcide"
FEWEST_WORDS = 3

_DIGITS = {character: value for value, character in enumerate(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
)}  # fmt: skip
_WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")

# GCIDE writes what ASCII lacks in brackets: [=a] [a^] ["o] [th] [ae] [aum] [deg] [frac12].
_LETTER = re.compile(
    r"\[(?:[^\w\s\[\]](ae|oe|AE|OE|[A-Za-z])|([A-Za-z])[^\w\s\[\].]|(ae|oe|AE|OE|th)[^\w\s\[\]]?|([aeiouAEIOU])um)\]"
)
_FRACTION = re.compile(r"\[(?:frac)?(\d+)[x/](\d+)\]|\[frac(\d)(\d+)\]")
_BRACKETS = re.compile(r"\[[^\[\]]*\]")
_NESTED = re.compile(r"(\[[^\[\]]*)\[([^\[\]]*)\]")
_REFERENCE = re.compile(r"\{([^{}]*)\}")
_SYLLABLES = str.maketrans("", "", '*"`|')

_SOURCE = re.compile(r"^\s*\[(?:\d{4} )?(?:Webster|WordNet|PJC|Century|\+?[A-Z]{2,4}\b)[^\[\]]*\]")
_NUMBER = re.compile(r"^\s*\d{1,2}\.\s+")
_SUBSENSE = re.compile(r"^\s*\([a-z]\)\s+")
_COMPOUND = re.compile(r"^\s+\{")
_ASIDE = re.compile(r"^\s*(?:Syn|Syns|Note|Usage|Ant)[.:]")
# What comes before a definition: headwords, pronunciation, part of speech, inflections, etymology, field.
_HEADWORD = re.compile(r"[^\\\[\]]{0,120}?\\[^\\]*\\")
_FIELD = re.compile(r"\((?:[^()]|\([^()]*\))*\)")
_SPEECH = re.compile(
    r"(?:prop\.|n\.|v\.|t\.|i\.|a\.|adj\.|adv\.|pl\.|sing\.|prep\.|conj\.|interj\.|pron\.|p\.|pr\.|imp\.|vb\.|pret\.|"
    r"compar\.|superl\.|obs\.|fem\.|masc\.|aux\.|impers\.|refl\.|def\.|art\.|pers\.|poss\.|rel\.|dem\.|indef\.|pref\.|suff\.|"
    r"pp\.|ppr\.|phr\.|collect\.|or|and|&|[,;:.])(?=\s|[,;\[({.]|$)"
)
_EXAMPLE = re.compile(r"""(?<=[.;:!?\])])\s+["`].*|\s--\s?[A-Z"].*|\s--\s(?:\{|n\.|a\.|v\.|adv\.|adj\.).*|\s--\s*$""")
_CROSS_REFERENCE = re.compile(r"(?:See|Same as|Cf\.|Of|The same as|Alt\. of|Variant of)\s(?:\S+\s){0,3}\S+$", re.IGNORECASE)


def wordnet_definitions(folder: Path) -> Iterator[str]:
    """The definition of each synset, without its examples, in the order of the files.

    Args:
        folder: folder with `data.noun`, `data.verb`, `data.adj` and `data.adv`.

    Raises:
        InvalidInput: one of them is missing.
        DamagedFile: one has no glosses.
    """
    for name in _WORDNET_FILES:
        found = False
        for line in _read(folder / name, "wordnet").decode("utf-8", "replace").splitlines():
            head, bar, gloss = line.partition(" | ")
            if bar and head[:8].isdigit():
                found = True
                yield from _long_enough(re.split(r"""[;:,]?\s+"|^\s*\"""", gloss, maxsplit=1)[0])
        if not found:
            raise DamagedFile(f"{folder / name} has no glosses; expected a file of WordNet 3: {PACKAGES}")


def gcide_definitions(path: Path) -> Iterator[str]:
    """Each numbered sense, and each compound, of each entry: without etymology, quotations, synonyms and notes.

    Args:
        path: path of `gcide.dict.dz`; `gcide.index` is in the same folder.

    Raises:
        InvalidInput: one of them is missing.
        DamagedFile: they cannot be read, or do not belong together.
    """
    index = path.with_name(path.name.removesuffix(".dz").removesuffix(".dict") + ".index")
    content, entries = _read(path, "gcide"), _read(index, "gcide")
    try:
        if path.suffix == ".dz":
            content = gzip.decompress(content)
        rows = [line.split("\t") for line in entries.decode("utf-8", "replace").splitlines()]
        places = {(_number(row[1]), _number(row[2])) for row in rows if not row[0].startswith("00-")}
    except (OSError, EOFError, zlib.error, KeyError, IndexError):
        raise DamagedFile(f"{path} and {index.name} are not a dictionary of dictd; install them again: {PACKAGES}") from None
    if not places or max(start + size for start, size in places) > len(content):
        raise DamagedFile(f"{index} does not belong to {path.name}; install them again: {PACKAGES}")
    for start, size in sorted(places):
        yield from senses(content[start : start + size].decode("utf-8", "replace"))


def senses(entry: str) -> Iterator[str]:
    r"""The definitions in an entry of GCIDE.

    >>> entry = r'''
    ... Bathe \Bathe\, v. i. [OE. bathien.]
    ...    1. To bathe one's self; to take a bath or baths. "They bathe
    ...       in summer." --Waller.
    ...       [1913 Webster]
    ...
    ...    {Bathing machine}, a small room on wheels. [Obs.]
    ... '''
    >>> list(senses(entry.strip()))
    ["To bathe one's self; to take a bath or baths.", 'a small room on wheels.']
    """
    taken: list[str] = []  # lines of the definition that is being read
    heading, taking, apart = True, True, True  # the first paragraph begins with the headword
    for line in [*entry.splitlines(), ""]:
        blank, source = not line.strip(), _SOURCE.match(line)
        item = _item(line, apart or heading, apart or _closed(taken))
        starts = item or (apart and _COMPOUND.match(line))
        if blank or source or starts or _ASIDE.match(line):
            if taken:
                text = _without_head(" ".join(taken), heading)
                yield from _gloss(text)
                heading = heading and not text  # where the headword has a paragraph of its own
            taken, taking = [], bool(starts) or heading
        apart = blank or bool(source)
        if taking and not apart:
            taken.append((line[item.end() :] if item else line).strip())


def _item(line: str, numbered: bool, closed: bool) -> re.Match[str] | None:
    """The "1. " or "(a) " that begins a sense, and not a line within a definition or an etymology."""
    number = _NUMBER.match(line) if numbered else None
    return (number or _SUBSENSE.match(line)) if closed else None


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + _DIGITS[digit]
    return value


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read ({error.strerror}); on Debian: {PACKAGES}; elsewhere set {key}=, or texts= for a file of "
            "your own"
        ) from None


def _closed(lines: list[str]) -> bool:
    text = " ".join(lines)
    return text.count("[") <= text.count("]") and text.count("(") <= text.count(")")


def _without_head(text: str, heading: bool) -> str:
    text = _in_ascii(text)
    while heading and (match := _HEADWORD.match(text)):
        text = text[match.end() :].lstrip()
    while match := (_FIELD.match(text) or _SPEECH.match(text) or _BRACKETS.match(text) or _REFERENCE.match(text)):
        text = text[match.end() :].lstrip()
    return text


def _in_ascii(text: str) -> str:
    text = _LETTER.sub(lambda match: next(filter(None, match.groups())), text.replace("[deg]", "°"))
    text = _FRACTION.sub(lambda match: "/".join(filter(None, match.groups())), text)
    while (flat := _NESTED.sub(r"\1(\2)", text)) != text:
        text = flat
    return text


def _gloss(text: str) -> Iterator[str]:
    text = _BRACKETS.sub("", text)
    if "[" in text or "]" in text:  # an etymology whose end is missing
        return
    text = _REFERENCE.sub(lambda match: match[1].translate(_SYLLABLES), text)
    text = " ".join(_EXAMPLE.sub("", " " + text).split())
    if not _CROSS_REFERENCE.match(text):
        yield from _long_enough(text)


def _long_enough(text: str) -> Iterator[str]:
    text = re.sub(r"\s+([.,;:])", r"\1", " ".join(text.split())).strip(" ;,")
    if len(text.split()) >= FEWEST_WORDS:
        yield text
