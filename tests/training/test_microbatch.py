"""`scaling.micro_batch: auto`: what a pass needs is counted, and the largest that fits is taken."""

import pytest
import torch
from torch import nn

from cromss.config import resolve
from cromss.training import microbatch
from cromss.training.microbatch import Need, choose, needed, sizes

CPU = torch.device("cpu")
AUTO = resolve({"scaling": {"micro_batch": "auto"}})


class Square(nn.Module):
    """x -> (w x)^2: a pass over (B, 1, 8, 8) keeps w x and the output; backward makes their gradients."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return {name: (image * self.weight) ** 2 for name, image in images.items()}


def test_sizes_are_equal_cuts():
    assert sizes(12) == [12, 6, 4, 3, 2, 1]
    assert sizes(7) == [7, 4, 3, 2, 1]


def test_the_largest_that_fits_is_taken():
    need = Need(fixed=10, pair=5)
    assert [need.fitting(12, room) for room in (70, 69, 40, 15, 14)] == [12, 6, 6, 1, 0]


def test_what_is_counted_grows_with_the_pairs_and_their_pixels():
    need = needed(Square(), {"s2": 1}, (8, 8), torch.float32)
    assert need.pair >= 4 * 64 * 4  # image, product, output and the gradient that comes from above
    double = needed(Square(), {"s2": 1}, (16, 8), torch.float32)
    assert double.pair == pytest.approx(2 * need.pair)
    assert needed(Square(), {"s2": 1}, (8, 8), torch.bfloat16).pair == pytest.approx(need.pair / 2)


@pytest.mark.parametrize(("pairs_that_fit", "chosen"), [(100, None), (12, None), (8, 6), (3.5, 3)])
def test_auto_takes_what_the_free_memory_allows_and_says_so(monkeypatch, pairs_that_fit, chosen):
    need, lines = needed(Square(), {"s2": 1}, (8, 8), torch.float32), []
    monkeypatch.setattr(microbatch, "free", lambda device: need.of(pairs_that_fit) / microbatch.SHARE)
    assert choose(AUTO, Square(), {"s2": 1}, 12, (8, 8), CPU, lines.append) == chosen
    assert lines[0].startswith(f"micro-batch: {chosen or 12} of 12 pairs at a time (auto:")


def test_not_even_a_pair_is_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setattr(microbatch, "free", lambda device: 1.0)
    with pytest.raises(
        ValueError, match=r"scaling.micro_batch=auto: one pair of 8 x 8 pixels needs .*smaller data.augment.crop"
    ):
        choose(AUTO, Square(), {"s2": 1}, 12, (8, 8), CPU)


@pytest.mark.parametrize(("wanted", "found"), [(None, None), (5, 5), (12, None), (40, None)])
def test_a_number_is_taken_as_it_is(wanted, found):
    config = resolve({"scaling": {"micro_batch": wanted}})
    assert choose(config, Square(), {"s2": 1}, 12, (8, 8), CPU) == found
