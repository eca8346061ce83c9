"""How much memory a downstream run takes: counted on the meta device, held against what real tensors take."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from cromss.config import TransferConfig, resolve
from cromss.networks.heads import PSPNet
from cromss.training import footprint
from cromss.training.downstream import transfer_loss
from cromss.training.footprint import PROCESS, SLACK, Alive, memory_of_transfer, transfers_per_gpu

SMALL = TransferConfig(batch_size=4, augment={"crop": None})


def test_the_peak_is_what_was_alive_at_once():
    with Alive() as alive:
        first = torch.zeros(1000, device="meta")  # 4000 bytes
        view = (first * 2).view(10, 100)  # another 4000; a view takes nothing
        del first
        third = view[:5] + 1  # 2000
        view.add_(1)  # in place: nothing
        del view
    assert (alive.now, alive.peak) == (2000, 8000)
    del third
    assert alive.now == 0


def test_tensors_from_outside_are_not_counted():
    outside = torch.zeros(1000, device="meta")
    with Alive() as alive:
        kept = [outside.view(10, 100), outside.add_(1)]
    assert alive.peak == 0
    assert len(kept) == 2


def test_a_step_that_computes_nothing_takes_what_the_allocator_gives_to_a_real_one():
    network = PSPNet().build("resnet18", 4, 8).train()

    def step(device):
        image = torch.empty(4, 4, 64, 64, device=device).fill_(0.5)
        labels = torch.empty(4, 64, 64, dtype=torch.uint8, device=device).fill_(1)
        transfer_loss(network(image).float(), labels).backward()

    step("cpu")  # what is made once and kept
    network.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step("cpu")
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    allocated = max(torch.tensor(sizes).cumsum(0).tolist())
    network.zero_grad(set_to_none=True)
    network.to("meta")
    with Alive() as counted:
        step("meta")
    assert allocated == pytest.approx(counted.peak, rel=0.1)  # convolutions have workspaces, small ones


def memory(mode="finetuned", **changes):
    return memory_of_transfer(SMALL.model_copy(update=changes), "resnet18", 4, (64, 64), mode, classes=8)


def test_activations_grow_with_the_batch_and_weights_do_not():
    four, eight, sixteen = (memory(batch_size=size) for size in (4, 8, 16))
    assert sixteen - eight == pytest.approx(2 * (eight - four), rel=0.05)
    network = PSPNet().build("resnet18", 4, 8)
    assert four - (eight - four) == pytest.approx(4 * 4 * sum(p.numel() for p in network.parameters()), rel=0.3)


def test_a_frozen_encoder_keeps_neither_activations_nor_moments():
    assert memory("frozen") < 0.7 * memory("finetuned")


def test_the_cache_counts_whole_where_there_is_one():
    plain, fixed = memory("frozen"), memory("frozen", frozen_batchnorm="fixed")
    assert fixed - plain == 4e9
    assert memory("frozen", frozen_batchnorm="fixed", feature_cache_gb=0.0) == plain
    cropped = SMALL.augment.model_copy(update={"crop": 32})
    assert memory("frozen", frozen_batchnorm="fixed", augment=cropped) < plain
    assert memory("finetuned", frozen_batchnorm="fixed") == memory("finetuned")


def test_counting_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    memory()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("gpu_memory", "runs"), [(40e9, 6), (141e9, 8)])
def test_transfers_of_the_paper_share_a_gpu(gpu_memory, runs):
    config = resolve({})
    assert transfers_per_gpu(config, gpu_memory) == runs
    largest = memory_of_transfer(config.transfer, "resnet50", 13, (256, 256), "finetuned")
    assert runs * (PROCESS + SLACK * largest) <= gpu_memory


def test_the_largest_mode_and_the_widest_modality_decide(monkeypatch):
    asked = []

    def counted(config, architecture, bands, size, mode, classes):
        asked.append((architecture, bands, size, mode, classes))
        return 20e9 if mode == "finetuned" else 1e9

    monkeypatch.setattr(footprint, "memory_of_transfer", counted)
    each = PROCESS + SLACK * 20e9
    assert [transfers_per_gpu(resolve({}), memory, (128, 96), 5) for memory in (1e9, 2 * each, 100 * each)] == [1, 2, 8]
    assert set(asked) == {("resnet50", 13, (128, 96), mode, 5) for mode in ("frozen", "finetuned")}
    assert transfers_per_gpu(resolve({"transfer": {"modes": ["frozen"]}}), 2 * each) == 8
    only_radar = resolve({"transfer": {"modalities": ["s1"]}})
    asked.clear()
    transfers_per_gpu(only_radar, 1e9)
    assert {bands for _, bands, *_ in asked} == {2}
