"""Maps that ship with the package: index files without vectors, with cards that say what they learned from."""

from pathlib import Path

from catalyzer.errors import InvalidInput

FOLDER = Path(__file__).parents[1] / "pretrained"


def names() -> list[str]:
    """The maps that ship, such as all-MiniLM-L6-v2-256, which ends with the bits of its codes."""
    return sorted(path.stem for path in FOLDER.glob("*.catalyzer"))


def path_of(name: str, bits: int) -> Path:
    """The file of a map; `InvalidInput` says which ones there are."""
    if f"{name}-{bits}" not in names():
        there = ", ".join("{} with {} bits".format(*each.rsplit("-", 1)) for each in names())
        raise InvalidInput(f"there is no pretrained map {name} with {bits} bits; choose among {there}, or train one by fit")
    return FOLDER / f"{name}-{bits}.catalyzer"
