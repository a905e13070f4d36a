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


def examples_of(task: Any, rows: dict[str, list[Any]], tokenizer: Any, split: str = "validation") -> Any:
    """Encoded and arranged as the product does it, without its cache. The rows count from 100."""
    from datasets import Dataset, Features

    from sft_dist.data.rows import ROW, Examples

    numbers = list(range(100, 100 + len(next(iter(rows.values())))))
    columns = {**task.encode({**rows, ROW: numbers}, tokenizer), ROW: numbers}
    some = Dataset.from_dict(columns).features
    known = {name: feature for name, feature in (task.encoded_features or {}).items() if name in columns}
    table = Dataset.from_dict(columns, features=Features({**some, **known}))
    return Examples(task.arrange(table, split), split)


def loss_of(
    task: Any, model: Any, examples: Any, tokenizer: Any, micro_batches: int
) -> tuple[float, list[torch.Tensor]]:
    """The loss of one global batch in so many micro-batches, and its gradients."""
    import numpy as np

    model.zero_grad()
    loss = task.build_loss(examples)
    divisor = float(task.weights(loss, examples).sum())
    total = 0.0
    for some in np.array_split(np.arange(len(examples)), micro_batches):
        inputs, targets = task.collate(examples.at(some), tokenizer, None)
        share = loss.total(task.forward(model, inputs), targets) / divisor
        share.backward()
        total += float(share.detach().double())
    return total, [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def train_on(task: Any, model: Any, examples: Any, tokenizer: Any, steps: int, lr: float = 3e-3) -> Any:
    """The model after so many steps on all examples at once."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        loss_of(task, model, examples, tokenizer, 1)
        optimizer.step()
    return model.eval()


def predictions_of(task: Any, model: Any, examples: Any, tokenizer: Any) -> list[Any]:
    import numpy as np

    inputs, _ = task.collate(examples.at(np.arange(len(examples))), tokenizer, None)
    with torch.no_grad():
        return task.predict(model, inputs, task.forward(model, inputs), tokenizer)


def sentence_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Unigram sentence pieces with </s> at the end, like T5's."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=128
    )


def sentencepiece_files(folder: Any, texts: Iterable[str]) -> tuple[str, str]:
    """A SentencePiece model and the JSON vocabulary beside it, as Marian's and M2M100's tokenizers read them."""
    import json

    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "spm"), vocab_size=60, character_coverage=1.0,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "spm.model"))
    found = ["<s>", "<pad>", "</s>", "<unk>"]
    found += [piece for piece in map(pieces.id_to_piece, range(pieces.get_piece_size())) if piece not in found]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(found)}))
    return str(folder / "spm.model"), str(folder / "vocab.json")
