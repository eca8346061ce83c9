"""The network that audits, held against the store whose labels it doubts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cromss.auditing.scores import Looked, look
from cromss.contract import drift
from cromss.data.patch import Batch
from cromss.data.store import PatchStore
from cromss.files import sha256
from cromss.journal import read_json
from cromss.landcover import IGNORE, ClassMap, Scheme, class_map
from cromss.maps.model import Model, file_of
from cromss.objective.crossmodal import ObjectiveConfig
from cromss.settings import suggest, validate
from cromss.training.downstream import fed


@dataclass(frozen=True)
class Auditor:
    """A network, the modalities of a store that it looks at, and how its classes are read in the store's scheme."""

    model: Model
    store: PatchStore
    modalities: tuple[str, ...]
    classes: ClassMap

    @classmethod
    def open(
        cls, where: str | Path, store: PatchStore, modalities: Sequence[str] = (), device: torch.device | str = "cpu"
    ) -> "Auditor":
        """From a run's folder or its `segmenter.safetensors`; `modalities` () = all the network knows. Raises ValueError,
        naming both sides, where bands, products, units, scaling or classes do not fit the store."""
        path = file_of(where)
        if not path.exists():
            raise ValueError(
                f"--model {where}: no {'such file' if path == Path(where) else path.name}; an audit needs the whole network "
                "of a pretraining with labels: its --out folder, or the segmenter.safetensors in it"
            )
        model = Model.open(path, device)
        for name in modalities:
            if name not in model.modalities:
                raise ValueError(
                    f"--modalities {name}: {path} knows {', '.join(model.modalities)}{suggest(name, model.modalities)}"
                )
        chosen = tuple(name for name in model.modalities if not modalities or name in modalities)
        for name in chosen:
            fed(store, name, model.bands(name), model.card.scaling, model.contract(name), str(path))
        return cls(model, store, chosen, _read_in(model.scheme, store.scheme, str(path), str(store.path)))

    @cached_property
    def digest(self) -> str:
        """sha256 of the network's file."""
        return sha256(self.model.path)

    @cached_property
    def objective(self) -> ObjectiveConfig:
        """Of the run that the network is from, where its folder says so; else the paper's."""
        for folder in (self.model.path.parent, self.model.path.parent.parent):
            found = (read_json(folder / "trial.json") or {}).get("config") or {}
            if "objective" in found:
                return validate(ObjectiveConfig, found["objective"])
        return ObjectiveConfig()

    @property
    def saw_these_labels(self) -> bool:
        """Whether it was trained on this very store."""
        return self.model.card.store == self.store.digest

    @property
    def answers(self) -> np.ndarray:
        """The store's class numbers that it can answer with."""
        return np.array([number for number, parts in enumerate(self.classes.sources) if parts])

    def drift(self) -> dict[str, list[str]]:
        """modality -> the bands whose numbers lie far from what the network was trained on."""
        pairs = {
            name: (
                self.store.contract(name).select(self.model.bands(name), str(self.store.path)),
                self.model.contract(name),
            )
            for name in self.modalities
        }
        found = {name: drift(ours, theirs) for name, (ours, theirs) in pairs.items() if theirs is not None}
        return {name: bands for name, bands in found.items() if bands}

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        """modality -> log-probabilities (B, A, H, W) over the classes in `answers`. Pixels without image data answer as
        they like."""
        device = next(self.model.network.parameters()).device
        valid = None if batch.valid is None else batch.valid.to(device)
        found = {}
        for name in self.modalities:
            pixels = _as_torch(batch.images[name]).to(device)
            own = self.model.logits(name, pixels, self.store.encoding, valid).log_softmax(1)
            read = [_together(own, parts) for parts in self.classes.sources if parts]
            found[name] = torch.stack(read, 1).log_softmax(1)  # classes without a counterpart are no answer
        return found

    def labels(self, batch: Batch) -> Tensor:
        """(B, H, W): the given labels as numbers of `answers`; IGNORE where there is no label, no image, or a class that the
        network has no answer for."""
        table = torch.full((256,), IGNORE, dtype=torch.uint8)
        table[torch.from_numpy(self.answers)] = torch.arange(len(self.answers), dtype=torch.uint8)
        labels = table[batch.labels.long()]
        return labels if batch.valid is None else torch.where(batch.valid, labels, IGNORE)

    def look(self, batch: Batch) -> Looked:
        """What it says of the given labels; `best` in the store's class numbers."""
        logits = self.logits(batch)
        device = next(iter(logits.values())).device
        seen = look(logits, self.labels(batch).to(device), str(self.model.path))
        return Looked(seen.own, seen.entropy, seen.disagreement, self.answers.astype(np.uint8)[seen.best], seen.sure)


def _together(log_q: Tensor, parts: tuple[int, ...]) -> Tensor:
    return log_q[:, parts[0]] if len(parts) == 1 else log_q[:, list(parts)].logsumexp(1)


def _as_torch(pixels: Tensor) -> Tensor:
    return pixels if pixels.dtype == torch.uint8 else pixels.float()


def _read_in(own: Scheme, given: Scheme, network: str, store: str) -> ClassMap:
    try:
        found = class_map(own, given)
    except ValueError:
        raise ValueError(
            f"{network} answers with classes of {own.title} ({own.name}), the labels of {store} are of {given.title} "
            f"({given.name}), and nobody has said how to read the one in the other: audit with a network that was pretrained "
            "on labels of that scheme, or add the row to cromss/landcover.py"
        ) from None
    if sum(bool(parts) for parts in found.sources) < 2:
        raise ValueError(f"{network}: of its classes ({own.name}) fewer than two mean one of {store} ({given.name})")
    return found
