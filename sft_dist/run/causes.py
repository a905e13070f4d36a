"""Why an attempt ended: which rank on which host failed first, and of what. Torch-free.

Exit codes are no witness: `accelerate launch` makes 1 of every failure and srun 143. When one rank dies the others lose
their connection, so most of what is written about a failure is about its echo. The ranks' own files say what came first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import InUse
from sft_dist.recipe.files import read_json
from sft_dist.run.folder import AttemptFolder, RunFolder

LOG_BYTES = 256 * 1024

CAUSE_BY_SLURM_STATE = {
    "NODE_FAIL": "node lost",
    "BOOT_FAIL": "node lost",
    "PREEMPTED": "preempted",
    "TIMEOUT": "time limit",
    "DEADLINE": "time limit",
    "OUT_OF_MEMORY": "out of memory",
    "CANCELLED": "cancelled",
    "REQUEUED": "requeued",
}

# The first that fits decides; searched in `type: message`.
PATTERNS = (
    ("out of memory", r"OutOfMemoryError|MemoryError|out of memory|can't allocate memory|Cannot allocate memory"),
    ("disk full", r"No space left on device|Disk quota exceeded|Errno 28\b|Errno 122\b"),
    ("not a number", r"^TrainingError:"),
    ("gpu", r"uncorrectable ECC|fallen off the bus|CUDA-capable devices are busy|unspecified launch failure|Xid \d"),
    (
        "network",
        r"NCCL|nccl|[Gg]loo|Connection (closed|reset|refused)|Broken pipe|TCPStore|Dist(Network|Store|Backend)Error"
        r"|pair closure|Socket (T|t)imeout|Timed out waiting|timed out after|unreachable",
    ),
    ("data", r"^(DataError|ArrowInvalid|DatasetGenerationError|UnicodeDecodeError)"),
)
# What the kernel's limit of a job's memory leaves in the output of srun.
OOM_KILL = re.compile(r"oom[_-]kill event|Out Of Memory")
# Frames of a traceback that belong to reading examples.
DATA_FRAMES = re.compile(r"/sft_dist/data/|/datasets/|/sft_dist/tasks/[^\n]*in (collate|encode)")

TOLD = ("job_id", "slurm_state", "batch_signal", "limit_near", "cancelled")  # known only while the job was there

_AGENT = re.compile(
    r"time +: (?P<time>\S+)\s+host +: (?P<host>\S+)\s+rank +: (?P<rank>\d+) .*?exitcode +: (?P<code>-?\d+)", re.DOTALL
)


@dataclass(frozen=True)
class Facts:
    """All that is known of one attempt."""

    number: int = 1
    start: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    exit: dict[str, Any] = field(default_factory=dict)
    errors: tuple[dict[str, Any], ...] = ()
    beats: tuple[dict[str, Any], ...] = ()  # the last sign of life of each rank
    hang: dict[str, Any] = field(default_factory=dict)
    agents: tuple[dict[str, Any], ...] = ()  # what torchrun's agents say of ranks killed by a signal
    oom_kill: bool = False  # Slurm says that the kernel ended a process which used too much memory
    job_id: str = ""  # the Slurm job it belonged to
    slurm_state: str = ""
    batch_signal: str = ""  # the signal the batch shell was sent: USR1, TERM
    limit_near: bool = False  # the time limit was near when the attempt ended
    cancelled: bool = False
    started_again: bool = False  # Slurm itself started the same job again


@dataclass(frozen=True)
class AttemptEnd:
    """`state`: finished, stopped, failed or killed. `line` is for people; the rest for decisions."""

    state: str
    cause: str
    line: str
    rank: int | None = None
    host: str = ""
    log: str = ""
    user_error: bool = False
    hosts: tuple[str, ...] = ()  # blamed
    at_step: int | None = None


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def read_facts(attempt: AttemptFolder, **told: Any) -> Facts:
    """What the attempt's files say; `told` is what only the batch script knows, else what it knew at the time."""
    before = read_json(attempt.decision_file) or {}
    told = {**{key: before[key] for key in TOLD if key in before}, **told}
    outcome = _mapping(attempt.outcome_file)
    errors = _each(attempt, "rank-*.error.json")
    said = _tail(attempt.launcher_log) if errors or not outcome else ""
    return Facts(
        number=attempt.number,
        start=_mapping(attempt.start_file),
        outcome=outcome,
        exit=_mapping(attempt.exit_file),
        errors=errors,
        beats=_each(attempt, "rank-*.beat.json"),
        hang=_mapping(attempt.hang_file),
        agents=agents_of(said),
        oom_kill=bool(OOM_KILL.search(said)),
        **told,
    )


def agents_of(log: str) -> tuple[dict[str, Any], ...]:
    """Ranks that torchrun saw die of a signal other than its own SIGTERM, earliest first."""
    found: list[dict[str, Any]] = []
    for match in _AGENT.finditer(log):
        code = int(match["code"])
        if code < 0 and code != -15:
            found.append({"time": match["time"], "host": match["host"], "rank": int(match["rank"]), "code": code})
    return tuple(sorted(found, key=lambda one: str(one["time"])))


def classify_attempt(folder: RunFolder, attempt: AttemptFolder) -> AttemptEnd:
    """Why an attempt ended, as the ledger shows it."""
    facts = read_facts(attempt)
    job = job_of(facts)
    later = [one for one in folder.all_attempts() if one.number > attempt.number]
    again = bool(job) and bool(later) and not _requeued_itself(attempt) and job_of(read_facts(later[0])) == job
    return classify_facts(replace(facts, started_again=again))


def job_of(facts: Facts) -> str:
    """The Slurm job an attempt belonged to; empty when there was none. A rank that fails early writes no `start.json`."""
    return str(facts.start.get("job_id") or facts.job_id)


# ── classification ──────────────────────────────────────────────────────────────────────────────────────────────────
def classify_facts(facts: Facts) -> AttemptEnd:
    """Why an attempt ended. Pure."""
    if facts.outcome.get("state") == "finished":
        return AttemptEnd("finished", "finished", str(facts.outcome.get("reason", "")))
    if facts.hang:
        return _hang(facts)
    if facts.errors:
        # An error outweighs an orderly stop: when a rank fails, the others are asked to stop and may still save.
        return _of_errors(facts)
    if facts.outcome.get("state") == "stopped":
        cause = _reason_to_stop(facts)
        reason = str(facts.outcome.get("reason", ""))
        return AttemptEnd("stopped", cause, reason if cause == "asked to stop" else f"saved and stopped: {cause}")
    return _silence(facts)


def _of_errors(facts: Facts) -> AttemptEnd:
    # Only what is no echo can be the first cause; clocks of two machines differ, so the time alone does not decide.
    echoes = [error for error in facts.errors if cause_of(error) == "network"]
    own = [error for error in facts.errors if error not in echoes]
    if not own and (dead := _died_silently(facts)):
        return dead
    if not own and (outside := _from_outside(facts, "")):
        line = f"{outside}: the ranks lost each other when they were ended; see {_log(facts, 'launcher.log')}"
        return AttemptEnd("killed", outside, line)
    first = min(own or echoes, key=lambda error: (float(error.get("time") or 0), int(error.get("rank") or 0)))
    cause = cause_of(first)
    message = str(first.get("message", "")).strip()
    if cause in ("user error", "in use"):
        return AttemptEnd("failed", cause, message, _rank(first), str(first.get("host")), user_error=True)
    log = _log(facts, f"rank-{first.get('rank')}.log")
    what = f"{first.get('type')}: {(message.splitlines() or [''])[0]}"
    known = what if cause == "error" else f"{cause} ({what})"
    line = f"rank {first.get('rank')} on {first.get('host')}: {known}; see {log}"
    host = str(first.get("host") or "")
    blamed = (host,) if own else ()  # of echoes, the first to be heard is a victim like the others
    return AttemptEnd("failed", cause, line, _rank(first), host, log, False, blamed, _number(first.get("step")))


def cause_of(error: dict[str, Any]) -> str:
    """One word or two for one rank's error; `error` when nothing fits."""
    if error.get("type") == InUse.__name__:
        return "in use"
    if error.get("user_error"):
        return "user error"
    text = f"{error.get('type')}: {error.get('message')}"
    for cause, pattern in PATTERNS:
        if re.search(pattern, text):
            return cause
    return "data" if DATA_FRAMES.search(str(error.get("traceback", ""))) else "error"


def _died_silently(facts: Facts) -> AttemptEnd | None:
    """All that was written is about lost connections: the first to go is one that could not write."""
    said = {_rank(error) for error in facts.errors}
    agent = next((one for one in facts.agents if one["rank"] not in said), None)
    silent = [beat for beat in facts.beats if _rank(beat) not in said and beat.get("phase") != "ended"]
    if lost := _lost_node(facts, silent):
        return lost
    last = min(silent, key=lambda beat: float(beat.get("time") or 0), default=None)
    if agent is None and last is None:
        return None
    rank = agent["rank"] if agent else _rank(last or {})
    beat = next((one for one in silent if _rank(one) == rank), last or {})
    host = str(beat.get("host") or (agent or {}).get("host") or "unknown")
    log = _log(facts, "launcher.log" if agent else f"rank-{rank}.log")
    how = "ended for using more memory than the job may" if facts.oom_kill else ""
    how = how or (_signal(agent["code"]) if agent else "died without a word")
    step = _number(beat.get("step"))
    cause = _from_outside(facts, "out of memory" if facts.oom_kill else "killed")
    at = f" at step {step}" if step is not None else ""
    line = f"rank {rank} on {host}: {how}{at}, the other ranks lost their connection to it; see {log}"
    return AttemptEnd("failed", cause, line, rank, host, log, False, (host,), step)


def _lost_node(facts: Facts, silent: Sequence[dict[str, Any]]) -> AttemptEnd | None:
    """Every rank of one host went silent, and others did not."""
    hosts = {str(beat.get("host")) for beat in silent}
    everywhere = {str(beat.get("host")) for beat in facts.beats}
    if len(hosts) != 1 or hosts == everywhere:
        return None
    host = hosts.pop()
    here = [beat for beat in facts.beats if str(beat.get("host")) == host]
    state = facts.slurm_state.upper()
    if len(here) != len(silent) or (len(here) == 1 and state not in ("NODE_FAIL", "BOOT_FAIL")):
        return None  # one rank a node: it may as well be the rank that died
    line = f"node {host} lost: none of its {len(here)} ranks said why, and the others lost their connection to it"
    return AttemptEnd(
        "failed", "node lost", line, _rank(here[0]), host, hosts=(host,), at_step=_number(here[0].get("step"))
    )


def _hang(facts: Facts) -> AttemptEnd:
    hang = facts.hang
    hosts = tuple(str(host) for host in hang.get("hosts", ()))
    rank, host = _number(hang.get("rank")), str(hang.get("host") or "")
    log = _log(facts, str(hang.get("log") or "hang.json"))
    cause = "node lost" if hang.get("kind") == "node" else "hang"
    return AttemptEnd(
        "failed", cause, f"{hang.get('line')}; see {log}", rank, host, log, False, hosts, _number(hang.get("step"))
    )


def _silence(facts: Facts) -> AttemptEnd:
    """No rank said anything: killed from outside, or the machine went down."""
    if facts.agents and (dead := _died_silently(facts)):
        return dead
    log = _log(facts, "launcher.log")
    code = facts.exit.get("returncode")
    cause = _from_outside(facts, "")
    if cause:
        return AttemptEnd("killed", cause, f"{cause}: ended before it could save; see {log}")
    if facts.exit.get("killed"):
        return AttemptEnd("killed", "cancelled", f"interrupted before it could save; see {log}")
    if isinstance(code, int) and code > 0:
        return AttemptEnd(
            "failed", "error", f"the launcher ended with exit code {code} and no rank said why; see {log}"
        )
    if isinstance(code, int) and code < 0:
        return AttemptEnd("killed", "killed", f"signal {-code}; see {log}")
    return AttemptEnd("killed", "killed", f"ended without a word (killed, or the machine went down); see {log}")


def _from_outside(facts: Facts, otherwise: str) -> str:
    state = facts.slurm_state.upper().split() or [""]  # "CANCELLED by 0"
    if facts.cancelled:
        return "cancelled"
    if cause := CAUSE_BY_SLURM_STATE.get(state[0].rstrip("+")):
        return cause
    if facts.started_again:
        return "requeued"
    return _reason_to_stop(facts) if facts.batch_signal else otherwise


def _reason_to_stop(facts: Facts) -> str:
    """Who asked: Slurm through the batch shell, or a person."""
    state = facts.slurm_state.upper().split() or [""]
    if facts.cancelled:
        return "cancelled"
    if cause := CAUSE_BY_SLURM_STATE.get(state[0].rstrip("+")):
        return cause
    if facts.batch_signal == "USR1":  # sent before a time limit, and at a preemption with a grace time
        return "time limit" if facts.limit_near else "preempted"
    if facts.started_again:  # after TERM: by scontrol, for a job of higher rank, or because a node was lost
        return "requeued"
    return "asked to stop"


# ── small things ────────────────────────────────────────────────────────────────────────────────────────────────────
def _requeued_itself(attempt: AttemptFolder) -> bool:
    return _mapping(attempt.decision_file).get("action") == "requeue"


def _mapping(path: Path) -> dict[str, Any]:
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _each(attempt: AttemptFolder, pattern: str) -> tuple[dict[str, Any], ...]:
    return tuple(value for file in sorted(attempt.path.glob(pattern)) if (value := _mapping(file)))


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _rank(of: dict[str, Any]) -> int | None:
    return _number(of.get("rank"))


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _log(facts: Facts, name: str) -> str:
    return f"attempts/{facts.number:03d}/{name}"


def _signal(code: int) -> str:
    return "killed by signal 9 (by someone, or for using too much memory)" if code == -9 else f"died of signal {-code}"
