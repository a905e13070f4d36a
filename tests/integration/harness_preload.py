# ruff: noqa: F401
"""Imported once by the fork server; importing starts no threads that a fork would lose."""

import accelerate
import datasets
import peft
import sklearn.metrics
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sft_dist import attempt, checkpoint, inference, loop, models, optim, quiet, tasks, train, tuning
from sft_dist.data import prepare, sources, splits
from sft_dist.tasks import text_classification
