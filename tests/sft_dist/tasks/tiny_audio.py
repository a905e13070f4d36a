"""Tiny audio models of the true architectures with their processors, and recordings made of tones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from datasets import Dataset
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from sft_dist.data.rows import ROW, Examples
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.speech_ctc import ctc_tokenizer

RATE = 16000
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}


def wav2vec2(folder: Path, vocabulary: str | None = None, norm: str = "layer", **settings: Any) -> Path:
    """A pretrained body without a vocabulary, or a CTC model with one; 320 samples a frame, no dropout."""
    torch.manual_seed(0)
    tokenizer = ctc_tokenizer(list(vocabulary)) if vocabulary else None
    config = Wav2Vec2Config(
        **_SIZES,
        **_STILL,
        final_dropout=0.0,
        conv_dim=(8, 8, 8),
        conv_kernel=(10, 8, 5),
        conv_stride=(8, 8, 5),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        classifier_proj_size=16,
        **({"vocab_size": len(tokenizer), "pad_token_id": 0} if tokenizer else {}),
        **settings,
    )
    (Wav2Vec2ForCTC if tokenizer else Wav2Vec2Model)(config).save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
    (Wav2Vec2Processor(extractor, tokenizer) if tokenizer else extractor).save_pretrained(folder)
    return folder


def whisper(folder: Path, multilingual: bool = False, seconds: int = 1) -> Path:
    """Whisper that writes bytes."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=16,
        max_source_positions=50 * seconds,
        max_target_positions=40,
        classifier_proj_size=16,
        dropout=0.0,
        pad_token_id=ids("<|endoftext|>"),
        bos_token_id=ids("<|endoftext|>"),
        eos_token_id=ids("<|endoftext|>"),
        decoder_start_token_id=ids("<|startoftranscript|>"),
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    model = WhisperForConditionalGeneration(config)
    generation = model.generation_config
    generation._from_model_config = False  # otherwise what is set here is not read again
    generation.no_timestamps_token_id = ids("<|notimestamps|>")
    generation.is_multilingual = multilingual
    if multilingual:
        generation.lang_to_id = {f"<|{code}|>": ids(f"<|{code}|>") for code in ("en", "de")}
        generation.task_to_id = {task: ids(f"<|{task}|>") for task in ("transcribe", "translate")}
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=seconds)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def byte_tokenizer() -> WhisperTokenizer:
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {symbol: number for number, symbol in enumerate(["<|endoftext|>", *sorted(ByteLevel.alphabet())])}
    languages = [f"<|{code}|>" for code in LANGUAGES]  # transformers counts on their places after the start
    special = ["<|startoftranscript|>", *languages, "<|transcribe|>", "<|translate|>", "<|notimestamps|>"]
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


def ast(folder: Path) -> Path:
    torch.manual_seed(0)
    size = {"max_length": 64, "num_mel_bins": 32}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ASTForAudioClassification(ASTConfig(**_SIZES, **size, **dropout)).save_pretrained(folder)
    ASTFeatureExtractor(**size).save_pretrained(folder)
    return folder


def tone(path: Path, hertz: float, seconds: float, rate: int = RATE) -> Path:
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(int(hertz)).standard_normal(len(time)) * 0.01
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * time) + noise, rate)
    return path


def recipe(kind: str, model: Path, /, **sections: Any) -> Recipe:
    settings = sections.pop("task", {})
    data = {"source": "unused.csv", **sections.pop("data", {})}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "task": {"type": kind, **settings},
            "model": {"path": str(model), **sections.pop("model", {})},
            "data": data,
            "tuning": {"method": "full"},
            "train": {"lr": 1e-3, **sections.pop("train", {})},
        }
    )


def encoded(task: Any, rows: list[dict[str, Any]], processor: Any, split: str = "train") -> Examples:
    """As the data path does it: read, encoded, in a table with the row numbers."""
    read = [task.read(row, number) for number, row in enumerate(rows)]
    assert not any(isinstance(row, str) for row in read), read
    columns = {name: [row[name] for row in read] for name in read[0]}
    made = task.encode({**columns, ROW: list(range(len(rows)))}, processor)
    return Examples(Dataset.from_dict({**made, ROW: list(range(len(rows)))}), split)


def rngs(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, number]) for number in range(count)]


def mean_loss(
    task: Any, model: Any, loss: Any, examples: Examples, processor: Any, pieces: int, seed: int | None
) -> float:
    """Of one global batch cut into micro-batches; in training with `seed` for the augmentation."""
    model.train(seed is not None)
    drawn = rngs(len(examples), seed) if seed is not None else None
    total = 0.0
    for indices in np.array_split(np.arange(len(examples)), pieces):
        some = [drawn[i] for i in indices] if drawn else None
        inputs, targets = task.collate(examples.at(indices), processor, some)
        with torch.no_grad():
            total += loss.total(task.forward(model, inputs), targets).item()
    return total / task.weights(loss, examples).sum()
