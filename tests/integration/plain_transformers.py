"""Answers of exported folders by transformers alone, as its documentation would have it: reads
[{"kind", "folder", "inputs"}, ...] from standard input, writes the list of answers to standard output."""

from __future__ import annotations

import json
import sys
from typing import Any

import soundfile
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForTokenClassification, AutoTokenizer, pipeline


def classes(kind: str, folder: str, inputs: list[Any], **options: Any) -> list[Any]:
    classify: Any = pipeline(kind, folder)
    answers = [classify(value, top_k=None, **options) for value in inputs]
    scores = [{entry["label"]: entry["score"] for entry in answer} for answer in answers]
    threshold = getattr(classify.model.config, "threshold", None)
    if threshold is None:
        return scores
    return [{"scores": row, "labels": sorted(name for name in row if row[name] >= threshold)} for row in scores]


def tags(folder: str, inputs: list[str]) -> list[Any]:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForTokenClassification.from_pretrained(folder)
    answers = []
    for text in inputs:
        encoded = tokenizer(text.split(), is_split_into_words=True, return_tensors="pt")
        best = model(**encoded).logits[0].argmax(-1).tolist()
        words = encoded.word_ids()
        firsts = [words.index(number) for number in range(len(text.split()))]
        answers.append([model.config.id2label[best[position]] for position in firsts])
    return answers


def texts(folder: str, inputs: list[str]) -> list[Any]:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)
    written = [model.generate(**tokenizer(text, return_tensors="pt"))[0] for text in inputs]
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]


def answers(folder: str, inputs: list[str]) -> list[Any]:
    write: Any = pipeline("text-generation", folder)
    return [write([{"role": "user", "content": text}])[0]["generated_text"][-1]["content"] for text in inputs]


def boxes(folder: str, inputs: list[str]) -> list[Any]:
    detect: Any = pipeline("object-detection", folder)
    answers = [detect(path, threshold=detect.model.config.threshold) for path in inputs]
    return [sorted(answer, key=lambda entry: -entry["score"]) for answer in answers]


def shares(folder: str, inputs: list[str]) -> list[Any]:
    segment: Any = pipeline("image-segmentation", folder)
    answers = [segment(path, subtask="semantic") for path in inputs]
    return [
        {
            entry["label"]: sum(value > 0 for value in entry["mask"].tobytes()) / len(entry["mask"].tobytes())
            for entry in answer
        }
        for answer in answers
    ]


def sound(path: str) -> dict[str, Any]:
    samples, rate = soundfile.read(path, dtype="float32")
    return {"raw": samples, "sampling_rate": rate}


def transcripts(folder: str, inputs: list[str]) -> list[Any]:
    recognize: Any = pipeline("automatic-speech-recognition", folder)
    return [recognize(sound(path))["text"].strip() for path in inputs]


KINDS = {
    "text-classification": lambda folder, inputs: classes("text-classification", folder, inputs),
    "token-classification": tags,
    "translation": texts,
    "instruction-tuning": answers,
    "image-classification": lambda folder, inputs: classes("image-classification", folder, inputs),
    "object-detection": boxes,
    "semantic-segmentation": shares,
    "audio-classification": lambda folder, inputs: classes("audio-classification", folder, list(map(sound, inputs))),
    "speech-recognition": transcripts,
}

if __name__ == "__main__":
    with torch.no_grad():
        given = json.load(sys.stdin)
        print(json.dumps([KINDS[model["kind"]](model["folder"], model["inputs"]) for model in given]))
    assert "sft_dist" not in sys.modules
