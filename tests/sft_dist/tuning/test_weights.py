"""A checkpoint's `model/`: complete, exact, readable by PEFT and transformers, and refused when it does not fit."""

from __future__ import annotations

import re

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from sft_dist.recipe.schema import BitfitTuning, FullTuning
from sft_dist.tuning import apply_tuning, load_weights, save_weights, saved_names
from tests.sft_dist.tuning.test_adapters import ia3, lora, virtual
from tests.sft_dist.tuning.test_freeze import freeze
from tests.sft_dist.tuning.tiny_models import NAMES, build, logits, trained

TUNINGS = {
    "full": FullTuning(method="full"),
    "freeze": freeze(train_last_layers=1),
    "bitfit": BitfitTuning(method="bitfit"),
    "lora": lora(),
    "dora": lora(dora=True),
    "lora, more layers": lora(target_modules=["query"], modules_to_save=["pooler"]),
    "lora, embeddings": lora(target_modules=["query", "word_embeddings"]),
    "ia3": ia3(),
    "prefix": virtual("prefix"),
    "prefix, more layers": virtual("prefix", modules_to_save=["pooler"]),
    "prompt": virtual("prompt"),
}
ADAPTERS = [name for name in TUNINGS if name not in ("full", "freeze", "bitfit")]
CELLS = [
    *(("bert", name) for name in TUNINGS),
    *(("gpt2", name) for name in ("full", "lora", "dora", "ia3", "prefix")),
    *(("llama", name) for name in ("full", "freeze", "lora", "dora", "ia3", "prefix")),
    *(("deberta-v2", name) for name in ("full", "freeze", "bitfit", "lora", "ia3", "prompt")),
    *(("distilbert", name) for name in ("full", "lora", "prompt")),
    *(("modernbert", name) for name in ("full", "freeze", "lora", "prompt")),
]


def shake(model: nn.Module) -> None:
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)


def gathered(model: nn.Module) -> dict[str, torch.Tensor]:
    """What an engine hands over: copies, and no more than is asked for."""
    names = saved_names(model)
    return {name: value.clone() for name, value in model.state_dict().items() if names is None or name in names}


@pytest.fixture(params=CELLS, ids=lambda cell: f"{cell[0]}-{cell[1]}")
def saved(request, tmp_path):
    """kind, tuning, folder, and the logits of what is in it"""
    kind, name = request.param
    model = apply_tuning(build(kind), TUNINGS[name], "SEQ_CLS")
    fresh = logits(model)
    shake(model)
    expected = logits(model)
    assert not torch.allclose(fresh, expected, atol=1e-3)
    weights = gathered(model)
    with torch.no_grad():  # by the time of writing the live weights are others, or shards
        for parameter in model.parameters():
            parameter.zero_()
    save_weights(model, weights, tmp_path)
    return kind, TUNINGS[name], tmp_path, expected


@pytest.mark.slow
def test_saved_weights_come_back_into_a_fresh_model(saved):
    kind, tuning, folder, expected = saved
    # The base is the same; head and adapters begin otherwise.
    other = build(kind)
    torch.manual_seed(5)
    getattr(other, NAMES[kind][3][:-1]).reset_parameters()
    twin = apply_tuning(other, tuning, "SEQ_CLS")
    load_weights(twin, folder)
    torch.testing.assert_close(logits(twin), expected, rtol=0, atol=0)


@pytest.mark.slow
def test_the_folder_is_one_of_transformers_or_peft(saved):
    kind, _, folder, expected = saved
    if (folder / "adapter_config.json").exists():
        model = PeftModel.from_pretrained(build(kind), folder)
        assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    else:
        model = type(build(kind)).from_pretrained(folder)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapters_folder_has_what_is_trained_and_nothing_else(name):
    model = apply_tuning(build("bert"), TUNINGS[name], "SEQ_CLS")
    assert saved_names(model) == trained(model)


@pytest.mark.parametrize("name", ["full", "freeze", "bitfit"])
def test_a_model_without_adapters_is_saved_whole(name):
    assert saved_names(apply_tuning(build("bert"), TUNINGS[name], "SEQ_CLS")) is None


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "prefix", "prompt"])
def test_peft_itself_would_have_written_the_same(name, tmp_path):
    model = apply_tuning(build("bert"), TUNINGS[name], "SEQ_CLS")
    shake(model)
    model.save_pretrained(tmp_path / "theirs")
    save_weights(model, gathered(model), tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    configs = [(tmp_path / who / "adapter_config.json").read_text() for who in ("ours", "theirs")]
    assert configs[0] == configs[1]


def test_saving_leaves_the_model_in_training_as_it_was(tmp_path):
    model = apply_tuning(build("bert"), TUNINGS["prefix"], "SEQ_CLS")
    save_weights(model, gathered(model), tmp_path)
    assert model.peft_config["default"].inference_mode is False


# ── folders that do not fit ─────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(params=["full", "lora", "prompt"])
def folder(request, tmp_path):
    """(tuning, folder with its weights, their file)"""
    tuning = TUNINGS[request.param]
    model = apply_tuning(build("bert"), tuning, "SEQ_CLS")
    save_weights(model, gathered(model), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    return tuning, tmp_path, file


def test_a_missing_weight_is_refused(folder):
    tuning, where, file = folder
    weights = load_file(file)
    lost = sorted(weights)[0]
    del weights[lost]
    save_file(weights, file)
    with pytest.raises(ValueError, match=f"lacks 1 weights, such as {re.escape(lost)}"):
        load_weights(apply_tuning(build("bert"), tuning, "SEQ_CLS"), where)


def test_a_weight_too_many_is_refused(folder):
    tuning, where, file = folder
    save_file({**load_file(file), "stray.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"has 1 weights that the model lacks, such as stray\.weight"):
        load_weights(apply_tuning(build("bert"), tuning, "SEQ_CLS"), where)


def test_a_weight_of_another_shape_is_refused(folder):
    tuning, where, _ = folder
    with pytest.raises(ValueError, match=r"classifier(.|\n)*3"):
        load_weights(apply_tuning(build("bert", num_labels=3), tuning, "SEQ_CLS"), where)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks"):
        load_weights(build("bert"), tmp_path)
