"""Where the encoders of a finished run lie: `<run>/encoders/<modality>.safetensors`, in a trial's folder of a sweep too."""

from pathlib import Path


def encoder_in(run: Path, modality: str) -> Path:
    """The encoder of that modality, whether or not it is there."""
    return run / "encoders" / f"{modality}.safetensors"


def encoders_in(run: Path) -> dict[str, Path]:
    """modality -> file, of every encoder that is there, by name."""
    return {file.stem: file for file in sorted((run / "encoders").glob("*.safetensors"))}
