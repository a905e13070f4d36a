"""What the audio tasks have in common: the length of recordings, and model inputs made from them.

Recordings stay files until a batch is made; only their headers are read before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from datasets import Value
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel, WhisperFeatureExtractor

from sft_dist.data.augment.audio import LONGEST_TIME_MASK, mask_spectrum, masked
from sft_dist.data.media import MediaError, load_audio, name_of, open_media, require_bounded
from sft_dist.recipe.augment import AudioAugment
from sft_dist.recipe.errors import Problem, UserError
from sft_dist.recipe.references import model_source
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.base import Rngs

# Not `datasets.Audio`: that copies every file into the table when the table is saved.
AUDIO = {"bytes": Value("binary"), "path": Value("string")}
NO_AUDIO = "no audio"
FRAMES_PER_SECOND = 50  # of every model here, after its convolutions: the measure of an example's work

# Settings with which the model would draw random numbers of its own. Masks come from the example's generator instead; a
# layer skipped at random has no gradient, which the other processes would wait for.
_OWN_RANDOMNESS = ("apply_spec_augment", "mask_time_prob", "mask_feature_prob", "layerdrop")


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def seconds_in_row(row: dict[str, Any], number: int) -> float:
    """Raises UserError naming the row when its recording cannot be read."""
    try:
        return seconds_of(row["audio"])
    except MediaError as error:
        raise UserError(Problem(f"row {number}: {error}", "data.columns.audio")) from None


def seconds_of(value: dict[str, Any]) -> float:
    """Reads the length from the header. Raises MediaError."""
    import soundfile

    try:
        with open_media(value) as file:
            header = soundfile.info(file)
            require_bounded(header, value)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise MediaError(f"{name_of(value)}: not a sound that can be read ({error})") from None
    if not header.frames:
        raise MediaError(f"{name_of(value)}: the recording is empty (0 samples)")
    return header.frames / header.samplerate


def content_of(value: dict[str, Any]) -> bytes:
    """The file's bytes: copies under other names are duplicates."""
    with open_media(value) as file:
        return file.read()


# ── configuration ───────────────────────────────────────────────────────────────────────────────────────────────────
class KnowsConfig:
    """A task that makes inputs by the config of its model, which comes with the processor."""

    recipe: Recipe
    _config: PretrainedConfig | None = None

    @property
    def config(self) -> Any:
        if self._config is None:  # the evaluation of a sweep shares one processor among the tasks of many recipes
            model = self.recipe.model
            code = model.trust_remote_code
            pinned = {"trust_remote_code": True, "code_revision": code} if code else {"trust_remote_code": False}
            source = model_source(model.tokenizer or model.path)
            self.load_processor(source, revision=model.revision or code, **pinned)
        return self._config

    def load_processor(self, source: str, **options: Any) -> Any:
        """Loads the processor and sets `_config`."""
        raise NotImplementedError


def config_of(source: str, recipe: Recipe, **options: Any) -> PretrainedConfig:
    """Loads the model's config with the recipe's changes, from the model's own folder when the processor is elsewhere."""
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError):
        config = AutoConfig.from_pretrained(model_source(recipe.model.path), **options)
    for name, value in recipe.model.config.items():
        if hasattr(config, name):  # one that is not there is refused when the model is built
            setattr(config, name, value)
    return config


def takes_waveforms(config: PretrainedConfig) -> bool:
    """True for models like wav2vec2, which apply convolutions to samples and mask inside the model."""
    return hasattr(config, "conv_kernel")


def model_settings(config: PretrainedConfig, recipe: Recipe) -> dict[str, Any]:
    """Returns config values with which only the example's generator draws random numbers. Raises UserError for others."""
    if keys := [name for name in _OWN_RANDOMNESS if name in recipe.model.config]:
        hint = "masks are made by data.augment.audio.time_masks; layers are never skipped"
        path = f"model.config.{keys[0]}"
        raise UserError(Problem("cannot be set", path, value=str(recipe.model.config[keys[0]]), hint=hint))
    if takes_waveforms(config):
        # With a probability above 0 the model has the vector that stands for what is masked.
        settings = {
            "apply_spec_augment": True,
            "mask_time_prob": config.mask_time_prob or 0.05,
            "mask_feature_prob": 0.0,
        }
        return {**settings, "layerdrop": 0.0}
    return {"apply_spec_augment": False} if hasattr(config, "apply_spec_augment") else {}


def frames_of(config: PretrainedConfig, samples: Sequence[int] | np.ndarray) -> np.ndarray:
    """Number of frames that a model of waveforms computes from each number of samples, by its own rule."""
    model = _without_weights(json.dumps(config.to_dict(), sort_keys=True, default=str))
    return model._get_feat_extract_output_lengths(torch.as_tensor(np.asarray(samples))).numpy()


@lru_cache(maxsize=4)
def _without_weights(settings: str) -> Any:
    config = AutoConfig.for_model(**json.loads(settings))
    with torch.device("meta"):
        return AutoModel.from_config(config)


def shorten_window(model: PreTrainedModel, extractor: Any) -> PreTrainedModel:
    """Shortens Whisper's encoder, which accepts a single length: shorter recordings need the first positions only, and less
    time."""
    if not isinstance(extractor, WhisperFeatureExtractor):
        return model
    encoder = model.get_submodule("encoder" if hasattr(model, "encoder") else "model.encoder")
    positions: Any = encoder.embed_positions
    num_positions = extractor.nb_max_frames // (encoder.conv1.stride[0] * encoder.conv2.stride[0])
    if num_positions < positions.num_embeddings:
        shorter = nn.Embedding(num_positions, positions.embedding_dim)
        shorter.weight.data.copy_(positions.weight.data[:num_positions])
        encoder.embed_positions = shorter.requires_grad_(positions.weight.requires_grad)
        encoder.max_source_positions = num_positions
        model.config.max_source_positions = num_positions
    return model


def window_of(extractor: Any) -> float:
    """Longest input of the model in seconds."""
    if isinstance(extractor, WhisperFeatureExtractor):
        return float(extractor.chunk_length)
    if "AST" in type(extractor).__name__:
        return extractor.max_length / 100  # frames of 10 ms
    return float("inf")


# ── inputs ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def sounds_of(rows: list[dict[str, Any]], extractor: Any) -> list[np.ndarray]:
    """Each (samples,) float32 at the model's rate."""
    return [load_audio(row["audio"], extractor.sampling_rate) for row in rows]


def model_inputs(
    sounds: list[np.ndarray],  # (samples,) each
    extractor: Any,
    config: PretrainedConfig,
    augment: AudioAugment | None,
    rngs: Rngs | None,
) -> dict[str, Tensor]:
    """Returns waveforms (batch, samples), with a mask where the model was trained with one, or spectra; augmented by masks."""
    if takes_waveforms(config):
        return _waveforms(sounds, extractor, config, augment, rngs)
    padding = "max_length" if isinstance(extractor, WhisperFeatureExtractor) else True
    inputs = dict(extractor(sounds, sampling_rate=extractor.sampling_rate, padding=padding, return_tensors="pt"))
    if augment is not None and rngs is not None:
        name = extractor.model_input_names[0]
        bands_first = isinstance(extractor, WhisperFeatureExtractor)
        spectra = inputs[name].numpy() if bands_first else inputs[name].numpy().swapaxes(1, 2)
        masked_spectra = [
            mask_spectrum(spectrum, augment, rng, _frames_heard(sound, extractor))
            for spectrum, sound, rng in zip(spectra, sounds, rngs, strict=True)
        ]
        stacked = torch.from_numpy(np.stack(masked_spectra))
        inputs[name] = stacked if bands_first else stacked.transpose(1, 2).contiguous()
    return inputs


def _waveforms(
    sounds: list[np.ndarray], extractor: Any, config: PretrainedConfig, augment: AudioAugment | None, rngs: Rngs | None
) -> dict[str, Tensor]:
    shortest = extractor.sampling_rate // 10  # the convolutions need some samples to give one frame
    sounds = [np.pad(sound, (0, max(0, shortest - len(sound)))) for sound in sounds]
    # With the mask, so that every waveform is normalised by itself and not by the padding it happens to have.
    inputs = dict(
        extractor(
            sounds,
            sampling_rate=extractor.sampling_rate,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
    )
    if not extractor.return_attention_mask:
        # Models with group norm (wav2vec2-base) were trained on zero padding without a mask: a recording's outputs depend a
        # little on the longest in its batch, here as everywhere.
        inputs.pop("attention_mask")
    if (
        rngs is not None
    ):  # without masks too: the vector for what is masked takes part in every step, as processes expect
        counts = frames_of(config, [len(sound) for sound in sounds])
        time_masks = np.zeros((len(sounds), int(counts.max())), dtype=bool)
        for row, frames, rng in zip(time_masks, counts, rngs, strict=True):
            if augment is not None:
                row[:frames] = masked(int(frames), augment.time_masks, LONGEST_TIME_MASK, augment, rng)
        inputs["mask_time_indices"] = torch.from_numpy(time_masks)
    return inputs


def _frames_heard(sound: np.ndarray, extractor: Any) -> int:
    return max(1, len(sound) // getattr(extractor, "hop_length", extractor.sampling_rate // 100))
