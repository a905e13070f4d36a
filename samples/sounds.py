"""Speech: short clips with a language and a speaker, and clips with what is said in them."""

from __future__ import annotations

import shutil
import wave
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samples.prompts import SENTENCES, words
from samples.rows import divided, write_csv

MAX_SECONDS = 3.0
# language: (folder of its recordings, speaker)
VOICES = {"en": ("en_US_f_Allison", "allison"), "es": ("es_MX_f_Allison", "allison"), "fr": ("fr_CA_f_June", "june")}
NO_SPEECH = ("silence/", "beep", "ascending-2tone", "descending-2tone", "tt-monkeys")


@dataclass(frozen=True)
class Clip:
    """A recording, the name its copy gets, and the rest of its row."""

    source: Path
    file_name: str
    row: tuple[str, ...]


def spoken_words(into: Path, have: dict[str, Path]) -> None:
    """The prompts of a telephone exchange that exist in English, Spanish and French and last at most 3 seconds in each of
    them (8 kHz wav files, copied): digits, letters, the spelling alphabet, words and short sentences. train, validation and test are folders with a
    metadata.csv: file_name, label (the prompt's name), language, speaker. Divided 80:10:10 by prompt with a fixed seed: one prompt in its
    three languages is in one split. English and Spanish are the same speaker."""
    folders = {language: _recordings(have, language) for language in VOICES}
    names = set.intersection(*({_name(path, folder) for path in folder.rglob("*.wav")} for folder in folders.values()))
    names = {name for name in names if not name.startswith(NO_SPEECH)}
    short = (
        name for name in sorted(names) if all(seconds(at / f"{name}.wav") <= MAX_SECONDS for at in folders.values())
    )
    for split, chosen in divided(short).items():
        clips = []
        for name in chosen:
            for language, folder in folders.items():
                copy = f"{language}-{name.replace('/', '-')}.wav"
                clips.append(Clip(folder / f"{name}.wav", copy, (name, language, VOICES[language][1])))
        write_clips(into / split, ("label", "language", "speaker"), clips)


def asr_clips(into: Path, have: dict[str, Path]) -> None:
    """English prompts of a telephone exchange of one word each (8 kHz wav files, copied): numbers, days, months, letters and the
    spelling alphabet; and ten utterances of the speech recogniser's test data (16 kHz) with its transcripts. Texts are
    lower case without punctuation. train, validation and test are folders with a metadata.csv: file_name, text, speaker.
    The prompts are divided 80:10:10 with a fixed seed; the ten utterances, by other speakers, are in test."""
    splits = _prompts(_recordings(have, "en"), words())
    tests = have["pocketsphinx-testdata"] / "usr" / "share" / "pocketsphinx" / "test" / "data"
    for speaker, file in (("librivox", "transcription"), ("cards", "cards.transcription")):
        for name, text in read_sphinx((tests / speaker / file).read_text(encoding="utf-8")):
            splits["test"].append(Clip(tests / speaker / f"{name}.wav", f"{speaker}-{name}.wav", (text, speaker)))
    for split, clips in splits.items():
        write_clips(into / split, ("text", "speaker"), clips)


def asr_sentences(into: Path, have: dict[str, Path]) -> None:
    """English prompts of a telephone exchange that are sentences (8 kHz wav files, copied); texts, lower case without
    punctuation, from samples/prompts.py. train, validation and test (80:10:10, fixed seed) are folders with a metadata.csv:
    file_name, text, speaker (one speaker)."""
    for split, clips in _prompts(_recordings(have, "en"), SENTENCES.items()).items():
        write_clips(into / split, ("text", "speaker"), clips)


def _prompts(folder: Path, texts: Iterable[tuple[str, str]]) -> dict[str, list[Clip]]:
    known = [(name, text) for name, text in texts if (folder / f"{name}.wav").is_file()]
    return {
        split: [
            Clip(folder / f"{name}.wav", f"{name.replace('/', '-')}.wav", (text, "allison")) for name, text in chosen
        ]
        for split, chosen in divided(known).items()
    }


def read_sphinx(text: str) -> list[tuple[str, str]]:
    """(name, words) of lines such as `<s> ten of clubs </s> (001)`."""
    rows = []
    for line in text.splitlines():
        words, _, name = line.rpartition("(")
        if name:
            rows.append((name.rstrip(") "), " ".join(word for word in words.split() if word not in ("<s>", "</s>"))))
    return rows


def seconds(path: Path) -> float:
    with wave.open(str(path)) as file:
        return file.getnframes() / file.getframerate()


def write_clips(folder: Path, columns: Sequence[str], clips: Iterable[Clip]) -> None:
    """Copies of the recordings and the metadata.csv of an audio folder."""
    folder.mkdir()
    rows = []
    for clip in clips:
        shutil.copyfile(clip.source, folder / clip.file_name)
        rows.append((clip.file_name, *clip.row))
    write_csv(folder / "metadata.csv", ("file_name", *columns), rows)


def _recordings(have: dict[str, Path], language: str) -> Path:
    root = have[f"asterisk-core-sounds-{language}-wav"]
    return root / "usr" / "share" / "asterisk" / "sounds" / VOICES[language][0]


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))
