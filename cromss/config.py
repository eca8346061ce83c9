"""The configuration of a run, composed of the parts' own settings. Its defaults are the paper.

Where the paper is silent (batch size) the authors' code speaks; every difference between the two is a setting, and
the preset `authors-code` sets them all.
"""

import argparse
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import torch
from pydantic import Field

from cromss.data.augment import AugmentConfig
from cromss.data.cache import CacheConfig, gigabytes_of
from cromss.data.stream import RayReader, Reader
from cromss.files import Folder
from cromss.networks.encoders import Backbone
from cromss.networks.fusion import Fusion, Middle
from cromss.networks.heads import Head, PSPNet
from cromss.networks.masked import MIM
from cromss.networks.scaling import MeanStd, Scaling
from cromss.networks.selfsupervised import DINO, MoCo
from cromss.objective.crossmodal import ObjectiveConfig
from cromss.settings import Settings, as_yaml, assignments, leaves, overlay, read_yaml, suggest, validate


class DataConfig(Settings):
    """What the pretraining reads. `bands` names a subset per modality; a modality left out uses the store's bands."""

    bands: dict[str, str | tuple[str, ...]] = {}
    seasons: Literal["random", "cycle"] = "random"
    augment: AugmentConfig = AugmentConfig()
    reader: Reader = RayReader()
    lanes: int = Field(8, ge=1)
    window: int = Field(4, ge=1)  # row groups mixed with each other
    val_folds: int = Field(1, ge=1)
    cache: CacheConfig = CacheConfig()
    quarantine: bool = False  # leave damaged shards out instead of refusing the store; reads it whole once to find them
    sentinel: bool = True  # stop when the first patches do not look like the store
    journal_rows: bool = False  # write down which patches every step saw, under OUT/rows


class ModelConfig(Backbone):
    """The U-Nets: their backbone, how the modalities are fused, how pixels become network input."""

    fusion: Fusion = Middle()
    scaling: Scaling = MeanStd()


class Plateau(Settings):
    """Halve the learning rate when the validation loss stops falling (reference 5)."""

    kind: Literal["plateau"] = "plateau"
    factor: float = Field(0.5, gt=0, lt=1)
    patience: int = Field(30, ge=0)  # epochs


class Constant(Settings):
    """The learning rate stays."""

    kind: Literal["constant"] = "constant"


class Cosine(Settings):
    """From the learning rate down to `end` over `epochs`, then constant."""

    kind: Literal["cosine"] = "cosine"
    end: float = Field(1e-5, gt=0)
    epochs: int = Field(40, ge=1)


Schedule = Annotated[Plateau | Constant | Cosine, Field(discriminator="kind")]


class OptimConfig(Settings):
    """Adam. `batch_size` is global: it never changes with the number of workers (the authors: 4 GPUs x 128)."""

    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    batch_size: int = Field(512, ge=1)
    epochs: int = Field(100, ge=1)
    schedule: Schedule = Plateau()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 autocast where the GPU has it


class ScalingConfig(Settings):
    """Who computes. None = what is there: every GPU, else two CPU workers.

    `num_workers` = 0 starts no Ray Train workers: a pretraining and its judgement run in the trial's own process, which
    spares many short trials most of their start.
    """

    num_workers: int | None = Field(None, ge=0)
    use_gpu: bool | None = None
    cpus_per_worker: float | None = Field(None, gt=0)
    threads: int | None = Field(None, ge=1)  # torch threads of a CPU worker
    # The switches of the step: none changes what is computed, but for rounding; `cromss.bench step --switches` measures each.
    compile: Literal["auto", "none", "objective", "networks", "all"] = "auto"  # auto: all on a GPU, none on a CPU
    channels_last: bool = True
    fused_adam: bool = True
    branches: Literal["sequential", "streams"] = "sequential"  # streams: the modalities' encoders side by side on a GPU
    double_buffer: bool = True  # upload the next batch from pinned memory while this one is computed, on a GPU
    micro_batch: int | Literal["auto"] | None = None  # pairs computed at a time; None = all that a worker has of a step
    bucket_mb: float = Field(25.0, gt=0)  # of gradients that the workers exchange at a time
    checkpoint_epochs: int = Field(1, ge=1)
    checkpoints: str | None = None  # folder or bucket (default: OUT/checkpoints); below it, one a trial
    max_failures: int = Field(3, ge=0)  # restarts in a row, after a crash, that brought no new checkpoint
    # Where nodes come and go: the fewest workers to go on with (default: num_workers).
    min_workers: int | None = Field(None, ge=1)
    patience: float = Field(5.0, ge=0)  # minutes to wait for all the workers, before fewer will do
    stall_minutes: float = Field(15.0, gt=0)  # a worker that makes no step for so long is ended and started again

    @pydantic.field_validator("micro_batch", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if value is None or value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            return value
        raise ValueError(f"scaling.micro_batch={value}: must be auto, or a number of pairs from 1 on, or null for all")

    def compiles(self, part: Literal["objective", "networks"], device: torch.device) -> bool:
        """Whether torch.compile makes `part` of the step on `device`."""
        if self.compile == "auto":  # a compiled network has no streams to spread over
            return device.type == "cuda" and (part == "objective" or self.branches == "sequential")
        return self.compile in (part, "all")

    @pydantic.model_validator(mode="after")
    def _streams_or_compiled(self) -> "ScalingConfig":
        if self.branches == "streams" and self.compile in ("networks", "all"):
            raise ValueError(
                f"scaling.branches=streams: a compiled network (scaling.compile={self.compile}) runs on one stream; "
                f"compile the objective alone, or leave branches sequential"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _no_fewer_than_there_are(self) -> "ScalingConfig":
        if self.min_workers is not None and self.num_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"scaling.min_workers={self.min_workers}: must be at most scaling.num_workers={self.num_workers}"
            )
        return self

    @pydantic.field_validator("checkpoints")
    @classmethod
    def _whole_address(cls, value: str | None) -> str | None:
        return value if value is None else str(Folder.of(value))


class Pretrain(Settings):
    """The encoders are pretrained in this run, on the noisy labels.

    warm_start   encoders to begin from, by modality: files, or folders of runs; of the same architecture and input
    """

    kind: Literal["pretrain"] = "pretrain"
    title: ClassVar[str] = ""
    trains: ClassVar[bool] = True
    reads_labels: ClassVar[bool] = True

    warm_start: dict[str, str] = {}


class RandomInit(Settings):
    """No pretraining: the baseline every encoder must beat."""

    kind: Literal["random"] = "random"
    title: ClassVar[str] = "random"
    trains: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False


class Imported(Settings):
    """Encoders from elsewhere, one per modality (`paths: {s2: FILE}`): a run directory of ours, or anybody's checkpoint,
    which does not say what input it was trained on: `scalings` does."""

    kind: Literal["checkpoint"] = "checkpoint"
    title: ClassVar[str] = "checkpoint"
    trains: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False

    paths: dict[str, str]
    scalings: dict[str, Scaling] = {}


# `trains`: this run makes the encoders; `reads_labels`: from the noisy labels, by `objective`; `title`: the row of the table.
Pretraining = Annotated[Pretrain | RandomInit | Imported | MoCo | DINO | MIM, Field(discriminator="kind")]


class Holdout(Settings):
    """Train on the downstream store's split `train`, score on `test`."""

    kind: Literal["holdout"] = "holdout"


class TwoFold(Settings):
    """Train on either split and score on the other; one confusion matrix over both (for spatial halves)."""

    kind: Literal["two_fold"] = "two_fold"


Protocol = Annotated[Holdout | TwoFold, Field(discriminator="kind")]


class TransferConfig(Settings):
    """The downstream protocol (reference 7): one modality at a time, encoder frozen or fine-tuned, CE + Dice."""

    modalities: tuple[str, ...] = ("s1", "s2")
    modes: tuple[Literal["frozen", "finetuned", "zero_shot"], ...] = ("frozen", "finetuned")
    repeats: int = Field(3, ge=1)
    head: Head = PSPNet()
    frozen_batchnorm: Literal["adapt", "fixed"] = "adapt"
    lr: float = Field(5e-5, gt=0)
    schedule: Schedule = Constant()
    epochs: int = Field(50, ge=1)
    batch_size: int = Field(32, ge=2)
    augment: AugmentConfig = AugmentConfig(crop=None)
    protocol: Protocol = Holdout()
    panels: int = Field(4, ge=0)  # test patches kept as pictures
    feature_cache_gb: float = Field(
        4.0, ge=0
    )  # frozen, batchnorm fixed, no random crop: features kept on the device; 0: none

    @property
    def trained_modes(self) -> tuple[str, ...]:
        """The modes that train something downstream; zero-shot scores what was pretrained."""
        return tuple(mode for mode in self.modes if mode != "zero_shot")


class ProbeConfig(Settings):
    """A linear head on the frozen encoder, trained for a fixed number of steps on part of the downstream TRAINING set
    and scored on a spatial fold of the same set: what early stopping may look at without touching the test set."""

    every: int = Field(10, ge=1)  # epochs between probes
    steps: int = Field(200, ge=1)
    lr: float = Field(1e-2, gt=0)
    patches: int = Field(256, ge=4)
    folds: int = Field(4, ge=2)  # one of so many is scored


class NoStopping(Settings):
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


class Asha(Settings):
    """Asynchronous successive halving on the probe. `grace` = share of the ramp before anything is stopped: earlier,
    runs with different ramps are still nearly the same (at epoch 10 alpha_end .3 and .7 differ by .009)."""

    kind: Literal["asha"] = "asha"
    grace: float = Field(0.65, gt=0, le=1)
    reduction: int = Field(3, ge=2)


Stopping = Annotated[NoStopping | Asha, Field(discriminator="kind")]


class SweepConfig(Settings):
    """`seeds` = independent pretrainings of each configuration: the unit of every interval and test."""

    metric: Literal["mean", "s1", "s2"] = "mean"
    mode: Literal["frozen", "finetuned"] = "frozen"
    seeds: int = Field(3, ge=1)
    stopping: Stopping = NoStopping()


class RunConfig(Settings):
    """The whole of a run."""

    seed: int = Field(0, ge=0)
    pretraining: Pretraining = Pretrain()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    transfer: TransferConfig = TransferConfig()
    probe: ProbeConfig = ProbeConfig()
    sweep: SweepConfig = SweepConfig()
    scaling: ScalingConfig = ScalingConfig()

    @property
    def ramp_epochs(self) -> int:
        """T of the ramps: as set, else 0.8 of the run (80 of the paper's 100 epochs)."""
        return self.objective.ramp_epochs or max(1, round(0.8 * self.optim.epochs))

    @pydantic.model_validator(mode="after")
    def _coherent(self) -> "RunConfig":
        ramps = self.pretraining.reads_labels and "ramp_epochs" in self.objective.method.reads
        if ramps and self.ramp_epochs > self.optim.epochs:
            raise ValueError(
                f"objective.ramp_epochs={self.ramp_epochs}: longer than the run (optim.epochs={self.optim.epochs}), which "
                f"would end before its ramp; leave it out (0.8 of the run) or raise optim.epochs"
            )
        if self.optim.batch_size % self.data.lanes:
            raise ValueError(
                f"optim.batch_size={self.optim.batch_size}: must be a multiple of data.lanes={self.data.lanes}"
            )
        if self.pretraining.reads_labels:
            self.objective.check(self.model.fusion.modalities)
        trains = self.pretraining.trains and self.model.fusion.kind == "single"
        if trains and self.model.fusion.modality not in self.transfer.modalities:
            raise ValueError(
                f"transfer.modalities={list(self.transfer.modalities)}: the run pretrains only "
                f"{self.model.fusion.modality!r} (model.fusion.modality)"
            )
        return self

    @property
    def judged_modalities(self) -> tuple[str, ...]:
        """Modalities whose encoders this run can hand to the downstream task."""
        if self.pretraining.trains:
            return tuple(m for m in self.transfer.modalities if m in self.model.fusion.modalities)
        if self.pretraining.kind == "checkpoint":
            return tuple(m for m in self.transfer.modalities if m in self.pretraining.paths)
        return self.transfer.modalities

    def identity(self) -> dict[str, Any]:
        """What makes a pretraining this one, as dotted keys: not who computes it, which reader feeds it or what judges it,
        and nothing that has no effect (the ramps of a run without selection, all of the objective without labels).

        Of encoders to begin from, the modalities: what is in the files, their digests say (`training.warmstart`)."""
        tree = self.model_dump(mode="json")
        kept = {key: tree[key] for key in ("seed", "pretraining", "data", "model", "objective", "optim")}
        for aside in ("reader", "cache", "quarantine", "sentinel", "journal_rows"):
            del kept["data"][aside]
        if self.pretraining.trains and not self.pretraining.reads_labels:
            return leaves(self._without_labels(kept))
        if begun := kept["pretraining"].pop("warm_start", {}):
            kept["pretraining"]["warm_start"] = sorted(begun)
        kept["objective"] = self.objective.identity(self.model.fusion.modalities, self.ramp_epochs)
        return leaves(kept)

    def _without_labels(self, kept: dict[str, Any]) -> dict[str, Any]:
        """An encoder and a pretext task for each modality: no objective, no decoder, nothing shared."""
        model = {key: kept["model"][key] for key in ("encoder", "depth", "scaling")}
        model["modalities"] = list(self.model.fusion.modalities)
        return {**{key: value for key, value in kept.items() if key != "objective"}, "model": model}


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "authors-code": {
        "optim": {"lr": 5e-3, "weight_decay": 1e-8, "epochs": 200},
        "objective": {
            "per_class": True,
            "consistency": {"kind": "cross_entropy"},
            "smoothing": {"kind": "spatio_temporal"},
            "ramp_epochs": 80,
        },
        "transfer": {"lr": 5e-4, "schedule": {"kind": "cosine", "end": 1e-5, "epochs": 40}},
    },
    # Minutes on two CPU cores: a tiny network on 64-pixel scenes. Shows that the machine works, not what the method is
    # worth on real data.
    "demo": {
        "data": {"augment": {"crop": None}, "reader": {"kind": "direct"}, "lanes": 4},
        "model": {
            "encoder": "tu-test_resnet", "depth": 4, "decoder_channels": [32, 16, 8, 8],
            "fusion": {"decoder_norm": "per_modality"},  # 600 steps are too few for blended statistics to be of use
        },
        "objective": {"consistency": {"weight": 0.1}},  # at 1 the weak Sentinel-1 holds Sentinel-2 back in so short a run
        "optim": {"lr": 2e-3, "batch_size": 4, "epochs": 8, "schedule": {"kind": "constant"}},
        "transfer": {
            "modes": ["frozen"], "repeats": 1, "epochs": 12, "lr": 4e-3, "batch_size": 16, "augment": {"crop": None},
            "head": {"kind": "fpn", "head_depth": 4, "channels": 64},  # 64 pixels are 8 at PSPNet's stride
        },
        "probe": {"every": 4, "steps": 60, "patches": 64},
        "sweep": {"seeds": 2},
        "scaling": {"num_workers": 0, "use_gpu": False, "threads": 1, "checkpoint_epochs": 2},
    },
}  # fmt: skip


# What --objective stands for.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "cromss": {"pretraining": {"kind": "pretrain"}, "objective": {"method": {"kind": "cromss"}}},
    **{kind: {"pretraining": {"kind": kind}} for kind in ("moco", "dino", "mim")},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The one door: --preset, --config, --set, --print-config."""
    door = parser.add_argument_group("configuration (later wins): preset <- --config <- --set")
    door.add_argument("--preset", default=None, help=f"{', '.join(PRESETS)} (default: paper)")
    door.add_argument("--config", metavar="YAML", help="a YAML file; may name its own `preset`")
    door.add_argument("--set", dest="sets", metavar="KEY=VALUE", action="append", default=[], help="e.g. optim.lr=1e-3")
    door.add_argument("--print-config", action="store_true", help="show the resolved configuration and stop")
    door.add_argument("--cache", metavar="DIR", help="keep what is read of a bucket on this machine: data.cache.folder")
    door.add_argument("--cache-size", metavar="SIZE", help="how much of that disk, e.g. 200GB: data.cache.gigabytes")


def layers_from(args: argparse.Namespace) -> dict[str, Any]:
    """The merged overlay that the arguments describe (not yet validated). Raises ValueError."""
    file = read_yaml(args.config) if args.config else {}
    name = args.preset or file.get("preset", "paper")
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: unknown{suggest(name, PRESETS)}")
    own = {key: value for key, value in file.items() if key != "preset"}
    layers = overlay(PRESETS[name], own, _short_forms(args), assignments(args.sets))
    if args.cache_size and not layers.get("data", {}).get("cache", {}).get("folder"):
        raise ValueError(f"--cache-size {args.cache_size}: says how much, not where; add --cache DIR")
    return layers


def _short_forms(args: argparse.Namespace) -> dict[str, Any]:
    """The overlay of arguments that stand for a key."""
    short: dict[str, Any] = {}
    if args.cache:
        short = overlay(short, {"data": {"cache": {"folder": args.cache}}})
    if args.cache_size:
        short = overlay(short, {"data": {"cache": {"gigabytes": gigabytes_of(args.cache_size)}}})
    if objective := getattr(args, "objective", None):
        short = overlay(short, OBJECTIVES[objective])
    if getattr(args, "checkpoints", None):
        short = overlay(short, {"scaling": {"checkpoints": args.checkpoints}})
    return short


def resolve(*layers: dict[str, Any]) -> RunConfig:
    """The run that the merged layers describe. Raises ValueError with a line per mistake."""
    return validate(RunConfig, *layers)


def shown(config: RunConfig) -> str:
    """The resolved whole as YAML, as `--print-config` prints it."""
    return as_yaml(config)
