"""Where an encoder of ours is taken from: a run's folder, a sweep's trial, a file."""

from pathlib import Path
from typing import NamedTuple

from cromss.exchange.story import RESULT
from cromss.journal import trial_folders
from cromss.networks.in_runs import encoder_in, encoders_in


class Source(NamedTuple):
    """An encoder file and the run that it lies in, if any."""

    file: Path
    run: Path | None


def sources(source: Path, modality: str | None) -> list[Source]:
    """The encoder files of a run's folder, or the file itself with the run that it lies in. Raises ValueError where there are
    none of that modality."""
    if source.is_file():
        if source.suffix != ".safetensors":
            raise ValueError(f"{source}: is no encoder file of ours; whose is it? --from LAYOUT, or --from auto")
        run = source.absolute().parent.parent
        lies_there = encoder_in(run, source.stem) == source.absolute() and (run / RESULT).exists()
        return [Source(source, run if lies_there else None)]
    if not source.exists():
        raise ValueError(f"{source}: no such run, trial or file")
    found = encoders_in(source)
    if not found:
        trials = [str(one) for one in trial_folders(source) if encoders_in(one)]
        hint = f"; its trials have: {', '.join(trials[:4])}{' ...' if len(trials) > 4 else ''}" if trials else ""
        raise ValueError(f"{source}: no encoders/*.safetensors in there{hint}")
    if modality not in (None, *found):
        raise ValueError(f"--modality {modality}: {source} has {', '.join(found)}")
    return [Source(file, source) for name, file in found.items() if modality in (None, name)]
