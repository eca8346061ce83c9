"""One Cloud-Optimised GeoTIFF and one STAC item a patch, under names that stay inside their folder."""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cromss.auditing.scores import NODATA, STEPS, as_share
from cromss.auditing.walk import Seen
from cromss.landcover import IGNORE, Scheme
from cromss.maps.cog import Band, Grid, write_cog
from cromss.maps.stac import asset, date_in, finish, item

if TYPE_CHECKING:
    import pystac

FOLDER = "maps"
_LONGEST = 96  # characters of an id in a file name


def file_name(patch_id: str) -> str:
    """A patch's id as a file's name without ending: letters, digits, `.`, `-` and `_`. An id that has anything else in it,
    or could be taken for another's, ends in eight digits of its sha256."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", patch_id).strip(".")[:_LONGEST]
    if plain == patch_id and not re.search(r"-[0-9a-f]{8}$", plain):
        return plain
    return f"{plain or 'patch'}-{hashlib.sha256(patch_id.encode()).hexdigest()[:8]}"


def bands_of(modalities: tuple[str, ...]) -> list[Band]:
    """What a map holds, in order; stored uint8, 255 = no data."""
    share = 1 / STEPS
    return [
        Band("suggested label", tags={"rule": "class of the highest mean probability, where that is high enough"}),
        Band("given label"),
        Band("flagged", tags={"rule": "1 = among the most suspicious of the whole set"}),
        Band("label weight", "1", share, {"source": "W_l, eq. 3 of CromSS"}),
        Band("label confidence", "1", share, {"source": "F'_l, mean over the modalities; suspicion = 1 - this"}),
        Band("entropy", "1", share, {"source": "of the mean softmax, 1 = uniform"}),
        Band(
            "disagreement", "1", share, {"source": "Jensen-Shannon divergence of the modalities' softmax, 1 = disjoint"}
        ),
        *(Band(f"label confidence {name}", "1", share, {"source": "F'_l, eq. 2 of CromSS"}) for name in modalities),
    ]


def pixels_of(seen: Seen, place: int, flagged: np.ndarray, weights: np.ndarray, suggested: np.ndarray) -> np.ndarray:
    """The bands of one row, (C, H, W) uint8."""
    judged, valid = seen.judged[place], seen.valid[place]

    def where(known: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.where(known, values, np.uint8(NODATA))

    nothing = np.full(valid.shape, NODATA, np.uint8)
    return np.stack([
        where(valid, suggested[place]),
        seen.label[place],
        where(judged, flagged[place].astype(np.uint8)),
        where(judged, as_share(weights[place])),
        where(judged, as_share(seen.joint[place])),
        where(valid, seen.entropy[place]),
        nothing if seen.disagreement is None else where(valid, seen.disagreement[place]),
        *(where(judged, as_share(one[place])) for one in seen.confidence.values()),
    ])  # fmt: skip


def write_map(
    folder: Path, row: dict[str, Any], pixels: np.ndarray, modalities: tuple[str, ...], scheme: Scheme,
    properties: dict[str, Any],
) -> "pystac.Item":  # fmt: skip
    """`<name>.tif`, then `<name>.json`, unless both are there; the STAC item."""
    name = file_name(row["patch_id"])
    grid = Grid(row["crs"], tuple(row["transform"]), pixels.shape[1:])
    made = item(name, grid, date_in([row["acquisition"], row["patch_id"]]), properties)
    described = folder / f"{name}.json"
    if described.exists():
        return made
    bands = bands_of(modalities)
    write_cog(
        folder / f"{name}.tif", pixels, grid, bands, nodata=NODATA, scheme=scheme, tags={"patch_id": row["patch_id"]}
    )
    audited = asset(f"./{name}.tif", "label-noise audit", scheme=scheme)
    audited.extra_fields["bands"] = [
        {"name": band.name, "data_type": "uint8", "nodata": NODATA} | ({"unit": band.unit} if band.unit else {})
        for band in bands
    ]
    made.add_asset("audit", audited)
    finish(made, described)
    return made


def suggested_of(seen: Seen, confident: float) -> np.ndarray:
    """(R, H, W): the class of the highest mean probability where that is `confident` or more, else IGNORE."""
    return np.where(seen.valid & (seen.sure >= np.rint(confident * STEPS)), seen.best, np.uint8(IGNORE))
