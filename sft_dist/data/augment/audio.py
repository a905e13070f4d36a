"""Random changes to a recording (speed, noise, loudness, silence before it) and to its spectrum (SpecAugment).

Nothing of what is said is ever cut off, so a transcript stays right. Samples may exceed 1 afterwards: they go to a feature
extractor, not into a file.
"""

from __future__ import annotations

import numpy as np

from sft_dist.recipe.augment import AudioAugment

# Longest mask as a share of the frames and of the bands: SpecAugment's LD policy (100 of about 1,000; 27 of 80).
LONGEST_TIME_MASK = 0.1
WIDEST_FREQUENCY_MASK = 27 / 80


def augment_sound(
    sound: np.ndarray,  # (samples,) float32
    rate: int,
    settings: AudioAugment,
    rng: np.random.Generator,
    shortest: int = 1,
    longest: int | None = None,
) -> np.ndarray:  # (other samples,) float32
    """Each change is made with the settings' probability; one that would leave `shortest` to `longest` samples is not."""

    def is_drawn() -> bool:
        return bool(rng.random() < settings.probability)

    if settings.speed and is_drawn():
        resampled = at_speed(sound, rate, rng.uniform(settings.speed[0], settings.speed[1]))
        sound = resampled if shortest <= len(resampled) <= (longest or len(resampled)) else sound
    if settings.noise_snr and is_drawn():
        sound = with_noise(sound, rng.uniform(settings.noise_snr[0], settings.noise_snr[1]), rng)
    if settings.gain_db and is_drawn():
        sound = sound * np.float32(10 ** (rng.uniform(-settings.gain_db, settings.gain_db) / 20))
    if settings.shift and is_drawn():
        room = len(sound) if longest is None else max(longest - len(sound), 0)
        silence = min(int(rng.uniform(0, settings.shift) * len(sound)), room)
        sound = np.concatenate([np.zeros(silence, np.float32), sound])
    return sound


def at_speed(sound: np.ndarray, rate: int, speed: float) -> np.ndarray:
    """Played `speed` times as fast, pitch and all (Ko et al. 2015, Audio augmentation for speech recognition)."""
    import soxr

    return soxr.resample(sound, rate * speed, rate).astype(np.float32, copy=False)


def with_noise(sound: np.ndarray, snr: float, rng: np.random.Generator) -> np.ndarray:
    """White noise whose power is `snr` decibels below the sound's mean power."""
    power = float(np.square(sound, dtype=np.float64).mean()) / 10 ** (snr / 10)
    return sound + (power**0.5 * rng.standard_normal(len(sound))).astype(np.float32)


def mask_spectrum(
    spectrum: np.ndarray,  # (bands, frames)
    settings: AudioAugment,
    rng: np.random.Generator,
    frames: int | None = None,
) -> np.ndarray:  # same
    """SpecAugment (Park et al. 2019, arXiv 1904.08779) without time warping: bands and stretches of time set to the mean.

    `frames`: how many hold sound, when the rest is padding.
    """
    bands, width = spectrum.shape
    heard = slice(0, min(frames or width, width))
    hidden = np.zeros_like(spectrum, dtype=bool)
    hidden[:, heard] |= masked(heard.stop, settings.time_masks, LONGEST_TIME_MASK, settings, rng)[None, :]
    hidden[:, heard] |= masked(bands, settings.frequency_masks, WIDEST_FREQUENCY_MASK, settings, rng)[:, None]
    return np.where(hidden, spectrum[:, heard].mean(dtype=np.float64), spectrum).astype(spectrum.dtype)


def masked(size: int, masks: int, longest: float, settings: AudioAugment, rng: np.random.Generator) -> np.ndarray:
    """(size,) bool: `masks` stretches of 0 to `longest` x size, anywhere; they may overlap. None by the settings' chance."""
    hidden = np.zeros(size, dtype=bool)
    if not masks or rng.random() >= settings.probability:
        return hidden
    for _ in range(masks):
        length = int(rng.integers(0, int(longest * size) + 1))
        start = int(rng.integers(0, size - length + 1))
        hidden[start : start + length] = True
    return hidden
