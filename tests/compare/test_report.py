"""The report: its sentence follows from the numbers, and its page works in a real browser."""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from pathlib import Path

import numpy as np
import pytest
from compare.comparisons import TRAINED, made_up_analysis, made_up_contrast
from matplotlib.figure import Figure
from matplotlib.image import imread

from seqtrain.compare.analysis import conclude
from seqtrain.compare.figures import FIGURES, INK
from seqtrain.compare.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here; .ci/run installs Debian's"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report of six norms, one arm of which failed."""
    folder = tmp_path_factory.mktemp("report")
    write_report(made_up_analysis(), folder)
    return folder


def test_a_difference_that_both_tests_find_is_said_with_its_interval() -> None:
    said = made_up_analysis().conclusion
    assert "leaky_batch had a lower mcc than masked_batch (-0.200, 95 % interval -0.300" in said


def test_no_difference_is_said_as_plainly_and_with_what_could_have_been_missed() -> None:
    said = made_up_analysis([made_up_contrast("batch", 0.01, 0.05, 0.6)]).conclusion
    assert "no difference in mcc was found for batch (differences below 0.070 could" in said
    assert "had a" not in said


def test_what_could_have_been_missed_is_said_of_each_norm() -> None:
    contrasts = [made_up_contrast("batch", 0.01, 0.05, 0.6), made_up_contrast("layer", 0.0, 0.2)]
    said = made_up_analysis(contrasts).conclusion
    assert "batch (differences below 0.070 could have been missed) and layer (below 0.280)" in said


def test_the_rule_and_the_part_that_does_not_hold_stand_beside_the_p_value(tmp_path: Path) -> None:
    contrasts = [
        made_up_contrast("batch", 0.01, 0.05, 0.003),
        made_up_contrast("layer", 0.2, 0.1, 0.2),
        made_up_contrast("none", 0.2, 0.1, 0.003),
    ]
    write_report(made_up_analysis(contrasts), tmp_path)
    for name in ("report.html", "report.md"):
        page = (tmp_path / name).read_text()
        assert "yes where p (Holm) is below 0.05 and the 95 % interval excludes 0" in page
        assert page.count("no: the interval includes 0") >= 1
        assert page.count("no: p (Holm) is not below 0.05") >= 1
    rows = [line for line in page.splitlines() if line.endswith("| yes |")]
    assert [row.split(" | ")[0] for row in rows] == ["| none"]


def test_what_was_trained_is_told_at_the_top(report: Path) -> None:
    page, text = ((report / f"report.{kind}").read_text() for kind in ("html", "md"))
    top = page[: page.index("<h2>Conditions</h2>")]
    for name, fact in TRAINED:
        assert f"<dt>{name}</dt><dd>{escape(fact)}</dd>" in top
        assert name in text[: text.index("## Conditions")]


def test_quarters_are_drawn_at_their_medians_with_intervals(tmp_path: Path) -> None:
    analysis = made_up_analysis()
    figure = Figure()
    FIGURES["by_length"](figure, analysis)
    lines = figure.axes[0].lines
    assert len(lines) == 6
    middle = np.mean([line.get_xdata() for line in lines], axis=0)  # they stand side by side
    np.testing.assert_allclose(np.asarray(middle, float), [4, 24, 44, 64])
    (ends,) = (bars.get_segments()[0][:, 1] for bars in figure.axes[0].collections[:1])
    arms = [r["by_length"][0] for r in analysis.finished(analysis.conditions[0])]
    assert ends == pytest.approx([np.mean([b[key] for b in arms]) for key in ("from", "to")])


@pytest.mark.parametrize("name", ["padding_shift", "running_statistics"])
def test_markers_of_a_legend_have_no_arms_colour(name: str) -> None:
    figure = Figure()
    FIGURES[name](figure, made_up_analysis())
    (legend,) = figure.legends
    assert {line.get_color() for line in legend.get_lines()} == {INK}


def test_one_seed_is_said_to_speak_of_its_models_alone() -> None:
    analysis = made_up_analysis()
    assert "with one seed" not in analysis.conclusion
    alone = replace(analysis, contrasts=[replace(c, num_seeds=1) for c in analysis.contrasts])
    assert "with one seed this speaks of these trained" in conclude(alone)


@pytest.mark.parametrize(("value", "p"), [(0.2, 0.2), (0.01, 0.001)])
def test_one_test_alone_finds_nothing(value: float, p: float) -> None:
    said = made_up_analysis([made_up_contrast("batch", value, 0.1, p)]).conclusion
    assert "no difference" in said


def test_only_norms_whose_logits_move_are_said_to_move() -> None:
    said = made_up_analysis().conclusion
    moved = said[said.index("padding moved") :]
    assert "with leaky_batch and by nothing beyond rounding with the others" in moved
    assert "masked" not in moved


def test_every_arm_is_a_row_and_a_failed_one_says_why(report: Path) -> None:
    rows = list(csv.DictReader((report / "results.csv").read_text().splitlines()))
    assert len(rows) == 18
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(row["norm"], row["seed"]) for row in failed] == [("none", "1")]
    assert "the loss is nan" in failed[0]["error"]


def test_the_page_is_one_file_that_asks_the_network_for_nothing(report: Path) -> None:
    page = (report / "report.html").read_text()
    links = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "url(http" not in page
    assert "@import" not in page


def test_what_a_failure_says_cannot_become_part_of_the_page(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert "nan &amp; &lt;bad&gt;" in page
    assert "<bad>" not in page


def test_the_page_and_the_text_say_the_same(report: Path) -> None:
    said = made_up_analysis().conclusion
    assert said in (report / "report.md").read_text()
    assert said in unescape((report / "report.html").read_text())


def test_every_figure_is_there_in_both_forms_and_not_blank(report: Path) -> None:
    pngs = sorted((report / "figures").glob("*.png"))
    assert len(pngs) == 7
    for png in pngs:
        assert png.with_suffix(".svg").stat().st_size > 2000
        assert imread(png)[..., :3].std() > 0.05


def test_learning_curves_stand_apart_each_with_the_first_behind_it(report: Path) -> None:
    drawn = (report / "figures" / "learning_curves.svg").read_text()
    groups = re.findall(r'<g id="arm:(\w+)">', drawn)
    assert groups.count("masked_batch") == 2 + 5  # its line and band, and behind five others
    others = ("batch", "leaky_batch", "masked_layer", "layer", "none")
    assert {name: groups.count(name) for name in others} == dict.fromkeys(others, 2)


def _chromium(profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0"]
    command = [CHROMIUM, *flags, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)


SCRIPT = """
<script>
const out = {};
const table = document.querySelector("table.sortable");
const first = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[2].dataset.value));
const head = table.tHead.rows[0].cells[2];
head.querySelector("button").click(); out.up = first();
head.querySelector("button").click(); out.down = first();
out.sorted = head.getAttribute("aria-sort");
const row = table.tBodies[0].rows[0];
row.cells[0].dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
const parts = [...document.querySelectorAll("svg [data-arm]")];
out.lit = parts.filter((p) => p.classList.contains("lit")).map((p) => p.dataset.arm);
out.arm = row.dataset.arm; out.parts = parts.length;
out.overflow = root.scrollWidth - root.clientWidth;
out.width = root.clientWidth;
const right = (name) => [...document.querySelectorAll(`.cards td[data-name="${name}"]`)]
  .map((cell) => cell.getBoundingClientRect()).map((box) => box.width ? box.right : Infinity);
out.intervals = ["±", "low", "high", "found"].map((name) => Math.max(...right(name)));
out.scrolls = [...document.querySelectorAll(".scroll")]
  .filter((b) => b.scrollWidth > b.clientWidth + 1)
  .map((b) => getComputedStyle(b.nextElementSibling).display);
out.cards = [...document.querySelectorAll(".cards")].map((b) => b.scrollWidth - b.clientWidth);
const figures = [...document.querySelectorAll("figure")].map((f) => f.getBoundingClientRect());
out.alone = figures.filter((f) => f.width < figures[0].width * .75 &&
  figures.filter((other) => Math.abs(other.top - f.top) < 2).length === 1).length;
const result = document.createElement("pre");
result.id = "result"; result.textContent = JSON.stringify(out); document.body.append(result);
</script>
</body>"""


@in_a_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_tables_fit_and_sort_and_hovering_lights_up_an_arm_without_an_error(
    report: Path, tmp_path: Path, width: int
) -> None:
    page = tmp_path / "page.html"
    page.write_text((report / "report.html").read_text().replace("</body>", SCRIPT))
    ran = _chromium(tmp_path / "profile", f"--window-size={width},800", "--dump-dom", page.as_uri())
    assert "CONSOLE" not in ran.stderr
    out = json.loads(re.search(r'<pre id="result">(.*?)</pre>', ran.stdout, re.S)[1])  # type: ignore[index]
    assert out["up"] == sorted(out["up"])
    assert out["down"] == sorted(out["up"], reverse=True)
    assert out["sorted"] == "descending"
    assert set(out["lit"]) == {out["arm"]}
    assert len(out["lit"]) < out["parts"]
    assert out["overflow"] <= 0
    assert max(out["intervals"]) <= out["width"]
    assert max(out["cards"]) <= 1
    assert out["scrolls"] == ["block"]  # the arms' table, with the words that say so
    assert out["alone"] == 0


@in_a_browser
@pytest.mark.parametrize(("theme", "width"), [("light", 1200), ("dark", 390)])
def test_a_screenshot_shows_something_in_its_theme(
    report: Path, tmp_path: Path, theme: str, width: int
) -> None:
    picture = tmp_path / "page.png"
    address = f"{(report / 'report.html').as_uri()}#{theme}"
    ran = _chromium(
        tmp_path / "profile", f"--window-size={width},1600", f"--screenshot={picture}", address
    )
    assert "CONSOLE" not in ran.stderr
    pixels = imread(picture)[..., :3]
    assert pixels.shape[1] == width
    background = np.median(pixels)
    assert background > 0.9 if theme == "light" else background < 0.2
    assert (np.abs(pixels - background).max(axis=-1) > 0.3).mean() > 0.01
