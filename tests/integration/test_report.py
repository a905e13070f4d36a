"""The report in a real Chromium: what it shows, that its charts hold the right numbers, and that texts of the data stay texts."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.report.board import open_board
from launch.report.write import write_report
from sft_dist.recipe.files import write_json
from tests.browser import Browser, open_browser, unavailable
from tests.launch.report.run_files import BEGIN, add_class_report, leaderboard, lines_of, loss_at, write_run

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><b>bold</b>"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Page:
    browser: Browser
    file: Path

    def open(self, width: int = 1280, scheme: str = "light") -> Browser:
        self.browser.resize(width)
        self.browser.prefer(scheme)
        self.browser.get(self.file.as_uri())
        self.browser.wait_until_drawn()
        draw_charts(self.browser)
        return self.browser


def draw_charts(browser: Browser) -> None:
    """They wait until they come near the screen."""
    browser.run("document.getElementById('curves').scrollIntoView()")
    browser.wait_until("page.charts.loss && page.charts['learning rate']")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if reason := unavailable():
        # A green CI must not mean that nothing was looked at.
        required = os.environ.get("CI") or os.environ.get("SFT_DIST_REQUIRE_CHROMIUM") == "1"
        assert not required, reason
        pytest.skip(reason)
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def single(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A run that was killed at step 30 and resumed from step 20, with a leaderboard that has intervals."""
    root = tmp_path_factory.mktemp("single")
    run = write_run(root, [*lines_of(range(1, 31)), *lines_of(range(21, 41), attempt=2, begin=BEGIN + 5000)])
    board = leaderboard({(run.id, 20): 0.7, (run.id, 40): 0.9})
    for row, (p, equal) in zip(board["rows"], ((None, False), (0.21, True)), strict=True):
        score = row["validation"]["accuracy"]
        row |= {"intervals": {"accuracy": [score - 0.08, score + 0.06]}, "p_value": p, "not_distinguishable": equal}
    add_class_report(board, run, "a text <b>of</b> the data")
    tested = {"score": "acc of arithmetic", "winner": 0.5, "base": 0.75, "interval": [0.31, 0.69], "p_worse": 0.012}
    tested |= {"p_better": 1.0, "smallest_difference": 0.21, "result": "worse"}
    board["against_base"] = {"rows": [tested], "note": "the head is new, so only general tasks are compared"}
    write_json(run.path / "leaderboard.json", board)
    return Page(browser, write_report([], str(root), root / "report.html"))


@pytest.fixture(scope="module")
def matrix(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Twelve runs that differ in the learning rate and the seed; higher learning rates are better."""
    root = tmp_path_factory.mktemp("matrix")
    points = [(lr, seed) for lr in (1e-4, 1e-3, 1e-2) for seed in (1, 2, 3, 4)]
    runs = [write_run(root, train={"lr": lr, "seed": seed}) for lr, seed in points]
    scores = {(run.id, 40): 0.5 + 0.1 * (place // 4) + 0.01 * (place % 4) for place, run in enumerate(runs)}
    write_json(root / "demo/leaderboard.json", leaderboard(scores))
    return Page(browser, write_report([], str(root), root / "report.html"))


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.run("return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)", selector)


def column(browser: Browser, section: str, head: str) -> list[str]:
    """The cells below a head of the first table of a section."""
    script = """
      const table = document.querySelector(`#${arguments[0]} table`);
      const index = [...table.querySelectorAll("th")].findIndex((cell) => cell.textContent === arguments[1]);
      return [...table.querySelectorAll("tbody tr")].map((row) => row.cells[index].textContent);
    """
    return browser.run(script, section, head)


def x_range(browser: Browser, chart: str) -> tuple[float, float]:
    return tuple(browser.run("const { min, max } = page.charts[arguments[0]].scales.x; return [min, max]", chart))


def test_sections_with_data_are_there_and_others_are_absent(single, matrix):
    browser = single.open()
    assert texts(browser, "nav a") == [
        "Summary", "Leaderboard", "Curves", "Confusion", "Classes", "Slices", "Calibration", "Errors", "Time and cost", "Data", "Recipe", "Environment"
    ]  # fmt: skip
    assert texts(browser, ".tile .value")[:3] == ["0.8800", "0.9000", "40"]
    assert browser.console() == []
    browser = matrix.open()
    assert texts(browser, "nav a")[:2] == ["Summary", "What varies"]
    assert browser.console() == []


def test_the_best_checkpoint_stands_beside_its_base(single):
    single.open()
    (table,) = texts(single.browser, "table[aria-label*='base model'] tbody, [aria-label*='base model'] tbody")
    assert table == "acc of arithmetic0.5000 [0.3100, 0.6900]0.7500worse0.0120.2100"


def test_charts_hold_the_numbers_of_the_run(single):
    browser = single.open()
    steps, losses, validation = browser.run(
        "return page.charts.loss.data.map((values) => values.map((value) => value ?? null))"
    )
    assert steps == list(range(1, 41))
    assert losses == pytest.approx([loss_at(step) for step in steps], rel=1e-4)
    assert {step: value for step, value in zip(steps, validation, strict=True) if value is not None} == pytest.approx(
        {20: loss_at(20) + 0.1, 40: loss_at(40) + 0.1}, rel=1e-4
    )
    assert texts(browser, "#leaderboard .interval title") == ["0.8200 to 0.9600", "0.6200 to 0.7600"]
    assert texts(browser, "circle.measured title")[0] == "probability 0.6000: 0.5000 of 20 right"
    assert (
        texts(browser, "#errors .excerpt") == ["a text <b>of</b> the data"] * 11
    )  # ten of twelve, and an uncertain answer
    assert column(browser, "leaderboard", "adjusted p") == ["–", "0.210"]
    assert column(browser, "classes", "precision") == ["0.7500", "–"]
    assert column(browser, "slices", "slice") == ["language de", "length (tokens) up to 9", "language fr"]
    assert column(browser, "slices", "adjusted p") == ["0.004", "1.000", "–"]
    assert column(browser, "slices", "accuracy") == ["▼ 0.6000", "0.9000", "0.5000"]
    assert texts(browser, ".confusion td") == ["26", "4", "87 %", "4", "26", "87 %"]


def test_dragging_zooms_all_charts_and_a_double_click_resets(single):
    browser = single.open()
    from selenium.webdriver import ActionChains

    plot = browser.driver.find_element("css selector", "#curves .u-over")
    browser.run("arguments[0].scrollIntoView({ block: 'center' })", plot)
    quarter = plot.size["width"] // 4
    actions = ActionChains(browser.driver, duration=20)
    actions.move_to_element_with_offset(plot, -quarter, 0).click_and_hold().move_by_offset(
        quarter, 5
    ).release().perform()
    low, high = x_range(browser, "loss")
    assert 5 < low < high < 25
    assert x_range(browser, "learning rate") == pytest.approx((low, high), abs=1)
    ActionChains(browser.driver).double_click(plot).perform()
    assert x_range(browser, "loss") == (1, 40)


def test_charts_work_with_the_keyboard_and_say_what_they_show(single):
    browser = single.open()
    from selenium.webdriver.common.keys import Keys

    plot = browser.driver.find_element("css selector", "#curves .plot")
    assert "loss by step" in plot.get_attribute("aria-label")
    plot.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 19)
    assert texts(browser, "#curves .readout")[0] == "step 20: training 0.6667, validation 0.7667"
    plot.send_keys("+")
    assert x_range(browser, "loss") == (10.5, 30)
    assert x_range(browser, "learning rate") == (10.5, 30)
    plot.send_keys("0")
    assert x_range(browser, "loss") == (1, 40)


def test_tables_sort_and_filter(matrix):
    browser = matrix.open()
    accuracies = column(browser, "leaderboard", "accuracy")
    assert accuracies == sorted(accuracies, reverse=True)
    head = browser.driver.find_element("xpath", "//*[@id='leaderboard']//th/button[text()='accuracy']")
    browser.run("arguments[0].scrollIntoView({ block: 'center' })", head)  # else the bar of sections may cover it
    head.click()
    head.click()
    assert column(browser, "leaderboard", "accuracy") == sorted(accuracies)
    assert head.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    browser.driver.find_element("css selector", "#leaderboard input").send_keys("seed=3 lr=1e-3")
    assert column(browser, "leaderboard", "run") == ["lr=1e-3 seed=3"]
    assert texts(browser, "#leaderboard .count") == ["1 of 12 rows"]


def test_the_effect_of_each_setting(matrix):
    browser = matrix.open()
    assert texts(browser, ".effect .chart-title") == ["train.lr", "train.seed"]
    assert texts(browser, ".effect .share") == ["explains 98 %", "explains 1.8 %"]
    assert len(browser.driver.find_elements("css selector", ".parallel .run")) == 12


def test_runs_are_taken_out_of_the_charts(matrix):
    browser = matrix.open()
    browser.driver.find_element("css selector", ".legend summary").click()
    browser.driver.find_elements("css selector", ".chip")[0].click()
    shown = browser.run("return page.charts.loss.series.slice(1).map((series) => series.show)")
    assert shown == [False, *[True] * 11]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_fits_narrow_and_wide_screens_in_light_and_dark(single, matrix, width, scheme):
    for page in (single, matrix):
        browser = page.open(width, scheme)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        lightness = browser.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (sum(lightness) > 382) == (scheme == "light")
        assert browser.console() == []


def test_everything_that_acts_is_reached_by_the_keyboard_and_has_a_name(matrix):
    browser = matrix.open()
    nameless = browser.run("""
      const acting = [...document.querySelectorAll("button, a, input, select, summary, [tabindex='0']")];
      return acting.filter((each) => !(each.textContent.trim() || each.getAttribute("aria-label")) || each.tabIndex < 0).map((each) => each.outerHTML);
    """)
    assert nameless == []
    assert browser.run(
        "return [...document.querySelectorAll(\"svg[role='img']\")].every((each) => each.getAttribute('aria-label'))"
    )


def test_a_section_that_cannot_be_drawn_does_not_hide_the_others(browser, tmp_path):
    run = write_run(tmp_path)
    start = run.all_attempts()[0].start_file
    start.write_text(json.dumps(json.loads(start.read_text()) | {"startup_s": 1e300}))  # no date is so early
    page = Page(browser, write_report([], str(tmp_path), None)).open()
    assert texts(page, "main > p.warning") == ["Time and cost cannot be drawn: Invalid time value"]
    assert texts(page, "nav a")[-1] == "Environment"


def test_hostile_texts_stay_texts(browser, tmp_path):
    run = write_run(tmp_path, description=HOSTILE, data={"where": {HOSTILE: HOSTILE}}, model={"path": HOSTILE})
    lines = run.metrics_file.read_text().replace('"grad_norm"', '"<img src=x onerror=alert(1)>"')
    run.metrics_file.write_text(lines)
    board = leaderboard({(run.id, 20): 0.7, (run.id, 40): 0.9}, labels=(HOSTILE, "<script>"), selection_note=HOSTILE)
    for row in board["rows"]:
        row["validation"][HOSTILE] = 0.5
    add_class_report(board, run, HOSTILE)
    write_json(run.path / "leaderboard.json", board)
    start = run.all_attempts()[0].start_file
    start.write_text(start.read_text().replace("node1", "<img src=x onerror=alert(1)>"))
    page = Page(browser, write_report([], str(tmp_path), tmp_path / "report.html"))
    page.open()
    assert browser.run("return document.querySelectorAll('img, b:not(.split b), main script').length") == 0
    assert browser.run("return document.title") == "demo"
    assert HOSTILE in browser.run("return document.body.textContent")
    assert browser.console() == []


def test_the_board_shows_a_run_as_it_goes_on(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.report.board.MIN_AGE_S", 0.0)
    run = write_run(tmp_path, lines_of(range(1, 11)))
    server = open_board([], str(tmp_path), port=0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        browser.get(server.url)
        browser.wait_until_drawn()
        draw_charts(browser)
        assert browser.run("return page.charts.loss.data[0].at(-1)") == 10
        with run.metrics_file.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines_of(range(11, 21)))
        browser.wait_until("page.charts.loss?.data[0].at(-1) === 20")
        assert browser.run("return document.getElementById('live').textContent") == "live"
        assert browser.console() == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
