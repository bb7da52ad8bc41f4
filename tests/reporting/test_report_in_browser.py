"""The report as a person sees it: a real browser, at the width of a desk and of a phone, on a light and a dark page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from sweeps.reporting.render import render
from sweeps.reporting.results import Importance, Importances
from tests.reporting.conftest import a_plan, a_record, results_of, some_finals
from xfer.data.pack import Pack
from xfer.measure.held_out import HeldOutRun, predict_held_out
from xfer.records import Record

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
PHONE, DESK = 390, 1200
PHONE_HEIGHT = 844
STRANGE = "<script>alert(1)</script>"
SETTINGS: dict[str, Any] = {"optimizer": {"name": "sgd", "momentum": 0.9}, "learning_rate": 0.0123}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, pack: Pack) -> Path:
    """A finished sweep with long names, whose order on the test set is another one, and trials of every status.

    Its data have photos, and a class that is named like a tag.
    """
    plan = a_plan()
    plan["data"] |= {"classes": [STRANGE, "green", "red"], "images": [12, 12, 12]}
    results = results_of(
        [
            a_record("0000", (0.5, 0.6, 0.8), strategy="scratch"),
            a_record("0001", (0.5, 0.7), "pruned", strategy="linear_probe"),
            a_record("0002", (0.6, 0.9, 0.95), strategy="freeze_then_unfreeze", **SETTINGS),
            a_record("0003", (), "failed", strategy="naive", error="loss is NaN at step 12"),
            a_record("0004", (0.6, 0.9, 0.97), strategy="naive", clip_norm=1.0),
            a_record("0005", (0.9,), strategy="ridge_probe"),
            a_record("0006", (0.6, 0.8, 0.9), strategy="clip", clip_norm=1.0),
            *some_finals("0004", 0.93, 0.92, strategy="naive", clip_norm=1.0),
            *map(with_confusion, some_finals("0002", 0.94, 0.90, strategy="freeze_then_unfreeze", **SETTINGS)),
        ],
        ["0002", "0004"],
        data=plan["data"],
        name="folder-a_folder_of_photos_with_a_very_long_name_indeed-3fa2c1",
    )
    images = np.arange(36)
    logits = 3 * np.eye(3)[pack.labels] + np.random.default_rng(0).normal(size=(36, 3)) * 2
    part = predict_held_out(logits, pack.labels, images, 1.5)
    held_out = {f"0002-s{seed}": HeldOutRun(1.5, part, part) for seed in (1, 2, 3)}
    importances = Importances(
        (Importance("sgd.learning_rate", 0.6, 2.0, 7), Importance("loss", 0.4, 0.5, 12)), 12, 12, 5
    )
    results = replace(results, held_out=held_out, pack=pack, importances=importances)
    return render(results, tmp_path_factory.mktemp("report"))


def with_confusion(record: Record) -> Record:
    assert record.test is not None
    return replace(
        record, test=replace(record.test, confusion=((0, 0, 30), (0, 2, 3), (1, 1, 30), (2, 2, 30), (2, 0, 7)))
    )


def show(browser: Browser, report: Path, width: int, scheme: Literal["light", "dark"]) -> Page:
    """Open the report, and take a picture of its first screen and of the whole page."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(report.as_uri())
    pictures = Path(os.environ.get("PICTURES", report.parent))
    page.screenshot(path=pictures / f"report-{width}-{scheme}.png")
    page.screenshot(path=pictures / f"report-{width}-{scheme}-whole.png", full_page=True)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_never_scrolls_sideways(
    browser: Browser, report: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    page = show(browser, report, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_on_a_phone_the_ranking_shows_rank_strategy_and_accuracy_with_its_interval(
    browser: Browser, report: Path
) -> None:
    page = show(browser, report, PHONE, "light")
    table = page.locator("h2:text-is('Ranking') + .scroll table")
    assert table.locator("th").all_inner_texts()[:3] == ["rank", "strategy", "validation"]
    for row in table.locator("tbody tr").all():
        cells = row.locator("td").all()[:3]
        boxes = [box for cell in cells if (box := cell.bounding_box())]
        assert len(boxes) == 3
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= PHONE for box in boxes)
    assert "94.0% (87.5 to 97.2)" in " ".join(table.locator("td.validation").first.inner_text().split())
    page.close()


def test_on_a_phone_the_text_of_a_figure_can_be_read(browser: Browser, report: Path) -> None:
    page = show(browser, report, PHONE, "light")
    heights = page.evaluate("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)")
    assert min(height for height in heights if height) >= 11
    page.close()


def test_the_first_screen_names_one_winner_and_explains_strategies_where_they_are_shown(
    browser: Browser, report: Path
) -> None:
    page = show(browser, report, DESK, "dark")
    answer, table = page.locator(".answer").inner_text(), page.locator("h2:text-is('Ranking') + .scroll table")
    assert answer.startswith("Tied: freeze_then_unfreeze and naive. The cheapest is ")
    assert "97.0%" not in answer
    reasons = page.locator("h2:text-is('How the winner was chosen') + ul").inner_text()
    assert reasons.startswith("Tied for first place is freeze_then_unfreeze")
    assert "the ranking stays as it was on the validation set" in reasons
    first = table.locator("tbody tr").first.inner_text()
    assert "freeze_then_unfreeze" in first
    assert "training the head alone for a few epochs, then everything" in first
    first_figure = page.locator("figure[role=img]").first.locator("svg text").all_text_contents()
    titles = [text.partition(":")[0] for text in first_figure if ": " in text]
    assert titles[:2] == ["freeze_then_unfreeze", "naive"]
    assert "full fine-tuning, gradients clipped" in first_figure
    page.close()


def test_on_a_phone_the_answer_with_its_commands_fits_on_one_screen(browser: Browser, report: Path) -> None:
    page = show(browser, report, PHONE, "dark")
    box = page.locator(".answer").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= PHONE_HEIGHT
    assert page.locator(".answer code").all_inner_texts()[1].startswith("python -m sweeps reproduce folder-")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_axe_finds_no_serious_violation(
    browser: Browser, report: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    # The page forbids scripts, axe too.
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page.goto(report.as_uri())
    violations = axe.Axe().run(page).response["violations"]
    serious = [each for each in violations if each["impact"] in ("serious", "critical")]
    found = [(each["id"], node["html"][:200]) for each in serious for node in each["nodes"][:3]]
    assert found == []
    page.close()


def test_no_line_of_a_figure_vanishes_on_a_dark_page(browser: Browser, report: Path) -> None:
    page = show(browser, report, DESK, "dark")
    colours = page.evaluate(
        """[...document.querySelectorAll('svg path, svg use')].map(e => getComputedStyle(e).stroke)
        .filter(c => c.startsWith('rgb')).map(c => c.match(/\\d+/g).slice(0, 3).map(Number))"""
    )
    paper = (0x14, 0x18, 0x1D)
    drawn = {tuple(colour) for colour in colours} - {paper}
    assert len(drawn) > 4
    assert all(_contrast(colour, paper) >= 3 for colour in drawn)
    page.close()


def test_the_page_fetches_and_runs_nothing_and_shows_its_photos(browser: Browser, report: Path) -> None:
    page, events = browser.new_page(), []
    page.on("request", lambda request: events.append(request.url))
    page.on("console", lambda message: events.append(message.text))
    page.on("dialog", lambda dialog: events.append(dialog.message))
    page.goto(report.as_uri())
    assert events == [report.as_uri()]
    photos = page.locator(".photo img")
    assert photos.count() > 0
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert "labelled <script>alert(1)</script>" in page.locator(".photos").first.inner_text()
    titles = page.locator("h2").all_inner_texts()
    for title in ("Look at your data", "Confusion matrix of trial 0002", "Calibration of trial 0002", "Best so far"):
        assert title in titles
    page.close()


def _contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Contrast of two colours, from 1 to 21 (WCAG 2.2)."""

    def luminance(colour: tuple[int, ...]) -> float:
        linear = [
            channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
            for channel in (value / 255 for value in colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
