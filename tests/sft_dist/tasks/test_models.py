"""Models: what the recipe lets a model bring with it (code, pickles), and which attention it uses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.references import check_references
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model, load_processor

ROOT = Path(__file__).resolve().parents[3]


def recipe_of(folder: Path | str, **model: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "models",
            "task": "text-classification",
            "model": {"path": str(folder), **model},
            "data": {"source": "/nowhere.csv", "labels": ["a", "b"]},
            "tuning": "full",
            "train": {"lr": 1e-3},
        }
    )


def built(recipe: Recipe) -> torch.nn.Module:
    task = task_of(recipe)
    task.labels = ["a", "b"]
    return build_model(recipe, task, load_processor(recipe, task))


@pytest.fixture
def pickled(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with its weights as torch.save writes them."""
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


# ── pickles ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def problems_of(recipe: Recipe) -> list[tuple[str, str]]:
    return [(one.path, one.render()) for one in check_references(recipe) if one.path.startswith("model")]


def test_weights_that_are_a_pickle_are_refused_when_planning_and_when_loading(pickled):
    ((path, text),) = problems_of(recipe_of(pickled))
    assert path == "model.path"
    assert "pytorch_model.bin" in text
    assert "model.allow_pickle: true" in text
    with pytest.raises(UserError, match=r"model\.path: has no weights in a \.safetensors file[\s\S]*allow_pickle"):
        built(recipe_of(pickled))


def test_a_pickle_that_the_recipe_accepts_gives_the_same_weights(pickled, tiny_model):
    recipe = recipe_of(pickled, allow_pickle=True)
    assert problems_of(recipe) == []
    there, known = built(recipe).state_dict(), built(recipe_of(tiny_model)).state_dict()
    assert all(torch.equal(there[name], known[name]) for name in known)


def test_an_accepted_pickle_still_cannot_run_code(pickled, tmp_path):
    torch.save({"payload": Payload(tmp_path / "ran")}, pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.path: its pickle holds more than tensors"):
        built(recipe_of(pickled, allow_pickle=True))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.bin", "../pickled-elsewhere/weights.safetensors", "/tmp/weights.bin", ".."])
@pytest.mark.parametrize("allow", [False, True])
def test_an_index_names_safetensors_in_its_folder_alone(pickled, tmp_path, name, allow):
    """An index of safetensors is no way to a pickle that was not allowed, or out of the folder."""
    torch.save({"payload": Payload(tmp_path / "ran")}, pickled / "weights.bin")
    (pickled / "pytorch_model.bin").unlink()
    weight_map = {"embeddings.word_embeddings.weight": name}
    (pickled / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    recipe = recipe_of(pickled, allow_pickle=allow)
    if name != "weights.bin" or not allow:
        assert len(check_references(recipe)) >= 1
    with pytest.raises(UserError):
        built(recipe)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_safetensors_is_never_read(pickled, tiny_model, tmp_path):
    torch.save({"payload": Payload(tmp_path / "ran")}, pickled / "pytorch_model.bin")
    shutil.copy(tiny_model / "model.safetensors", pickled)
    for allow in (False, True):
        recipe = recipe_of(pickled, allow_pickle=allow)
        assert problems_of(recipe) == []
        built(recipe)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_that_is_a_pickle_is_refused_too(tiny_model, tmp_path):
    folder = tmp_path / "with-adapter"
    shutil.copytree(tiny_model, folder)
    torch.save({}, folder / "adapter_model.bin")
    ((path, text),) = problems_of(recipe_of(folder))
    assert path == "model.path"
    assert "adapter_model.bin" in text


# ── code ────────────────────────────────────────────────────────────────────────────────────────────────────────────
CODE = """
import pathlib
from transformers import BertConfig, BertForSequenceClassification
pathlib.Path({marker!r}).touch()
class OddConfig(BertConfig):
    model_type = "odd"
class OddModel(BertForSequenceClassification):
    config_class = OddConfig
"""


def with_code(folder: Path, marker: Path) -> Path:
    """A model whose class is in a file beside the weights."""
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "odd.OddConfig", "AutoModelForSequenceClassification": "odd.OddModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "odd", "auto_map": classes}))
    (folder / "odd.py").write_text(CODE.format(marker=str(marker)))
    return folder


def test_code_that_comes_with_a_model_does_not_run_unless_the_recipe_names_it(tiny_model, tmp_path):
    folder = with_code(Path(shutil.copytree(tiny_model, tmp_path / "odd")), tmp_path / "ran")
    with pytest.raises(
        UserError, match=r"model\.path: needs code that comes with it[\s\S]*trust_remote_code"
    ) as caught:
        built(recipe_of(folder))
    assert caught.value.problems[0].path == "model.path"
    assert not (tmp_path / "ran").exists()


USE = """
import sys
from tests.sft_dist.tasks.test_models import built, recipe_of
print(type(built(recipe_of("org/odd", trust_remote_code=sys.argv[1]))).__name__)
"""


@pytest.mark.slow
def test_only_the_code_of_the_named_commit_runs(tiny_model, tmp_path):
    """A hub cache with two commits of one model; `main` is the other one."""
    good, bad = "a" * 40, "b" * 40
    hub = tmp_path / "hub/models--org--odd"
    for commit in (good, bad):
        with_code(Path(shutil.copytree(tiny_model, hub / "snapshots" / commit)), tmp_path / f"ran-{commit[0]}")
    (hub / "refs").mkdir()
    (hub / "refs/main").write_text(bad)
    places = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment = {**os.environ, **places, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", USE, good], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["OddModel"], done.stderr[-2000:]
    assert sorted(path.name for path in tmp_path.glob("ran-*")) == ["ran-a"]


# ── attention ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_recipes_attention_is_used(attention, tiny_model):
    assert built(recipe_of(tiny_model, attention=attention)).config._attn_implementation == attention


def test_attention_whose_package_is_missing_is_refused(tiny_model, monkeypatch):
    monkeypatch.setattr("sft_dist.recipe.machine.is_installed", lambda module: False)
    with pytest.raises(UserError, match=r"model\.attention: flash_attention_2 needs a package[\s\S]*pip install"):
        built(recipe_of(tiny_model, attention="flash_attention_2"))


def test_attention_that_the_model_does_not_have_is_refused(tmp_path, tiny_model):
    from transformers import DebertaV2Config, DebertaV2Model

    config = DebertaV2Config(
        vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    DebertaV2Model(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.attention: DebertaV2\w+ does not support .*\n    found: sdpa"):
        built(recipe_of(tmp_path, attention="sdpa", tokenizer=str(tiny_model)))


# ── broken files ────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def config_with(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", "[]", r"config.json: expected a JSON object, found a list"),
        ("tokenizer.json", "{", r"tokenizer.json, line 1, column 2: not JSON"),
        ("tokenizer.json", "{}", r"tokenizer.json: not a tokenizer"),
        ("tokenizer.json", '{"version": "1.0", "added_tokens": [], "model": {"type": "Z"}}', r"tokenizer.json: not a tokenizer"),
        ("tokenizer_config.json", "null", r"tokenizer_config.json: expected a JSON object, found null"),
        ("tokenizer_config.json", '{"tokenizer_class": 5}', r"cannot be loaded: AttributeError"),
        ("model.safetensors", "cut", r"model.safetensors: not a safetensors file, or cut off \(3 bytes\)"),
    ],
)  # fmt: skip
def test_a_broken_file_of_a_model_is_named(folder: Path, name: str, content: str, expected: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=expected) as error:
        built(recipe_of(folder))
    assert error.value.problems[0].path == "model.path"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"hidden_size": "big"}, "expected int, got str"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_act": "none"}, "KeyError: 'none'"),
        ({"model_type": "none"}, "does not recognize this architecture"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "use the model that was not"),
        ({"quantization_config": {}}, "no `quant_method`"),
        ({"quantization_config": []}, "cannot be loaded"),
    ],
)
def test_a_config_that_no_model_can_be_built_from_is_a_user_error(folder: Path, values: Any, expected: str) -> None:
    config_with(folder, **values)
    with pytest.raises(UserError, match=expected) as error:
        built(recipe_of(folder))
    assert error.value.problems[0].value == str(folder)


def test_weights_of_another_model_are_refused_and_missing_shards_are_named(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="none of its weights belongs to a BertForSequenceClassification"):
        built(recipe_of(folder))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"other": "model-00001-of-00002.safetensors", "more": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UserError, match="names model-00002-of-00002.safetensors, which is not in the folder"):
        built(recipe_of(folder))


def test_memory_that_runs_out_is_not_the_users_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sft_dist.tasks.text_classification.load_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        built(recipe_of(folder))


@pytest.mark.parametrize(("offline", "kind"), [(True, "NotInCache"), (False, "HubUnreachable")])
def test_a_model_of_the_hub_that_cannot_be_reached_is_named_with_what_to_do(
    tiny_model, monkeypatch, tmp_path, offline, kind
):
    """An outage may pass, so that a job is requeued for it; a setting stays."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("sft_dist.tasks.models.is_offline_mode", lambda: offline)
    recipe = recipe_of(tiny_model)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": "nobody/no-such-model"})})
    for load in (lambda: load_processor(recipe, task_of(recipe)), lambda: build_model(recipe, task_of(recipe), None)):
        with pytest.raises(UserError) as caught:
            load()
        (problem,) = caught.value.problems
        assert (problem.path, problem.value) == ("model.path", "nobody/no-such-model")
        assert ("HF_HUB_OFFLINE" if offline else "hub cannot be reached") in problem.message
        assert "hf download nobody/no-such-model" in problem.hint
        assert type(caught.value).__name__ == kind


@pytest.mark.parametrize(
    "text", ["a/b is not a valid model identifier", "v9 is not a valid git identifier", "a gated repo"]
)
def test_a_model_that_the_hub_refuses_is_the_user_s_error(monkeypatch, text):
    def refuse(*arguments, **options):
        raise OSError(text)

    monkeypatch.setattr("sft_dist.tasks.text_classification.TextClassification.load_processor", refuse)
    recipe = recipe_of("nobody/no-such-model")
    with pytest.raises(UserError, match="the hub has no such model"):
        load_processor(recipe, task_of(recipe))
