"""Recordings change at random, by as much as the settings say."""

from __future__ import annotations

import numpy as np
import pytest

from sft_dist.data.augment.audio import augment_sound, mask_spectrum, masked, with_noise
from sft_dist.recipe.augment import AudioAugment

RATE = 16000
SECONDS = np.arange(RATE) / RATE
TONE = (0.1 * np.sin(2 * np.pi * 440 * SECONDS)).astype(np.float32)


def changed(seed: int = 0, sound: np.ndarray = TONE, limits: dict | None = None, **settings) -> np.ndarray:
    settings = AudioAugment(**{"probability": 1.0, **settings})
    return augment_sound(sound, RATE, settings, np.random.default_rng(seed), **(limits or {}))


def pitch(sound: np.ndarray) -> float:
    return np.abs(np.fft.rfft(sound)).argmax() * RATE / len(sound)


def test_the_same_generator_gives_the_same_sound_and_another_one_another():
    settings = {"noise_snr": [5.0, 20.0], "speed": [0.9, 1.1], "gain_db": 6.0, "shift": 0.2}
    np.testing.assert_array_equal(changed(3, **settings), changed(3, **settings))
    assert not np.array_equal(changed(3, **settings)[-1000:], changed(4, **settings)[-1000:])
    assert changed(3, **settings).dtype == np.float32


def test_nothing_is_changed_unless_asked():
    np.testing.assert_array_equal(changed(), TONE)
    np.testing.assert_array_equal(changed(noise_snr=[0.0, 0.0], gain_db=9.0, probability=0.0), TONE)


@pytest.mark.parametrize("snr", [0.0, 10.0, 30.0])
def test_noise_is_as_loud_as_said(snr):
    noise = with_noise(TONE, snr, np.random.default_rng(0)) - TONE
    measured = 10 * np.log10(np.mean(TONE.astype(float) ** 2) / np.mean(noise.astype(float) ** 2))
    assert measured == pytest.approx(snr, abs=0.2)


def test_silence_stays_silent():
    assert not changed(sound=np.zeros(1000, np.float32), noise_snr=[0.0, 0.0]).any()


def test_speed_changes_length_and_pitch():
    found = changed(speed=[1.25, 1.25])
    assert len(found) == pytest.approx(RATE / 1.25, abs=2)
    assert pitch(found) == pytest.approx(440 * 1.25, rel=0.01)


def test_a_speed_that_would_not_fit_is_left_out():
    np.testing.assert_array_equal(changed(speed=[0.8, 0.8], limits={"longest": RATE + 1000}), TONE)
    np.testing.assert_array_equal(changed(speed=[1.5, 1.5], limits={"shortest": RATE - 1000}), TONE)


def test_gain_is_within_its_range():
    ratios = [20 * np.log10(np.abs(changed(seed, gain_db=6.0)).max() / np.abs(TONE).max()) for seed in range(200)]
    assert -6.01 <= min(ratios) < -5
    assert 5 < max(ratios) <= 6.01


def test_a_shift_puts_silence_before_and_cuts_nothing_off():
    for seed in range(20):
        found = changed(seed, shift=0.5, limits={"longest": RATE + 2000})
        silence = len(found) - RATE
        assert 0 <= silence <= 2000
        assert not found[:silence].any()
        np.testing.assert_array_equal(found[silence:], TONE)


def test_masks_are_no_larger_than_said_and_hide_the_mean():
    spectrum = np.random.default_rng(0).standard_normal((80, 300)).astype(np.float32)
    settings = AudioAugment(probability=1.0, time_masks=2, frequency_masks=2)
    hidden_shares = []
    for seed in range(50):
        found = mask_spectrum(spectrum, settings, np.random.default_rng(seed))
        hidden = found != spectrum
        np.testing.assert_allclose(found[hidden], spectrum.mean(), atol=1e-6)
        frames, bands = hidden.all(axis=0), hidden.all(axis=1)
        assert frames.sum() <= 2 * 30
        assert bands.sum() <= 2 * 27
        np.testing.assert_array_equal(hidden, frames[None, :] | bands[:, None])
        hidden_shares.append(hidden.mean())
    assert max(hidden_shares) > 0.3 > min(hidden_shares)


def test_padding_is_not_masked():
    spectrum = np.zeros((8, 100), np.float32)
    spectrum[:, :20] = np.arange(20)
    settings = AudioAugment(probability=1.0, time_masks=20, frequency_masks=2)
    for seed in range(20):
        found = mask_spectrum(spectrum, settings, np.random.default_rng(seed), frames=20)
        assert not found[:, 20:].any()
        assert set(np.unique(found[:, :20])) <= {*range(20), 9.5}


def test_as_many_sounds_are_masked_as_said():
    settings = AudioAugment(probability=0.25, time_masks=1)
    found = [masked(1000, 1, 0.9, settings, np.random.default_rng(seed)).any() for seed in range(1000)]
    assert np.mean(found) == pytest.approx(0.25, abs=0.05)
    assert not masked(1000, 0, 0.9, settings, np.random.default_rng(0)).any()
