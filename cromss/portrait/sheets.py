"""Contact sheets: random patches of a store, and the pairs that a leakage audit found alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch as Swatch

from cromss.data.appearance import NO_DATA, TRUE_COLOUR, composite, optical_first, pictures, shown_bands
from cromss.data.leakage import Leakage
from cromss.data.likeness import TURNS, Lens, Pair, read_row, turned
from cromss.data.patch import Patch
from cromss.data.store import PatchStore
from cromss.landcover import Scheme
from cromss.plot import FAINT, INK, PALETTE, short, styled
from cromss.portrait.look import UNLABELLED, ordered
from cromss.sensors import sensor

PATCHES = 12  # of a contact sheet


@dataclass(frozen=True)
class Card:
    """Images (H,W,3) uint8 side by side with lines of text above them."""

    images: tuple[np.ndarray, ...]
    lines: tuple[str, ...]
    colour: str = INK  # of the first line


def chosen(store: PatchStore, count: int, seed: int) -> list[Patch]:
    """Random patches of distinct places, from every split by its share, at least one; of as many locations as possible."""
    total = sum(store.places(split) for split in store.splits)
    first, *others = ordered(store.splits)
    wanted = {split: max(1, round(count * store.places(split) / total)) for split in others}
    wanted = {first: max(1, count - sum(wanted.values())), **wanted}
    return [
        patch for split, number in wanted.items() for patch in _varied(store.sample(4 * number, split, seed), number)
    ]


def _varied(patches: list[Patch], count: int) -> list[Patch]:
    """`count` of the patches: one of every location before a second of any."""
    rounds: dict[str, int] = {}
    ranked = []
    for number, patch in enumerate(patches):
        rounds[patch.location_id] = rounds.get(patch.location_id, 0) + 1
        ranked.append((rounds[patch.location_id], number))
    return [patches[number] for _, number in sorted(ranked)[:count]]


@styled
def contact_sheet(patches: Sequence[Patch], scheme: Scheme) -> Figure:
    """Optical, radar, label and, where known, clean label of some patches, with the legend of the classes shown."""
    contracts = patches[0].contracts
    titles = [shown_bands(name, contracts[name].bands) for name in optical_first(patches[0].images)] + ["label"]
    clean = all(patch.clean is not None for patch in patches)
    cards = []
    for patch in patches:
        maps = (patch.label, patch.clean) if clean else (patch.label,)
        images = [*pictures(patch).values(), *(scheme.rgb(one) for one in maps)]
        cards.append(Card(tuple(images), (f"{short(patch.patch_id, 44)} · {patch.split}",)))
    labels = [patch.label for patch in patches] + ([patch.clean for patch in patches] if clean else [])
    present = np.unique(np.stack(labels))
    legend = {scheme.classes[k]: scheme.colours[k] for k in present if k < len(scheme)}
    if present[-1] >= len(scheme):
        legend["unlabelled"] = UNLABELLED
    across = 2 if len(cards[0].images) > 3 else 3
    return _sheet(cards, titles + ["clean label"] * clean, across, legend)


@styled
def pair_sheet(found: Leakage, pretraining: PatchStore, downstream: PatchStore, most: int = 12) -> Figure:
    """The near-duplicates of an audit, the worst first, then the most similar pairs that are none: the test patch turned
    and moved onto the pretraining patch, that patch, and how they differ (black: equal, white: 32 codes or more)."""
    pairs = [*found.duplicates, *found.lookalikes][:most]
    if not pairs:
        figure = Figure(figsize=(6.4, 1.0))
        figure.text(0.5, 0.5, f"no two patches are alike: {found.patches:,} test patches compared with "
                    f"{found.pretraining_patches:,}", ha="center", va="center", color=FAINT, size=10)  # fmt: skip
        return figure
    bands = TRUE_COLOUR if found.modality == "s2" and set(TRUE_COLOUR) <= set(found.bands) else found.bands
    lens = Lens(found.modality, tuple(bands), found.side)
    cards = [_pair(pair, lens, pretraining, downstream) for pair in pairs]
    return _sheet(cards, ["test patch", "pretraining patch", "difference"], min(2, len(cards)), {})


def _pair(pair: Pair, lens: Lens, pretraining: PatchStore, downstream: PatchStore) -> Card:
    test = tuple(_moved(turned(part, pair.turn), pair.shift) for part in read_row(lens, downstream, pair.test))
    other = read_row(lens, pretraining, pair.other)
    inside = test[1] & other[1]
    apart = np.abs(test[0].astype(np.int16) - other[0]).mean(0)
    difference = np.where(inside, np.clip(apart * 8, 0, 255), NO_DATA).astype(np.uint8)
    card = sensor(lens.modality)
    images = [
        composite(lens.modality, lens.bands, card.decode(codes, lens.bands), valid) for codes, valid in (test, other)
    ]
    moved = "moved {}, {} px".format(*pair.shift).replace("-", "−")
    how = [TURNS[pair.turn].replace("turned by ", "")] * bool(pair.turn) + [moved] * any(pair.shift)
    title = "near-duplicate" if pair.duplicate else "look-alike"
    measured = f"r {pair.correlation:.3f} · {pair.difference:.1f} codes"
    lines = (
        " · ".join([title, measured, *how]),
        f"test  {short(pair.test.id, 52)}",
        f"pretraining  {short(pair.other.id, 46)}",
    )
    return Card((*images, difference[..., None].repeat(3, 2)), lines, PALETTE[1] if pair.duplicate else FAINT)


def _moved(image: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """(...,N,N) moved down and right, with 0 (no data) behind it."""
    n = image.shape[-1]
    out = np.zeros_like(image)
    to = tuple(slice(max(by, 0), n - max(-by, 0)) for by in shift)
    here = tuple(slice(max(-by, 0), n - max(by, 0)) for by in shift)
    out[(..., *to)] = image[(..., *here)]
    return out


def _sheet(cards: Sequence[Card], titles: Sequence[str], across: int, legend: Mapping[str, str]) -> Figure:
    """Cards in rows of `across`, titles over the columns of the first row, a legend below; lengths in inches."""
    side, seam, gap, line, head = 1.3, 0.03, 0.28, 0.155, 0.24
    across = min(across, len(cards))
    text = line * max(len(card.lines) for card in cards) + 0.05
    broad = len(titles) * (side + seam) - seam
    width = across * (broad + gap) - gap
    per_line = max(1, int(width // 1.3))
    lines = -(-len(legend) // per_line)
    foot = 0.25 * lines + (0.12 if legend else 0)
    rows = -(-len(cards) // across)
    height = head + rows * (text + side + 0.12) + foot
    figure = Figure(figsize=(width, height))
    for number, card in enumerate(cards):
        row, column = divmod(number, across)
        left, top = column * (broad + gap), height - head - row * (text + side + 0.12)
        for i, words in enumerate(card.lines):
            figure.text(left / width, (top - line * (i + 0.75)) / height, words, size=7.5, va="center",
                        color=card.colour if i == 0 else FAINT)  # fmt: skip
        for i, image in enumerate(card.images):
            x, y = left + i * (side + seam), top - text - side
            axes = figure.add_axes((x / width, y / height, side / width, side / height))
            axes.imshow(image, interpolation="nearest" if min(image.shape[:2]) < 200 else "antialiased")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0:
                figure.text((x + side / 2) / width, (height - head / 2) / height, titles[i], ha="center", va="center",
                            size=8.5, color=INK)  # fmt: skip
    if legend:
        handles = [Swatch(facecolor=colour, label=name) for name, colour in legend.items()]
        below = (0, (foot - 0.06) / height)
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=below, ncols=-(-len(legend) // lines), handlelength=1,
                      handleheight=1, borderpad=0, borderaxespad=0, handletextpad=0.5, fontsize=8)  # fmt: skip
    return figure
