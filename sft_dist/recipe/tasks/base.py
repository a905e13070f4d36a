"""The facts of a task that need no torch: what `init`, `plan` and `check` know before any model is loaded.

A task is one class of facts here, a subclass of `TaskSettings`, and one class of work in `sft_dist/tasks/`.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from sft_dist.recipe.errors import Problem
from sft_dist.recipe.section import Section

Positive = Annotated[int, Field(ge=1, le=10**9)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
Need = Literal["required", "if mapped", "if present"]
Metrics = Mapping[str, Literal["max", "min"]]
Columns = Mapping[str, Need]  # role -> whether the data must have a column for it
MediaKind = Literal["image", "mask", "audio"]
MEDIA_KINDS: tuple[MediaKind, ...] = get_args(MediaKind)
Media = Mapping[str, MediaKind]  # role whose values are files -> what they hold
Starters = Mapping[str, Mapping[str, str]]  # `type` -> key path -> value in the recipe that `init` writes


@dataclass(frozen=True)
class Kind:
    """A kind of problem: what an example's target is, and how predictions are scored."""

    metrics: Metrics  # name -> better when larger or smaller; the first is the default to choose a checkpoint by
    losses: tuple[str, ...]  # names that `train.loss` accepts; the first is the default
    classes: Literal["one", "many", "none"] = "none"  # that an example has; "one": shares can be equal in all splits
    problem: str = ""  # value of `task.problem` that chooses this kind; empty where no `problem` does
    packages: tuple[tuple[str, str], ...] = ()  # (module, what to install) that its metrics need


class TaskSettings(Section):
    """The options of a task in a recipe, and its facts."""

    type: str

    work: ClassVar[str]  # "module:Class" of the class that reads, encodes, trains and scores; imported when needed
    # Roles that the task reads. `data.columns` maps roles to columns; a role that is read "if mapped" must be named
    # there, since a column of that name may mean something else.
    columns: ClassVar[Columns]
    kinds: ClassVar[tuple[Kind, ...]]
    media: ClassVar[Media] = {}  # nothing else of a row names files: these alone are confined to the data's folders
    writes_text: ClassVar[bool] = False  # token by token, by a language model's head
    is_causal_lm: ClassVar[bool] = False  # its model continues any text, so that it can be asked anything
    augmentation: ClassVar[Literal["text", "image", "audio"] | None] = None  # key of `data.augment` that it supports
    packages: ClassVar[tuple[tuple[str, str], ...]] = ()  # (module, what to install) that it cannot do without
    starters: ClassVar[Starters]
    samples: ClassVar[Mapping[str, str]] = {}  # option without a default -> the value that a starter shows in a comment

    @property
    def kind(self) -> Kind:
        return self.kinds[0]

    @property
    def has_classes(self) -> bool:
        return self.kind.classes != "none"

    @property
    def has_one_class(self) -> bool:
        return self.kind.classes == "one"

    def described(self) -> str:
        """The kind of problem in the words of a recipe."""
        return f"problem: {self.kind.problem}" if self.kind.problem else f"task: {self.type}"

    @property
    def packs(self) -> bool:
        """Whether several rows share one training example."""
        return False

    @property
    def max_audio_s(self) -> float | None:
        return None

    def files(self) -> dict[str, str]:
        """Option -> the local file that it names."""
        return {}

    def missing_columns(self, roles: Collection[str], columns: Collection[str]) -> Problem | None:
        """What is missing where only some of the roles are needed together; `roles` are those that have a column."""
        return None

    def mixing(self) -> dict[str, float]:
        """Option -> strength, of those that mix the examples of a micro-batch."""
        return {}

    def conflicts(self) -> Iterator[Problem]:
        """Yields a problem for each combination of options that has no meaning."""
        yield from ()
