"""Cached features of a frozen encoder: the same training, with less of the encoder."""

import contextlib
import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY

from cromss.config import resolve
from cromss.data.patch import Batch
from cromss.data.store import PatchStore
from cromss.networks.heads import FPN, DeepLabV3Plus, PSPNet, UPerNet, freeze
from cromss.networks.scaling import MeanStd
from cromss.training import downstream
from cromss.training.features import CachedEncoder, FeatureCache, Reading, cached_encoder, reading
from cromss.training.state import Inputs

PATCHES = 16  # of the split that the tiny world trains on
EIGHT_VIEWS = {"crop": None, "flip": 0.5, "rotate": 0.2}
ONE_VIEW = {"crop": None, "flip": 0, "rotate": 0}


def transfer(**changes):
    """A frozen transfer that may cache, but for the changes."""
    base = {"frozen_batchnorm": "fixed", "epochs": 12, "panels": 0, "augment": EIGHT_VIEWS}
    return resolve(TINY, {"transfer": base | changes}).transfer


@pytest.fixture
def judged(worlds, tmp_path, monkeypatch):
    """judge(**changes) -> (result, losses, the network at the end, images that its encoder saw in training)."""

    def judge(mode="frozen", **changes):
        networks, seen, losses = [], [], []

        def watched(*given):
            network = build(*given)
            network.encoder.register_forward_hook(
                lambda encoder, images, stages: seen.append(
                    len(images[0]) * (network.training and not images[0].is_meta)
                )
            )
            networks.append(network)
            return network

        build = downstream._network
        with monkeypatch.context() as patch:
            patch.setattr(downstream, "_network", watched)
            result = downstream.judge(
                transfer(**changes), PatchStore.open(worlds[1]), tmp_path / str(len(list(tmp_path.iterdir()))),
                modality="s2", mode=mode, repeat=0, encoder=None, architecture="tu-test_resnet", scaling=MeanStd(),
                journal=lambda step, metrics, epoch: losses.append(metrics["train/loss"]),
            )  # fmt: skip
        return result, losses, networks, sum(seen)

    return judge


@pytest.mark.parametrize("head", [{"kind": "pspnet"}, {"kind": "fpn", "head_depth": 4, "channels": 64}])
def test_a_cached_transfer_ends_where_one_without_cache_ends(judged, head):
    result, losses, networks, _ = judged(head=head)
    plain, plain_losses, plain_networks, _ = judged(head=head, feature_cache_gb=0)
    assert result["encoder_passes_saved"] > plain["encoder_passes_saved"] == 0
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)
    assert result["confusion"] == plain["confusion"]
    for weights, plain_weights in zip(networks[0].parameters(), plain_networks[0].parameters(), strict=True):
        torch.testing.assert_close(weights, plain_weights, rtol=1e-4, atol=1e-6)


def test_the_encoder_runs_as_often_as_the_result_says(judged):
    both_ways = {"protocol": {"kind": "two_fold"}}  # the other split has half as many patches
    for changes, patches in (({}, PATCHES), (both_ways, PATCHES * 3 // 2), ({"feature_cache_gb": 5e-5}, PATCHES)):
        result, _, _, images = judged(**changes)
        assert result["encoder_passes"] == images
        assert images + result["encoder_passes_saved"] == 12 * patches
        assert images < 12 * patches


def test_without_flips_and_turns_the_encoder_runs_once_a_patch(judged):
    result, _, _, images = judged(augment=ONE_VIEW)
    assert images == result["encoder_passes"] == PATCHES
    assert result["encoder_passes_saved"] == 11 * PATCHES


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("finetuned", {}),
        ("frozen", {"frozen_batchnorm": "adapt"}),
        ("frozen", {"head": {"kind": "pspnet"}, "augment": EIGHT_VIEWS | {"crop": 24}}),
    ],
)
def test_where_features_change_from_step_to_step_none_are_cached(judged, mode, changes):
    result, _, _, images = judged(mode, epochs=3, **changes)
    assert result["encoder_passes"] == images == 3 * PATCHES
    assert result["encoder_passes_saved"] == 0


def fixed(architecture="resnet18", head=None):
    network = (head or PSPNet()).build(architecture, channels=3, classes=4)
    freeze(network.encoder, "fixed")
    return network.train()


@pytest.mark.parametrize(
    ("changes", "mode", "cached"),
    [
        ({}, "frozen", True),
        ({"augment": {"crop": 64}}, "frozen", True),  # the whole patch is no random crop
        ({"augment": {"crop": 32}}, "frozen", False),
        ({"frozen_batchnorm": "adapt"}, "frozen", False),
        ({}, "finetuned", False),
        ({"feature_cache_gb": 0}, "frozen", False),
        ({"epochs": 1}, "frozen", False),  # no view would be asked for again
    ],
)
def test_when_features_are_cached(changes, mode, cached):
    assert (cached_encoder(fixed(), transfer(**changes), mode, (64, 64), 3) is not None) == cached


@pytest.mark.parametrize("architecture", ["mit_b0", "efficientnet-b0"])
def test_an_encoder_that_drops_out_is_not_cached(architecture):
    network = fixed(architecture, DeepLabV3Plus())
    assert cached_encoder(network, transfer(), "frozen", (64, 64), 3) is None
    network.encoder.eval()
    assert cached_encoder(network, transfer(), "frozen", (64, 64), 3) is not None


def test_an_encoder_whose_batchnorm_looks_at_the_batch_is_not_cached():
    network = fixed()
    network.encoder.bn1.running_mean = network.encoder.bn1.running_var = None
    assert cached_encoder(network, transfer(), "frozen", (64, 64), 3) is None


@pytest.mark.parametrize(
    ("head", "stages", "count"),
    [
        (PSPNet(head_depth=3), (3,), 4),
        (PSPNet(head_depth=5), (5,), 6),
        (DeepLabV3Plus(), (2, 5), 6),
        (FPN(), (2, 3, 4, 5), 6),
        (FPN(head_depth=4), (1, 2, 3, 4), 5),
        (UPerNet(), (2, 3, 4, 5), 6),
    ],
)
def test_the_stages_that_a_head_reads_are_found_and_suffice(head, stages, count):
    network = fixed(head=head)
    assert reading(network, 3) == Reading(stages, count, random=False)
    image = torch.rand(2, 3, 64, 64)
    given_all = network.encoder(image)
    some = [stage if number in stages else None for number, stage in enumerate(given_all)]
    network.eval()  # the head's dropout
    assert torch.equal(network.head(network.decoder(some)), network(image))


NETWORK = fixed(head=UPerNet())
IMAGES = torch.rand(6, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # patch, view


def ask(cached, pairs):
    """The cached encoder's answer for these (patch, view), with the images that it was not spared."""
    run = []

    def pixels(rows):
        run.extend(pairs[row] for row in rows)
        return torch.stack([IMAGES[pairs[row]] for row in rows]).contiguous(memory_format=torch.channels_last)

    patches, views = zip(*pairs, strict=True)
    return cached([f"patch {number}" for number in patches], views, pixels), run


def whole(pairs):
    image = torch.stack([IMAGES[pair] for pair in pairs]).contiguous(memory_format=torch.channels_last)
    return NETWORK.encoder(image)


PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=2, max_size=8)


@given(st.lists(PAIRS, min_size=1, max_size=5), st.sampled_from([0, 2e5, 1e9]))
@settings(max_examples=10, deadline=None)
def test_whatever_is_cached_the_features_are_those_of_the_whole_batch(batches, limit):
    cached, ran = CachedEncoder(NETWORK.encoder, reading(NETWORK, 3), limit), 0
    for pairs in batches:
        stages, run = ask(cached, pairs)
        ran += len(run)
        for number, (mine, whole_batch) in enumerate(zip(stages, whole(pairs), strict=True)):
            if number in (2, 3, 4, 5):
                torch.testing.assert_close(mine, whole_batch, rtol=1e-5, atol=1e-6)
                assert mine.stride() == whole_batch.stride()  # or the head would round otherwise
            else:
                assert mine is None
        assert cached.cache.bytes <= limit
    assert cached.passes == ran
    assert cached.passes + cached.saved == sum(map(len, batches))


def test_eight_views_of_a_patch_are_computed_once_each_whatever_the_epochs():
    pairs, shuffled = [(patch, view) for patch in range(6) for view in range(8)], random.Random(0)
    cached, run = CachedEncoder(NETWORK.encoder, reading(NETWORK, 3), 1e9), []
    for _ in range(3):
        shuffled.shuffle(pairs)
        for first in range(0, len(pairs), 8):
            run += ask(cached, pairs[first : first + 8])[1]
    assert sorted(run) == sorted(pairs)
    assert len(cached.cache) == 48


def test_a_view_that_a_batch_holds_twice_is_computed_once():
    # An epoch ends in the middle of a batch: the next one may begin with the same patch.
    cached = CachedEncoder(NETWORK.encoder, reading(NETWORK, 3), 1e9)
    pairs = [(0, 0), (0, 0), (1, 0), (0, 1)]
    stages, run = ask(cached, pairs)
    assert run == [(0, 0), (1, 0), (0, 1)]
    torch.testing.assert_close(stages[5], whole(pairs)[5], rtol=1e-5, atol=1e-6)


def test_a_single_new_image_takes_another_along():
    # Convolutions of a batch of one are rounded otherwise than those of any larger batch.
    cached = CachedEncoder(NETWORK.encoder, reading(NETWORK, 3), 1e9)
    ask(cached, [(0, 0), (1, 0), (2, 0)])
    assert ask(cached, [(0, 0), (1, 0), (3, 0)])[1] == [(0, 0), (3, 0)]
    assert (cached.passes, cached.saved) == (5, 1)


def test_the_cache_holds_no_more_bytes_than_it_may_and_keeps_what_came_first():
    cache = FeatureCache(limit=3 * 4 * 10)
    batch = torch.rand(8, 10)
    for number in range(8):
        cache.offer(("a", number), [batch[number]])
    assert cache.bytes == 3 * 4 * 10
    assert [cache.get(("a", number)) is not None for number in range(8)] == [True] * 3 + [False] * 5
    cache.offer(("b", 0), [torch.rand(0)])  # full stays full
    assert cache.get(("b", 0)) is None
    held = [cache.get(("a", number))[0] for number in range(3)]
    assert sum(stage.untyped_storage().nbytes() for stage in held) == cache.bytes  # not the batch they came in
    assert torch.equal(torch.stack(held), batch[:3])


def test_features_are_kept_in_the_type_they_were_computed_in():
    network = copy.deepcopy(NETWORK).bfloat16()
    cached = CachedEncoder(network.encoder, reading(NETWORK, 3), 1e9)
    for _ in range(2):
        stages = cached(["a", "b"], [0, 0], lambda rows: IMAGES[rows, 0].bfloat16())
        assert {stage.dtype for stage in stages if stage is not None} == {torch.bfloat16}
    assert cached.saved == 2


def test_a_head_that_writes_over_its_input_does_not_reach_the_cache():
    cached = CachedEncoder(NETWORK.encoder, reading(NETWORK, 3), 1e9)
    for _ in range(3):
        stages, _ = ask(cached, [(0, 0), (1, 1)])
        torch.testing.assert_close(stages[5], whole([(0, 0), (1, 1)])[5], rtol=1e-5, atol=1e-6)
        for stage in stages:
            if stage is not None:
                stage.zero_()


def test_a_patch_that_the_stride_does_not_divide_is_refused():
    cached = CachedEncoder(NETWORK.encoder, reading(NETWORK, 3), 1e9)
    with pytest.raises(ValueError, match="must be divisible by the encoder's stride 32"):
        cached(["a", "b"], [0, 0], lambda rows: torch.rand(2, 3, 40, 40))


@pytest.mark.parametrize("caches", [True, False])
def test_a_step_never_waits_for_the_device(caches, monkeypatch):
    # A meta tensor has no numbers: whoever asks for one fails.
    monkeypatch.setattr(downstream, "autocast", lambda device, precision: contextlib.nullcontext())
    config, device = transfer(), torch.device("meta")
    network = fixed().to(device)
    cached = cached_encoder(network, config, "frozen", (64, 64), 3) if caches else None
    bands = ("B4", "B3", "B2")
    batch = Batch(
        images={"s2": torch.zeros(4, 3, 64, 64, dtype=torch.uint8)}, bands={"s2": bands}, ids=list("abcd"),
        labels=torch.zeros(4, 64, 64, dtype=torch.uint8), epochs=torch.zeros(4, dtype=torch.int64),
        keys=torch.arange(4), valid=torch.ones(4, 64, 64, dtype=torch.bool),
    )  # fmt: skip
    inputs = Inputs({"s2": bands}, "uint8", MeanStd())
    for _ in range(2):
        logits, labels = downstream._seen(network, batch, config, inputs, "s2", device, cached)
        downstream.transfer_loss(logits, labels).backward()
    assert (logits.shape, labels.shape) == ((4, 4, 64, 64), (4, 64, 64))
    assert network.head[0].weight.grad.is_meta
    assert cached is None or (cached.passes, cached.saved) == (4, 4)
