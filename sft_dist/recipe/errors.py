"""Mistakes of a user: the place, the value found, and what would be valid. Exit code 2, no traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from sft_dist.recipe.masking import masked, masked_values
from sft_dist.recipe.text import printable


@dataclass(frozen=True)
class Mark:
    """A place in a file (line and column count from 1) or on the command line (line 0, column 0)."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    """One mistake. `value` is shown as it was written; `valid` and `hint` say what to do instead."""

    message: str
    path: str = ""  # dotted key path, such as train.lr
    mark: Mark | None = None
    value: str | None = None
    valid: tuple[str, ...] = ()
    hint: str = ""  # "did you mean `lora`?"

    def render(self) -> str:
        head = ": ".join(filter(None, (str(self.mark) if self.mark else "", self.path, self.message)))
        lines = [head]
        if self.value is not None:
            lines.append(f"    found: {self.value}")
        if self.valid:
            lines.append(f"    valid: {', '.join(self.valid)}")
        if self.hint:
            lines.append(f"    {self.hint}")
        return printable(masked("\n".join(lines)))


class UserError(Exception):
    """One or more mistakes that the user can fix: reported without a traceback, with exit code 2."""

    def __init__(self, problems: str | Problem | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        if isinstance(problems, Problem):
            problems = [problems]
        self.problems = tuple(problems)
        super().__init__(self.render())

    def render(self) -> str:
        text = "\n".join(problem.render() for problem in self.problems)
        return text if len(self.problems) == 1 else f"{text}\n{len(self.problems)} problems."

    @classmethod
    def from_dict(cls, value: Any) -> UserError:
        """Returns the error of another process, without marks: it read no recipe file. Raises TypeError, ValueError or LookupError
        for what `to_dict` does not give."""
        problems = [
            Problem(**{**problem, "mark": None, "valid": tuple(problem["valid"])}) for problem in value["problems"]
        ]
        if not problems:
            raise ValueError("no problem")
        return cls(problems)

    def to_dict(self) -> dict[str, Any]:
        return {"problems": [masked_values(asdict(problem)) for problem in self.problems]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)


class InUse(UserError):
    """Another process is training the run. On a cluster it may be on a lost node, and end soon."""


class NotInCache(UserError):
    """A model on the hub is not in this machine's cache, and cannot be downloaded."""


class HubUnreachable(NotInCache):
    """The hub did not answer. Another attempt may succeed, so a job is requeued for it."""


@contextmanager
def collected(problems: list[Problem]) -> Iterator[None]:
    """Collects the mistakes that are raised in the block, so that they are reported together with others."""
    try:
        yield
    except UserError as error:
        problems += error.problems
