"""Memory and speed of a causal language model of 1.2 billion random weights with LoRA in bf16, on one GPU.

    python benchmarks/gpu.py [--steps 20] [--batch 4] [--length 1024] [--checkpointing]

Nothing is downloaded: the shape is that of Llama 3.2 1B. Engine, tuning, loss and optimizer are those of a run.

    memory    torch.cuda.max_memory_allocated, from the first step on
    speed     tokens a second, without the first three steps
"""

from __future__ import annotations

import argparse
import sys
import time

WARM_UP = 3
SHAPE = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--checkpointing", action="store_true", help="activations are computed again")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("there is no GPU here that torch can use: this benchmark measures one", file=sys.stderr)
        return 1
    memory, speed = measure(options.steps + WARM_UP, options.batch, options.length, options.checkpointing)
    print(f"{torch.cuda.get_device_name()}, LoRA in bf16, {options.batch} x {options.length} tokens a step")
    print(f"memory {memory / 1e9:.1f} GB, {speed:,.0f} tokens a second")
    return 0


def measure(steps: int, batch: int, length: int, checkpointing: bool) -> tuple[int, float]:
    """(bytes, tokens a second)"""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from sft_dist.engines.base import Setup
    from sft_dist.engines.replicated import Replicated
    from sft_dist.losses.classification import CrossEntropy
    from sft_dist.losses.tokens import TokenLoss
    from sft_dist.recipe.schema import LoraTuning
    from sft_dist.tuning import apply_tuning
    from sft_dist.tuning.model_options import base_of, checkpoint_activations

    engine = Replicated(Setup("bf16", (), "", {"name": "single"}))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.float32)
    model = apply_tuning(model, LoraTuning(method="lora"), "CAUSAL_LM").train()
    if checkpointing:
        checkpoint_activations(base_of(model))
    engine.prepare(model, lambda model: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4))
    loss, device = TokenLoss(CrossEntropy()), engine.accelerator.device
    ids = torch.randint(0, SHAPE["vocab_size"], (batch, length), device=device)
    targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    torch.cuda.reset_peak_memory_stats()
    started = 0.0
    for step in range(steps):
        if step == WARM_UP:
            torch.cuda.synchronize()
            started = time.monotonic()
        with engine.accumulate(last=True):
            with engine.autocast():
                logits = engine.model(input_ids=ids, use_cache=False).logits
            engine.backward(loss.total(logits, targets) / targets.numel())
        engine.step(1.0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(), (steps - WARM_UP) * ids.numel() / (time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
