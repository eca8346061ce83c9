"""The code that is written for people without cromss does what our scaling does."""

import typing

import pytest
import torch
from small_encoders import fed, pixels, trained

from cromss.exchange import feeding
from cromss.networks.encoders import EncoderCard, Published
from cromss.networks.scaling import MeanStd, Reflectance, ZScore

PUBLISHED = Published(bands=("B4", "B3", "B2"), mean=(10.0, 20.5, 30.0), std=(100.0, 200.0, 300.25), clip=(0.0, 3000.0))
CASES = [
    ("s2", ("B4", "B3", "B2"), MeanStd()),
    ("s1", ("VV", "VH"), MeanStd()),
    ("s2", ("B2", "B12"), Reflectance()),
    ("s1", ("VH",), ZScore()),
    ("s2", ("B2", "B4"), PUBLISHED),  # fewer than were published, in another order
]


def test_every_scaling_that_a_card_can_bear_is_here():
    kinds = typing.get_args(EncoderCard.model_fields["scaling"].annotation)
    assert {type(scaling) for _, _, scaling in CASES} == set(kinds)


@pytest.mark.parametrize(("modality", "bands", "scaling"), CASES, ids=lambda value: getattr(value, "kind", None))
def test_the_code_computes_what_the_scaling_does(modality, bands, scaling):
    _, card = trained("tu-test_resnet", modality, bands, scaling=scaling)
    values = pixels(card, side=32)
    values[0, 0, :2] = 1e6  # beyond every interval
    values[0, 0, 2:4] = -1e6
    names = {"torch": torch, "pixels": values}
    exec(feeding.code(card), names)  # what we wrote ourselves
    torch.testing.assert_close(names["x"], fed(card, values), rtol=1e-6, atol=1e-7)


def test_published_numbers_are_picked_by_name_and_clipped():
    values = torch.tensor([5000.0, 330.0]).view(1, 2, 1, 1)
    made = PUBLISHED(values, None, ("B3", "B2"), "raw")
    assert made.flatten().tolist() == pytest.approx([(3000 - 20.5) / 200, 300 / 300.25])


@pytest.mark.parametrize(
    ("bands", "encoding", "said"),
    [
        (("B4", "B8"), "raw", "has numbers for B4, B3, B2, none for B8"),
        (("B4",), "uint8", "needs raw values, not uint8 codes"),
    ],
)
def test_published_numbers_are_refused_for_what_they_are_not(bands, encoding, said):
    with pytest.raises(ValueError, match=said):
        PUBLISHED(torch.zeros(1, len(bands), 2, 2), None, bands, encoding)
