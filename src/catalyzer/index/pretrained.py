"""Maps that ship with the package: index files without vectors, with cards that say what they learned from."""

from pathlib import Path

from catalyzer.errors import InvalidInput, integer

FOLDER = Path(__file__).parents[1] / "pretrained"


def names() -> list[str]:
    """The maps that ship, such as all-MiniLM-L6-v2-256, which ends with the bits of its codes."""
    return sorted(path.stem for path in FOLDER.glob("*.catalyzer"))


def path_of(name: str, bits: int | None) -> Path:
    """The file of a map, of its only size where `bits` is None; `InvalidInput` says which ones there are."""
    if bits is not None:
        bits = integer("bits", bits, 1)
    sizes = [each.rsplit("-", 1) for each in names()]
    wanted = [size for each, size in sizes if each == name and bits in (None, int(size))]
    if len(wanted) != 1:
        there = ", ".join(f"{each} with {size} bits" for each, size in sizes)
        size = "" if bits is None else f" with {bits} bits"
        raise InvalidInput(f"there is no pretrained map {name}{size}; choose among {there}, or train one by fit")
    return FOLDER / f"{name}-{wanted[0]}.catalyzer"
