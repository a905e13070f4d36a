"""Tokenizers and models small enough to be made in a test: of the true classes, seeded, with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sft_dist.recipe.schema import Recipe

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SENTENCES = [
    "the cat sat on the mat and the dog lay beside the door",
    "how many legs has a spider? a spider has eight legs",
    "what is the capital of France? Paris is the capital of France",
    "### User: ### Assistant: ### System: <s> user assistant system",
]


def byte_tokenizer(template: str | None = CHATML, texts: Iterable[str] = SENTENCES) -> PreTrainedTokenizerFast:
    """Byte-level BPE, like GPT-2's and Llama 3's: any text has tokens, and they decode to that text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>", model_max_length=512
    )
    fast.chat_template = template
    return fast


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Word pieces with [CLS] and [SEP], like BERT's."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=128,
    )  # fmt: skip


def causal_model(kind: str, vocabulary: int, attention: str = "sdpa", **changed: Any) -> torch.nn.Module:
    """A 2-layer Llama, GPT-2 or Qwen2."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

    torch.manual_seed(0)
    wide: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    tokens = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0}
    config = {
        "llama": lambda: LlamaConfig(**wide, **tokens, **changed),
        "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=4, **tokens, **changed),
        "qwen2": lambda: Qwen2Config(**wide, **tokens, **changed),
    }[kind]()
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def recipe_of(task: str | dict[str, Any], **data: Any) -> Recipe:
    """The shortest recipe with that task; `data` beside the source."""
    tree = {
        "name": "tiny",
        "task": task,
        "model": {"path": "./none"},
        "data": {"source": "none.jsonl", **data},
        "tuning": "full",
        "train": {"lr": 1e-3},
    }
    return Recipe.model_validate(tree)
