"""Pretext tasks: hand-worked losses, what may move and what may not, what a view may change."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from cromss.networks.encoders import Backbone
from cromss.networks.masked import MIM, masked_l1, masks
from cromss.networks.selfsupervised import DINO, MoCo, follow
from cromss.networks.views import Views, blurred
from cromss.training.selfsupervised import draws

TINY = Backbone(encoder="tu-test_resnet", decoder_channels=(16, 16, 8, 8, 8))
MOCO = MoCo(hidden=16, dimensions=4, queue=6)
DISTIL = DINO(hidden=16, bottleneck=8, prototypes=5, local_crops=2)
CHANNELS = {"s1": 2, "s2": 13}
STILL = Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0, turn=False, jitter=0, grey=0, blur=0)


def draw_of(keys):
    return lambda number, count: draws(torch.as_tensor(keys), number, count)


def images(rows=4, side=64):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(rows, count, side, side, generator=generator) for name, count in CHANNELS.items()}


def seen(config, rows=4):
    return {name: config.views(image, None, draw_of(range(rows))) for name, image in images(rows).items()}


def branch(config, channels=2):
    return config.build(TINY, {"s1": channels}, 100).branches["s1"]


# --- what a pretraining may move --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [MOCO, DISTIL, MIM()], ids=lambda config: config.kind)
@pytest.mark.parametrize("encoder", ["tu-test_resnet", "tu-test_vit", "mit_b0"])
def test_a_gradient_reaches_every_weight_that_is_trained_and_no_other(config, encoder):
    network = config.build(TINY.model_copy(update={"encoder": encoder}), CHANNELS, 100)
    losses = network(seen(config))
    assert losses.keys() == CHANNELS.keys()
    sum(losses.values()).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert not (parameter.requires_grad and (".key." in name or ".teacher." in name))
    assert any(p.requires_grad for p in network.branches["s1"].parameters())


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, 2.0), (0.0, 4.0), (0.75, 2.5)])
def test_the_running_mean_of_an_encoder_stays_at_1_equals_it_at_0_and_mixes_between(momentum, expected):
    network, mean = nn.Linear(1, 1), nn.Linear(1, 1)
    for module, value in ((network, 4.0), (mean, 2.0)):
        for parameter in module.parameters():
            nn.init.constant_(parameter, value)
    follow(network, mean, momentum)
    assert {float(p.detach()) for p in mean.parameters()} == {expected}
    assert {float(p.detach()) for p in network.parameters()} == {4.0}


def test_dinos_teacher_stands_still_at_the_end_and_moco_keeps_its_momentum():
    assert DISTIL.momentum_at(0, 100) == pytest.approx(0.996)
    assert DISTIL.momentum_at(99, 100) == 1.0
    assert {MOCO.momentum_at(step, 100) for step in (0, 99)} == {0.999}


# --- MoCo -------------------------------------------------------------------------------------------------------------


def contrast(queue):
    """A branch whose queries and keys are its inputs."""
    own = branch(MOCO)
    own.query = own.key = nn.Identity()
    own.loss.memory_bank.bank = torch.tensor(queue)
    return own


def test_the_loss_is_info_nce_worked_by_hand():
    own = contrast([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    query = torch.tensor([[2.0, 0, 0, 0]], requires_grad=True)  # length does not count
    # the same view twice against three keys at right angles: -log(e^(1/T) / (e^(1/T) + 3))
    assert own((query, query.detach())).item() == pytest.approx(math.log1p(3 * math.exp(-1 / 0.2)), rel=1e-5)
    wrong = torch.tensor(
        [[0.0, 1, 0, 0]]
    )  # at right angles to its key, equal to the first in the queue, which was replaced
    own = contrast([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    expected = -math.log(1 / (1 + math.exp(1 / 0.2) + 1 + 1))
    assert own((wrong, query.detach())).item() == pytest.approx(expected, rel=1e-5)


def test_the_queue_takes_keys_in_training_alone_and_forgets_the_oldest():
    own = contrast(np.eye(4, dtype=np.float32)[[0, 1, 2]].tolist())
    keys = torch.tensor([[0.0, 0, 0, 1], [0, 0, 1, 0]])
    with torch.no_grad():
        own((keys, keys))
    assert own.loss.memory_bank.bank.argmax(1).tolist() == [0, 1, 2]
    own((keys.clone().requires_grad_(), keys))
    assert own.loss.memory_bank.bank.argmax(1).tolist() == [3, 2, 2]
    assert {"loss.memory_bank.bank", "loss.memory_bank.bank_ptr"} <= own.state_dict().keys()


def test_a_queue_is_no_longer_than_an_epoch():
    assert MoCo(hidden=8).build(TINY, {"s1": 2}, 30).branches["s1"].loss.memory_bank.bank.shape == (30, 128)


# --- DINO -------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_each_view_against_the_other_large_one():
    own = branch(DISTIL)
    generator = torch.Generator().manual_seed(0)
    taught, said = torch.randn(2, 3, 5, generator=generator), torch.randn(4, 3, 5, generator=generator)
    centre = own.loss.center.clone()
    found = float(own.eval().loss(list(taught), list(said)))

    def softmax(z):
        return np.exp(z - z.max(-1, keepdims=True)) / np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)

    p, q = softmax(taught.numpy() / 0.04), np.log(softmax(said.numpy() / 0.1))
    terms = [-(p[t] * q[s]).sum(-1).mean() for t in range(2) for s in range(4) if s != t]
    assert found == pytest.approx(np.mean(terms), rel=1e-4)
    assert torch.equal(own.loss.center, centre)  # validation moves nothing
    own.train().loss(list(taught), list(said))
    torch.testing.assert_close(own.loss.center[0, 0], 0.1 * taught.mean((0, 1)))


def test_the_teacher_sees_the_large_views_and_the_student_all_of_them():
    own, sizes = branch(DISTIL), {"student": [], "teacher": []}
    for name, found in sizes.items():
        hook = lambda module, given, found=found: found.append(tuple(given[0].shape))  # noqa: E731
        getattr(own, name).register_forward_pre_hook(hook)
    own(DISTIL.views(images()["s1"], None, draw_of(range(4))))
    assert sizes == {"teacher": [(8, 2, 64, 64)], "student": [(8, 2, 64, 64), (8, 2, 32, 32)]}


def test_the_last_layer_rests_in_the_first_epoch_and_gradients_are_clipped():
    network = DISTIL.build(TINY, {"s1": 2}, 100)
    (1e6 * network({"s1": DISTIL.views(images()["s1"], None, draw_of(range(4)))})["s1"]).backward()
    student = network.branches["s1"].student
    network.before_step(epoch=0)
    assert student.head.last_layer.weight_v.grad is None
    total = torch.stack([p.grad.norm() for p in student.parameters() if p.grad is not None]).norm()
    assert float(total) == pytest.approx(DISTIL.clip_gradient, rel=1e-3)


# --- masked images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "square", "ratio"), [(64, 8, 0.6), (32, 4, 0.6), (96, 32, 0.75), (32, 16, 0.1)])
def test_exactly_the_ratio_of_whole_squares_is_hidden(side, square, ratio):
    mask = masks(draw_of(range(50)), square, (side, side), ratio)
    count = (side // square) ** 2
    hidden = mask[:, :, ::square, ::square]
    assert set(hidden.sum((1, 2, 3)).tolist()) == {max(1, round(ratio * count))}
    assert torch.equal(mask, hidden.repeat_interleave(square, 2).repeat_interleave(square, 3))
    assert count == 1 or len({tuple(row.flatten().tolist()) for row in hidden}) > 1
    rate = hidden.float().mean(0)
    assert rate.min() > 0  # every square has its turn


@pytest.mark.parametrize(("side", "square"), [(256, 32), (192, 32), (64, 8), (32, 4)])
def test_squares_are_simmims_or_a_sixth_of_a_smaller_image(side, square):
    assert MIM()._square_for((side, side)) == square
    with pytest.raises(ValueError, match=r"pretraining.square=7: must divide the image"):
        MIM(square=7)._square_for((side, side))


def test_the_loss_is_the_mean_over_the_hidden_pixels_alone():
    image, said = torch.zeros(1, 2, 2, 2), torch.tensor([[[[1.0, 9], [9, 9]], [[3, 9], [9, 9]]]])
    mask = torch.tensor([[[[True, False], [False, False]]]])
    assert float(masked_l1(said, image, mask)) == 2.0  # (1 + 3) / 2
    assert float(masked_l1(said, image, ~mask)) == 9.0
    assert float(masked_l1(said, image, mask & False)) == 0.0


def test_the_network_never_sees_what_is_hidden_and_is_asked_where_there_is_data():
    own, image = branch(MIM()).eval(), images()["s1"]
    valid = torch.ones(4, 64, 64, dtype=torch.bool)
    valid[:, :32] = False
    _, hidden, asked = MIM().views(image, valid, draw_of(range(4)))
    assert torch.equal(asked, hidden & valid[:, None])
    given = []
    own.encoder.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    with torch.no_grad():
        own((image, hidden, asked))
        own((torch.where(hidden, 5.0, image), hidden, asked))
    assert torch.equal(*given)


# --- views ------------------------------------------------------------------------------------------------------------


def test_a_view_with_everything_switched_off_is_the_image():
    image = images()["s2"]
    torch.testing.assert_close(STILL(image, draw_of(range(4)), 0), image, atol=1e-5, rtol=0)


def test_turns_and_flips_are_the_symmetries_of_the_square():
    image = images(rows=40)["s1"]
    view = STILL.model_copy(update={"flip": 0.5, "turn": True})(image, draw_of(range(40)), 0)
    found = set()
    for before, after in zip(image, view, strict=True):
        eight = [torch.rot90(x, k, (1, 2)) for x in (before, before.flip(2)) for k in range(4)]
        near = [k for k, candidate in enumerate(eight) if torch.allclose(candidate, after, atol=1e-4)]
        assert len(near) == 1
        found.update(near)
    assert found == set(range(8))


def test_a_view_depends_on_the_patch_and_not_on_its_batch_and_two_views_differ():
    image = images()["s2"]
    whole = Views()(image, draw_of([5, 6, 7, 8]), 0)
    torch.testing.assert_close(Views()(image[2:], draw_of([7, 8]), 0), whole[2:])
    other = Views()(image, draw_of([5, 6, 7, 8]), 1)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(whole, other, strict=True))


def test_a_crop_of_a_constant_stays_constant_and_blur_keeps_what_is_flat():
    flat = torch.full((3, 4, 32, 32), 0.3)
    view = Views(jitter=0)(flat, draw_of(range(3)), 0)
    torch.testing.assert_close(view, flat)
    spike = torch.zeros(1, 1, 17, 17)
    spike[..., 8, 8] = 1
    soft = blurred(spike, torch.full((1, 1, 1, 1), 1.0))
    assert float(soft.sum()) == pytest.approx(1, abs=1e-4)
    assert float(soft[0, 0, 8, 9] / soft[0, 0, 8, 8]) == pytest.approx(math.exp(-0.5), rel=1e-4)
    torch.testing.assert_close(blurred(spike, torch.full((1, 1, 1, 1), 0.01)), spike)


def test_grey_makes_all_bands_one_but_leaves_two_polarisations_alone():
    grey = STILL.model_copy(update={"grey": 1.0})
    one, two = (grey(image, draw_of(range(4)), 0) for image in images().values())
    assert torch.allclose(two, two[:, :1])
    assert not torch.allclose(one, one[:, :1], atol=0.1)


@pytest.mark.parametrize("values", [{"scale": (0.5, 0.2)}, {"scale": (0.2, 1.5)}, {"sigma": (0.0, 1.0)}])
def test_a_range_must_rise(values):
    with pytest.raises(ValueError, match="must rise"):
        Views(**values)


def test_without_lightly_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pretraining.kind=moco: needs .* pip install 'cromss\[ssl\]'"):
        MOCO.build(TINY, CHANNELS, 10)
    MIM().require()
