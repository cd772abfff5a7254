"""The report: parsed as text, and looked at in a real browser."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from catalyzer.errors import InvalidInput
from catalyzer.reproduce.outcome import Column, Outcome, Row, Table
from catalyzer.reproduce.page import write_report
from catalyzer.reproduce.pareto import Point, draw_pareto, measured_points, pareto_front

HOSTILE = """<script>alert(1)</script> & "quoted" 'method' $x_$ ${y} (<img src=x onerror=alert(2)>)"""

ENVIRONMENT = {
    "versions": {"torch": "2.13.0", "numpy": "2.4.6", "catalyzer": "0.3.0", "python": "3.11.2"},
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "threads": 2,
}

RECALLS = [Column(f"R@{k}", "%", "higher") for k in (1, 10, 100)]


def train(label: str) -> str:
    return (
        f"python src/train.py dataset=bigann dataset.root=DIR quantizer={label.split(' + ')[-1].lower()} trainer.max_epochs=8"
    )


def table1() -> Outcome:
    measured = {
        "OPQ": ([20.7, 62.6, 94.9, 11.6], [20.8, 63.6, 95.3, 5.5]),
        "catalyzer + OPQ": ([23.9, 70.1, 96.4, 24.9], [24.9, 71.1, 97.0, 11.4]),
        "LSQ": ([28.1, 75.9, 98.1, 2314.2], [28.4, 76.2, 98.7, 122.1]),
        "PCA + lattice": ([19.0, 60.6, 92.6, 9.1], [19.0, 60.6, 93.5, 5.3]),
        "catalyzer + lattice": ([28.6, 75.9, 98.2, 18.0], [28.4, 75.8, 98.3, 8.5]),
        "catalyzer + lattice (end-to-end)": ([28.5, 76.0, 98.2, 18.1], [28.7, 76.2, 98.2, 8.5]),
        HOSTILE: ([None, 3.5, float("nan"), 1.5], None),
    }
    rows = [
        Row(label, values, paper, command=train(label), note="Coded 100,000 vectors, scaled to a million" * (label == "LSQ"))
        for label, (values, paper) in measured.items()
    ]
    columns = [*RECALLS, Column("encoding", "s", "lower")]
    return Outcome(
        "table1",
        "Recall and encoding time at 64 bits",
        "photosift",
        "small",
        "python src/reproduce.py table1 dataset=photosift scale=small",
        [Table("Recall in percent, seconds to code a million vectors", columns, rows)],
        notes=["The published times are of 40 threads at 2.2 GHz, these of two cores."],
        settings={"dataset": {"name": "photosift", "train_size": 100_000}, "lambda": 0.02, "d_out": 24, "seed": 0},
        environment=ENVIRONMENT,
        seconds=8123,
        ended="2026-12-01T14:05:33+00:00",
    )


def table2() -> Outcome:
    published = {
        "LSH": [0.3, 2.6, 9.5, 24.4],
        "ITQ": [1.5, 8.5, 22.8, 41.8],
        "catalyzer + sign": [2.6, 11.1, 28.3, 52.2],
    }
    rows = [
        Row(label, [bits, paper + shift], [None, paper], [None, 0.2], train(label))
        for label, papers in published.items()
        for bits, paper, shift in zip((16, 32, 64, 128), papers, (0.0, 0.14, -0.5, 1.1), strict=True)
    ]
    columns = [Column("bits", digits=0), Column("R@10", "%", "higher")]
    return Outcome(
        "table2",
        "Binary codes",
        "photosift",
        "small",
        "python src/reproduce.py table2 dataset=photosift scale=small",
        [Table("Recall@10, mean and standard deviation of 5 seeds", columns, rows)],
        environment=ENVIRONMENT,
        seconds=95,
        ended="2026-12-02T09:00:00+00:00",
    )


def figure5() -> Outcome:
    rows = [
        Row(
            f"catalyzer + lattice ({dim} dimensions)", [bits, min(88, best * (1 - 2 ** (-bits / 26)))], command=train("lattice")
        )
        for dim, best in ((16, 78), (24, 93), (32, 96), (40, 97))
        for bits in (20, 27, 38, 52, 64, 80, 96, 110)
        if dim < 2.2 * bits and bits < 3.4 * dim
    ]
    rows += [Row("OPQ", [8 * size, 97 * (1 - 2 ** (-size / 5.7))]) for size in (4, 6, 8, 12, 16)]
    rows += [Row("PQ", [8 * size, 96 * (1 - 2 ** (-size / 5.6))]) for size in (4, 6, 8, 12, 16)]
    return Outcome(
        "figure5",
        "Recall against the size of a code",
        "photosift",
        "small",
        "python src/reproduce.py figure5 dataset=photosift scale=small",
        [Table("Recall@10 by bits", [Column("bits", digits=0), Column("R@10", "%", "higher")], rows)],
        captions={"figure5": f"Recall@10 by bits, {HOSTILE}"},
        environment=ENVIRONMENT,
        ended="2026-12-02T12:00:00+00:00",
    )


def table3() -> Outcome:
    best = {16: (0.05, 0.05), 24: (0.02, 0.02), 32: (0.02, 0.01), 40: (0.01, 0.005)}
    rows = [Row("catalyzer + lattice", [d, lam], [None, paper]) for d, (lam, paper) in best.items()]
    columns = [Column("d_out", digits=0), Column("best λ", digits=3)]
    command = "python src/reproduce.py table3 dataset=demo scale=demo"
    return Outcome("table3", "The best λ by dimension", "demo", "demo", command, [Table("Best λ", columns, rows)])


def drawing() -> Figure:
    figure = Figure(figsize=(5, 3))
    figure.subplots().plot([16, 32, 64], [10, 40, 75], label="recall")
    return figure


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four targets of two datasets, one with two figures."""
    folder = tmp_path_factory.mktemp("reproduce")
    for outcome in (table1(), table2(), table3()):
        outcome.save(folder / f"{outcome.dataset}-{outcome.scale}" / outcome.target, {})
    figure5().save(folder / "photosift-small" / "figure5", {"figure5": drawing(), "other": drawing()})
    return folder


@pytest.fixture(scope="module")
def page(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(root, tmp_path_factory.mktemp("page") / "new" / "report.html")


class Parsed(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text())
        self.text = " ".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_needs_nothing_but_itself(page: Path) -> None:
    parsed = Parsed(page)
    sources = [a[name] or "" for _, a in parsed.tags for name in ("src", "href", "srcset", "data", "action") if name in a]
    assert sum(source.startswith("data:image/svg+xml;base64,") for source in sources) == 4
    assert [s for s in sources if not s.startswith(("data:", "#"))] == []
    for word in ("http:", "https:", "//cdn", "@import", "url("):
        assert word not in page.read_text()


def test_what_a_label_holds_is_text(page: Path) -> None:
    parsed = Parsed(page)
    assert HOSTILE in parsed.words
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert not [a for _, a in parsed.tags if any(name.startswith("on") for name in a)]
    assert any(a.get("alt", "").endswith(HOSTILE) for tag, a in parsed.tags if tag == "img")  # type: ignore[union-attr]


def test_it_says_what_was_made_how_and_what_was_not(page: Path) -> None:
    text = Parsed(page).text
    for words in (
        "demo, demo; photosift, small",
        "2026-12-01 to 2026-12-02",
        ENVIRONMENT["git_commit"],
        "torch 2.13.0",
        "2 h 15 min",
        "train_size: 100000",
        "catalyzer + lattice: R@10 (%)",
        "catalyzer + sign, 64 bits: R@10 (%)",
        "The published times are of 40 threads",
        "Coded 100,000 vectors",
        train("LSQ"),
    ):
        assert str(words) in text
    made = {"table1", "table2", "table3", "figure5"}
    for target in ("figure2", "figure7", "large_scale", *made):
        listed = (
            f"python src/reproduce.py {target} dataset=photosift scale=small"
            in text.split("Not made yet")[1].split("Table 3")[0]
        )
        assert listed == (target not in made)


def test_a_second_writing_is_the_same_page(page: Path, root: Path) -> None:
    before = page.read_bytes()
    assert write_report(root, page).read_bytes() == before
    assert list(page.parent.iterdir()) == [page]


def test_bad_folders_are_refused_and_leave_the_old_page(page: Path, root: Path, tmp_path: Path) -> None:
    before = page.read_bytes()
    with pytest.raises(InvalidInput, match="holds no table and no figure yet"):
        write_report(tmp_path, page)
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / "photosift-small" / "figure5" / "other.svg").unlink()
    with pytest.raises(InvalidInput, match=r"other\.svg is missing.*reproduce\.py figure5"):
        write_report(copy, page)
    (copy / "photosift-small" / "table1" / "results.json").write_text("{")
    with pytest.raises(InvalidInput, match="is damaged"):
        write_report(copy, page)
    assert page.read_bytes() == before


def test_times_compare_at_64_bits_and_bits_where_they_are_named() -> None:
    outcomes = [table1(), table2(), figure5(), table3()]
    outcomes[1].tables[0] = Table("t", [*outcomes[1].tables[0].columns, Column("encoding", "s")],
                                  [Row("LSH", [bits, 9.5, 1.0]) for bits in (32, 64, 128)])  # fmt: skip
    times = measured_points(outcomes, "encoding")
    assert Point("LSQ", 2314.2, 75.9) in times
    assert [p for p in times if p.label == "LSH"] == [Point("LSH", 1.0, 9.5)]
    assert len(times) == len(table1().tables[0].rows) + 1
    apart = Table("t", [Column("R@10", "%", "higher"), Column("encoding", "s", "lower")], [Row("LSQ", [90.0, 9.0], aside=True)])
    assert not measured_points([replace(table1(), tables=[apart])], "encoding")
    assert {p.label for p in measured_points(outcomes, "bits")} >= {"LSH", "OPQ", "catalyzer + lattice (24 dimensions)"}


def test_the_front_is_what_nothing_beats() -> None:
    points = measured_points([table1()], "encoding")
    front = pareto_front(points)
    for point in points:
        beaten = any(o.cost <= point.cost and o.recall >= point.recall and o != point for o in points)
        assert beaten != (point in front)


@pytest.mark.parametrize(("cost", "base"), [("encoding", 10), ("bits", 2)])
def test_names_in_the_plot_lie_inside_and_beside_each_other(cost: str, base: int) -> None:
    points = measured_points([table1(), table2(), figure5()], cost)  # type: ignore[arg-type]
    points = [point for point in points if point.label != HOSTILE]
    figure = draw_pareto(points, cost, base)  # type: ignore[arg-type]
    axes = figure.axes[0]
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert boxes.keys() == {point.label for point in points}
    inside = axes.get_window_extent().padded(1)
    for name, box in boxes.items():
        assert inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1), name  # noqa: PT018
        assert not [other for other in boxes if other != name and boxes[other].overlaps(box)], name


def test_no_better_and_worse_where_the_data_differ(tmp_path: Path) -> None:
    for comparable in (True, False):
        outcome = table1()
        outcome.tables = [replace(outcome.tables[0], comparable=comparable)]
        outcome.save(tmp_path / "a-b" / "table1", {})
        page = write_report(tmp_path, tmp_path / "report.html").read_text()
        assert ('title="better than published"' in page) == comparable
        assert "75.8" in page


# In the browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Debian's chromium, of 1200 by 900 pixels."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    for flag in (*flags.split(), "disable-sync", "window-size=1200,900"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options, ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def shown(browser: Chrome, page: Path) -> Chrome:
    browser.get(page.as_uri())
    return browser


def the_table(browser: Chrome, title: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, f"table.sortable[aria-label*='{title}']")


def column(table: WebElement, place: int) -> list[str]:
    return [
        row.find_elements(By.CSS_SELECTOR, "th, td")[place].text for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")
    ]


def test_every_image_is_shown_and_the_console_is_silent(shown: Chrome) -> None:
    images = shown.find_elements(By.TAG_NAME, "img")
    assert len(images) == 4
    for image in images:
        assert image.get_property("naturalWidth") > 100  # type: ignore[operator]
        assert image.is_displayed()
        assert image.get_attribute("alt")
    assert shown.get_log("browser") == []
    assert shown.execute_script("return document.querySelectorAll('[onerror]').length") == 0


def test_a_click_sorts_and_what_is_missing_stays_last(shown: Chrome) -> None:
    table = the_table(shown, "seconds to code a million")
    as_published = column(table, 0)
    button = table.find_element(By.CSS_SELECTOR, "[aria-label='R@1 (%), measured']")
    button.click()
    head = button.find_element(By.XPATH, "..")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(table, 1) == ["19.0", "20.7", "23.9", "28.1", "28.5", "28.6", "–"]
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(table, 1) == ["28.6", "28.5", "28.1", "23.9", "20.7", "19.0", "–"]
    button.click()
    assert head.get_attribute("aria-sort") is None
    assert column(table, 0) == as_published


def test_the_keyboard_sorts_numbers_as_numbers_and_words_as_words(shown: Chrome) -> None:
    table = the_table(shown, "seconds to code a million")
    table.find_element(By.CSS_SELECTOR, "[aria-label='encoding (s), measured']").send_keys(Keys.ENTER)
    assert column(table, 10) == ["1.5", "9.1", "11.6", "18.0", "18.1", "24.9", "2,314.2"]
    assert column(table, 12)[0] == ""
    table.find_element(By.CSS_SELECTOR, "thead th:first-child button").send_keys(Keys.SPACE)
    names = column(table, 0)
    assert names[1:4] == ["catalyzer + lattice", "catalyzer + lattice (end-to-end)", "catalyzer + OPQ"]
    assert len(table.find_elements(By.CSS_SELECTOR, "[aria-sort]")) == 1


def test_differences_have_a_sign_and_a_colour(shown: Chrome) -> None:
    table = the_table(shown, "seconds to code a million")
    rows = {row.text.split("\n")[0]: row for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")}
    cells = next(r for label, r in rows.items() if label.startswith("OPQ")).find_elements(By.CSS_SELECTOR, "td.difference")
    assert [cell.text for cell in cells] == ["−0.1", "−1.0", "−0.4", "+6.1"]
    assert {cell.get_attribute("class") for cell in cells} == {"difference worse"}
    red = cells[0].value_of_css_property("color")
    better = table.find_element(By.CSS_SELECTOR, "td.better")
    assert better.value_of_css_property("color") != red
    assert better.value_of_css_property("font-weight") == "700"  # so that it reads in grey


def test_a_phone_does_not_scroll_sideways(shown: Chrome) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        for details in shown.find_elements(By.CSS_SELECTOR, "details"):
            shown.execute_script("arguments[0].open = true", details)
        assert shown.execute_script("return innerWidth") == 390
        assert shown.execute_script("return document.documentElement.scrollWidth") == 390
        table = the_table(shown, "seconds to code a million")
        assert table.size["width"] > 390  # it scrolls in its box
    finally:
        shown.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
