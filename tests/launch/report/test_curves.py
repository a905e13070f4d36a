import json
import math

from launch.report.curves import align, curves_of, read_metrics
from tests.launch.report.run_files import lines_of, loss_at


def steps_in(aligned):
    steps = []
    for delta in aligned["steps"]:
        steps.append((steps[-1] if steps else 0) + delta)
    return steps


def test_curves_have_every_recorded_number():
    curves = curves_of(lines_of(range(1, 41)))
    assert curves["train", "loss"] == {step: loss_at(step) for step in range(1, 41)}
    assert curves["validation", "accuracy"] == {20: 0.7, 40: 0.9}
    assert {name for _, name in curves} == {"loss", "lr", "grad_norm", "examples_per_s", "accuracy"}


def test_steps_that_a_later_attempt_repeated_are_those_of_the_later():
    first = lines_of(range(1, 31))
    second = [line | {"loss": -1.0} for line in lines_of(range(21, 41), attempt=2)]
    loss = curves_of([*first, *second])["train", "loss"]
    assert list(loss) == list(range(1, 41))
    assert loss[20] == loss_at(20)
    assert all(loss[step] == -1.0 for step in range(21, 41))


def test_lines_that_are_incomplete_or_no_json_are_skipped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    line = lines_of([1])[0]
    file.write_text(f'{json.dumps(line)}\n[1]\n{{"kind": "train"}}\nnonsense\n{json.dumps(line)[:30]}')
    assert read_metrics(file) == [line]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_few_steps_stay_exact():
    aligned = align({0: {1: 0.5, 3: 0.25}, 4: {1: 1.0, 2: None}}, max_points=10)
    assert steps_in(aligned) == [1, 2, 3]
    assert aligned["values"] == {0: [0.5, False, 0.25], 4: [1.0, None, False]}
    assert aligned["bucket"] == 1


def test_many_steps_keep_every_spike():
    curve = {step: math.sin(step / 50) for step in range(1, 10_001)}
    curve[4_321], curve[7_777] = 99.0, -99.0
    aligned = align({0: curve, 1: {9_999: 5.0}}, max_points=200)
    steps, values = steps_in(aligned), aligned["values"][0]
    assert len(steps) == len(values) == 200
    assert steps == sorted(set(steps))
    assert {max(values), min(values)} == {99.0, -99.0}
    assert abs(steps[values.index(99.0)] - 4_321) < aligned["bucket"]
    assert [value for value in aligned["values"][1] if value is not False] == [5.0]


def test_a_bucket_of_undefined_values_is_undefined_not_absent():
    curve = {step: None if step <= 50 else 1.0 for step in range(1, 101)}
    values = align({0: curve}, max_points=20)["values"][0]
    assert values[:10] == [None] * 10
    assert None not in values[10:]
