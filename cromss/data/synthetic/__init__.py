"""A procedural Earth with known clean labels: relief to land cover, seasons to pixels, truth to noisy labels."""

from cromss.data.synthetic.earth import NoiseReport, SyntheticEarth, describe_noise
from cromss.data.synthetic.imagery import Optical, Radar
from cromss.data.synthetic.noise import (
    BorderDisplacement,
    ClassConfusion,
    Clean,
    DynamicWorld,
    MissingObjects,
    Model,
    Noise,
    SeasonSwap,
    Symmetric,
)

__all__ = [
    "BorderDisplacement", "ClassConfusion", "Clean", "DynamicWorld", "MissingObjects", "Model", "Noise", "NoiseReport",
    "Optical", "Radar", "SeasonSwap", "Symmetric", "SyntheticEarth", "describe_noise",
]  # fmt: skip
