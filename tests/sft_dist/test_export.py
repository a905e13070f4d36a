"""A checkpoint of every kind of tuning as a folder to use: `predict` answers from it as the checkpoint does."""

from __future__ import annotations

import json

import pytest
import torch

from sft_dist import export, predict
from sft_dist.checkpoints import store as ckpt
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_json
from sft_dist.recipe.load import load
from sft_dist.recipe.tunings import KINDS, best_form
from sft_dist.run.folder import RunFolder
from sft_dist.tasks import task_of
from sft_dist.tasks.models import build_model, load_processor
from sft_dist.tuning import load_weights, save_weights, saved_names

TEXTS = ["a great film", "the film was dull and poor and the end was worse"]
CELLS = [
    ("full", "merged"),
    ("freeze", "merged"),
    ("bitfit", "merged"),
    *((name, form) for name in ("lora", "lora, DoRA", "ia3") for form in ("merged", "adapter")),
    ("prefix", "adapter"),
    ("prompt", "adapter"),
]


@pytest.fixture(scope="module")
def run_of(tiny_model, reviews, tmp_path_factory):
    """Kind of tuning -> a run folder with one checkpoint of weights as training might leave them, and its answers."""

    def make(name: str) -> tuple[RunFolder, torch.Tensor]:
        path = tmp_path_factory.mktemp("run")
        settings = {
            "name": "export",
            "task": "text-classification",
            "model": {"path": str(tiny_model)},
            "data": {"source": str(reviews), "max_length": 48},
            "tuning": KINDS[name].model_dump(exclude_none=True),
            "train": {"lr": 1e-3},
        }
        (path / "recipe.yaml").write_text(json.dumps(settings))
        recipe = load(path / "recipe.yaml")
        folder = RunFolder(path / "run")
        folder.path.mkdir()
        folder.recipe_file.write_text(recipe.model_dump_json())
        task = task_of(recipe)
        tokenizer = load_processor(recipe, task)
        task.labels = ["neg", "pos"]
        model = build_model(recipe, task, tokenizer)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        staging_dir = ckpt.begin(folder, 5, 1)
        wanted = saved_names(model)
        weights = {n: v.clone() for n, v in model.state_dict().items() if wanted is None or n in wanted}
        save_weights(model, weights, staging_dir / "model")
        tokenizer.save_pretrained(staging_dir / "model")
        write_json(staging_dir / "trainer.json", {"labels": task.labels, "progress": {"best_step": 5}})
        files = [path for path in staging_dir.rglob("*") if path.is_file()]
        ckpt.publish(folder, 5, staging_dir, ckpt.describe(staging_dir, files))
        twin = build_model(recipe, task, tokenizer)
        load_weights(twin, folder.checkpoint(5) / "model")
        with torch.no_grad():
            answers = twin.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1)
        return folder, answers

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), CELLS)
def test_predict_answers_as_the_checkpoint_does(run_of, tmp_path, capsys, name, form):
    folder, expected = run_of(name)
    assert export.main([str(folder.path), "--to", str(tmp_path / "out"), "--form", form]) == 0
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    capsys.readouterr()
    assert predict.main([str(tmp_path / "out"), str(tmp_path / "texts.txt"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = torch.tensor([[row["probabilities"][label] for label in ("neg", "pos")] for row in rows])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (tmp_path / "out" / "adapter_config.json").exists() == (form == "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prefix", "lora", "full"])
def test_without_a_form_it_is_the_best_one(run_of, tmp_path, name):
    folder, _ = run_of(name)
    assert export.main([str(folder.path), "--to", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / export.ABOUT).read_text())["form"] == best_form(KINDS[name])


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        ("prompt", "merged", "cannot be merged: what it trains is put before the text"),
        ("full", "adapter", "no adapter"),
    ],
)
def test_a_form_that_cannot_be_is_refused_with_the_reason(run_of, tmp_path, name, form, said):
    folder, _ = run_of(name)
    with pytest.raises(UserError, match=said):
        export.export(folder, 5, tmp_path / "out", form, {}, {})
