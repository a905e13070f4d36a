"""A rank of a real training is stopped: it is named within twice the time-out, the others say where they wait, and the
run goes on from its checkpoint to the same end."""

from __future__ import annotations

import signal
import time
from functools import partial

import pytest

from sft_dist.run.causes import classify_attempt
from sft_dist.run.folder import RunFolder
from sft_dist.run.hang_watcher import HangDetector, detect_hang
from tests.integration import harness
from tests.integration.test_resume import assert_same, write_recipe

pytestmark = pytest.mark.slow

TIMEOUT_S = 4


def test_a_stopped_rank_is_named_and_the_run_goes_on_exactly(tiny_model, reviews, tmp_path):
    recipe = write_recipe(tmp_path / "cut.yaml", tiny_model, reviews)
    text = recipe.read_text()
    recipe.write_text(text[:-1] + f', "resources": {{"hang_timeout": "{TIMEOUT_S}s"}}}}')
    expected = harness.run(recipe, tmp_path / "expected", world_size=2)

    processes = harness.start(recipe, tmp_path / "runs", 2, partial(harness.signal_at, 7, 1, signal.SIGSTOP))
    harness.wait_for_step(tmp_path / "runs", 7, processes)
    stopped = time.monotonic()
    folder = RunFolder(harness.the_run(tmp_path / "runs"))
    (attempt,) = folder.all_attempts()
    watch, hang = HangDetector(attempt, TIMEOUT_S), None
    try:
        while hang is None:
            assert time.monotonic() - stopped < 2 * TIMEOUT_S
            hang = detect_hang(watch)
            time.sleep(0.1)
        assert (hang.kind, hang.ranks) == ("silent", (1,))
        assert 0 < hang.step <= 7  # its last sign of life may be older than the step it stopped after
        while 'loop.py", line' not in attempt.stack_file(0).read_text():  # where the others wait
            assert time.monotonic() - stopped < 60
            time.sleep(0.1)
    finally:
        harness.kill(processes)
    assert classify_attempt(folder, attempt).cause == "hang"
    assert "rank 1 on" in classify_attempt(folder, attempt).line
    assert_same(harness.run(recipe, tmp_path / "runs", world_size=2), expected)


def test_a_killed_rank_is_named_though_only_the_others_can_say_something(tiny_model, reviews, tmp_path):
    recipe = write_recipe(tmp_path / "cut.yaml", tiny_model, reviews)
    recipe.write_text(recipe.read_text()[:-1] + ', "resources": {"hang_timeout": "4s"}}')
    processes = harness.start(recipe, tmp_path / "runs", 4, partial(harness.signal_at, 3, 2, signal.SIGKILL))
    for process in processes:
        process.join(60)
    folder = RunFolder(harness.the_run(tmp_path / "runs"))
    found = classify_attempt(folder, folder.all_attempts()[-1])
    assert (found.state, found.rank, found.cause) == ("failed", 2, "killed")
    assert "rank 2 on" in found.line
