"""Self-supervised pretraining: MoCo v2 and DINO, the baselines of Table 1, with the parts of the library lightly.

Every modality has a `Branch` of its own: an encoder and what its pretext task needs. Nothing is shared between modalities, and
no label is read. Losses, projection heads, queue and centre are lightly's; the loop, the data and the budget are ours.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cromss.networks.encoders import Backbone, build_encoder, named_errors
from cromss.networks.segmenter import example_image, require_divisible, used
from cromss.networks.views import Draw, Views
from cromss.settings import Settings, suggest


class _WithLightly(Settings):
    trains: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = False

    def require(self) -> None:
        """Raises ValueError where lightly is not installed."""
        if importlib.util.find_spec("lightly") is None:
            raise ValueError(f"pretraining.kind={self.kind}: needs the package lightly: pip install 'cromss[ssl]'")


class MoCo(_WithLightly):
    """Momentum contrast, version 2 (He et al. 2020, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297).

    A query is told its own key, of another view, from the keys of other patches in a queue: InfoNCE. The keys come from a
    running mean of the encoder. The values are those of MoCo v2; optimizer, schedule and batch are the run's (`optim`), as for
    every other arm, where MoCo v2 took SGD at 0.03.
    queue   keys kept; never more than an epoch has places, or a patch would be its own negative
    """

    kind: Literal["moco"] = "moco"
    title: ClassVar[str] = "MoCo"

    temperature: float = pydantic.Field(0.2, gt=0)
    momentum: float = pydantic.Field(0.999, ge=0, le=1)
    queue: int = pydantic.Field(65536, ge=1)
    hidden: int = pydantic.Field(2048, ge=1)  # width of the projection's inner layer
    dimensions: int = pydantic.Field(128, ge=2)  # of a query and a key
    views_of: Views = Views()

    def build(self, backbone: Backbone, channels: Mapping[str, int], places: int) -> "SelfSupervised":
        """The network, with random weights and a random queue; an epoch has `places`. Raises ValueError as `require`."""
        self.require()
        queue = min(self.queue, places)
        return SelfSupervised({name: Contrast(self, backbone, count, queue) for name, count in channels.items()})

    def views(self, image: Tensor, valid: Tensor | None, draw: Draw) -> tuple[Tensor, ...]:
        """Two views, each as large as the image."""
        return self.views_of(image, draw, 0), self.views_of(image, draw, 1)

    def momentum_at(self, step: int, steps: int) -> float:
        """m of the step (from 0 on) of a run of so many."""
        return self.momentum


class DINO(_WithLightly):
    """Self-distillation with no labels (Caron et al. 2021, arXiv 2104.14294).

    The student says of every view what the teacher, its running mean, says of another large view, centred and sharpened. The
    values are those of the published code; optimizer, schedule and batch are the run's (`optim`), where DINO took AdamW.
    prototypes    never more than an epoch has places
    local_crops   small views beside the two large ones, `local_size` of the image wide, rounded up to the encoder's stride
    The encoder that is handed on is the teacher's, as in the published evaluation.
    """

    kind: Literal["dino"] = "dino"
    title: ClassVar[str] = "DINO"

    prototypes: int = pydantic.Field(65536, ge=2)
    hidden: int = pydantic.Field(2048, ge=1)
    bottleneck: int = pydantic.Field(256, ge=1)
    student_temperature: float = pydantic.Field(0.1, gt=0)
    teacher_temperature: float = pydantic.Field(0.04, gt=0)
    momentum: float = pydantic.Field(0.996, ge=0, le=1)  # at the start; 1 at the end, along a cosine
    centre_momentum: float = pydantic.Field(0.9, ge=0, le=1)
    freeze_last_layer: int = pydantic.Field(1, ge=0)  # epochs
    clip_gradient: float = pydantic.Field(3.0, gt=0)  # norm
    local_crops: int = pydantic.Field(8, ge=0)
    local_size: float = pydantic.Field(96 / 224, gt=0, le=1)
    views_of: Views = Views(scale=(0.4, 1.0))
    local_views_of: Views = Views(scale=(0.05, 0.4))

    def build(self, backbone: Backbone, channels: Mapping[str, int], places: int) -> "SelfSupervised":
        """The network, with random weights; an epoch has `places`. Raises ValueError as `require`."""
        self.require()
        prototypes = max(2, min(self.prototypes, places))
        return SelfSupervised(
            {name: Distillation(self, backbone, count, prototypes) for name, count in channels.items()}
        )

    def views(self, image: Tensor, valid: Tensor | None, draw: Draw) -> tuple[Tensor, ...]:
        """Two large views, as large as the image, then the small ones."""
        size = max(32, -(-round(self.local_size * min(image.shape[-2:])) // 32) * 32)
        large = [self.views_of(image, draw, view) for view in range(2)]
        return *large, *(self.local_views_of(image, draw, 2 + view, size) for view in range(self.local_crops))

    def momentum_at(self, step: int, steps: int) -> float:
        """m of the step (from 0 on) of a run of so many."""
        from lightly.utils.scheduler import cosine_schedule

        return cosine_schedule(min(step, steps - 1), steps, self.momentum, 1.0)


# --- the network ------------------------------------------------------------------------------------------------------


class Branch(nn.Module):
    """One modality's encoder and pretext task: views -> loss, a number."""

    def handed_on(self) -> nn.Module:
        """The encoder that the pretraining is done for."""
        raise NotImplementedError

    def before_step(self, epoch: int) -> None:
        """Called between the backward pass and the optimizer."""

    def after_step(self, step: int, steps: int) -> None:
        """Called after the optimizer's step, which was the step-th of so many."""


class SelfSupervised(nn.Module):
    """Views in, losses out, keyed by modality."""

    def __init__(self, branches: Mapping[str, Branch]) -> None:
        super().__init__()
        self.modalities = tuple(branches)
        self.branches = nn.ModuleDict(branches)

    def forward(self, views: Mapping[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        return {modality: self.branches[modality](views[modality]) for modality in self.modalities}

    def encoder(self, modality: str) -> nn.Module:
        """The encoder of one modality. Raises ValueError for a modality this network was built without."""
        if modality not in self.modalities:
            raise ValueError(f"this network has no modality {modality!r}{suggest(modality, self.modalities)}")
        return self.branches[modality].handed_on()

    def before_step(self, epoch: int) -> None:
        """Called between the backward pass and the optimizer."""
        for branch in self.branches.values():
            branch.before_step(epoch)

    def after_step(self, step: int, steps: int) -> None:
        """Called after the optimizer's step, which was the step-th (from 0 on) of so many."""
        for branch in self.branches.values():
            branch.after_step(step, steps)


class Projected(nn.Module):
    """image -> the encoder's last stage, averaged over the image -> head: (B, D)."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, image: Tensor) -> Tensor:
        require_divisible(image, self.encoder)
        return self.head(pooled(self.encoder, image))


class Contrast(Branch):
    """MoCo's: query and key encoder, and a queue of keys."""

    def __init__(self, config: MoCo, backbone: Backbone, channels: int, queue: int) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import MoCoProjectionHead

        super().__init__()
        self.config = config
        head = functools.partial(MoCoProjectionHead, hidden_dim=config.hidden, output_dim=config.dimensions)
        self.query = _projected(backbone, channels, head)
        self.key = _mean_of(self.query, _projected(backbone, channels, head))
        # With several workers the queue holds the keys of all, in one order: the same on every one.
        self.loss = NTXentLoss(config.temperature, (queue, config.dimensions), gather_distributed=_several())
        bank = self.loss.memory_bank
        for name in ("bank", "bank_ptr"):  # lightly keeps the queue out of the state, and a resumed run would lose it
            bank.register_buffer(name, getattr(bank, name))

    def forward(self, views: tuple[Tensor, ...]) -> Tensor:
        first, second = views
        query = self.query(first)
        with torch.no_grad():
            key = self._keys(second)
        with torch.autocast(query.device.type, enabled=False):
            return self.loss(query.float(), key.float())

    def _keys(self, image: Tensor) -> Tensor:
        """Several workers exchange patches first: a key whose BatchNorm saw its query's companions gives itself away."""
        if not (self.training and _several()):
            return self.key(image)
        from lightly.models.utils import batch_shuffle, batch_unshuffle

        image, order = batch_shuffle(image.contiguous(), distributed=True)
        return batch_unshuffle(self.key(image), order, distributed=True)

    def handed_on(self) -> nn.Module:
        return self.query.encoder

    def after_step(self, step: int, steps: int) -> None:
        follow(self.query, self.key, self.config.momentum_at(step, steps))


class Distillation(Branch):
    """DINO's: student and teacher."""

    def __init__(self, config: DINO, backbone: Backbone, channels: int, prototypes: int) -> None:
        from lightly.models.modules.heads import DINOProjectionHead

        super().__init__()
        self.config = config
        head = functools.partial(
            DINOProjectionHead, hidden_dim=config.hidden, bottleneck_dim=config.bottleneck, output_dim=prototypes,
            freeze_last_layer=config.freeze_last_layer,
        )  # fmt: skip
        self.student = _projected(backbone, channels, head)
        self.teacher = _mean_of(self.student, _projected(backbone, channels, head))
        self.loss = _dino_loss(config, prototypes)

    def forward(self, views: tuple[Tensor, ...]) -> Tensor:
        large, small = views[:2], views[2:]
        with torch.no_grad():
            taught = self.teacher(torch.cat(large)).chunk(2)
        said = list(self.student(torch.cat(large)).chunk(2))
        if small:
            said += self.student(torch.cat(small)).chunk(len(small))
        with torch.autocast(said[0].device.type, enabled=False):
            return self.loss([each.float() for each in taught], [each.float() for each in said])

    def handed_on(self) -> nn.Module:
        return self.teacher.encoder

    def before_step(self, epoch: int) -> None:
        self.student.head.cancel_last_layer_gradients(epoch)
        nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip_gradient)

    def after_step(self, step: int, steps: int) -> None:
        follow(self.student, self.teacher, self.config.momentum_at(step, steps))


def _dino_loss(config: DINO, prototypes: int) -> nn.Module:
    from lightly.loss import DINOLoss

    class Centred(DINOLoss):
        """Its centre, the mean over all workers, moves in training alone."""

        def update_center(self, teacher_out: Tensor) -> None:
            if self.training:
                super().update_center(teacher_out)

    return Centred(
        prototypes, teacher_temp=config.teacher_temperature, student_temp=config.student_temperature,
        center_momentum=config.centre_momentum,
    )  # fmt: skip


# --- its parts --------------------------------------------------------------------------------------------------------


def trainable_encoder(backbone: Backbone, channels: int) -> nn.Module:
    """The encoder; weights that no gradient from its last stage reaches stay as they are, and in the file."""
    encoder = build_encoder(backbone.encoder, channels, backbone.depth)
    with named_errors(backbone.encoder):
        reached = used(_LastStage(encoder), example_image(channels))
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(f"encoder.{name}" in reached)
    return encoder


class _LastStage(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        return pooled(self.encoder, image)


def pooled(encoder: nn.Module, image: Tensor) -> Tensor:
    """(B, D): the last stage, averaged over the image."""
    return encoder(image)[-1].mean((2, 3))


def _projected(backbone: Backbone, channels: int, head: Callable[[int], nn.Module]) -> Projected:
    encoder = trainable_encoder(backbone, channels)
    with (
        warnings.catch_warnings()
    ):  # lightly's DINO head uses a form of weight_norm that torch has another name for now
        warnings.simplefilter("ignore", FutureWarning)
        return Projected(encoder, head(encoder.out_channels[-1]))


def _mean_of(network: nn.Module, mean: nn.Module) -> nn.Module:
    """`mean`, beginning where `network` is, without gradients of its own."""
    mean.load_state_dict(network.state_dict())
    return mean.requires_grad_(False)


@torch.no_grad()
def follow(network: nn.Module, mean: nn.Module, momentum: float) -> None:
    """mean = momentum * mean + (1 - momentum) * network, of all weights; BatchNorm statistics are each one's own."""
    from lightly.models.utils import update_momentum

    update_momentum(network, mean, momentum)


def _several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
