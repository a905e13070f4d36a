"""Memory and speed of fine-tuning on one GPU, beside transformers' Trainer (with PEFT) on the same shape, batch and length.

    python benchmarks/gpu.py [--steps 20] [--case lora-4x1024 ...] [--by ours trainer ...] [--profile FILE]

Nothing is downloaded: the weights are random, the shapes those of Llama 3.2 1B and Qwen2.5 0.5B. Engine, tuning, loss, optimizer
and choice of kernels are those of a run. Every row is a process of its own.

    memory    torch.cuda.max_memory_allocated, from the first step on
    speed     tokens a second, without the first three steps
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WARM_UP = 3
LLAMA_1B = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
QWEN_HALF_B = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    shape: dict[str, Any]
    tuning: str  # lora | full
    batch: int
    length: int
    checkpointing: bool = False


CASES = {
    "lora-1x1024": Case(LLAMA_1B, "lora", 1, 1024),
    "lora-4x1024": Case(LLAMA_1B, "lora", 4, 1024),
    "lora-16x1024": Case(LLAMA_1B, "lora", 16, 1024),
    "lora-4x1024-checkpointing": Case(LLAMA_1B, "lora", 4, 1024, checkpointing=True),
    "lora-16x1024-checkpointing": Case(LLAMA_1B, "lora", 16, 1024, checkpointing=True),
    "full-4x1024": Case(QWEN_HALF_B, "full", 4, 1024),
    "full-8x1024": Case(QWEN_HALF_B, "full", 8, 1024),
    "tiny": Case(TINY, "lora", 2, 64),  # for a look at the benchmark itself
}
Measurement = tuple[int, float]  # bytes, tokens a second


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--case", nargs="+", choices=CASES, default=[name for name in CASES if name != "tiny"])
    parser.add_argument("--by", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--profile", metavar="FILE", help="write a table of the kernels of three steps of ours instead")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)  # one measurement, in this process
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available() and options.case != ["tiny"]:
        print("there is no GPU here that torch can use: this benchmark measures one", file=sys.stderr)
        return 1
    if options.profile:
        profile(CASES[options.case[0]], options.profile)
    elif options.row:
        memory, speed = PROGRAMS[options.by[0]](CASES[options.case[0]], options.steps + WARM_UP)
        print(json.dumps({"memory": memory, "speed": speed}))
    else:
        print(f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}, torch {torch.__version__}")
        print("| case | by | memory, GB | tokens a second |\n|---|---|---|---|")
        for case in options.case:
            for program in options.by:
                print(f"| {case} | {program} | {row(case, program, options.steps)} |", flush=True)
    return 0


def row(case: str, program: str, steps: int) -> str:
    """The last two columns; what went wrong instead, when the process failed."""
    command = [sys.executable, __file__, "--row", "--case", case, "--by", program, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"{(done.stderr.strip().splitlines() or ['failed'])[-1][:200]} | "
    measurement = json.loads(done.stdout.splitlines()[-1])
    return f"{measurement['memory'] / 1e9:.1f} | {measurement['speed']:,.0f}"


# ── ours ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def measure(case: Case, steps: int) -> Measurement:
    step, num_tokens = training_step(case)
    _reset_peak()
    started = 0.0
    for number in range(steps):
        if number == WARM_UP:
            started = _synchronized_clock()
        step()
    return _peak(), (steps - WARM_UP) * num_tokens / (_synchronized_clock() - started)


def training_step(case: Case) -> tuple[Callable[[], None], int]:
    """(one optimizer step as `training/loop.py` makes it, its tokens)"""
    import torch

    from sft_dist.engines.base import Setup
    from sft_dist.engines.replicated import Replicated
    from sft_dist.losses.classification import CrossEntropy
    from sft_dist.losses.tokens import TokenLoss
    from sft_dist.recipe.schema import AdamW, FullTuning, LoraTuning, Train
    from sft_dist.tuning import apply_tuning
    from sft_dist.tuning.model_options import base_of, checkpoint_activations
    from sft_dist.tuning.optimizers import build_optimizer

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    engine = Replicated(Setup("bf16", "", {"name": "single"}))
    tuning = LoraTuning(method="lora") if case.tuning == "lora" else FullTuning(method="full")
    model = apply_tuning(random_model(case, torch.float32), tuning, "CAUSAL_LM").train()
    if case.checkpointing:
        checkpoint_activations(base_of(model))
    settings = Train(lr=1e-4, optimizer=AdamW(name="adamw"))
    engine.prepare(model, lambda model: build_optimizer(model, settings))
    loss, device = TokenLoss(CrossEntropy()), engine.accelerator.device
    ids = torch.randint(0, case.shape["vocab_size"], (case.batch, case.length), device=device)
    targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)

    def step() -> None:
        with engine.accumulate(last=True):
            with engine.autocast():
                logits = engine.model(input_ids=ids, use_cache=False).logits
            loss_sum = loss.total(logits, targets)
            engine.backward(loss_sum / targets.numel())
        loss_sum.item()  # a run logs it, and stops on NaN
        engine.step(1.0)

    return step, ids.numel()


def profile(case: Case, path: str) -> None:
    """Writes the time of every kernel of three steps; "Self CUDA time total" below the table is how long the GPU was busy."""
    import torch
    from torch.profiler import ProfilerActivity

    step, _ = training_step(case)
    for _ in range(WARM_UP):
        step()
    started = _synchronized_clock()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            step()
        wall_s = _synchronized_clock() - started
    averages = profiler.key_averages()
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{wall_s * 1e3:.1f} ms for three steps, with the profiler's own time\n")
        file.write(averages.table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=110))
        file.write(averages.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))


# ── the baseline ────────────────────────────────────────────────────────────────────────────────────────────────────
def measure_trainer(case: Case, steps: int) -> Measurement:
    """The base in fp32, as ours."""
    import torch

    return _measure_trainer(case, steps, torch.float32)


def measure_trainer_16_bits(case: Case, steps: int) -> Measurement:
    """The base in bf16, as it is loaded by default from most checkpoints; with full tuning there is no fp32 copy of it."""
    import torch

    return _measure_trainer(case, steps, torch.bfloat16)


def _measure_trainer(case: Case, steps: int, dtype: Any) -> Measurement:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from sft_dist.recipe.schema import LoraTuning

    model = random_model(case, dtype)
    if case.tuning == "lora":
        ours = LoraTuning(method="lora")
        lora = LoraConfig(task_type="CAUSAL_LM", r=ours.r, lora_alpha=ours.alpha, lora_dropout=ours.dropout, target_modules=ours.target_modules)  # fmt: skip
        model = get_peft_model(model, lora)
    rows = torch.randint(0, case.shape["vocab_size"], (case.batch, case.length))
    data = [{"input_ids": row, "labels": row} for row in rows] * steps
    started: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == WARM_UP:
                started.append(_synchronized_clock())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=case.batch, bf16=True, learning_rate=1e-4, report_to=[],
            save_strategy="no", logging_steps=10, disable_tqdm=True, gradient_checkpointing=case.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False}, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[Clock()])  # type: ignore[arg-type]
        _reset_peak()
        trainer.train()
        ended = _synchronized_clock()
    return _peak(), (steps - WARM_UP) * case.batch * case.length / (ended - started[0])


PROGRAMS: dict[str, Callable[[Case, int], Measurement]] = {
    "ours": measure,
    "trainer": measure_trainer,
    "trainer-bf16-base": measure_trainer_16_bits,
}


def random_model(case: Case, dtype: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a billion random numbers take long on a CPU
        return AutoModelForCausalLM.from_config(LlamaConfig(**case.shape), dtype=dtype)


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def _synchronized_clock() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


if __name__ == "__main__":
    sys.exit(main())
