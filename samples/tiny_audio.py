"""Speech models of the true architectures with few, random weights, and their processors."""

from __future__ import annotations

import json
import string
from pathlib import Path

from samples.tiny_text import save

CHARACTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", "-", *string.ascii_lowercase]  # <pad> is also CTC's blank
RATE = 16_000


def tiny_wav2vec2(into: Path, have: dict[str, Path]) -> None:
    """Wav2Vec2ForCTC with random weights (seed 0): the seven convolutions of the original, 50 frames a second, and two
    layers; a vocabulary of lower-case letters, apostrophe, hyphen and `|` between words."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    vocabulary = into / "vocab.json"
    vocabulary.write_text(json.dumps({character: number for number, character in enumerate(CHARACTERS)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary))
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    config = Wav2Vec2Config(
        vocab_size=len(CHARACTERS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=[32] * 7,
        feat_extract_norm="layer",  # with padded batches the group norm of the original depends on the padding
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        ctc_loss_reduction="sum",
        ctc_zero_infinity=True,
        mask_time_length=4,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save(Wav2Vec2ForCTC, config, Wav2Vec2Processor(extractor, tokenizer), into)


def tiny_ast(into: Path, have: dict[str, Path]) -> None:
    """ASTModel with random weights (seed 0) for clips of 3 seconds (304 frames of 64 mel bands)."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    frames, bands = 304, 64
    config = ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        patch_size=16,
        frequency_stride=16,
        time_stride=16,
        max_length=frames,
        num_mel_bins=bands,
    )
    save(ASTModel, config, ASTFeatureExtractor(sampling_rate=RATE, max_length=frames, num_mel_bins=bands), into)


def tiny_whisper(into: Path, have: dict[str, Path]) -> None:
    """WhisperForConditionalGeneration with random weights (seed 0), clips of 5 seconds instead of 30; the processor of the
    sample whisper-tiny, its generation settings too."""
    from transformers import (
        AutoProcessor,
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    source = have["whisper-tiny"]
    processor = AutoProcessor.from_pretrained(source)
    processor.feature_extractor = WhisperFeatureExtractor(chunk_length=5)
    published = WhisperConfig.from_pretrained(source)
    config = WhisperConfig(
        vocab_size=published.vocab_size,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=250,  # 100 frames a second, halved by the convolutions
        max_target_positions=128,
        pad_token_id=published.pad_token_id,
        bos_token_id=published.bos_token_id,
        eos_token_id=published.eos_token_id,
        decoder_start_token_id=published.decoder_start_token_id,
    )
    save(WhisperForConditionalGeneration, config, processor, into)
    generation = GenerationConfig.from_pretrained(source)
    generation.max_length = config.max_target_positions
    generation.save_pretrained(into)
