"""Scope `global`: the same logits in 1, 2 or 4 shards give the same loss and, under DDP's mean, the same gradients."""

import datetime
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from cromss.objective.crossmodal import CrossModalObjective, ObjectiveConfig
from cromss.objective.fused import FusedObjective
from cromss.objective.methods import RIVALS
from cromss.objective.thresholds import Exact, Histogram
from cromss.settings import validate

MODALITIES = ("s1", "s2")
CASES = [
    (form, per_class, threshold, alpha, "cromss")
    for form, threshold in ((CrossModalObjective, Exact()), (partial(FusedObjective, compiled=False), Histogram()))
    for per_class in (False, True)
    for alpha in (0.0, 0.37, 1.0)
] + [
    (CrossModalObjective, number % 2 == 0, Histogram(), 0.37, rival.model_fields["kind"].default)
    for number, rival in enumerate(RIVALS)
]


def scene():
    """Four unlike images (one all but unlabelled, one without data in a corner) and a layer that makes the logits."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(4, 3, 8, 9, generator=generator, dtype=torch.float64) * torch.tensor([0.3, 1, 2, 5]).view(
        4, 1, 1, 1
    )
    labels = torch.randint(0, 5, (4, 8, 9), generator=generator)
    labels[1, 1:] = 255
    labels[2][labels[2] == 4] = 0
    valid = torch.ones(4, 8, 9, dtype=torch.bool)
    valid[3, :4, :4] = False
    layer = torch.nn.Conv2d(3, 10, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    return layer, images, labels, valid


def step(layer, images, labels, valid, form, per_class, threshold, alpha, kind):
    """Loss, both modalities' label weights, and the gradients of logits and layer."""
    logits = layer(images)
    logits.retain_grad()
    settings = {
        "scope": "global",
        "per_class": per_class,
        "threshold": threshold.model_dump(),
        "method": {"kind": kind},
    }
    objective = form(validate(ObjectiveConfig, settings))
    named = dict(zip(MODALITIES, logits.chunk(2, dim=1), strict=True))
    parts = objective(named, labels, alpha=alpha, gamma=0.8, valid=valid)
    layer.zero_grad()
    parts.loss.backward()
    weights = torch.stack([parts.label_weights[m] for m in MODALITIES], 1)
    return parts.loss.detach(), weights, logits.grad, layer.weight.grad


def worker(rank, folder):
    torch.set_num_threads(1)
    for world in (4, 2):
        if rank >= world:
            return
        rendezvous = f"file://{folder}/rendezvous{world}"
        dist.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=world, timeout=datetime.timedelta(seconds=60)
        )
        layer, *tensors = scene()
        shard = [tensor.chunk(world)[rank] for tensor in tensors]
        for number, case in enumerate(CASES):
            loss, weights, logit_gradients, gradients = step(layer, *shard, *case)
            dist.all_reduce(gradients)
            np.savez(
                f"{folder}/{world}-{rank}-{number}.npz",
                loss=loss,
                weights=weights,
                logit_gradients=logit_gradients / world,  # as DDP does: the mean over the workers
                gradients=gradients / world,
            )
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=4)

    def read(world, number):
        return [np.load(folder / f"{world}-{rank}-{number}.npz", allow_pickle=False) for rank in range(world)]

    return read


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_shards_do_not_change_loss_weights_or_gradients(shards, world, number):
    loss, weights, logit_gradients, gradients = step(*scene(), *CASES[number])
    ranks = shards(world, number)
    for rank in ranks:
        np.testing.assert_allclose(rank["loss"], loss, rtol=1e-9)
        np.testing.assert_allclose(rank["gradients"], gradients, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(np.concatenate([rank["weights"] for rank in ranks]), weights, rtol=1e-12)
    together = np.concatenate([rank["logit_gradients"] for rank in ranks])
    np.testing.assert_allclose(together, logit_gradients, rtol=1e-6, atol=1e-12)


def test_without_a_process_group_global_is_batch(batch):
    logits, labels, valid = batch()
    losses = [
        CrossModalObjective(ObjectiveConfig(scope=scope))(logits, labels, alpha=0.5, gamma=1.0, valid=valid).loss
        for scope in ("global", "batch")
    ]
    assert torch.equal(*losses)
