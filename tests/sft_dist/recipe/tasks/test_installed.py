"""Tasks of other packages: how a recipe reaches them, and which are refused."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from sft_dist.recipe.errors import UserError
from sft_dist.recipe.tasks import INSTALLED_TASKS, Task
from tests.sft_dist.recipe.conftest import SETTINGS

TASK = TypeAdapter(Task)


def test_a_recipe_names_it_like_a_built_in_task(install):
    install()
    task = TASK.validate_python({"type": "scans", "depth": 5})
    assert task.depth == 5
    assert TASK.dump_python(task) == {"type": "scans", "depth": 5}
    assert TASK.validate_json(TASK.dump_json(task)) == task
    with pytest.raises(ValidationError) as error:
        TASK.validate_python({"type": "scans", "depth": "deep"})
    assert error.value.errors()[0]["loc"] == ("scans", "depth")


def test_built_in_tasks_need_no_package_that_works(install):
    install(settings="1 / 0")
    assert TASK.validate_python("image-classification").type == "image-classification"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(TaskSettings)", "", "is not a subclass of"),
        ('["scans"]', '["scan"]', "must be Literal"),
        ('["scans"]', '["scans"] = "scans"', "without a default"),
        ('["scans"]', '["scans", "translation"]', "translation is the name of a built-in task"),
        ("    work =", "    labour: ClassVar[str] =", "lacks `work`"),
        ("scans.work:Scans", "scans.work", "must be 'module:Class'"),
        ('(Kind({"dice": "max", "loss": "min"}, ()),)', "()", "needs at least one Kind"),
        ('{"scans": {}}', "{}", "starters lacks 'scans'"),
        ('{"scan": "image"}', '("scan",)', "must map roles to image, mask, audio"),
        ('{"scan": "image"}', '{"scan": "picture"}', "must map roles to image, mask, audio"),
        ('{"scan": "image"}', '{"scam": "image"}', "media names 'scam', which is not among its columns"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused(install, old, new, message):
    assert old in SETTINGS
    install(settings=SETTINGS.replace(old, new))
    with pytest.raises(UserError, match=message):
        INSTALLED_TASKS.settings_of("scans")
    assert "scans" not in INSTALLED_TASKS.classes()
