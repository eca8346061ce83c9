"""Which patches of a location come into a store, as what, and why the others do not."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cromss.data.chunks import Ingest
from cromss.data.encoding import RowEncoder
from cromss.data.patch import Patch, trainable
from cromss.data.sources.base import Skipped, Source, require_text
from cromss.data.tiling import cut
from cromss.sensors import SENTINEL2


def places(
    found: Iterable[Patch | Skipped], source: Source, config: Ingest, skipped: list[Skipped], offsets: Counter
) -> Iterator[list[Patch]]:
    """The tiles of a location, all acquisitions of one tile together, in time order."""
    tiles_of: dict[tuple[str, str], list[Patch]] = {}
    for patch in found:
        if isinstance(patch, Skipped):
            skipped.append(patch)
            continue
        try:
            kept = admitted(patch, source, config)
            if "s2_offset" in kept.notes:
                offsets[kept.notes["s2_offset"]] += 1
            tiles = cut(kept, config.tile, split=config.split, guard=config.guard, axis=config.axis)
        except ValueError as error:
            skipped.append(Skipped(patch.patch_id, str(error)))
            continue
        for tile in tiles:
            if trainable(tile.label, tile.valid):
                tiles_of.setdefault((tile.split, tile.tile), []).append(tile)
            else:
                skipped.append(Skipped(tile.patch_id, "no labelled pixel with data in both sensors"))
    yield from tiles_of.values()


def fitting(place: list[Patch], encoder: RowEncoder, skipped: list[Skipped]) -> list[Patch]:
    """The acquisitions of a place that have the store's size, products and bands."""
    kept = []
    for patch in place:
        try:
            if patch.size != encoder.layout.size:
                raise ValueError(misfit(patch.size, encoder.layout.size))
            of_the_store(patch, encoder)
            kept.append(patch)
        except ValueError as error:
            skipped.append(Skipped(patch.patch_id, str(error)))
    return kept


def of_the_store(patch: Patch, encoder: RowEncoder) -> None:
    """Raises ValueError, with both sides and without the patch's name, when it is another product than the store holds, or
    has other bands."""
    try:
        encoder.check_contracts(patch, "this one")
    except ValueError as error:
        raise ValueError(f"{error}; --include and --exclude make a store of each") from None


def misfit(size: tuple[int, int], expected: tuple[int, int]) -> str:
    """Why a patch of another size than the store's is left out."""
    (height, width), (rows, columns) = size, expected
    return f"{height}x{width} pixels, the store holds {rows}x{columns}; --tile cuts all to one size"


def products_of(patch: Patch) -> dict[str, str]:
    """modality -> product, as the patch says."""
    return {name: contract.product for name, contract in patch.contracts.items()}


def encoding_of(source: Source, config: Ingest) -> str:
    """How the store holds its pixels."""
    return source.encoding if config.encoding == "auto" else config.encoding


def bands_of(source: Source, config: Ingest) -> tuple[str, ...]:
    """The store's Sentinel-2 bands."""
    return SENTINEL2.select(getattr(source, "bands", config.bands))


def admitted(patch: Patch, source: Source, config: Ingest) -> Patch:
    """The store's bands of a patch. Raises ValueError for 8-bit codes where raw values are wanted, and for a name that is
    no text."""
    require_text(patch.location_id, patch.acquisition)
    if "8-bit codes" in patch.notes.values() and encoding_of(source, config) == "raw":
        raise ValueError("8-bit codes hold no raw values; use --encoding uint8")
    return subset(patch, source, config)


def subset(patch: Patch, source: Source, config: Ingest) -> Patch:
    """The store's bands of a source that knows no `bands` itself and yields all 13."""
    bands = bands_of(source, config)
    if hasattr(source, "bands") or bands == SENTINEL2.bands:
        return patch
    return replace(
        patch,
        images=patch.images | {"s2": patch.images["s2"][SENTINEL2.indices(bands)]},
        contracts=patch.contracts | {"s2": patch.contracts["s2"].select(bands, patch.patch_id)},
    )
