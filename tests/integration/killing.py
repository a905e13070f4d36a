"""Kills a process again and again while it saves, and looks each time at what is left.

The saving is real (Saver, Snapshot, the engine of `single` and `ddp`, a small BERT, AdamW); the steps between are short, so
that nearly all the time something is being saved. What a checkpoint must hold is known: training is deterministic, so the
content is a function of the step, and a model that nobody disturbs goes through the same steps beside.

A process that has imported everything and built the model forks one for each attempt, so that a kill costs milliseconds.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from sft_dist.checkpoints import store as ckpt
from sft_dist.checkpoints.optimizer_state import SavedState, names_of, optimizer_pieces
from sft_dist.checkpoints.saver import Saver
from sft_dist.engines.base import Setup
from sft_dist.engines.replicated import Replicated
from sft_dist.logging_setup import quiet_libraries
from sft_dist.run.folder import RunFolder
from sft_dist.training.progress import Progress
from sft_dist.training.snapshot import Snapshot, restore
from sft_dist.tuning import load_weights, save_weights
from tests.ports import free_port

KEEP_LAST = 3
SLOW_S = 60.0


@dataclass
class Found:
    """What many kills came to."""

    kills: int = 0
    unfinished: int = 0  # kills that hit a checkpoint half-written
    last_step: int = 0
    seconds: float = 0.0


def kill_while_saving(path: str, kills: int, world_size: int, seed: int) -> dict[str, Any]:
    """Raises AssertionError at the first kill that does harm."""
    rng = random.Random(seed)
    folder = RunFolder(Path(path))
    folder.path.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    undisturbed = Undisturbed()
    _warm_up(folder.path / "warm-up")
    found, told, started = Found(), {0}, time.monotonic()
    pause = 0.05  # about as long as a checkpoint takes; adapts
    while found.kills < kills:
        attempt = found.kills + 1
        processes, pipe = _start(folder, attempt, world_size)
        try:
            lines = _wait_for_a_save(pipe, rng.randint(1, 2))
            # Mostly inside the first of them; sometimes one rank goes before the others.
            time.sleep(rng.uniform(0, 1.2 * pause))
            victims = rng.sample(processes, rng.randint(1, world_size))
            for process in victims:
                os.kill(process, signal.SIGKILL)
            if len(victims) < world_size:
                time.sleep(rng.uniform(0, pause))
        finally:
            for process in processes:
                os.kill(process, signal.SIGKILL)
        for process in processes:
            status = os.waitpid(process, 0)[1]
            died_alone = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            lost_the_others = world_size > 1 and os.WIFEXITED(status)
            assert died_alone or lost_the_others, (folder.path / "said").read_text()[-4000:]
        with pipe:
            lines += pipe.read().splitlines()
        times = [float(line.split()[2]) for line in lines if line.startswith("published")]
        pause = 0.8 * pause + 0.2 * times[-1] if times else pause
        found.kills += 1
        told |= {int(line.split()[1]) for line in lines if line.startswith("published")}
        found.unfinished += bool(ckpt.clear_unfinished(folder))
        found.last_step = _look(folder, told, undisturbed)
    found.seconds = time.monotonic() - started
    return asdict(found)


def _warm_up(folder: Path) -> None:
    """Whatever is imported at the first save, before processes are forked rather than in each."""
    model = build_model()
    loss_of(model, 1).backward()
    save_weights(model, model.state_dict(), folder)
    build_tokenizer().save_pretrained(folder)


def _look(folder: RunFolder, told: set[int], undisturbed: Undisturbed) -> int:
    """What must hold after every kill. Returns the step to go on from; 0 before the first checkpoint."""
    newest, damaged = ckpt.newest_good(folder)
    assert damaged == []
    there = [checkpoint.step for checkpoint in ckpt.published(folder)]
    kept = {step for step in told - {0} if step >= min(there[-KEEP_LAST:], default=0)}
    assert kept <= set(there), f"lost: told of {sorted(kept)}, there are {there}"
    assert not [name for name in os.listdir(folder.checkpoints) if not name.startswith("step-")]
    if newest is None:
        return 0
    assert newest.step >= max(told), f"going back from {max(told)} to {newest.step}"
    assert newest.trainer_state()["progress"]["step"] == newest.step
    assert saved_digest(newest) == undisturbed.digest(newest.step), f"step {newest.step} holds something else"
    for step in there[:-1]:
        assert ckpt.verify(ckpt.Checkpoint(folder.checkpoint(step), step)) == []
    return newest.step


def _wait_for_a_save(pipe: Any, count: int) -> list[str]:
    lines: list[str] = []
    while sum(line.startswith("saving") for line in lines) < count:
        line = pipe.readline()
        assert line, "the process ended by itself"
        lines.append(line)
    return lines


def _start(folder: RunFolder, attempt: int, world_size: int) -> tuple[list[int], Any]:
    """Processes that train from the newest checkpoint, and what rank 0 says of its saving."""
    port = free_port()
    ours, theirs = os.pipe()
    processes = []
    for rank in range(world_size):
        process = os.fork()
        if process == 0:
            said = os.open(folder.path / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.close(ours)
            try:
                _train(folder, attempt, rank, world_size, port, lambda text: os.write(theirs, f"{text}\n".encode()))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        processes.append(process)
    os.close(theirs)
    return processes, os.fdopen(ours)


def _train(
    folder: RunFolder, attempt: int, rank: int, world_size: int, port: int, tell: Callable[[str], object]
) -> None:
    """Until killed."""
    signal.alarm(int(SLOW_S))
    if world_size > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        os.environ |= {name: str(value) for name, value in names.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    engine = Replicated(Setup("fp32", str(folder.path), {"name": "ddp"}))
    model = build_model()
    newest, _ = ckpt.newest_good(folder)
    if newest:
        load_weights(model, newest.model)
    engine.prepare(model, build_optimizer)
    schedule = build_schedule(engine.optimizer)
    progress = Progress()
    if newest:
        restore(newest, engine, schedule)
        progress = Progress.read(newest.trainer_state()["progress"])
    t: Any = SimpleNamespace(
        engine=engine,
        accelerator=engine.accelerator,
        progress=progress,
        schedule=schedule,
        processor=build_tokenizer(),
        task=SimpleNamespace(labels=["a", "b"]),
    )
    saver = Saver(folder, attempt, rank, world_size, engine.accelerator.wait_for_everyone)
    while True:
        step = progress.step = progress.step + 1
        engine.backward(loss_of(engine.model, step))
        engine.step(1.0)
        schedule.step()
        if saved := saver.finish():
            tell(f"published {saved.step} {saved.seconds:.4f}")
            ckpt.prune(folder, KEEP_LAST, set())
        saver.save(step, Snapshot.take(t).write)
        if rank == 0:
            tell(f"saving {step}")


# ── what is trained ─────────────────────────────────────────────────────────────────────────────────────────────────
def build_model() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config).train()


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def build_schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step % 7))


def build_tokenizer() -> PreTrainedTokenizerFast:
    words = {"[UNK]": 0, "[PAD]": 1, **{f"w{number}": number for number in range(2, 512)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")), unk_token="[UNK]", pad_token="[PAD]"
    )


def loss_of(model: nn.Module, step: int) -> Tensor:
    """The same examples on every rank, so that any number of ranks trains alike."""
    numbers = torch.Generator().manual_seed(step)
    texts = torch.randint(2, 512, (4, 8), generator=numbers)
    labels = torch.randint(0, 2, (4,), generator=numbers)
    return model(input_ids=texts, labels=labels).loss


class Undisturbed:
    """A training that nobody kills."""

    def __init__(self) -> None:
        self.model = build_model()
        self.optimizer = build_optimizer(self.model)
        self.schedule = build_schedule(self.optimizer)
        self.digests: dict[int, str] = {}
        self.step = 0

    def digest(self, step: int) -> str:
        """Of weights and optimizer state after `step`."""
        while self.step < step:
            self.step += 1
            loss_of(self.model, self.step).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            state = {piece.key: piece.values for piece in optimizer_pieces(self.optimizer, self.model, lambda _: True)}
            self.digests[self.step] = _digest({**self.model.state_dict(), **state})
        return self.digests[step]


def saved_digest(checkpoint: ckpt.Checkpoint) -> str:
    """The same of a checkpoint, however many ranks have written it."""
    tensors = load_file(checkpoint.model / "model.safetensors")
    model = build_model()
    with SavedState(checkpoint.state) as saved:
        for weight, name in names_of(model).items():
            for state_key in saved.element_keys(name):
                tensors[f"{name}/{state_key}@0"] = saved.read(name, state_key, 0, weight.numel())
            for state_key in saved.whole_keys(name):
                tensors[f"{name}/{state_key}"] = saved.full_value(name, state_key)
    return _digest(tensors)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype}".encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
