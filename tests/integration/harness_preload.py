# ruff: noqa: F401
"""Imported once by the fork server; importing starts no threads that a fork would lose."""

import contextlib
import os

import accelerate
import datasets
import peft
import sklearn.metrics
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sft_dist import attempt, checkpoint, inference, loop, models, optim, quiet, tasks, train, tuning
from sft_dist.data import prepare, sources, splits
from sft_dist.tasks import text_classification

if not quiet._has_gpu():
    os.environ["DS_ACCELERATOR"] = "cpu"
with contextlib.suppress(ImportError):
    import deepspeed
