"""Silences libraries: this project logs what matters of their messages in one line."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Silences libraries. Must be called before transformers or DeepSpeed load anything."""
    if not _has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no GPU
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\.")
    # PEFT's pages of advice on tied embeddings: what cannot be merged is refused, and every merge is compared.
    warnings.filterwarnings("ignore", message=r".*tie_word_embeddings")
    for name in ("httpx", "httpcore", "urllib3", "filelock", "fsspec", "huggingface_hub", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Imported here, after the settings above.
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _has_gpu() -> bool:
    import torch  # slow to import

    return torch.accelerator.is_available()
