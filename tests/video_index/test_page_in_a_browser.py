"""The page as people use it, in a headless Chromium."""

import shutil
import subprocess
import sys
import time

import pytest

from tests.chromium import Chromium, find_chromium
from tests.conftest import ROOT
from tests.films import H264, make
from tests.precision import stated
from tests.video_index.pages import index, served

NASTY = '<img src=x onerror="document.title=1">.mp4'
COUNT = "document.querySelectorAll('#hits > li').length"
# The least contrast of any text of the page with what is behind it (WCAG 2.2, relative luminance).
CONTRAST = """
(() => {
  const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (e) => {
    const colour = rgb(getComputedStyle(e).backgroundColor);
    return colour[3] === 0 ? behind(e.parentElement) : colour;
  };
  const is_text = (node) => node.nodeType === 3 && node.data.trim();
  const has_text = (e) => e.matches("input, select") || [...e.childNodes].some(is_text);
  const said = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && has_text(e));
  const ratios = said.map((e) => {
    const [dark, bright] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => x - y);
    return [(bright + 0.05) / (dark + 0.05), e.className || e.tagName];
  });
  return [said.length, ...ratios.sort((x, y) => x[0] - y[0])[0]];
})()
"""
# The name of each control as a screen reader says it, in the order of the Tab key.
CONTROLS = """
[...document.querySelectorAll("a[href], button, input, select, summary")]
  .filter((e) => e.checkVisibility() && !e.disabled)
  .map((e) => [e.tabIndex, e.ariaLabel || [...(e.labels ?? [])].map((l) => l.textContent).join() || e.textContent])
"""


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """One that plays for three parts of two seconds, one whose name wants to be a script, and two that do not play."""
    folder = tmp_path_factory.mktemp("library") / "films"
    (folder / "deeper").mkdir(parents=True)
    make(folder / "film.mp4", *H264, "-g", "12", seconds=6)
    make(folder / "deeper" / NASTY, *H264, seconds=1)
    make(folder / "old.avi", "-c:v", "mpeg4", seconds=1)
    make(folder / "codec.mp4", "-c:v", "mpeg4", seconds=1)
    return folder


@pytest.fixture(scope="module")
def page(films):
    index(films, films.parent / "index", "--window=2")
    with served(films.parent / "index") as server:
        yield server


@pytest.fixture(scope="module")
def program():
    found = find_chromium()
    if found is None:
        pytest.skip("no Chromium: install one, or name it in the variable CHROMIUM")
    return found


@pytest.fixture(scope="module")
def browser(program):
    with Chromium(program) as browser:
        yield browser


def press(browser, key):
    for kind in ("keyDown", "keyUp"):
        code = {"Enter": 13, "Escape": 27, "Tab": 9}[key]
        text = "\r" if key == "Enter" and kind == "keyDown" else ""
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)


def move(browser, selector):
    """The mouse to the middle of an element."""
    box = f"document.querySelector({selector!r}).getBoundingClientRect()"
    x, y = browser.evaluate(f"[{box}.x + {box}.width / 2, {box}.y + {box}.height / 2]")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


def mark(browser, name):
    """The result of a file gets the id `it`."""
    browser.evaluate("document.getElementById('it')?.removeAttribute('id')")
    browser.wait_for(
        f"[...document.querySelectorAll('#hits > li')].some((e) => e.textContent.includes({name!r}) && (e.id = 'it'))"
    )
    browser.wait_for("document.querySelector('#it img').naturalWidth > 0")
    browser.evaluate("document.querySelector('#it').scrollIntoView({block: 'center'})")


def test_search_with_the_keyboard_alone(page, browser):
    browser.open(page.address, 1200, 800)
    browser.wait_for("said.textContent == '6 segments'")
    assert browser.evaluate("document.activeElement.id") == "q"
    browser.call("Input.insertText", text="a <b>red</b> circle")
    press(browser, "Enter")
    browser.wait_for(f"{COUNT} == 4")
    status = browser.evaluate("[said.role ?? said.getAttribute('role'), said.ariaLive, said.textContent]")
    assert status[:2] == ["status", "polite"] and status[2].startswith("4 results of 6 segments, in 0.")
    assert browser.evaluate("location.search").startswith("?q=a+%3Cb%3Ered%3C%2Fb%3E+circle")
    controls = browser.evaluate(CONTROLS)
    assert all(place == 0 and len(name.strip()) > 3 for place, name in controls), controls
    assert [name for _, name in controls[:3]] == ["What is to be seen?", "Search", "Filters"]
    for _ in range(3):  # Search, Filters, the first result
        press(browser, "Tab")
    assert browser.evaluate("document.activeElement.className") == "play"
    browser.evaluate("history.back()")
    browser.wait_for(f"{COUNT} == 0 && q.value == ''")


def test_a_moment_plays_on_hover_and_on_click(page, browser):
    browser.open(f"{page.address}?q=a", 1200, 800)  # all moments
    browser.wait_for(f"{COUNT} == 6")
    mark(browser, "0:02.0 - 0:04.0")
    move(browser, "#it .play")
    time_now = "document.querySelector('#it video')?.currentTime"
    first = browser.wait_for(f"{time_now} > 0 && !document.querySelector('#it video').paused && {time_now}")
    assert 2 <= first < 4
    browser.evaluate(
        "globalThis.times = []; setInterval(() => times.push(document.querySelector('#it video')?.currentTime), 40)"
    )
    browser.wait_for("times.some((t, i) => t < times[i - 1])")  # it has begun once more
    assert browser.evaluate("Math.min(...times) >= 2 && Math.max(...times) < 4.4")
    move(browser, "h1")
    browser.wait_for("!document.querySelector('video')")
    browser.evaluate("document.querySelector('#it .play').click()")
    browser.wait_for(f"{time_now} >= 2")
    assert browser.evaluate("document.querySelector('#it video').controls && document.activeElement.tagName") == "VIDEO"
    press(browser, "Escape")
    assert browser.evaluate("document.querySelector('video') === null && document.activeElement.className") == "play"


@pytest.mark.parametrize(("name", "said"), [("old.avi", "do not play .avi"), ("codec.mp4", "does not play the file")])
def test_what_a_browser_does_not_play_is_shown_in_frames(page, browser, name, said):
    browser.open(f"{page.address}?q=a", 1200, 800)
    mark(browser, name)
    browser.evaluate("document.querySelector('#it .play').click()")
    browser.wait_for("document.querySelector('#it .frames') !== null")
    assert said in browser.evaluate("document.querySelector('#it .note').textContent")
    assert browser.evaluate("document.querySelectorAll('video').length") == 0
    size = browser.evaluate(
        "(({clientWidth, clientHeight}) => [clientWidth, clientHeight])(document.querySelector('.frames'))"
    )
    assert size[0] / size[1] == pytest.approx(64 / 48, rel=0.02)


def test_more_like_this_and_filters(page, browser):
    browser.open(f"{page.address}?q=a", 1200, 800)
    mark(browser, "old.avi")
    browser.evaluate("document.querySelector('#it .like').click()")
    browser.wait_for(f"{COUNT} == 5 && !document.querySelector('#like').hidden")
    assert "old.avi" in browser.evaluate("document.querySelector('#like').textContent")
    browser.evaluate("unlike.click()")
    browser.wait_for(f"{COUNT} == 0")
    browser.evaluate("q.value = 'a'; folder.value = 'films/deeper'; form.requestSubmit()")
    browser.wait_for(f"{COUNT} == 1")
    assert browser.evaluate("[document.querySelector('h2').textContent, document.title]") == [NASTY, "Search videos"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360, 320])
def test_it_fits_and_can_be_read(page, browser, width, scheme):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(f"{page.address}?q=a&without=b&like=1&like_name={'x' * 60}", width, 800)
    browser.wait_for(f"{COUNT} > 2")
    browser.evaluate("document.querySelector('details').open = true")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    sizes = browser.evaluate(
        "[...document.querySelectorAll('button, input:not([type=checkbox]), select')]"
        ".filter((e) => e.checkVisibility()).map((e) => e.getBoundingClientRect()).map((b) => [b.height, b.right])"
    )
    assert len(sizes) > 10 and all(height >= 44 and right <= width for height, right in sizes)  # for a finger
    count, contrast, where = browser.evaluate(CONTRAST)
    assert count > 20 and contrast >= 4.5, where
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 30)"
    )


def test_nothing_is_complained_of_and_nothing_is_asked_elsewhere(page, browser):
    """In all tests before."""
    assert browser.complaints == []
    asked = [url for url in browser.requests if not url.startswith("data:image/svg+xml")]  # signs of its own controls
    assert len(asked) > 20 and all(url.startswith(page.address) for url in asked)


@pytest.mark.slow
def test_two_tabs_follow_an_index_that_grows(films, program, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    shutil.copy(films / "film.mp4", folder)
    index(folder, tmp_path / "index")
    for number in range(40):
        make(folder / f"{number}.mp4", *H264, seconds=0.5 + number / 25)
    indexing = [sys.executable, ROOT / "search.py", "index", f"--index={tmp_path / 'index'}", "--gpu=cpu",
                "--num_workers=0", stated()]  # fmt: skip
    with served(tmp_path / "index") as server, Chromium(program) as one, Chromium(program) as two:
        counts = {one: [], two: []}
        for tab in counts:
            tab.open(f"{server.address}?q=a&per_video=1", 800, 600)
        writer = subprocess.Popen(indexing, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + 120
        while any(seen[-1:] != [41] for seen in counts.values()):
            assert time.monotonic() < deadline, counts
            for tab, seen in counts.items():
                tab.evaluate("said.textContent = ''; form.requestSubmit()")
                text = tab.wait_for("said.textContent")
                assert "results of" in text or "result of" in text, text
                seen.append(int(text.split()[3]))
        out, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0 and "40 segments encoded" in out, out
        for tab, seen in counts.items():
            assert seen == sorted(seen) and seen[0] < 41
            assert tab.evaluate(COUNT) == 40 and tab.complaints == []
