"""Keeps libraries from talking over the log: what matters of what they say is said by this project in one line."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Call before transformers or DeepSpeed load anything."""
    if not _has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no GPU
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\.")
    for name in ("httpx", "httpcore", "urllib3", "filelock", "fsspec", "huggingface_hub", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _has_gpu() -> bool:
    import torch

    return torch.accelerator.is_available()
