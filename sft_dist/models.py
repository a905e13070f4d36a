"""Tokenizer and model from a recipe, the same way for training, judging, exporting and predicting."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sft_dist.recipe.references import model_source
from sft_dist.recipe.schema import Recipe
from sft_dist.tasks.base import Task
from sft_dist.tuning import apply_tuning


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(
        model_source(recipe.model.tokenizer or recipe.model.path), revision=recipe.model.revision
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_model(recipe: Recipe, task: Task, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The base model with the task's head and the recipe's tuning; head and adapters are new, from `train.seed`."""
    torch.manual_seed(recipe.train.seed)
    model = task.build_model(model_source(recipe.model.path), recipe.model.revision, recipe.model.config)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return apply_tuning(model, recipe.tuning, task.peft_task)
