import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cromss.data.augment import AugmentConfig, augment, centre_crop, uniform
from cromss.data.patch import Batch

SIZE = 12


def batch_of(keys, size=SIZE, dtype=torch.uint8, **more) -> Batch:
    """Patches whose every map is the number of the pixel."""
    rows = len(keys)
    pixels = torch.arange(size * size).view(1, size, size).expand(rows, -1, -1)
    return Batch(
        images={
            "s1": torch.stack([pixels, pixels + 1], 1).to(torch.float32),
            "s2": pixels[:, None].to(torch.int32).to(dtype),
        },
        bands={"s1": ("VV", "VH"), "s2": ("B2",)},
        labels=pixels.to(torch.uint8),
        ids=[str(row) for row in range(rows)],
        epochs=torch.zeros(rows, dtype=torch.int64),
        keys=torch.tensor(keys, dtype=torch.int64),
        clean=pixels.to(torch.uint8),
        valid=pixels % 3 > 0,
        seasons=torch.stack([pixels, pixels], 1).to(torch.uint8),
        **more,
    )


KEYS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=12)
CONFIGS = st.builds(
    AugmentConfig,
    crop=st.sampled_from([None, 1, 5, 12]),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    rotate=st.sampled_from([0.0, 0.5, 1.0]),
)


def test_the_draws_are_those_of_splitmix64():
    # first outputs of the reference implementation (Vigna, splitmix64.c) for the seeds 0 and 1234567
    outputs = {0: [0xE220A8397B1DCDAF], 1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423]}
    for seed, numbers in outputs.items():
        for draw, number in enumerate(numbers):
            assert uniform(torch.tensor([seed]), draw).item() == (number >> 11) / 2**53


@given(KEYS, CONFIGS)
@settings(max_examples=50, deadline=None)
def test_every_map_of_a_patch_moves_alike(keys, config):
    out = augment(batch_of(keys), config)
    pixels = out.labels
    for name in ("clean", "seasons"):
        other = getattr(out, name)
        assert torch.equal(other if other.ndim == 3 else other[:, 1], pixels)
    assert torch.equal(out.images["s2"][:, 0], pixels)
    assert torch.equal(out.images["s1"][:, 0], pixels.float())
    assert torch.equal(out.images["s1"][:, 1], pixels.float() + 1)
    assert torch.equal(out.valid, pixels % 3 > 0)


@given(KEYS, CONFIGS, st.randoms())
@settings(max_examples=50, deadline=None)
def test_a_patch_looks_the_same_in_whatever_batch(keys, config, random):
    together = augment(batch_of(keys), config).labels
    order = random.sample(range(len(keys)), len(keys))
    shuffled = augment(batch_of([keys[i] for i in order]), config).labels
    assert torch.equal(shuffled, together[order])
    for row, key in enumerate(keys):
        assert torch.equal(augment(batch_of([key]), config).labels[0], together[row])


@given(KEYS, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=50, deadline=None)
def test_flips_and_quarter_turns_never_change_the_histogram(keys, flip, rotate):
    out = augment(batch_of(keys), AugmentConfig(crop=None, flip=flip, rotate=rotate))
    assert torch.equal(out.labels.flatten(1).sort()[0], batch_of(keys).labels.flatten(1).sort()[0])


@given(KEYS, CONFIGS)
@settings(max_examples=50, deadline=None)
def test_the_result_is_one_of_the_eight_symmetries_of_one_window(keys, config):
    patch = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
    for row in augment(batch_of(keys), config).labels.numpy():
        size = len(row)
        top, left = divmod(int(row.min()), SIZE)  # the smallest pixel is the window's corner
        window = patch[top : top + size, left : left + size]
        assert any(np.array_equal(row, np.rot90(w, k)) for w in (window, window.T) for k in range(4))


def test_all_symmetries_and_all_windows_occur_and_at_the_stated_rates():
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 4000).tolist()
    out = augment(batch_of(keys), AugmentConfig(crop=SIZE - 1, flip=0.5, rotate=0.2)).labels
    corners = {tuple(row[[0, 0, -1, -1], [0, -1, 0, -1]].tolist()) for row in out}
    assert len(corners) == 8 * 4
    turned = (out[:, 0, 0].int() - out[:, 0, 1].int()).abs() == SIZE  # a quarter turn, not a half
    assert turned.float().mean().item() == pytest.approx(0.2 * 2 / 3, abs=0.02)
    flips = augment(batch_of(keys), AugmentConfig(crop=None, flip=0.5, rotate=0)).labels
    assert (flips[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_without_flips_turns_and_crop_nothing_changes():
    batch = batch_of([1, 2, 3])
    assert torch.equal(augment(batch, AugmentConfig(crop=None, flip=0, rotate=0)).labels, batch.labels)


def test_raw_sentinel_2_keeps_its_type_and_values():
    codes = augment(batch_of([5, 6], dtype=torch.uint16), AugmentConfig(crop=5))
    assert codes.images["s2"].dtype == torch.uint16
    assert torch.equal(codes.images["s2"][:, 0].int(), codes.labels.int())


def test_maps_that_are_absent_stay_absent():
    batch = batch_of([1])
    batch.clean = batch.valid = batch.seasons = None
    out = augment(batch, AugmentConfig(crop=4))
    assert (out.clean, out.valid, out.seasons) == (None, None, None)
    assert (out.ids, out.keys.tolist()) == (["0"], [1])


def test_the_centre_crop_is_the_middle():
    out = centre_crop(batch_of([1]), 4)
    assert out.labels[0].tolist() == [[row * SIZE + column for column in range(4, 8)] for row in range(4, 8)]
    assert out.images["s1"].shape == (1, 2, 4, 4)
    assert centre_crop(batch_of([1]), None).labels.shape == (1, SIZE, SIZE)


@pytest.mark.parametrize("change", [augment, lambda batch, config: centre_crop(batch, config.crop)])
def test_a_crop_larger_than_the_patch_is_refused(change):
    with pytest.raises(ValueError, match=r"augment\.crop=256: the patches are 12 x 12; set it to 12 or less"):
        change(batch_of([1]), AugmentConfig())


def test_patches_that_are_not_square_cannot_turn():
    batch = batch_of([1])
    batch.labels = batch.labels[:, :6]
    with pytest.raises(ValueError, match=r"6 x 12 cannot make quarter turns; set augment\.crop"):
        augment(batch, AugmentConfig(crop=None))
