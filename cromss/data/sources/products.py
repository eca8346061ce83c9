"""What names and metadata tell of a Sentinel-2 product: its processing level and its baseline."""

import re
from collections.abc import Iterable
from typing import Literal

from cromss.data import radiometry

Level = Literal["L1C", "L2A-as-is"]
LEVEL_HELP = "L2A-as-is: take Sentinel-2 L2A too (surface reflectance), as it is, under the same band names"


def level_of(texts: Iterable[str]) -> str:
    """`L1C` or `L2A` from the first text that tells (`S2A_MSIL2A_...`, `S2MSI1C`, `L2A`, `sentinel-2-l2a`), else ""."""
    for text in texts:
        if found := re.search(r"(?:MSIL?|(?:^|[^A-Z0-9])L(?:EVEL)?-?)(1C|2A)(?![A-Z0-9])", text.upper()):
            return f"L{found[1]}"
    return ""


def accept_level(found: str, accepted: Level) -> dict[str, str]:
    """The note to make of a level. Raises ValueError when it is L2A and nobody said that L2A is wanted: scalings,
    statistics and published encoders are L1C, and the same names would hide that these are other quantities."""
    if found == "L2A" and accepted != "L2A-as-is":
        raise ValueError(
            "Sentinel-2 is L2A (surface reflectance), everything here is made for L1C (top of atmosphere); "
            "state that you want it with --level L2A-as-is"
        )
    return {"s2_level": found} if found else {}


def baseline_of(texts: Iterable[str]) -> int | None:
    """The first processing baseline told, 400 for 04.00; None where no text tells one."""
    found = (radiometry.processing_baseline(text) for text in texts)
    return next((number for number in found if number is not None), None)
