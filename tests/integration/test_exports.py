"""An exported folder gives plain transformers the answers of `predict`, in a fresh process, for every task."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from sft_dist import predict
from sft_dist.evaluation.outputs import json_line
from sft_dist.export import export
from tests.checkpoints import STEP, run_with_checkpoint
from tests.sft_dist.tasks import tiny_audio, tiny_vision
from tests.tiny_text import (
    SENTENCES,
    byte_tokenizer,
    causal_model,
    examples_of,
    sentence_tokenizer,
    train_on,
    word_tokenizer,
)

TEXTS = ["the cat sat on the mat", "how many legs has a spider"]
FIXED = tiny_vision.FIXED
ABC = ["a", "b", "c"]
pytestmark = pytest.mark.slow

QUESTIONS = {"say yes": "yes", "say no": "no no"}


# ── models ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def bert(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = word_tokenizer(SENTENCES)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def t5(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = sentence_tokenizer(SENTENCES)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    model.generation_config.update(num_beams=2, early_stopping=True, max_length=30)  # as of a pretrained model
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def llama(folder: Path) -> None:
    """A base model: it samples, and ends texts by another token than the template ends turns."""
    tokenizer = byte_tokenizer()
    model = causal_model("llama", len(tokenizer))
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def vit(folder: Path) -> None:
    tiny_vision.save(
        folder, transformers.ViTForImageClassification, tiny_vision.vit(), transformers.ViTImageProcessor, **FIXED
    )


def yolos(folder: Path) -> None:
    tiny_vision.save(
        folder, transformers.YolosForObjectDetection, tiny_vision.yolos(), transformers.YolosImageProcessor, **FIXED
    )


def segformer(folder: Path) -> None:
    tiny_vision.save(
        folder, transformers.SegformerForSemanticSegmentation, tiny_vision.segformer(),
        transformers.SegformerImageProcessor, **FIXED,
    )  # fmt: skip


def ctc(folder: Path) -> None:
    tiny_audio.wav2vec2(folder, "abcdefgh")


# ── what training would do ──────────────────────────────────────────────────────────────────────────────────────────
def noise(model: Any, task: Any, processor: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def memorize(model: Any, task: Any, processor: Any) -> None:
    system = [{"role": "system", "content": task.settings.system}]
    chats = [
        [*system, {"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        for asked, answer in QUESTIONS.items()
    ]
    train_on(task, model, examples_of(task, {"chat": list(map(json.dumps, chats))}, processor), processor, 60, lr=1e-2)


# ── answers of `predict` as plain transformers gives them ───────────────────────────────────────────────────────────
def multi_label(row: dict[str, Any]) -> dict[str, Any]:
    return {"scores": row["probabilities"], "labels": sorted(row["labels"])}


def text_of(row: dict[str, Any]) -> str:
    return row["text"]


def corners(row: dict[str, Any]) -> list[dict[str, Any]]:
    def corner(entry: dict[str, Any]) -> dict[str, float]:
        x, y, width, height = entry["box"]
        return {"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height}

    return [{"score": entry["score"], "label": entry["label"], "box": corner(entry)} for entry in row["objects"]]


TASKS: dict[str, tuple[dict[str, Any], Callable[[Path], Any], list[str], Callable[..., Any], Callable[..., Any]]] = {
    "one class": ({"type": "text-classification"}, bert, ABC, noise, lambda row: row["probabilities"]),
    "regression": (
        {"type": "text-classification", "problem": "regression"}, bert, [], noise, lambda row: {"value": row["value"]},
    ),
    "many classes": (
        {"type": "text-classification", "problem": "multi-label", "threshold": 0.52}, bert, ABC, noise, multi_label,
    ),
    "tags": ({"type": "token-classification"}, bert, ["O", "B-x", "I-x"], noise, lambda row: row["tags"]),
    "beams": (
        {"type": "translation", "num_beams": 3, "max_target_length": 12}, t5, [], noise, text_of,
    ),
    "greedy": ({"type": "translation", "max_target_length": 9}, t5, [], noise, text_of),
    "chat": (
        {"type": "instruction-tuning", "system": "Say \"it\":\n{% 'ü' %}", "max_new_tokens": 24}, llama, [], memorize, text_of,
    ),
    "image class": ({"type": "image-classification"}, vit, ABC, noise, lambda row: row["probabilities"]),
    "image classes": (
        {"type": "image-classification", "problem": "multi-label", "threshold": 0.55}, vit, ABC, noise, multi_label,
    ),
    "boxes": ({"type": "object-detection", "threshold": 0.287}, yolos, ABC, noise, corners),
    "segments": ({"type": "semantic-segmentation"}, segformer, ABC, noise, lambda row: row["shares"]),
    "sound class": ({"type": "audio-classification"}, tiny_audio.wav2vec2, ABC, noise, lambda row: row["probabilities"]),
    "ctc": ({"type": "speech-recognition", "max_seconds": 1.0}, ctc, list("abcdefgh"), noise, text_of),
    "whisper": (
        {"type": "speech-recognition", "max_seconds": 1.0, "num_beams": 2}, tiny_audio.whisper, [], noise, text_of,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("inputs")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        tiny_audio.tone(folder / f"{number}.wav", 300 + 900 * number, 0.5)
    (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    (folder / "questions.txt").write_text("\n".join(QUESTIONS) + "\n")
    return {
        "image": [str(folder / f"{number}.png") for number in range(2)],
        "audio": [str(folder / f"{number}.wav") for number in range(2)],
        "text": [str(folder / "texts.txt")],
        "prompt": [str(folder / "questions.txt")],
    }


@pytest.fixture(scope="module")
def exported(inputs: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name -> (kind, folder, what transformers is given, rows of `predict`)."""
    models: dict[Any, Path] = {}
    made = {}
    for name, (task, model, labels, change, _) in TASKS.items():
        if model not in models:
            models[model] = tmp_path_factory.mktemp("model") / "tiny"
            model(models[model])
        settings = {
            "task": task, "model": {"path": str(models[model])}, "data": {"source": "none.jsonl"}, "tuning": "full",
            "evaluate": {"micro_batch": 1},
        }  # fmt: skip
        run, work, _ = run_with_checkpoint(tmp_path_factory.mktemp("run"), settings, labels, change)
        folder = export(run, STEP, run.export, "merged", {}, {})
        role = work.input_roles[0]
        files = inputs[role if role in inputs else "text"]
        given = {"image": files, "audio": files, "prompt": list(QUESTIONS)}.get(role, TEXTS)
        rows = [json.loads(json_line(prediction)) for prediction in predict.predict(folder, files)]
        made[name] = (task["type"], str(folder), given, rows)
    return made


@pytest.fixture(scope="module")
def plain(exported: dict[str, Any]) -> dict[str, Any]:
    """Name -> answers of transformers."""
    asked = [{"kind": kind, "folder": folder, "inputs": given} for kind, folder, given, _ in exported.values()]
    script = Path(__file__).with_name("plain_transformers.py")
    done = subprocess.run(
        [sys.executable, script], input=json.dumps(asked), capture_output=True, text=True, cwd="/", timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(exported, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", list(TASKS))
def test_plain_transformers_answers_as_predict_does(exported: dict[str, Any], plain: dict[str, Any], name: str) -> None:
    expected = [TASKS[name][-1](row) for row in exported[name][-1]]
    assert_same(plain[name], expected)


def test_the_answers_are_worth_comparing(exported: dict[str, Any]) -> None:
    rows = {name: made[-1] for name, made in exported.items()}
    assert [row["text"] for row in rows["chat"]] == list(QUESTIONS.values()), (
        "memorised, and ended by the template's token"
    )
    for name in ("beams", "greedy", "ctc", "whisper"):
        assert any(row["text"] for row in rows[name]), (name, rows[name])
    for name in ("many classes", "image classes"):
        assert any(0 < len(row["labels"]) < 3 for row in rows[name]), (name, rows[name])
    assert all(0 < len(row["objects"]) < 12 for row in rows["boxes"]), rows["boxes"]


def assert_same(plain: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal, numbers within the tolerance; corners of boxes, which transformers cuts to whole pixels, within one."""
    if isinstance(expected, dict):
        assert plain.keys() == expected.keys(), (plain, expected)
        for key, value in expected.items():
            assert_same(plain[key], value, 1.1 if key in ("xmin", "ymin", "xmax", "ymax") else tolerance)
    elif isinstance(expected, list):
        assert len(plain) == len(expected), (plain, expected)
        for value, expected_value in zip(plain, expected, strict=True):
            assert_same(value, expected_value, tolerance)
    elif isinstance(expected, float):
        assert plain == pytest.approx(expected, abs=tolerance)
    else:
        assert plain == expected
