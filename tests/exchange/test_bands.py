"""Other bands: what each adaptation promises about the features."""

import pytest
import torch
from small_encoders import close, fed, pixels, trained

from cromss.exchange.bands import ADAPTATIONS, Mean, Select, Zero, adapt
from cromss.exchange.libraries import rebuilt
from cromss.networks.encoders import Published
from cromss.networks.scaling import Reflectance

RGB = ("B4", "B3", "B2")


def features(state, card, x):
    with torch.no_grad():
        return rebuilt(state, card)(x)[-1]


@pytest.mark.parametrize("architecture", ["tu-test_resnet", "mobileone_s0"])  # one reader of the bands; two
def test_bands_added_with_zero_change_no_feature(architecture):
    encoder, card = trained(architecture, bands=RGB)
    wanted = ("B1", "B4", "B8", "B3", "B2")
    state, made = adapt(encoder.state_dict(), card, wanted, Zero())
    values = pixels(made)
    rgb = values[:, [1, 3, 4]]
    close(features(encoder.state_dict(), card, fed(card, rgb)), features(state, made, fed(made, values)))
    assert made.bands == made.contract.bands == wanted
    assert made.extra["bands_adapted"] == "zero: B1, B8 added with weight 0"
    assert made.extra["bands_trained_on"] == "B4, B3, B2"


def test_bands_added_with_the_mean_leave_the_features_of_a_grey_input():
    encoder, card = trained("tu-test_resnet", bands=RGB)
    state, made = adapt(encoder.state_dict(), card, ("B4", "B3", "B2", "B8", "B11"), Mean())
    grey = torch.rand(2, 1, 64, 64)
    close(
        features(encoder.state_dict(), card, grey.expand(-1, 3, -1, -1)),
        features(state, made, grey.expand(-1, 5, -1, -1)),
    )


def test_selected_bands_keep_their_weights_in_the_order_asked_for():
    encoder, card = trained("tu-test_resnet", bands=RGB)
    state, made = adapt(encoder.state_dict(), card, ("B2", "B4"), Select())
    x = fed(made, pixels(made))
    three = torch.stack([x[:, 1], torch.zeros_like(x[:, 0]), x[:, 0]], 1)  # the dropped band contributes nothing
    close(features(encoder.state_dict(), card, three), features(state, made, x))
    assert made.contract == card.contract.select(("B2", "B4"), "")


@pytest.mark.parametrize(
    ("how", "wanted", "said"),
    [
        ("select", ("B4", "B8"), "select: B8 are new: the encoder was trained on B4, B3, B2, B4, B8 are wanted"),
        ("zero", ("B4", "B3", "B8"), "zero: adds bands, and B2 would be dropped"),
        ("mean", ("B4", "B3", "B8"), "mean: adds bands, and B2 would be dropped"),
    ],
)
def test_what_an_adaptation_does_not_do_is_said_with_both_sides(how, wanted, said):
    encoder, card = trained("tu-test_resnet", bands=RGB)
    with pytest.raises(ValueError, match=said):
        adapt(encoder.state_dict(), card, wanted, ADAPTATIONS[how])


def test_two_steps_are_both_recorded_and_the_same_bands_are_no_change():
    encoder, card = trained("tu-test_resnet", bands=RGB)
    state, one = adapt(encoder.state_dict(), card, ("B4", "B2"), Select())
    _, two = adapt(state, one, ("B4", "B2", "B8"), Zero())
    assert two.extra["bands_adapted"].startswith("select: B3 dropped")
    assert two.extra["bands_adapted"].endswith("; then zero: B8 added with weight 0")
    assert two.extra["bands_trained_on"] == "B4, B3, B2"
    assert adapt(encoder.state_dict(), card, RGB, Zero())[1] == card


def test_published_statistics_have_nothing_for_new_bands_until_a_scaling_is_stated():
    published = Published(bands=RGB, mean=(1, 2, 3), std=(4, 5, 6))
    encoder, card = trained("tu-test_resnet", bands=RGB, scaling=published, contract=None)
    wanted = (*RGB, "B8")
    with pytest.raises(ValueError, match="has numbers for B4, B3, B2, none for B8; state another with --scaling"):
        adapt(encoder.state_dict(), card, wanted, Zero())
    _, made = adapt(encoder.state_dict(), card, wanted, Zero(), Reflectance())
    assert (made.scaling, made.extra["scaling_trained_with"]) == (Reflectance(), "published")
