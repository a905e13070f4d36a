"""Packages that provide tasks and metrics: which are there, and what is said of those that are not."""

from __future__ import annotations

import pytest

from sft_dist.recipe.entry_points import (
    METRICS_GROUP,
    TASKS_GROUP,
    installed_names,
    load_object,
    plugin_of,
    require_plugins,
)
from sft_dist.recipe.errors import UserError

RECORDED = {
    "group": TASKS_GROUP,
    "name": "scans",
    "distribution": "scans",
    "version": "1.0",
    "module": "scans_settings",
}


def test_names_are_listed_without_an_import(install):
    install(settings="1 / 0", metric="1 / 0")
    assert "scans" in installed_names(TASKS_GROUP)
    assert "kappa" in installed_names(METRICS_GROUP)


def test_a_plugin_names_its_package(install):
    install(version="2.1")
    assert str(plugin_of(METRICS_GROUP, "kappa")) == "metric kappa of scans 2.1"
    assert load_object(METRICS_GROUP, "kappa").name == "kappa"


def test_a_package_that_cannot_be_imported_is_named(install):
    install(settings="1 / 0")
    with pytest.raises(UserError, match="task scans of scans 1.0 is not usable: .*ZeroDivisionError.*; fix, update or"):
        load_object(TASKS_GROUP, "scans")


def test_two_packages_with_one_name_are_both_named(install):
    install("scans")
    install("other")
    with pytest.raises(UserError, match="other and scans provide a task named scans"):
        load_object(TASKS_GROUP, "scans")


def test_what_is_not_installed_is_asked_for_by_version(install):
    install()
    missing = {**RECORDED, "name": "tides", "distribution": "oceans"}
    with pytest.raises(
        UserError,
        match="runs/a: needs the task tides of oceans 1.0, which is not installed\s+pip install 'oceans==1.0'",
    ):
        require_plugins("runs/a", [RECORDED, missing])


@pytest.mark.parametrize(("version", "warnings"), [("1.0", 0), ("1.1", 1)])
def test_another_version_than_the_run_was_made_with_is_a_warning_once(install, caplog, version, warnings):
    install(version=version)
    for _ in range(2):
        require_plugins("runs/a", [RECORDED])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warnings
    assert all("runs/a was made with task scans of scans 1.0, and scans==1.1 is installed" in text for text in messages)
