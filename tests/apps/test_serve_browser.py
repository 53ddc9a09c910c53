"""`vrae serve` in a real browser: every tab used, by hand and by keyboard, wide and narrow, light and dark."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import tiny_model

from vrae.apps.serve import Served, serve
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import EOS
from vrae.generation.attributes import learn
from vrae.generation.pipeline import Pipeline

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
EVIL = "hello <img src=x onerror=alert(1)> ${1+1} {{value}} `"
CARD = f"""---
license: mit
---
# Of a stranger

{EVIL} <script>alert(1)</script>
![seen](https://example.com/pixel.png) [a link](javascript:alert(1)) [another](https://example.com)

<iframe src="https://example.com"></iframe>
<style>.v-card {{ display: none }}</style>

| figure | value | what is meant by it |
|---|---|---|
| {"a_long_name_" * 9} | {"1234567890" * 9} | {"words " * 30} |

```bash
{"vrae serve " * 40}
```
"""
VIEWS = [(390, "light"), (390, "dark"), (1400, "light"), (1400, "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        assert os.environ.get("CI") != "true", "chromium is missing: .ci/run installs it"
        pytest.skip("no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def served(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = tiny_model(context_turns=2, latent_size=6, vocab_size=len(corpus.tokenizer), speakers=True).float()
    with torch.no_grad():
        model.decoder.out.bias[EOS] = 1.0
    pipeline = Pipeline(model, corpus.tokenizer, {}, max_seconds=20)
    style = str(tmp_path_factory.mktemp("styles") / "tone.json")
    learn(pipeline, "yes no hello see you".split(), "what do how are why".split(), name="tone", labels=("cold", "warm")).save(
        style
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    folder = tmp_path_factory.mktemp("models") / "tiny-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    server = serve(pipeline, str(folder), data=str(corpus.path), attributes=[style], port=port)
    yield server
    server.close()


@pytest.fixture(params=VIEWS, ids=lambda view: f"{view[0]}-{view[1]}")
def page(browser: Any, served: Served, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, freshly loaded; afterwards nothing may have been asked of another host, and no script may have failed."""
    width, scheme = getattr(request, "param", (1400, "light"))
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened.set_default_timeout(20_000)
    asked: list[str] = []
    failed: list[str] = []
    opened.on("request", lambda one: asked.append(one.url))
    opened.on("pageerror", lambda error: failed.append(str(error)))
    opened.on("dialog", lambda dialog: failed.append(dialog.message))
    opened.goto(served.local)
    opened.get_by_label("Your line").wait_for()
    yield opened
    assert [url for url in asked if not url.startswith((served.local, "data:"))] == []
    assert failed == []
    opened.close()


wide_alone = pytest.mark.parametrize("page", [(1400, "light")], indirect=True)


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def fits(page: Any) -> bool:
    wide: bool = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return wide


def contrast(page: Any, selector: str) -> float:
    """Of an element's text against the page behind it (WCAG 2)."""
    ratio: float = page.evaluate(
        """selector => {
          const draw = document.createElement('canvas').getContext('2d');
          const paint = (colour) => { draw.fillStyle = colour; draw.fillRect(0, 0, 1, 1); };
          const read = () => [...draw.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255);
          const light = (rgb) => rgb.map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const element = document.querySelector(selector);
          const layers = [];
          for (let node = element; node; node = node.parentElement) layers.unshift(getComputedStyle(node).backgroundColor);
          paint('white');
          layers.forEach(paint);
          const ground = light(read());
          paint(getComputedStyle(element).color);
          const ink = light(read());
          return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
        }""",
        selector,
    )
    return ratio


def test_a_conversation_by_hand(page: Any) -> None:
    line, choices = page.get_by_label("Your line"), page.locator(".v-choice[data-index]")
    assert fits(page)
    page.get_by_role("button", name="Hi! How are you today?").click()
    choices.first.wait_for()
    assert page.locator(".v-turn").count() == 2
    second = choices.nth(1).locator("span").first.inner_text()
    choices.nth(1).click()
    page.locator('.v-choice[data-index="1"][aria-pressed="true"]').wait_for()
    assert page.locator(".v-model").last.locator("span").last.inner_text() == second
    line.fill(EVIL)
    page.get_by_role("button", name="Say it").click()
    page.locator(".v-turn").nth(3).wait_for()
    assert page.locator(".v-you").last.locator("span").last.inner_text() == EVIL
    assert line.input_value() == ""
    page.get_by_role("button", name="Take back").click()
    page.wait_for_function("document.querySelectorAll('.v-turn').length === 2")
    page.get_by_role("button", name="Other replies").click()
    page.get_by_role("button", name="Start over").click()
    page.get_by_text("Nothing said yet").wait_for()
    assert fits(page)
    for selector in (".v-empty", ".v-note", ".v-title p"):
        assert contrast(page, selector) >= 4.5, selector


def test_the_way_between_two_sentences(page: Any, served: Served) -> None:
    open_tab(page, "Interpolate")
    slider, said = page.locator("#v-slider"), page.locator(".v-said")
    slider.wait_for()
    page.get_by_label("From", exact=True).fill("hello")
    page.get_by_label("To", exact=True).fill("see you later")
    with page.expect_response(lambda response: "queue/join" in response.url):
        page.get_by_role("button", name="Find the way").click()
    page.wait_for_function("document.querySelector('#v-slider').value === '0'")
    page.wait_for_timeout(1500)
    steps = page.evaluate("[...document.querySelectorAll('.v-steps li')].map(li => [li.children[1].textContent, li.dataset.x])")
    assert len(steps) == 25
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    slider.focus()
    for text, x in steps[1:]:
        page.keyboard.press("ArrowRight")
        assert (said.inner_text(), page.locator(".v-here").get_attribute("cx")) == (text.strip(), x)
    assert asked == []  # the path is on the page
    assert page.locator(".v-line").get_attribute("points").count(",") == 25
    assert fits(page)


@wide_alone
def test_the_slider_answers_at_once(page: Any) -> None:
    open_tab(page, "Interpolate")
    page.locator("#v-slider").wait_for()
    milliseconds = page.evaluate(
        """async () => {
          const slider = document.querySelector('#v-slider'), took = [];
          for (let i = 0; i < 25; i += 1) {
            const began = performance.now();
            slider.value = i;
            slider.dispatchEvent(new Event('input', { bubbles: true }));
            await new Promise(requestAnimationFrame);
            took.push(performance.now() - began);
          }
          return took.sort((a, b) => a - b)[12];
        }"""
    )
    assert milliseconds < 150


def test_the_map_by_pointer_and_by_keyboard(page: Any) -> None:
    open_tab(page, "Explore")
    chart, caption, sentence = (
        page.locator("svg.v-open"),
        page.locator(".v-caption"),
        page.get_by_role("textbox", name="Sentence"),
    )
    chart.wait_for()
    dot = page.locator("svg.v-open circle[data-text]").nth(5)
    box, text = dot.bounding_box(), dot.get_attribute("data-text")
    assert box
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.get_by_text("From cold to warm").wait_for()
    near = sentence.input_value()
    assert near == caption.inner_text()
    assert near == text or page.locator("svg.v-open .v-read").count() == 1  # its neighbour, where they overlap
    assert page.locator("svg.v-open .v-marks circle").count() == page.locator(".v-choice[data-text]").count() >= 6
    chart.focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
        if caption.inner_text() != near:
            break
        page.keyboard.press("ArrowUp")
    read = caption.inner_text()
    assert read != near
    page.keyboard.press("Enter")
    page.wait_for_function(
        "text => document.activeElement && [...document.querySelectorAll('textarea')].some(t => t.value === text)", arg=read
    )
    page.locator(".v-choice[data-text]").nth(1).click()
    page.wait_for_function("text => ![...document.querySelectorAll('textarea')].some(t => t.value === text)", arg=read)
    assert fits(page)


def test_what_the_model_is(page: Any) -> None:
    open_tab(page, "About")
    page.get_by_text("6 dimensions").wait_for()
    assert page.get_by_role("cell", name="tiny-model").is_visible()
    card = page.locator(".v-card")
    assert card.get_by_role("heading", name="Of a stranger").is_visible()
    assert card.locator("img, script, style, iframe, svg, button, input").count() == 0
    assert [link.get_attribute("href") for link in card.locator("a").all()] == ["https://example.com"]
    assert card.get_by_text("<script>alert(1)</script>").is_visible()
    assert fits(page)
    for selector in (".v-table th", ".v-card p", ".v-card a", ".v-card code"):
        assert contrast(page, selector) >= 4.5, selector


@wide_alone
def test_everything_is_reached_with_the_tab_key(page: Any) -> None:
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.tagName"))
    for name in ("Respond", "Interpolate", "TEXTAREA", "Say it", "Take back", "Start over", "Other replies", "Settings"):
        assert any(name in one for one in seen), (name, seen)
    page.get_by_label("Your line").fill("hello")
    page.keyboard.press("Enter")
    page.locator(".v-choice[data-index]").nth(1).wait_for()
    page.locator(".v-choice[data-index]").nth(1).focus()
    page.keyboard.press("Enter")
    page.locator('.v-choice[data-index="1"][aria-pressed="true"]').wait_for()


@wide_alone
def test_an_error_is_said_kindly(page: Any) -> None:
    page.get_by_role("button", name="Say it").click()
    page.get_by_text("there is no line to reply to. Write one first").wait_for()
    assert page.get_by_text("Traceback").count() == 0
    open_tab(page, "Interpolate")
    page.get_by_label("From", exact=True).evaluate("box => box.removeAttribute('maxlength')")
    page.get_by_label("From", exact=True).fill("a" * 2500)
    page.get_by_role("button", name="Find the way").click()
    page.get_by_text("a text must have at most 2000 characters. Got 2500").wait_for()
