"""What the pictures of a store share: the colours and the order of splits, counts in words."""

from collections.abc import Iterable

from cromss.plot import PALETTE

UNLABELLED = "#E6E6E6"  # as `Scheme.rgb` paints it


def split_colours(splits: Iterable[str]) -> dict[str, str]:
    """A colour for every split, in the order they are shown: `train` first and always the same."""
    return {split: PALETTE[i % len(PALETTE)] for i, split in enumerate(ordered(splits))}


def ordered(splits: Iterable[str]) -> list[str]:
    """`train`, then the others by name."""
    return sorted(set(splits), key=lambda split: (split != "train", split))


def counted(number: int, noun: str) -> str:
    plural = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{plural}"
