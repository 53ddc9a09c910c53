"""Makes the pictures of docs/serving.md: `python docs/screenshots.py CHITCHAT`, with chromium and `vrae[serve,dev]`.

Respond and Interpolate at 1,400 pixels, light; Explore at 390 pixels, dark. Each is a PNG of at most 256 colours.
"""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from vrae.apps.serve import serve
from vrae.bundled import NAMES
from vrae.generation.pipeline import load

HERE = Path(__file__).parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main(corpus: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    reader, space = (load(job=job, max_seconds=20) for job in NAMES)
    server = serve(reader, NAMES["dialogue"], space=space, data=corpus, attributes=[], port=port)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            wide = browser.new_page(viewport={"width": 1400, "height": 640}, color_scheme="light")
            wide.goto(server.local)
            respond(wide)
            interpolate(wide)
            narrow = browser.new_page(viewport={"width": 390, "height": 1000}, color_scheme="dark")
            narrow.goto(server.local)
            explore(narrow)
            browser.close()
    finally:
        server.close()


def respond(page: Page) -> None:
    for line, chosen in (("Hi! How are you today?", 0), ("What do you like to do for fun?", 1)):
        turns = page.locator(".v-turn").count()
        page.get_by_label("Your line").fill(line)
        page.keyboard.press("Enter")
        page.locator(".v-turn").nth(turns + 1).wait_for()
        page.locator(f'.v-choice[data-index="{chosen}"]').click()
        page.locator(f'.v-choice[data-index="{chosen}"][aria-pressed="true"]').wait_for()
    page.mouse.move(0, 0)
    save(page, "serve-respond.png")


def interpolate(page: Page) -> None:
    page.get_by_role("tab", name="Interpolate").click()
    page.locator("#v-slider").focus()
    for _ in range(13):
        page.keyboard.press("ArrowRight")
    page.set_viewport_size({"width": 1400, "height": 920})
    save(page, "serve-interpolate.png")


def explore(page: Page) -> None:
    page.get_by_role("tab", name="Explore").click()
    page.get_by_role("textbox", name="Sentence").fill("what do you want to eat?")
    page.get_by_role("button", name="Look around").click()
    page.get_by_text("Around it").wait_for()
    page.mouse.move(0, 0)
    save(page, "serve-phone.png")


def save(page: Page, name: str) -> None:
    page.wait_for_timeout(1000)  # whatever fades has faded
    page.screenshot(path=HERE / name)
    with Image.open(HERE / name) as picture:
        picture.convert("RGB").quantize(256).save(HERE / name, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
