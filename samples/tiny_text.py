"""Language models of the true architectures with few, random weights, each with a tokenizer of its own kind that was
trained here: they load, train and generate in seconds, and know nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

CORPUS = ("alpaca", "summaries", "verses")  # what tokenizers are trained on
VOCABULARY = 4000
HIDDEN, LAYERS, HEADS, FEED_FORWARD, POSITIONS = 64, 2, 4, 128, 512
COMMON = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
ENCODER = COMMON | {"intermediate_size": FEED_FORWARD, "max_position_embeddings": POSITIONS}
SEQ2SEQ = {
    "d_model": HIDDEN,
    "max_position_embeddings": POSITIONS,
    **{f"{side}_layers": LAYERS for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": HEADS for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": FEED_FORWARD for side in ("encoder", "decoder")},
}
BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
CHAT_MARKS = ["<|im_start|>", "<|im_end|>"]


# ── encoders ────────────────────────────────────────────────────────────────────────────────────────────────────────
def tiny_bert(into: Path, have: dict[str, Path]) -> None:
    """BertModel with random weights (seed 0); a WordPiece tokenizer of 4,000 tokens, lower-casing, trained on the samples."""
    from transformers import BertConfig, BertModel, BertTokenizer

    tokenizer = trained(BertTokenizer(), have)
    save(BertModel, BertConfig(**ENCODER, **ids(tokenizer, "pad")), tokenizer, into)


def tiny_roberta(into: Path, have: dict[str, Path]) -> None:
    """RobertaModel with random weights (seed 0); a byte-level BPE tokenizer of 4,000 tokens trained on the samples."""
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    tokenizer = trained(RobertaTokenizer(), have)
    positions = {
        "max_position_embeddings": POSITIONS + tokenizer.pad_token_id + 1
    }  # they are counted from after the padding's
    config = RobertaConfig(**(ENCODER | positions), type_vocab_size=1, **ids(tokenizer, "pad", "bos", "eos"))
    save(RobertaModel, config, tokenizer, into)


def tiny_modernbert(into: Path, have: dict[str, Path]) -> None:
    """ModernBertModel with random weights (seed 0), one global and one local attention layer; a byte-level BPE tokenizer of
    4,000 tokens with [CLS] and [SEP], trained on the samples."""
    from transformers import ModernBertConfig, ModernBertModel, RobertaTokenizer

    names = BERT_TOKENS | {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    tokenizer = trained(RobertaTokenizer(**names), have)
    config = ModernBertConfig(
        **ENCODER, local_attention=32, global_attn_every_n_layers=2, **ids(tokenizer, "pad", "bos", "eos", "cls", "sep")
    )
    save(ModernBertModel, config, tokenizer, into)


def tiny_deberta_v2(into: Path, have: dict[str, Path]) -> None:
    """DebertaV2Model as DeBERTa-v3 has it (relative positions, disentangled attention) with random weights (seed 0); a
    Unigram tokenizer of 4,000 tokens trained on the samples."""
    from transformers import DebertaV2Config, DebertaV2Model, DebertaV2Tokenizer

    tokenizer = trained(DebertaV2Tokenizer(), have)
    config = DebertaV2Config(
        **ENCODER,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        type_vocab_size=0,
        **ids(tokenizer, "pad"),
    )
    save(DebertaV2Model, config, tokenizer, into)


# ── decoders ────────────────────────────────────────────────────────────────────────────────────────────────────────
def tiny_gpt2(into: Path, have: dict[str, Path]) -> None:
    """GPT2LMHeadModel with random weights (seed 0); a byte-level BPE tokenizer of 4,000 tokens trained on the samples. Like the
    published one it has no padding token and no chat template."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    tokenizer = trained(GPT2Tokenizer(), have)
    config = GPT2Config(
        n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=POSITIONS, **ids(tokenizer, "bos", "eos")
    )
    save(GPT2LMHeadModel, config, tokenizer, into)


def tiny_llama(into: Path, have: dict[str, Path]) -> None:
    """LlamaForCausalLM with random weights (seed 0) and grouped queries; SmolLM2's tokenizer, trained anew on the samples to
    4,000 tokens, with its special tokens and chat template."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = trained(AutoTokenizer.from_pretrained(have["smollm2-135m"]), have)
    config = LlamaConfig(
        **ENCODER, num_key_value_heads=2, tie_word_embeddings=True, **ids(tokenizer, "pad", "bos", "eos")
    )
    save(LlamaForCausalLM, config, tokenizer, into)


def tiny_qwen2(into: Path, have: dict[str, Path]) -> None:
    """Qwen2ForCausalLM with random weights (seed 0); Qwen2's kind of byte-level BPE tokenizer with 4,000 tokens trained on the
    samples, its chat marks, and SmolLM2's chat template (ChatML, as Qwen2's)."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    tokenizer = trained(Qwen2Tokenizer(additional_special_tokens=CHAT_MARKS), have)
    tokenizer.eos_token = CHAT_MARKS[1]
    tokenizer.chat_template = AutoTokenizer.from_pretrained(have["smollm2-135m"]).chat_template
    config = Qwen2Config(**ENCODER, num_key_value_heads=2, tie_word_embeddings=True, **ids(tokenizer, "pad", "eos"))
    save(Qwen2ForCausalLM, config, tokenizer, into)


# ── encoder-decoders ────────────────────────────────────────────────────────────────────────────────────────────────
def tiny_t5(into: Path, have: dict[str, Path]) -> None:
    """T5ForConditionalGeneration (version 1.1: gated GELU) with random weights (seed 0); a Unigram tokenizer of 4,000 tokens
    trained on the samples, with T5's 100 sentinels."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    tokenizer = trained(T5Tokenizer(), have)
    config = T5Config(
        d_model=HIDDEN,
        d_kv=HIDDEN // HEADS,
        d_ff=FEED_FORWARD,
        num_layers=LAYERS,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=tokenizer.pad_token_id,
        **ids(tokenizer, "pad", "eos"),
    )
    save(T5ForConditionalGeneration, config, tokenizer, into)


def tiny_bart(into: Path, have: dict[str, Path]) -> None:
    """BartForConditionalGeneration with random weights (seed 0); a byte-level BPE tokenizer of 4,000 tokens trained on the
    samples."""
    from transformers import BartConfig, BartForConditionalGeneration, BartTokenizer

    tokenizer = trained(BartTokenizer(), have)
    end = tokenizer.eos_token_id  # BART's decoder starts with the end
    config = BartConfig(
        **SEQ2SEQ, decoder_start_token_id=end, forced_eos_token_id=end, **ids(tokenizer, "pad", "bos", "eos")
    )
    save(BartForConditionalGeneration, config, tokenizer, into)


def tiny_marian(into: Path, have: dict[str, Path]) -> None:
    """MarianMTModel with random weights (seed 0); a SentencePiece model for English and one for French, 2,000 pieces each,
    trained on the verses, over one common vocabulary."""
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    english, french = (
        sentencepiece(column_of_verses(have, side)[::8], into / f"{side}.spm") for side in ("source", "target")
    )
    pieces = ["</s>", "<unk>", *dict.fromkeys([*english, *french]), "<pad>"]
    (into / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    tokenizer = MarianTokenizer(
        str(into / "source.spm"), str(into / "target.spm"), str(into / "vocab.json"), source_lang="en", target_lang="fr"
    )
    config = MarianConfig(
        **SEQ2SEQ,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
        scale_embedding=True,
        static_position_embeddings=True,
        **ids(tokenizer, "pad", "eos"),
    )
    save(MarianMTModel, config, tokenizer, into)


def tiny_m2m(into: Path, have: dict[str, Path]) -> None:
    """M2M100ForConditionalGeneration with random weights (seed 0); one SentencePiece model of 2,000 pieces trained on the
    English and French verses, and M2M100's 100 language tokens."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer

    both = [*column_of_verses(have, "source")[::8], *column_of_verses(have, "target")[::8]]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sentencepiece(both, into / "sentencepiece.bpe.model")]
    (into / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    tokenizer = M2M100Tokenizer(
        str(into / "vocab.json"), str(into / "sentencepiece.bpe.model"), src_lang="en", tgt_lang="fr"
    )
    numbers = ids(tokenizer, "pad", "bos", "eos")
    numbers["vocab_size"] = max(len(tokenizer), *(number + 1 for number in tokenizer.lang_token_to_id.values()))
    config = M2M100Config(**SEQ2SEQ, decoder_start_token_id=tokenizer.eos_token_id, **numbers)
    save(M2M100ForConditionalGeneration, config, tokenizer, into)


# ── shared ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def trained(tokenizer: Any, have: dict[str, Path]) -> Any:
    """A tokenizer with the same rules and special tokens whose vocabulary was learned from the samples."""
    fresh = tokenizer.train_new_from_iterator(corpus(have), VOCABULARY)
    fresh.model_max_length = POSITIONS
    return fresh


def corpus(have: dict[str, Path]) -> list[str]:
    """English and some French, about 0.7 MB: instructions, documentation and verses."""
    alpaca = json.loads((have["alpaca"] / "alpaca.json").read_text(encoding="utf-8"))
    documented = (have["summaries"] / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [*alpaca[:300], *map(json.loads, documented[:300])]
    texts = [row[key] for row in rows for key in ("instruction", "input", "output", "source", "target") if row.get(key)]
    return texts + column_of_verses(have, "source")[::16] + column_of_verses(have, "target")[::16]


def column_of_verses(have: dict[str, Path], column: str) -> list[str]:
    with (have["verses"] / "train.csv").open(encoding="utf-8", newline="") as file:
        return [row[column] for row in csv.DictReader(file)]


def sentencepiece(texts: Iterable[str], path: Path, vocabulary: int = 2000) -> Sequence[str]:
    """Train a SentencePiece model, write it, and return its pieces without the control symbols."""
    import sentencepiece as spm

    with path.open("wb") as file:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, vocab_size=vocabulary, num_threads=1, minloglevel=2
        )
    model = spm.SentencePieceProcessor(model_file=str(path))
    return [model.id_to_piece(number) for number in range(model.get_piece_size()) if not model.is_control(number)][1:]


def ids(tokenizer: Any, *names: str) -> dict[str, int]:
    """vocab_size, and the number of each special token as a config names it."""
    return {"vocab_size": len(tokenizer)} | {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names
    }


def save(model_class: Any, config: Any, processor: Any, into: Path) -> None:
    """A model with random weights from a fixed seed, and its processor, as a Hugging Face folder."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
    model.save_pretrained(into)
    processor.save_pretrained(into)
