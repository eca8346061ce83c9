import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cromss.data.augment import AugmentConfig, augment, centre_crop, crops, draw, symmetry, uniform
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
        for which, number in enumerate(numbers):
            assert uniform(torch.tensor([seed]), which).item() == (number >> 11) / 2**53


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


def seen_as(view, patch):
    """The numbered symmetry of a patch (H, W), in numpy."""
    patch = patch[::-1] if view & 2 else patch
    patch = patch[:, ::-1] if view & 1 else patch
    return patch.T if view & 4 else patch


def test_sixteen_draws_of_flips_and_turns_are_eight_views():
    patch, found = np.arange(SIZE * SIZE).reshape(SIZE, SIZE), {}
    for flip_rows, flip_columns, turns in itertools.product([False, True], [False, True], range(4)):
        flipped = patch[::-1] if flip_rows else patch
        expected = np.rot90(flipped[:, ::-1] if flip_columns else flipped, turns)
        (view,) = symmetry(
            torch.tensor([flip_rows]), torch.tensor([flip_columns]), torch.tensor([turns]),
            top=torch.zeros(1), left=torch.zeros(1), size=(SIZE, SIZE),
        ).views.tolist()  # fmt: skip
        assert np.array_equal(seen_as(view, patch), expected)
        found.setdefault(view, []).append(expected.tobytes())
    assert sorted(found) == list(range(8))
    assert [len(same) for same in found.values()] == [2] * 8
    assert len({image for same in found.values() for image in same}) == 8


@given(KEYS, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=50, deadline=None)
def test_the_view_says_what_augment_does_to_a_whole_patch(keys, flip, rotate):
    config, patch = AugmentConfig(crop=None, flip=flip, rotate=rotate), np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
    views = draw(torch.tensor(keys), config, (SIZE, SIZE)).views.tolist()
    for view, row in zip(views, augment(batch_of(keys), config).labels.numpy(), strict=True):
        assert np.array_equal(row, seen_as(view, patch))


def test_patches_that_are_not_square_have_four_views():
    keys = torch.tensor(np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 200))
    config = AugmentConfig(crop=None, rotate=0)
    batch = batch_of(keys.tolist())
    batch = replace(batch, images={}, clean=None, valid=None, seasons=None, labels=batch.labels[:, :5])
    views = draw(keys, config, (5, SIZE)).views.tolist()
    assert set(views) == {0, 1, 2, 3}
    for view, row in zip(views, augment(batch, config).labels.numpy(), strict=True):
        assert np.array_equal(row, seen_as(view, np.arange(5 * SIZE).reshape(5, SIZE)))


def test_a_crop_is_random_unless_it_is_the_whole_patch():
    assert not crops(AugmentConfig(crop=None), (12, 10))
    assert not crops(AugmentConfig(crop=12), (12, 12))
    assert crops(AugmentConfig(crop=10), (12, 10))


def test_a_key_gives_the_augmentation_it_always_gave():
    out = augment(batch_of(range(-32, 32)), AugmentConfig(crop=5, flip=0.5, rotate=0.5)).labels
    digest = hashlib.sha256(out.numpy().tobytes()).hexdigest()
    assert digest == "ca78b6f87a08fdb4e53f35fbde3186a7c8f8569b60e5fe0215edc33894d4bfe8"


@pytest.mark.parametrize("keys_on", ["cpu", "meta"])
def test_augment_never_waits_for_the_device(keys_on):
    # A meta tensor has no numbers: whoever asks for one fails.
    known = batch_of(range(6))
    batch = known.to("meta")
    batch.keys = known.keys.to(keys_on)
    out = augment(batch, AugmentConfig(crop=5))
    assert (out.labels.device.type, out.labels.shape) == ("meta", (6, 5, 5))
    assert out.images["s1"].shape == (6, 2, 5, 5)
