"""The journal of a search."""

from __future__ import annotations

import time
from pathlib import Path

from launch.search.study import JOURNAL, Study, cut_torn_line
from tests.launch.conftest import Workplace
from tests.launch.search.conftest import define, search, trials_of

SPACE = "search: {space: {train.lr: {log: [1.0e-5, 1.0e-1]}}, sampler: random, budget: {trials: 2}}\n"


def test_a_torn_line_is_cut_off_and_kept(tmp_path: Path) -> None:
    file = tmp_path / JOURNAL
    assert cut_torn_line(file) is None
    file.write_bytes(b'{"a": 1}\n')
    assert cut_torn_line(file) is None
    for number, tail in enumerate([b'{"b"', b'{"c": 2}'], 1):
        with file.open("ab") as stream:
            stream.write(tail)
        copy = cut_torn_line(file)
        assert copy == tmp_path / f"{JOURNAL}.torn-{number}"
        assert copy.read_bytes() == tail
        assert file.read_bytes() == b'{"a": 1}\n'


def test_a_search_continues_behind_a_torn_line(workplace: Workplace) -> None:
    definition = define(workplace, SPACE)
    assert search(definition) == 0
    with (definition.folder / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    assert len(trials_of(definition)) == 2, "a reader does not change the file"
    larger = define(workplace, SPACE, "search.budget.trials=3")
    assert search(larger) == 0
    assert len(trials_of(larger)) == 3


def test_results_are_recorded_once(workplace: Workplace) -> None:
    definition = define(workplace, SPACE)
    study = Study.open(definition.folder, definition.space, maximize=True)
    study.reserve({"train.lr": 1e-3}, "0a1b2c3d4e", (10, 20))
    (trial,) = study.trials()
    study.finish(trial, 0.5)
    study.finish(trial, 0.7)
    (trial,) = study.trials()
    assert (trial.state, trial.value, trial.run, trial.rungs) == ("finished", 0.5, "0a1b2c3d4e", (10, 20))


def test_a_paused_trial_teaches_the_sampler(workplace: Workplace) -> None:
    definition = define(workplace, SPACE)
    study = Study.open(definition.folder, definition.space, maximize=True)
    study.reserve({"train.lr": 1e-3}, "0a1b2c3d4e", (10, 20))
    assert not study.trials()[0].is_paused
    study.report(study.trials()[0], 10, 0.5)
    (trial,) = study.trials()
    assert trial.is_paused
    seen = study._as_sampler_sees(study._frozen()[0])
    assert seen.state.name == "PRUNED"
    assert seen.intermediate_values == {10: 0.5}
    study.promote(trial, 1)
    assert not study.trials()[0].is_paused


def test_a_journal_of_many_trials_opens_quickly(workplace: Workplace) -> None:
    """Quadratic work would take minutes."""
    definition = define(workplace, SPACE.replace("random", "tpe"))
    study = Study.open(definition.folder, definition.space, maximize=True)
    study.reserve({"train.lr": 1e-3}, "0a1b2c3d4e", (20,))
    study.finish(study.trials()[0], 0.5)
    file = definition.folder / JOURNAL
    begin, create, tell = file.read_text().splitlines(keepends=True)
    lines = [line for number in range(1000) for line in (create, tell.replace('"trial_id":0', f'"trial_id":{number}'))]
    file.write_text("".join([begin, *lines]))
    start = time.process_time()
    study = Study.open(definition.folder, definition.space, maximize=True)
    assert study.next_point(definition.search, True)
    assert len(study.trials()) == 1000
    assert time.process_time() - start < 10
