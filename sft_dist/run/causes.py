"""Why an attempt ended: which rank on which host failed first, and of what. Torch-free.

Exit codes do not tell: `accelerate launch` turns every failure into 1, and srun into 143. When one rank dies the others lose
their connection, so most of the errors of a failure are secondary ones. The ranks' own files show which came first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sft_dist.recipe.errors import HubUnreachable, InUse
from sft_dist.recipe.files import irregular, read_object
from sft_dist.run.folder import AttemptFolder, RunFolder

LOG_BYTES = 256 * 1024
MAX_REASON_CHARS = 300

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

# The first pattern that matches `type: message` decides.
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
# A Python environment is the same on every node.
_LACKS_MODULE = re.compile(r"No module named")
# Frames of a traceback that belong to reading examples.
DATA_FRAMES = re.compile(r"/sft_dist/data/|/datasets/|/sft_dist/tasks/[^\n]*in (collate|encode)")

SLURM_KEYS = ("job_id", "slurm_state", "batch_signal", "limit_near", "cancelled")  # known only while the job exists

# Lines of a log that name a reason, and those that only follow from one: of this program's scripts, Slurm and torchrun.
_REASON = re.compile(
    r"(?i)error|fatal|no such|not found|no module|denied|cannot|could not|unable|invalid|failed|exception"
)
_CONSEQUENCE = re.compile(
    r"^\d{4}-\d\d-\d\dT|^\d\d:\d\d:\d\d |CANCELLED AT|[Ee]xited with exit code|Terminated|no node is at fault"
    r"|CalledProcessError|ChildFailedError|^\s*(exitcode|error_file|traceback) *:"
)

_KILLED_RANK = re.compile(
    r"time +: (?P<time>\S+)\s+host +: (?P<host>\S+)\s+rank +: (?P<rank>\d+) .*?exitcode +: (?P<code>-?\d+)", re.DOTALL
)


@dataclass(frozen=True)
class Facts:
    """All facts about one attempt."""

    number: int = 1
    start: dict[str, Any] = field(default_factory=dict)
    outcome: dict[str, Any] = field(default_factory=dict)
    exit: dict[str, Any] = field(default_factory=dict)
    errors: tuple[dict[str, Any], ...] = ()
    heartbeats: tuple[dict[str, Any], ...] = ()  # the last one of each rank
    hang: dict[str, Any] = field(default_factory=dict)
    killed_ranks: tuple[dict[str, Any], ...] = ()  # as torchrun's agents report them
    reason: str = ""  # the line of the log that names one, where no rank reported an error
    oom_kill: bool = False  # Slurm reports that the kernel killed a process for using too much memory
    job_id: str = ""  # the Slurm job it belonged to
    slurm_state: str = ""
    batch_signal: str = ""  # the signal the batch shell was sent: USR1, TERM
    limit_near: bool = False  # the time limit was near when the attempt ended
    cancelled: bool = False
    started_again: bool = False  # Slurm itself started the same job again


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended. `state`: finished, stopped, failed or killed. `line` is for people; decisions use the other fields."""

    state: str
    cause: str
    line: str
    rank: int | None = None
    host: str = ""
    log: str = ""
    user_error: bool = False
    hosts: tuple[str, ...] = ()  # to blame
    at_step: int | None = None


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def read_facts(attempt: AttemptFolder, **slurm: Any) -> Facts:
    """Reads an attempt's files. Only the batch script knows what Slurm reports (`slurm`); later, what it recorded counts."""
    recorded = read_object(attempt.decision_file)
    slurm = {**{key: recorded[key] for key in SLURM_KEYS if key in recorded}, **slurm}
    outcome = read_object(attempt.outcome_file)
    errors = _read_mappings(attempt, "rank-*.error.json")
    log = _tail(attempt.launcher_log) if errors or not outcome else ""
    return Facts(
        number=attempt.number,
        start=read_object(attempt.start_file),
        outcome=outcome,
        exit=read_object(attempt.exit_file),
        errors=errors,
        heartbeats=_read_mappings(attempt, "rank-*.beat.json"),
        hang=read_object(attempt.hang_file),
        killed_ranks=parse_killed_ranks(log),
        reason="" if errors else reason_in(log),
        oom_kill=bool(OOM_KILL.search(log)),
        **slurm,
    )


def parse_killed_ranks(log: str) -> tuple[dict[str, Any], ...]:
    """Returns the ranks that torchrun saw die of a signal other than its own SIGTERM, earliest first."""
    ranks: list[dict[str, Any]] = []
    for match in _KILLED_RANK.finditer(log):
        code = int(match["code"])
        if code < 0 and code != -15:
            ranks.append({"time": match["time"], "host": match["host"], "rank": int(match["rank"]), "code": code})
    return tuple(sorted(ranks, key=lambda rank: str(rank["time"])))


def reason_in(log: str) -> str:
    """Returns the last line of a log that names a reason, else "". Pure."""
    lines = [line.strip() for line in log.splitlines() if _REASON.search(line) and not _CONSEQUENCE.search(line)]
    return lines[-1][:MAX_REASON_CHARS] if lines else ""


def classify_attempt(folder: RunFolder, attempt: AttemptFolder) -> AttemptEnd:
    """Returns how an attempt of a run ended."""
    facts = read_facts(attempt)
    job = job_of(facts)
    later = [candidate for candidate in folder.all_attempts() if candidate.number > attempt.number]
    started_again = bool(job) and bool(later) and not _requeued_itself(attempt) and job_of(read_facts(later[0])) == job
    return classify_facts(replace(facts, started_again=started_again))


def job_of(facts: Facts) -> str:
    """Returns the Slurm job of an attempt; empty without one. A rank that fails early writes no `start.json`."""
    return str(facts.start.get("job_id") or facts.job_id)


# ── classification ──────────────────────────────────────────────────────────────────────────────────────────────────
def classify_facts(facts: Facts) -> AttemptEnd:
    """Returns how an attempt ended. Pure."""
    if facts.outcome.get("state") == "finished":
        return AttemptEnd("finished", "finished", str(facts.outcome.get("reason", "")))
    if facts.hang:
        return _hang(facts)
    if facts.errors:
        # An error outweighs an orderly stop: when a rank fails, the others receive a request to stop and may still save.
        return _of_errors(facts)
    if facts.outcome.get("state") == "stopped":
        cause = _reason_to_stop(facts)
        reason = str(facts.outcome.get("reason", ""))
        return AttemptEnd("stopped", cause, reason if cause == "asked to stop" else f"saved and stopped: {cause}")
    return _silence(facts)


def _of_errors(facts: Facts) -> AttemptEnd:
    # A lost connection is secondary to other errors; clocks of two machines differ, so the time alone does not decide.
    secondary_errors = [error for error in facts.errors if cause_of(error) == "network"]
    primary_errors = [error for error in facts.errors if error not in secondary_errors]
    if not primary_errors and (end := _died_silently(facts)):
        return end
    if not primary_errors and (cause := _from_outside(facts, "")):
        line = f"{cause}: the ranks lost each other when they were ended; see {_log(facts, 'launcher.log')}"
        return AttemptEnd("killed", cause, line)
    first = min(
        primary_errors or secondary_errors,
        key=lambda error: (float(error.get("time") or 0), int(error.get("rank") or 0)),
    )
    cause = cause_of(first)
    message = str(first.get("message", "")).strip()
    if cause in ("user error", "in use"):
        return AttemptEnd("failed", cause, message, _rank(first), str(first.get("host")), user_error=True)
    log = _log(facts, f"rank-{first.get('rank')}.log")
    summary = f"{first.get('type')}: {(message.splitlines() or [''])[0]}"
    summary = summary if cause == "error" else f"{cause} ({summary})"
    line = f"rank {first.get('rank')} on {first.get('host')}: {summary}; see {log}"
    host = str(first.get("host") or "")
    blamed = (host,) if primary_errors else ()  # the first rank with a secondary error is a victim like the others
    return AttemptEnd("failed", cause, line, _rank(first), host, log, False, blamed, _int_or_none(first.get("step")))


def cause_of(error: dict[str, Any]) -> str:
    """Returns the kind of one rank's error, in one word or two; `error` if no pattern matches."""
    if error.get("type") == InUse.__name__:
        return "in use"
    if error.get("user_error"):
        return "error" if error.get("type") == HubUnreachable.__name__ else "user error"
    text = f"{error.get('type')}: {error.get('message')}"
    for cause, pattern in PATTERNS:
        if re.search(pattern, text):
            return cause
    return "data" if DATA_FRAMES.search(str(error.get("traceback", ""))) else "error"


def _died_silently(facts: Facts) -> AttemptEnd | None:
    """Blames a rank without an error of its own: all errors are about lost connections."""
    reported = {_rank(error) for error in facts.errors}
    killed = next((rank for rank in facts.killed_ranks if rank["rank"] not in reported), None)
    silent = [entry for entry in facts.heartbeats if _rank(entry) not in reported and entry.get("phase") != "ended"]
    if node := _lost_node(facts, silent):
        return node
    # A rank that ended well while the others still trained, such as by `sys.exit(0)` in a plugin, is to blame like a silent one.
    silent = silent or [entry for entry in facts.heartbeats if _rank(entry) not in reported and not facts.outcome]
    earliest = min(silent, key=lambda entry: float(entry.get("time") or 0), default=None)
    if killed is None and earliest is None:
        return None
    rank = killed["rank"] if killed else _rank(earliest or {})
    heartbeat = next((entry for entry in silent if _rank(entry) == rank), earliest or {})
    host = str(heartbeat.get("host") or (killed or {}).get("host") or "unknown")
    log = _log(facts, "launcher.log" if killed else f"rank-{rank}.log")
    manner = "killed for using more memory than the job has" if facts.oom_kill else ""
    manner = manner or (_describe_signal(killed["code"]) if killed else "exited without an error message")
    step = _int_or_none(heartbeat.get("step"))
    cause = _from_outside(facts, "out of memory" if facts.oom_kill else "killed")
    at = f" at step {step}" if step is not None else ""
    line = f"rank {rank} on {host}: {manner}{at}, the other ranks lost their connection to it; see {log}"
    return AttemptEnd("failed", cause, line, rank, host, log, False, (host,), step)


def _lost_node(facts: Facts, silent: Sequence[dict[str, Any]]) -> AttemptEnd | None:
    """Blames a node if all its ranks, and no others, are silent."""
    hosts = {str(heartbeat.get("host")) for heartbeat in silent}
    all_hosts = {str(heartbeat.get("host")) for heartbeat in facts.heartbeats}
    if len(hosts) != 1 or hosts == all_hosts:
        return None
    host = hosts.pop()
    on_host = [heartbeat for heartbeat in facts.heartbeats if str(heartbeat.get("host")) == host]
    state = facts.slurm_state.upper()
    if len(on_host) != len(silent) or (len(on_host) == 1 and state not in ("NODE_FAIL", "BOOT_FAIL")):
        return None  # one rank per node: it may as well be the rank that died
    line = f"node {host} lost: none of its {len(on_host)} ranks reported an error, and the others lost their connection to it"
    return AttemptEnd(
        "failed",
        "node lost",
        line,
        _rank(on_host[0]),
        host,
        hosts=(host,),
        at_step=_int_or_none(on_host[0].get("step")),
    )


def _hang(facts: Facts) -> AttemptEnd:
    hang = facts.hang
    hosts = tuple(str(host) for host in hang.get("hosts", ()))
    rank, host = _int_or_none(hang.get("rank")), str(hang.get("host") or "")
    log = _log(facts, str(hang.get("log") or "hang.json"))
    cause = "node lost" if hang.get("kind") == "node" else "hang"
    return AttemptEnd(
        "failed", cause, f"{hang.get('line')}; see {log}", rank, host, log, False, hosts, _int_or_none(hang.get("step"))
    )


def _silence(facts: Facts) -> AttemptEnd:
    """No rank reported anything: killed from outside, or the machine went down."""
    if facts.killed_ranks and (end := _died_silently(facts)):
        return end
    log = _log(facts, "launcher.log")
    code = facts.exit.get("returncode")
    cause = _from_outside(facts, "")
    if cause:
        return AttemptEnd("killed", cause, f"{cause}: ended before it could save; see {log}")
    if facts.exit.get("killed"):
        return AttemptEnd("killed", "cancelled", f"interrupted before it could save; see {log}")
    if isinstance(code, int) and code > 0:
        reason = f": {facts.reason}" if facts.reason else ""
        line = f"the launcher ended with exit code {code} and no rank reported an error{reason}; see {log}"
        return AttemptEnd("failed", "software" if _LACKS_MODULE.search(facts.reason) else "error", line)
    if isinstance(code, int) and code < 0:
        return AttemptEnd("killed", "killed", f"signal {-code}; see {log}")
    return AttemptEnd(
        "killed", "killed", f"exited without an error message (killed, or the machine went down); see {log}"
    )


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
    """Returns who requested the stop: Slurm through the batch shell, or a person."""
    state = facts.slurm_state.upper().split() or [""]
    if facts.cancelled:
        return "cancelled"
    if cause := CAUSE_BY_SLURM_STATE.get(state[0].rstrip("+")):
        return cause
    if facts.batch_signal == "USR1":  # sent before a time limit, and at a preemption with a grace time
        return "time limit" if facts.limit_near else "preempted"
    if facts.started_again:  # after TERM: by scontrol, for a job of higher priority, or because a node was lost
        return "requeued"
    return "asked to stop"


# ── small things ────────────────────────────────────────────────────────────────────────────────────────────────────
def _requeued_itself(attempt: AttemptFolder) -> bool:
    return read_object(attempt.decision_file).get("action") == "requeue"


def _read_mappings(attempt: AttemptFolder, pattern: str) -> tuple[dict[str, Any], ...]:
    return tuple(value for file in sorted(attempt.path.glob(pattern)) if (value := read_object(file)))


def _tail(path: Path) -> str:
    if irregular(path):
        return ""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _rank(record: dict[str, Any]) -> int | None:
    return _int_or_none(record.get("rank"))


def _int_or_none(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _log(facts: Facts, name: str) -> str:
    return f"attempts/{facts.number:03d}/{name}"


def _describe_signal(code: int) -> str:
    return (
        "killed by signal 9 (by someone, or for using too much memory)" if code == -9 else f"killed by signal {-code}"
    )
