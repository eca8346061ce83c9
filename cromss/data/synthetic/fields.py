"""Smooth random fields: the clay of the synthetic Earth."""

from functools import lru_cache

import numpy as np
from scipy import fft

_MARGIN = 32  # px cut off again: the Fourier transform makes its fields periodic


def fields(rng: np.random.Generator, count: int, size: int, length: float, roughness: float = 2.0) -> np.ndarray:
    """`count` independent Gaussian fields (count, size, size) float32, mean 0, variance 1.

    `length` is the size of their features in pixels, `roughness` the decay exponent of their amplitude spectrum:
    1.5 is ragged like a coast, 3 is smooth like a hill.
    """
    grid = fft.next_fast_len(size + _MARGIN, real=True)
    noise = rng.standard_normal((2, count, grid, grid // 2 + 1), dtype=np.float32)
    spectrum = (noise[0] + 1j * noise[1]) * _amplitude(grid, float(length), float(roughness))
    return fft.irfft2(spectrum, s=(grid, grid))[:, :size, :size]


@lru_cache(maxsize=64)
def _amplitude(grid: int, length: float, roughness: float) -> np.ndarray:
    """(grid, grid // 2 + 1) amplitudes that give unit variance. The mean (frequency zero) is left in: a crop of a
    larger world has one."""
    frequency = np.hypot(fft.fftfreq(grid)[:, None], fft.rfftfreq(grid)[None, :])
    amplitude = (1 + (frequency * length) ** 2) ** (-roughness / 2)
    both_halves = np.ones(grid // 2 + 1)
    both_halves[1 : (grid + 1) // 2] = 2  # a real transform keeps one of each conjugate pair
    variance = 2 * (amplitude**2 * both_halves).sum() / grid**4
    return (amplitude / np.sqrt(variance)).astype(np.float32)
