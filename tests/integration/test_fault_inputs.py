"""Inputs of public bug reports that fine-tuning tools have read wrongly, each with the right value, prepared in this process.

Reports by number: 01 huggingface/course#692, 02 apache/arrow#46853, 03 huggingface/datasets#6778, 04 huggingface/setfit#403, 06
huggingface/transformers#8698, 07 chakki-works/seqeval#95, 09 NVIDIA-NeMo/Megatron-Bridge#4072, 10 ml-explore/mlx-examples#1053,
11 fw-ai/cookbook#378, 12 fw-ai/cookbook#387, 14 huggingface/open-r1#454, 15 oobabooga/textgen#2710, 17
huggingface/datasets#7222, 19 huggingface/datasets#743, 22 huggingface/transformers#11102, 24 huggingface/transformers#10339, 28
huggingface/transformers#27224, 30 roboflow/rf-detr#189, 32 HumanSignal/label-studio#7294, 33 huggingface/transformers#21638, 34
fluent-ffmpeg/node-fluent-ffmpeg#864, 35 huggingface/datasets#5391, 36 huggingface/transformers#14764, 37
huggingface/accelerate#3203, 38 v7labs/darwin-py#406. The others are siblings of these.
"""

from __future__ import annotations

import ast
import io
import json
import wave
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sft_dist.check import check
from sft_dist.data.media import load_image
from sft_dist.data.prepare import Prepared, prepare
from sft_dist.quality.page import to_html
from sft_dist.quality.report import to_text
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of
from sft_dist.tasks.tag_schemes import tag_scheme
from tests.sft_dist.tasks.tiny_audio import wav2vec2
from tests.tiny_text import byte_tokenizer

ROOT = Path(__file__).resolve().parents[2]
ALL_ROWS = {"validation": 0, "test": 0}

TEXTS, TAGS, CHAT, TRANSLATION = "text-classification", "token-classification", "instruction-tuning", "translation"
IMAGES, BOXES, MASKS = "image-classification", "object-detection", "semantic-segmentation"
SOUNDS, SPEECH = "audio-classification", "speech-recognition"
MULTI_LABEL = {"type": TEXTS, "problem": "multi-label"}

# Of Qwen's kind: tools, reasoning and calls with JSON arguments.
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\nTools:' }}{% for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{% set f = c.function or c %}"
    "{{ '<call>{\"name\": \"' + f.name + '\", \"arguments\": ' }}{{ f.arguments | tojson }}{{ '}</call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


# ── what is fed ─────────────────────────────────────────────────────────────────────────────────────────────────────
Source = Callable[[Path], str]  # writes files into a folder -> the recipe's data.source


def text(content: str, name: str = "d.csv") -> Source:
    def write(folder: Path) -> str:
        (folder / name).write_text(content, encoding="utf-8", newline="")
        return str(folder / name)

    return write


def lines(*rows: dict[str, Any]) -> Source:
    return text("".join(json.dumps(row) + "\n" for row in rows), "d.jsonl")


def labelled(*labels: Any) -> Source:
    return lines(*({"text": f"text {n}", "label": label} for n, label in enumerate(labels)))


def tagged(*tags: str) -> Source:
    return lines({"tokens": [f"w{n}" for n in range(len(tags))], "tags": tags})


def chat(*turns: dict[str, Any], **columns: Any) -> Source:
    return lines({"messages": turns, **columns})


def encoded(image: Image.Image, kind: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, **({"exif": exif} if orientation != 1 else {}))
    return file.getvalue()


def plain(width: int = 12, height: int = 8) -> Image.Image:
    return Image.fromarray(np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3))


def files(content_by_name: dict[str, bytes], source: str = "") -> Source:
    def write(folder: Path) -> str:
        for name, content in content_by_name.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return str(folder / source)

    return write


def images(*names: str) -> Source:
    return files({name: encoded(plain(9 + number), "PNG") for number, name in enumerate(names)})


def objects(**columns: Any) -> Source:
    row = json.dumps({"image": "0.png", "objects": columns}).encode()
    return files({"d.jsonl": row, "0.png": encoded(plain(), "PNG")}, "d.jsonl")


def parquet(columns: dict[str, Any]) -> Source:
    def write(folder: Path) -> str:
        pd.DataFrame(columns).to_parquet(folder / "d.parquet")
        return str(folder / "d.parquet")

    return write


def masks(kind: str) -> Source:
    mask = Image.fromarray(np.where(np.arange(96).reshape(8, 12) % 12 < 6, 0, 255).astype(np.uint8))
    return files({"images/a.png": encoded(plain(), "PNG"), f"masks/a.{kind.lower()}": encoded(mask, kind)})


def boxes(name: str, width: int, height: int, orientation: int = 1) -> Source:
    """COCO annotations of one image, stored 12 wide and 8 high."""
    annotations = {
        "images": [{"id": 0, "file_name": name, "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "dot"}],
    }
    image = encoded(plain(), "JPEG", orientation)
    return files({"annotations.json": json.dumps(annotations).encode(), "img/0.jpg": image})


def recording(samples: int, size: int | None = None) -> bytes:
    """A wav file of 8 kHz; `size`: what its header says of the bytes of sound."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes((np.sin(np.arange(samples)) * 9000).astype("<i2").tobytes())
    content = file.getvalue()
    if size is None:
        return content
    return content[:4] + b"\xff" * 4 + content[8:40] + size.to_bytes(4, "little") + content[44:]


def recordings(samples: int, size: int | None = None) -> Source:
    return files({f"{name}/0.wav": recording(samples + n, size) for n, name in enumerate(("high", "low"))})


# ── what comes out ──────────────────────────────────────────────────────────────────────────────────────────────────
Views = dict[str, Callable[[Prepared], Any]]


def column(name: str) -> Callable[[Prepared], Any]:
    return lambda prepared: prepared.splits["train"].column(name)


def tokens(prepared: Prepared, learned: bool) -> str:
    """All text of the first conversation, or the answers that are learned."""
    row = prepared.examples["train"].table[0]
    ids = [id_ for id_, is_answer in zip(row["input_ids"], row["answer"], strict=True) if is_answer or not learned]
    return str(prepared.processor.decode(ids))


def image_size(prepared: Prepared) -> list[tuple[int, int]]:
    return [load_image(image).size for image in prepared.splits["train"].column("image")]


VIEWS: Views = {
    "labels": lambda prepared: prepared.task.labels,
    "scheme": lambda prepared: tag_scheme(prepared.task.labels).name,
    "learned": lambda prepared: tokens(prepared, learned=True),
    "rendered": lambda prepared: tokens(prepared, learned=False),
    "size": image_size,
    "last question": lambda prepared: json.loads(prepared.splits["train"].column("chat")[-1])[0]["content"],
    "box": lambda prepared: prepared.splits["train"].table[0]["objects"]["bbox"],
}


@dataclass(frozen=True)
class Fault:
    number: str
    fed: str
    task: str | dict[str, Any]
    source: Source
    expected: dict[str, Any] | str  # view or column -> its right value; or what the refusal says
    data: dict[str, Any] = field(default_factory=dict)

    def recipe(self, folder: Path, model: str = "/nowhere") -> Recipe:
        tree = {
            "name": "fault",
            "task": self.task,
            "model": {"path": model},
            "data": {"source": self.source(folder), "max_length": 1000, "split": ALL_ROWS, **self.data},
            "tuning": "full",
            "train": {"lr": 1e-3},
        }
        return Recipe.model_validate(tree)


WEATHER = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {"type": "object"}}}  # fmt: skip
HI, BYE = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "bye"}
SHAREGPT = [
    {"from": "human", "value": "hi"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
    {"from": "observation", "value": "sunny"},
    {"from": "gpt", "value": "bye"},
]


def call(arguments: Any) -> dict[str, Any]:
    calls = [{"type": "function", "id": "c1", "function": {"name": "weather", "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


CALLED = '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call><|im_end|>'
TEXT_NEEDED, CLASS_NEEDED = "train row 0: a text is needed, not {}", "train row 0: a class is needed, not {}"
LATE = 10_001  # rows, more than any reader examines before it decides on types

# fmt: off
FAULTS = [
    # texts and tables
    Fault("01", "dates of jsonl as targets", TRANSLATION, lines({"source": "January 1 2001", "target": "2001-01-01"}), {"target": ["2001-01-01"]}),
    Fault("01", "dates of json as targets", TRANSLATION, text('[{"source": "a", "target": "2001-01-01T10:00:00Z"}]', "d.json"), {"target": ["2001-01-01T10:00:00Z"]}),
    Fault("01", "dates as classes", TEXTS, labelled("2024-01-01", "2024-02-01"), {"labels": ["2024-01-01", "2024-02-01"]}),
    Fault("01", "dates as answers", CHAT, lines({"instruction": "day 0", "input": "", "output": "2024-01-01"}), {"learned": "2024-01-01<|im_end|>"}),
    Fault("01", "dates in data.where", TEXTS, lines(*({"text": f"t{n}", "label": "ab"[n % 2], "day": f"2024-01-0{n}"} for n in range(1, 4))), {"text": ["t1", "t2"]}, {"where": {"day": ["2024-01-01", "2024-01-02"]}}),
    Fault("02", "zeros at the beginning of targets", TRANSLATION, text("source,target\nthree seven,0037\n"), {"target": ["0037"]}),
    Fault("02", "zeros at the end of targets", TRANSLATION, text("source,target\na,0.10\nb,1.10\n"), {"target": ["0.10", "1.10"]}),
    Fault("02", "whole numbers beside an empty cell", TRANSLATION, text("source,target\na,37\nb,\nc,5\n"), {"target": ["37", "5"]}),
    Fault("02", "classes that are equal numbers", TEXTS, text("text,label\na,1.1\nb,1.10\nc,1.2\n"), {"labels": ["1.1", "1.10", "1.2"]}),
    Fault("02", "long ids as classes", TEXTS, text("text,label\na,90071992547409931\nb,90071992547409932\nc,\n"), {"labels": ["90071992547409931", "90071992547409932"]}),
    Fault("02", "exponents as classes", TEXTS, text("text,label\na,1e5\nb,100000\n"), {"labels": ["100000", "1e5"]}),
    Fault("02", "zeros of answers", CHAT, text("instruction,input,output\npad 7 to three digits,,007\n"), {"learned": "007<|im_end|>"}),
    Fault("02", "zeros of inputs", TEXTS, text("text,label\n0000,p\n0013,n\n"), {"text": ["0000", "0013"]}),
    Fault("02", "whole numbers beside fractions", CHAT, lines({"question": "a", "answer": 5}, {"question": "b", "answer": 2.5}), {"learned": "5<|im_end|>"}),
    Fault("02", "whole numbers beside fractions as classes", TEXTS, labelled(1, 1.0, 2.5), {"labels": ["1", "2.5"]}),
    Fault("02", "floats of 32 bits", TRANSLATION, parquet({"source": ["a", "b"], "target": np.array([1.1, 2.5], "float32")}), {"target": ["1.1", "2.5"]}),
    Fault("02", "digits divided by underscores", {"type": TEXTS, "problem": "regression"}, text("text,label\na,1_000\n"), "train row 0: a number is needed found: '1_000' write it with a decimal point"),
    Fault("03", "Python's lists of tokens and tags", TAGS, text("tokens,tags\n\"['Anna', 'went']\",\"['B-PER', 'O']\"\n"), {"tokens": [["Anna", "went"]], "tags": [["B-PER", "O"]]}),
    Fault("03", "Python's lists of classes", MULTI_LABEL, text("text,label\na,\"['action', 'drama']\"\nb,['drama']\n"), {"label": [["action", "drama"], ["drama"]]}),
    Fault("04", "one-hot vectors", MULTI_LABEL, labelled([1, 1, 0], [0, 1, 0]), "train row 0: 3 values of 0 and 1 can be read as class names or as one value for each class"),
    Fault("04", "one-hot vectors of floats", MULTI_LABEL, labelled([1.0, 1.0, 0.0], [0.0, 1.0, 0.0]), "train row 0: 3 values of 0 and 1"),
    Fault("04", "one-hot vectors whose classes are listed", MULTI_LABEL, labelled([1, 1, 0], [0, 1, 0]), {"label": [["a", "b"], ["b"]]}, {"labels": ["a", "b", "c"]}),
    Fault("04", "one-hot vectors for one class", TEXTS, labelled([1, 0], [0, 1]), CLASS_NEEDED.format("a list")),
    Fault("04", "numbers of data.labels", TEXTS, labelled(0, 1), "such as {'0': neg} if they count data.labels from 0, or list the numbers in data.labels", {"labels": ["neg", "pos"]}),
    Fault("04", "classes joined by another separator", MULTI_LABEL, text("text,label\na,x;y\nb,y\n"), "classes are joined by ';' found: x;y set task.label_separator: ';'"),
    Fault("05", "an object as answer", CHAT, lines({"instruction": "a", "input": "", "output": {"answer": 0, "ok": True}}), TEXT_NEEDED.format("an object")),
    Fault("05", "an object as source and as target", TRANSLATION, lines({"translation": {"en": "hello", "fr": "bonjour"}}), TEXT_NEEDED.format("an object"), {"columns": {"source": "translation", "target": "translation"}}),
    Fault("05", "columns of an object", TRANSLATION, lines({"translation": {"en": "hello", "fr": "bonjour"}}), {"source": ["hello"], "target": ["bonjour"]}, {"columns": {"source": "translation.en", "target": "translation.fr"}}),
    Fault("05", "a list as text", TEXTS, lines({"text": ["a", "b"], "label": "n"}, {"text": ["c"], "label": "p"}), TEXT_NEEDED.format("a list")),
    Fault("05", "an object as text", TEXTS, lines({"text": {"title": "a"}, "label": "n"}, {"text": {"title": "b"}, "label": "p"}), TEXT_NEEDED.format("an object")),
    Fault("05", "a list as class", TEXTS, labelled(["neg"], ["pos"]), CLASS_NEEDED.format("a list")),
    Fault("05", "an object as class", TEXTS, labelled({"name": "neg"}, {"name": "pos"}), CLASS_NEEDED.format("an object")),
    Fault("05", "an object as prompt", CHAT, lines({"prompt": {"a": 1}, "completion": "b"}), TEXT_NEEDED.format("an object")),
    Fault("05", "an object as completion", CHAT, lines({"prompt": "a", "completion": {"b": True}}), TEXT_NEEDED.format("an object")),
    Fault("05", "truth values as completions", CHAT, lines({"prompt": "a", "completion": True}), {"learned": "true<|im_end|>"}),
    Fault("05", "lists of texts as question and answer", CHAT, lines({"prompt": ["a", "b"], "completion": ["c"]}), "a text, or a list of turns with `role` and `content`, is needed"),
    Fault("05", "a list as group", TEXTS, lines({"text": "a", "label": "n", "g": ["x"]}), "train row 0: a group is a text or a number, not a list", {"split": {"group": "g"}}),
    Fault("05", "a row without a group", TEXTS, lines({"text": "a", "label": "n", "g": "x"}, {"text": "b", "label": "p", "g": None}), "train row 1: no group give each row a group", {"split": {"group": "g"}}),
    Fault("06", "numbers as tags", TAGS, lines({"tokens": ["Anna", "went"], "tags": [1, 0]}), "tags are numbers without names found: 0, 1 list the tags"),
    Fault("06", "numbers as tags whose names are listed", TAGS, lines({"tokens": ["Anna", "went"], "tags": [1, 0]}), {"tags": [["B-PER", "O"]]}, {"labels": ["O", "B-PER", "I-PER"]}),
    Fault("07", "BILOU", TAGS, tagged("U-PER", "O", "B-LOC", "L-LOC"), {"scheme": "BILOU"}),
    Fault("07", "markers after the type", TAGS, tagged("PER-B", "O", "LOC-B", "LOC-I"), {"scheme": "BIO, suffix"}),
    Fault("07", "markers without a type", TAGS, tagged("B", "O", "B", "I"), {"scheme": "BIO, bare"}),
    Fault("07", "markers before an underscore", TAGS, tagged("B_PER", "O", "B_LOC", "I_LOC"), {"scheme": "BIO, underscore"}),
    Fault("07", "a small o", TAGS, tagged("B-PER", "o", "B-LOC", "I-LOC"), {"scheme": "BIO"}),
    Fault("07", "a tag of no scheme among others", TAGS, tagged("B-PER", "O", "B-LOC", "I-LOC", "MISC"), "train rows 0: mixed tag schemes"),
    Fault("07", "a zero for O", TAGS, tagged("B-PER", "I-PER", "0"), "most tags are BIO, and 0 are not"),
    Fault("07", "markers before a slash", TAGS, tagged("B/PER", "I/PER", "O"), {"scheme": "BIO, slash"}),
    Fault("07", "metadata of CoNLL-U", TAGS, text("# sent_id = 3\nAnna B-PER\nwent O\n\n# newdoc\n# NN O\n", "d.conll"), {"tokens": [["Anna", "went"], ["#"]]}),
    # conversations
    Fault("09", "definitions of tools", CHAT, chat(HI, call({"city": "Rome"}), {"role": "tool", "tool_call_id": "c1", "content": "sunny"}, BYE, tools=[WEATHER]), {"rendered": f"<|im_start|>system\nTools:\n{json.dumps(WEATHER)}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{CALLED}\n<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\nbye<|im_end|>\n"}),
    Fault("09", "definitions of tools in ShareGPT's format", CHAT, lines({"conversations": SHAREGPT, "tools": json.dumps([WEATHER])}), {"learned": CALLED + "bye<|im_end|>", "rendered": f"<|im_start|>system\nTools:\n{json.dumps(WEATHER)}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{CALLED}\n<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\nbye<|im_end|>\n"}),
    Fault("10", "arguments of a call as JSON text", CHAT, chat(HI, call('{"city": "Rome"}')), {"learned": CALLED}),
    Fault("11", "reasoning_content", CHAT, chat(HI, {**BYE, "reasoning_content": "I think"}), {"learned": "<think>I think</think>bye<|im_end|>"}),
    Fault("11", "thinking", CHAT, chat(HI, {**BYE, "thinking": "I think"}), {"learned": "<think>I think</think>bye<|im_end|>"}),
    Fault("12", "weight of a turn", CHAT, chat(HI, {"role": "assistant", "content": "wrong", "weight": 0}, HI, {**BYE, "weight": 1}), {"learned": "bye<|im_end|>"}),
    Fault("12", "loss of a turn", CHAT, lines({"conversations": [SHAREGPT[0], {"from": "gpt", "value": "wrong", "loss": False}, SHAREGPT[0], {**SHAREGPT[3], "loss": True}]}), {"learned": "bye<|im_end|>"}),
    Fault("13", "an empty answer in the middle", CHAT, chat(HI, {"role": "assistant", "content": ""}, HI, BYE), "no row of train is left after cleaning found: {'empty answer': 1}"),
    Fault("13", "turns of two formats that differ", CHAT, lines({"conversations": [{**SHAREGPT[0], "content": "bye"}, BYE]}), "`content` and `value` of a turn differ"),
    Fault("14", "whole texts as conversations", CHAT, lines({"text": "### Human: hi ### Assistant: bye"}), "no column has conversations, or questions and answers found: text valid: messages, "),
    Fault("14", "question and answer", CHAT, lines({"question": "hi", "answer": "bye"}), {"learned": "bye<|im_end|>"}),
    Fault("15", "Dolly's columns", CHAT, lines({"instruction": "say", "context": "hi", "response": "bye", "category": "qa"}), {"rendered": "<|im_start|>user\nsay\nhi<|im_end|>\n<|im_start|>assistant\nbye<|im_end|>\n"}),
    # types and separators
    Fault("17", "nulls before texts", CHAT, lines(*({"instruction": f"a{n}", "input": None if n < 1100 else "i", "output": "b"} for n in range(1101))), {"last question": "a1100\ni"}),
    Fault("17", "a key that comes late", CHAT, lines(*({"instruction": f"a{n}", "output": "b"} | ({"input": "i"} if n == 1100 else {}) for n in range(1101))), {"last question": "a1100\ni"}),
    Fault("17", "a word after numbers", TEXTS, text("text,label\n" + "".join(f"t{n},{n % 3}\n" for n in range(LATE)) + "last,unknown\n"), {"labels": ["0", "1", "2", "unknown"]}),
    Fault("19", "blanks in the header", TEXTS, text("text, label\ngood, n\nbad, p\n"), {"text": ["good", "bad"], "labels": ["n", "p"]}),
    Fault("19", "semicolons", TEXTS, text("text;label\ngood;n\nbad;p\n"), {"text": ["good", "bad"], "labels": ["n", "p"]}),
    Fault("19", "semicolons, and commas in the texts", TEXTS, text("text;label\nfine, new;n\nold;p\n"), {"text": ["fine, new", "old"]}),
    Fault("19", "quotation marks behind blanks", TEXTS, text('text, label\n"a, b", "p"\n"c", "n, m"\n'), {"text": ["a, b", "c"], "labels": ["n, m", "p"]}),
    Fault("19", "missing values of databases", TEXTS, text("text\tlabel\na\tp\n\\N\tn\nb\tn\nc\t\\N\n", "d.tsv"), {"text": ["a", "b"]}),
    Fault("19", "missing values of databases beside escaped marks", TEXTS, text('text,label\n"say \\"a\\"",p\nb,\\N\n'), "\\N would be the text N export missing values as empty fields"),
    Fault("19", "files joined with their headers", TEXTS, text("text,label\na,p\ntext,label\nb,n\n"), "line 3: the row repeats the header"),
    Fault("19", "lines that end with carriage returns", TEXTS, text("text,label\ra,p\rb,n\r"), "its lines end with carriage returns alone"),
    Fault("19", "two values of a key", TEXTS, text('{"text": "a", "text": "b", "label": "p"}\n', "d.jsonl"), "line 1: an object has two values of the key 'text'"),
    Fault("20", "pandas' columns of rows", TEXTS, text('{"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}', "d.json"), {"text": ["a", "b"], "label": ["1", "0"]}),
    # images
    Fault("28", "masks of 0 and 255 with two classes", MASKS, masks("PNG"), "the masks hold 255, which is ignored, and no pixel of a second class (lesion) found: 255 set task.ignore_index: 254", {"labels": ["background", "lesion"]}),
    Fault("28", "masks of 0 and 255", MASKS, masks("PNG"), "name both classes in data.labels and set task.ignore_index: 254"),
    Fault("28", "masks of 0 and 255 as advised", {"type": MASKS, "ignore_index": 254}, masks("PNG"), {"pixels": [[48, 48]]}, {"labels": ["background", "lesion"]}),
    Fault("29", "masks as JPEG", MASKS, masks("JPEG"), "a mask stored as JPEG has lost its class numbers"),
    Fault("30", "boxes of the stored image", BOXES, boxes("img/0.jpg", 12, 8, 6), {"box": [[2.0, 1.0, 4.0, 3.0]], "size": [(8, 12)]}),
    Fault("30", "boxes of the upright image", BOXES, boxes("img/0.jpg", 8, 12, 6), {"box": [[1.0, 2.0, 3.0, 4.0]]}),
    Fault("30", "boxes of another image", BOXES, boxes("img/0.jpg", 24, 16), "the annotation is for an image of another size"),
    Fault("30", "objects by other names", BOXES, objects(boxes=[[1, 2, 3, 4]], labels=["a"]), "train row 0: objects have `bbox` and `category` found: boxes, labels"),
    Fault("30", "boxes of texts", BOXES, objects(bbox=[["1", "2", "3", "4"]], category=["a"]), "train row 0: a box needs x, y, width and height in pixels"),
    Fault("30", "a mask of a turned image", MASKS, files({"images/a.jpg": encoded(plain(8), "JPEG", 6), "masks/a.png": encoded(Image.new("L", (8, 8)), "PNG")}), "is turned by its EXIF orientation (6), and its mask may be for the stored image"),
    Fault("32", "Windows' paths in COCO annotations", BOXES, boxes("img\\0.jpg", 12, 8), {"box": [[1.0, 2.0, 3.0, 4.0]], "size": [(12, 8)]}),
    Fault("32", "Windows' paths in a table", IMAGES, files({"d.csv": b"image,label\nimg\\0.png,a\nimg\\1.png,b\n", "img/0.png": encoded(plain(), "PNG"), "img/1.png": encoded(plain(9), "PNG")}, "d.csv"), {"size": [(12, 8), (9, 8)]}),
    Fault("33", "images of one and three rows or columns", IMAGES, files({"a/0.png": encoded(plain(9, 1), "PNG"), "b/1.png": encoded(plain(3, 9), "PNG")}), {"size": [(9, 1), (3, 9)], "labels": ["a", "b"]}),
    Fault("33", "an archive among images", IMAGES, images("a/0.png", "b/1.png", "b/more.zip"), "more.zip is an archive unpack it in its place"),
    Fault("33", "an image beside the classes", IMAGES, images("a/0.png", "b/1.png", "2.png"), "2.png lies beside the folders of the classes"),
    Fault("33", "two levels of folders", IMAGES, images("a/x/0.png", "b/y/1.png"), "0.png: either of its folders could be its class"),
    Fault("33", "one folder above the classes", IMAGES, images("all/x/0.png", "all/y/1.png"), {"labels": ["x", "y"]}),
    # sound
    Fault("34", "wav files of a pipe, without a length", SOUNDS, recordings(800, 0xFFFFFFFF), {"seconds": [0.1, 801 / 8000]}),
    Fault("34", "wav files of no sound", SOUNDS, recordings(0), "0.wav: the recording is empty (0 samples)"),
    Fault("36", "recordings that are not there", SPEECH, text("path\tsentence\nc0.wav\tyes\nc1.wav\tno\n", "d.tsv"), "train row 0: c0.wav: cannot be read (no such file in the folder of its table", {"columns": {"audio": "path", "text": "sentence"}}),
    # launching and the rest
    Fault("37", "one class as number and as text", TEXTS, labelled(1, "1", 0), {"labels": ["0", "1"]}),
    Fault("37", "a byte order mark", TEXTS, text("\ufefftext,label\na,p\nb,n\n"), {"text": ["a", "b"]}),
    Fault("37", "a byte order mark before rows", TEXTS, text('\ufeff{"text": "a", "label": "p"}\n{"text": "b", "label": "n"}\n', "d.jsonl"), {"text": ["a", "b"]}),
    Fault("38", "more classes than rows are held out", TEXTS, text("text,label\n" + "".join(f"text {n},intent_{n % 77}\n" for n in range(600))), "77 classes do not fit into the 60 rows of test: each needs a row there", {"split": {}}),
    Fault("38", "two classes of five rows", TEXTS, labelled(*"pnpnpnpnpn"), "2 classes do not fit into the 1 row of test", {"split": {}}),
]
# fmt: on

# What cannot be seen in prepared rows -> the tests that show it.
SHOWN_BY = {
    "17": ["sft_dist/data/formats/test_tables.py::test_texts_stay_texts_whatever_comes_first"],
    "20": ["launch/test_check.py::test_a_check_that_did_not_finish_is_neither_clean_nor_submitted"],
    "22": ["sft_dist/training/test_build.py::test_a_token_that_the_model_has_no_embedding_for_is_refused"],
    "24": ["sft_dist/tasks/test_loading.py::test_a_tokenizer_that_cannot_pad_is_refused"],
    "07": ["sft_dist/tasks/test_token_classification.py::test_entities_of_bilou_tags_are_scored_as_entities"],
    "25": [
        "sft_dist/recipe/test_tied_embeddings.py::test_a_plan_names_the_line",
        "sft_dist/evaluation/test_merging.py::test_adapters_on_tied_embeddings_are_named_and_refused",
        "sft_dist/test_export.py::test_a_merged_model_that_is_not_the_trained_one_is_not_published",
    ],
    "26": ["integration/test_exports.py::test_plain_transformers_answers_as_predict_does"],
    "28": ["sft_dist/quality/test_labels.py::test_a_class_of_data_labels_without_training_rows_is_named"],
    "35": ["sft_dist/tasks/test_speech_recognition.py::test_more_than_can_be_written_is_an_error_that_names_the_rows"],
    "36": ["integration/test_fault_inputs.py::test_36_a_check_without_a_readable_recording_names_the_rows"],
    "37": [
        "integration/test_local_accelerate.py"
        "::test_the_planned_command_starts_the_planned_processes_whatever_accelerate_config_says"
    ],
    "39": [
        "sft_dist/evaluation/test_inputs.py::test_tables_are_read_as_for_training",
        "sft_dist/evaluation/test_inputs.py::test_a_table_that_training_refuses_is_refused",
        "sft_dist/evaluation/test_inputs.py::test_conversations_are_read_as_for_training",
        "sft_dist/evaluation/test_inputs.py::test_rows_of_standard_input_are_read_as_those_of_a_file",
    ],
}
# 25 and 26 are about exports.
NUMBERS = {f"{number:02}" for number in range(1, 40)} - {"08", "16", "18", "21", "23", "27", "31"}


@pytest.fixture(scope="module")
def processor() -> Any:
    tokenizer = byte_tokenizer(TEMPLATE)
    tokenizer.model_max_length = 4096
    return tokenizer


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{fault.number} {fault.fed}" for fault in FAULTS])
def test_the_value_is_right(fault: Fault, tmp_path: Path, processor: Any) -> None:
    recipe = fault.recipe(tmp_path)
    task = task_of(recipe)
    if isinstance(fault.expected, str):
        with pytest.raises(UserError) as refusal:
            prepare(recipe, task, processor)
        assert fault.expected in " ".join(str(refusal.value).split())
        return
    prepared = prepare(recipe, task, processor)
    assert {name: VIEWS.get(name, column(name))(prepared) for name in fault.expected} == fault.expected


@pytest.mark.slow
def test_36_a_check_without_a_readable_recording_names_the_rows(tmp_path: Path) -> None:
    fault = next(fault for fault in FAULTS if fault.number == "36")
    report, _ = check(fault.recipe(tmp_path, str(wav2vec2(tmp_path / "model"))))
    (finding,) = (finding for finding in report.findings if finding.kind == "unreadable-audio")
    assert finding.rows == (("train", 0), ("train", 1))
    assert "unreadable-audio" in to_text(report)
    assert "unreadable-audio" in to_html(report, [], False)


def test_every_number_has_a_test() -> None:
    assert {fault.number for fault in FAULTS} | set(SHOWN_BY) == NUMBERS


@pytest.mark.parametrize("node", [node for nodes in SHOWN_BY.values() for node in nodes])
def test_the_test_that_shows_it_exists(node: str) -> None:
    file, name = node.split("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in {function.name for function in tree.body if isinstance(function, ast.FunctionDef)}
