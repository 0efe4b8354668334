"""In a real browser the player plays, seeks, answers keys, and shows what matplotlib draws."""

import io
import pathlib
import re
import shutil

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from jaxfit import plot
from jaxfit.plot import player
from jaxfit.plot._player import borrowed, studio
from tests.plot import animations

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ["chromium-headless-shell", "chromium"])), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

every = pytest.mark.parametrize("make", animations.ALL, ids=lambda make: make.__name__)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """Open a file, without a network; whatever the page complains of fails the test."""
    contexts, complaints = [], []

    def open_page(path, **options):
        context = browser.new_context(
            offline=True, viewport={"width": 800, "height": 600}, **options
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda message: complaints.append(message.text))
        outside = lambda request: not request.url.startswith(("file:", "data:"))
        tab.on("request", lambda request: outside(request) and complaints.append(request.url))
        tab.goto(pathlib.Path(path).absolute().as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def playing(visit, tmp_path):
    def play(animation, **options):
        tab = visit(plot.save(animation, tmp_path / "played.html"), **options)
        tab.wait_for_selector(".jaxfit-player[data-ready]")
        return tab

    return play


def until(tab, condition):
    """Wait by looking again and again: the page's own policy forbids to evaluate text in it."""
    for _ in range(1000):
        if condition():
            return
        tab.wait_for_timeout(10)
    raise AssertionError("waited in vain")


def at(tab):
    return int(tab.input_value("input"))


def picture(tab, selector):
    with Image.open(io.BytesIO(tab.locator(selector).screenshot())) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.slow
@every
def test_a_frame_is_what_matplotlib_writes_as_svg(make, playing, visit, tmp_path):
    tab = playing(make(), reduced_motion="reduce")
    other = make()
    figure, frames = borrowed.figure_of(other), borrowed.frames_of(other)
    file = tmp_path / "whole.html"
    for k in (0, 3):
        tab.locator("input").fill(str(k))
        assert at(tab) == k
        with studio.placed_on(figure, studio.VectorCanvas, 72):
            borrowed.start(other, frames)
            studio.settle(figure)
            for frame in frames[1 : k + 1]:
                borrowed.draw(other, frame)
            whole = io.StringIO()
            with mpl.rc_context({"image.composite_image": False}):
                figure.savefig(whole, format="svg", dpi=100)
        width, height = figure.get_size_inches() * 100
        svg = whole.getvalue()[whole.getvalue().index("<svg") :]
        file.write_text(
            f"<!DOCTYPE html><style>svg{{display:block;width:{width}px;height:{height}px}}</style>"
            f'<meta charset="utf-8">{svg}',
            encoding="utf-8",
        )
        one, expected = picture(tab, ".jaxfit-player>svg"), picture(visit(file), "svg")
        assert one.shape == expected.shape
        apart = np.abs(one - expected).max(axis=-1) > 64  # a quarter: lines fall between pixels
        # matplotlib's SVG has seams between areas that are not smoothed, and its pixels have none.
        most = 1e-2 if make is animations.contours else 4e-4
        assert apart.mean() <= most, f"frame {k}: {apart.mean():.2%}"


def test_it_plays_and_begins_again(playing):
    tab = playing(animations.line_and_title())
    assert tab.get_attribute("button", "aria-label") == "pause"
    seen = set()
    until(tab, lambda: seen.add(at(tab)) or seen == set(range(animations.FRAMES)))
    until(tab, lambda: at(tab) == 1)
    tab.locator("button").first.click()
    assert tab.get_attribute("button", "aria-label") == "play"
    stopped = at(tab)
    tab.wait_for_timeout(200)
    assert at(tab) == stopped


def test_it_ends_where_it_is_not_to_loop(playing):
    tab = playing(animations.line_and_title(), reduced_motion="reduce")
    loop = tab.get_by_label("loop")
    assert loop.get_attribute("aria-pressed") == "true"
    loop.click()
    assert loop.get_attribute("aria-pressed") == "false"
    tab.select_option("select", "4")
    tab.locator("button").first.click()
    until(tab, lambda: at(tab) == 4)
    tab.wait_for_selector("button[aria-label=play]")
    tab.select_option("select", "0.25")  # slow enough to see every frame
    tab.locator("button").first.click()  # from the beginning
    until(tab, lambda: at(tab) == 2)


def test_it_answers_keys_and_says_which_step_it_shows(playing):
    tab = playing(animations.line_and_title(), reduced_motion="reduce")
    assert tab.get_attribute("button", "aria-label") == "play" and at(tab) == 0
    tab.keyboard.press("Tab")  # it can be reached
    for key, frame in [
        ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 4), ("Home", 0),
        ("Shift+ArrowRight", 4), ("Shift+ArrowLeft", 0), ("ArrowLeft", 0), ("ArrowRight", 1),
    ]:  # fmt: skip
        tab.keyboard.press(key)
        assert at(tab) == frame
        assert tab.inner_text("output") == str(frame)
        assert tab.get_attribute("input", "aria-valuetext") == str(frame)
    for key, speed in [("+", "2"), ("+", "4"), ("+", "4"), ("-", "2")]:
        tab.keyboard.press(key)
        assert tab.input_value("select") == speed
    tab.keyboard.press("l")
    assert tab.get_by_label("loop").get_attribute("aria-pressed") == "false"
    tab.keyboard.press(" ")
    assert tab.get_attribute("button", "aria-label") == "pause"
    tab.keyboard.press(" ")
    assert tab.get_attribute("button", "aria-label") == "play"


def test_the_slider_seeks(playing):
    tab = playing(animations.line_and_title())
    tab.locator("input").fill("3")
    assert at(tab) == 3 and tab.get_attribute("button", "aria-label") == "play"


def test_every_control_has_a_name(playing):
    tab = playing(animations.line_and_title(), reduced_motion="reduce")
    controls = tab.locator("button, input, select, svg[role], [role=group]")
    assert controls.count() == 6
    assert all(controls.nth(k).get_attribute("aria-label") for k in range(6))


def test_two_players_on_one_page_keep_apart(visit, tmp_path):
    texts = []
    for make in (animations.line_and_title, animations.blitted, animations.line_and_title):
        text = plot.save(make(), tmp_path / "one.html").read_text(encoding="utf-8")
        texts.append(text[text.index("<body>") + 6 : text.index("</body>")])
    file = tmp_path / "all.html"
    file.write_text('<meta charset="utf-8">' + "".join(texts), encoding="utf-8")
    tab = visit(file, reduced_motion="reduce")
    players = tab.locator(".jaxfit-player[data-ready]")
    until(tab, lambda: players.count() == 3)
    players.nth(2).locator("input").fill("3")
    assert [int(players.nth(k).locator("input").input_value()) for k in range(3)] == [0, 0, 3]


def test_a_notebook_that_is_not_trusted_shows_a_still(visit, tmp_path):
    cell = player._cell(animations.line_and_title())
    stripped = re.sub(r"<(script|style|svg).*?</\1>", "", cell, flags=re.DOTALL)
    file = tmp_path / "cell.html"
    for text, is_seen in ((cell, False), (stripped, True)):
        file.write_text('<meta charset="utf-8">' + text, encoding="utf-8")
        tab = visit(file, reduced_motion="reduce")
        assert tab.locator("img").is_visible() is is_seen
    assert picture(tab, "img").shape == (250, 300, 3)
