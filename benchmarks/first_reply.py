"""Seconds from Enter to the replies on the page of `vrae serve`, in Debian's chromium.

    python benchmarks/first_reply.py --model runs/chitchat-vhred --data corpora/chitchat

Opens the page three times and says two lines in each; the very first is also the first that the server is asked for.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import time

from playwright.sync_api import sync_playwright

from vrae.apps.serve import serve
from vrae.generation.pipeline import load

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run that reads a context")
    parser.add_argument("--data", required=True, help="a prepared corpus, for the map")
    options = parser.parse_args()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = serve(load(options.model, max_seconds=20), options.model, data=options.data, attributes=[], port=port)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            for _ in range(3):
                page = browser.new_page()
                page.goto(server.local)
                page.get_by_label("Your line").wait_for()
                page.wait_for_timeout(1500)  # as someone who reads the page first
                for text in ("how was your weekend?", "what are you up to?"):
                    page.get_by_label("Your line").fill(text)
                    began = time.perf_counter()
                    page.keyboard.press("Enter")
                    page.get_by_text(text).first.wait_for()
                    page.locator(".v-choice[data-index]").first.wait_for()
                    print(f"{text:24}{time.perf_counter() - began:6.2f} s", flush=True)
                page.close()
    finally:
        server.close()


if __name__ == "__main__":
    main()
