"""The live line of a run: a bar, the curve of the loss, the time left, memory."""

from __future__ import annotations

from launch.render import live_line, progress_bar, spark_line

ENTRY = {"step": 120, "total_steps": 400, "loss": 0.53123, "eta_s": 200.0, "examples_per_s": 41.94, "memory_gb": 1.94}
LOSSES = [0.9, 0.7, 0.6, 0.53]


def test_a_wide_terminal_shows_all():
    line = live_line(ENTRY, LOSSES, 200)
    assert line == "[███░░░░░░░░░]  120/400  loss 0.5312 █▄▂▁  3:20 left  41.9 examples/s  1.9 GB"


def test_a_narrow_terminal_keeps_the_most_useful_and_never_wraps():
    for width in range(1, 90):
        line = live_line(ENTRY, LOSSES, width)
        assert len(line) <= width
        assert line.startswith(("120/400"[:width], "["))
        assert ("loss 0.5312" in line) == (width >= len("120/400  loss 0.5312"))
        assert line.count("loss") <= 1


def test_a_terminal_without_unicode_has_letters_only():
    line = live_line(ENTRY, LOSSES, 200, unicode=False)
    assert line.isascii()
    assert line.startswith("[###---------]  120/400  loss 0.5312  3:20 left")


def test_what_is_not_known_is_left_out():
    assert live_line({"step": 3, "loss": None}, [None], 200) == "[░░░░░░░░░░░░]  3/?"


def test_the_bar_is_full_at_the_end_only():
    assert progress_bar(1.0).count("█") == 12
    assert progress_bar(399 / 400).count("█") == 11


def test_a_spark_line_goes_from_the_highest_to_the_lowest_value():
    assert spark_line([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert spark_line([1.0, 1.0]) == "▁▁"
    assert spark_line([2.0, None, 1.0]) == "█ ▁"
    assert spark_line([]) == ""
    assert len(spark_line(list(range(1000)))) == 16
    assert spark_line([1, 3, 0, 0], width=2) == "█▁", "means of two values each"
