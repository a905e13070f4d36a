# ruff: noqa: F401
"""Imported once by the fork server; importing starts no threads that a fork would lose."""

import contextlib
import gc
import os

# Whether there is a GPU is asked of the driver's library: torch's own question, which libraries ask while they are imported,
# starts CUDA, and then no process forked from here could use it.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

import accelerate
import datasets
import peft
import sklearn.metrics
import sklearn.model_selection
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.bert import modeling_bert, tokenization_bert

from sft_dist import logging_setup as quiet
from sft_dist import tasks, trackers, train, tuning
from sft_dist.batches import stream
from sft_dist.checkpoints import store as checkpoint
from sft_dist.data import prepare, sources, splits
from sft_dist.engines import fsdp2, replicated
from sft_dist.evaluation import inference
from sft_dist.run import attempt, environment, heartbeat
from sft_dist.tasks import models, text_classification
from sft_dist.training import build, loop, out_of_memory, rank_consistency
from sft_dist.tuning import optimizers as optim

if not quiet._has_gpu():
    os.environ["DS_ACCELERATOR"] = "cpu"
with contextlib.suppress(ImportError):
    import deepspeed

    from sft_dist.engines import zero

get_checkpoint_conversion_mapping("")  # compiles 900 regular expressions, once a process
gc.freeze()  # or each collection of a forked process would go through all that was imported, and copy its pages
