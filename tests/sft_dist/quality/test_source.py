"""What the source has and training does not read, and columns that are missing."""

from __future__ import annotations

import json

from sft_dist.quality.source import read_source
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of
from tests.tiny_text import recipe_of


def findings_of(tmp_path, rows, columns=None):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = recipe_of("instruction-tuning").model_dump(mode="json", exclude_unset=True)
    tree["data"] = {"source": str(file), "columns": columns or {}}
    recipe = Recipe.model_validate(tree)
    return {f.message: f for f in read_source(recipe, task_of(recipe), tmp_path, lambda text: None).findings}


def test_columns_and_keys_that_are_not_read_are_counted(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": turns, "id": n} for n in range(3)]
    rows.append({"messages": [{**turn, "lang": "en"} for turn in turns], "id": None})
    findings = findings_of(tmp_path, rows)
    assert list(findings) == [
        "`id` is not read: 3 of 4 rows (75%) of train",
        "`messages.lang` is not read: 1 of 4 rows (25%) of train",
    ]
    assert [finding.kind for finding in findings.values()] == ["unread-key"] * 2
    assert findings["`messages.lang` is not read: 1 of 4 rows (25%) of train"].rows == (("train", 3),)


def test_mapped_columns_are_read(tmp_path):
    rows = [{"q": "a", "reply": "b", "note": ""}]
    assert findings_of(tmp_path, rows, {"prompt": "q", "completion": "reply"}) == {}


def test_unknown_columns_are_named_with_what_is_valid(tmp_path):
    ((message, finding),) = findings_of(tmp_path, [{"text": "### Human: hi"}]).items()
    assert finding.kind == "missing-column"
    assert "it has text; known are messages, " in message
    assert "divided into `prompt` and `completion`" in message
