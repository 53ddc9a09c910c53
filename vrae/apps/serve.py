"""`vrae serve`: a page to talk with a model and to walk through its latent space, and a JSON API of the same jobs.

This file is about strangers: what the server opens, what it refuses, and how. One job runs at a time, sixteen wait, and whoever
comes then is told that the server is busy.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener

from vrae import bundled
from vrae.apps.latent_map import latent_map
from vrae.apps.service import Service
from vrae.errors import ModelError, UserError
from vrae.generation.attributes import Attribute, learn
from vrae.generation.pipeline import Pipeline
from vrae.generation.text_model import in_range

if TYPE_CHECKING:
    from vrae.apps.latent_map import LatentMap

_ASSETS = Path(__file__).parent / "assets"
_SENTENCES = 400  # on the map
_WAITING = 16
_VISITORS = 2000  # those whose requests are remembered: as many as gradio keeps messages for
_LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(
    pipeline: Pipeline,
    model: str,
    *,
    space: Pipeline | None = None,
    data: str = "",
    attributes: list[str],
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    auth: str = "",
) -> Served:
    """Starts the server in threads of its own.

    Args:
        pipeline: with a time limit (`max_seconds`), which holds for each request.
        model: what it was loaded from; a run tells its corpus and the course of its training.
        space: the bundled autoencoder, which does what moves in a latent space where no model was named; None: `pipeline`.
        data: the prepared corpus whose turns are on the map; empty: the run's, else turns drawn from the model.
        attributes: files that `vrae attributes learn` wrote; none: questions, learnt from the sentences of the map.
        host: the address to listen at.
        port: of it.
        share: also at a public address, through gradio's relay.
        auth: NAME:PASSWORD, which the page asks for; empty: for none.

    Raises:
        UserError: gradio is missing, `share` without `auth`, the port is taken, or an attribute is another model's.
    """
    user = _user(auth)
    if share and not user:
        raise UserError("--share puts the page on the internet: say who may use it with --auth NAME:PASSWORD")
    _check_free(host, port)
    try:
        import gradio  # noqa: F401  (the page is made of it)
        import markdown_it  # noqa: F401  (and the model card)
    except ImportError:
        raise UserError("serve needs gradio and markdown-it-py: pip install 'vrae[serve]'") from None
    from gradio.route_utils import FnIndexInferError
    from gradio.utils import LRUCache

    from vrae.apps.components import theme
    from vrae.apps.page import build

    space = space or pipeline
    given = [Attribute.load(file) for file in attributes]
    for attribute in given:
        attribute.check(space)
    chart = latent_map(space, model, data, _SENTENCES) if space.model.config.latent_size else None
    styles = _styles(space, chart, given)
    name = Path(model).resolve().name if os.path.exists(model) else model
    style = (_ASSETS / "page.css").read_text(encoding="utf-8")
    service = Service(pipeline, name, styles, space)
    folder = Path(model) if os.path.exists(model) else bundled.folder(model) or Path(model)
    page = build(service, chart, folder)
    page.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)  # open, /run/ would be a way past the queue
    # after each request gradio would make a table of the last 10,000, for a monitor that is off here
    page._queue.compute_analytics_summary = lambda records: None  # type: ignore[method-assign]
    page._queue.ANALYTICS_MAX_EVENTS = _WAITING
    # it would never forget a visitor, and whoever asks the API without a name of a session is a new one each time
    page._queue.pending_event_ids_session = LRUCache(_VISITORS)
    os.environ.pop("GRADIO_ALLOWED_PATHS", None)  # gradio would hand out what lies there
    try:
        _, local, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=user,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            show_error=False,
            run_history=False,
            footer_links=[],
            max_file_size="16kb",
            max_threads=8,
            state_session_capacity=200,
            strict_cors=True,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            pwa=False,
            app_kwargs={"exception_handlers": {KeyError: _unknown, FnIndexInferError: _unknown, TypeError: _unfit}},
            theme=theme(),
            head=f"<style>{style}</style>",  # as css, gradio would rewrite its selectors
        )
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error!s:.40}). Choose another --port") from None
    _warm_up(local, user, service)
    return Served(page, local, public)


def _warm_up(address: str, user: tuple[str, str] | None, service: Service) -> None:
    """A reply and a path, asked for as visitors will: else the first of them would wait for what is loaded at first use.

    That is gradio's doing as much as torch's, so the requests take the way through the server. If they fail, it is slower once.
    """
    opener = build_opener(ProxyHandler({}), HTTPCookieProcessor())
    asked: dict[str, dict[str, Any]] = {
        "respond": {"context": ["hello"], "n": 4, "candidates": 3, "rank": "mmi", "seed": 0},
        "interpolate": {"texts": ["hello", "see you"], "steps": 2},
    }
    with contextlib.suppress(OSError, ValueError, HTTPException):
        if user:
            form = urlencode({"username": user[0], "password": user[1]}).encode()
            opener.open(f"{address}login", form, timeout=60).close()
        for job in (job for job in asked if job in service.jobs):
            body, headers = json.dumps(asked[job]).encode(), {"Content-Type": "application/json"}
            with opener.open(Request(f"{address}gradio_api/call/v2/{job}", body, headers), timeout=60) as answer:
                event = json.load(answer)["event_id"]
            with opener.open(f"{address}gradio_api/call/{job}/{event}", timeout=60) as answer:
                answer.read()


class Served:
    """A server that runs."""

    def __init__(self, page: Any, local: str, public: str | None) -> None:
        self._page, self.local, self.public = page, local, public

    def wait(self) -> None:
        """Until Ctrl-C or SIGTERM, which end it."""
        try:
            threading.Event().wait()
        finally:
            self.close()

    def close(self) -> None:
        self._page.close(verbose=False)


def _check_free(host: str, port: int) -> None:
    """Raises UserError where nobody could listen, before anything is loaded for it."""
    in_range("--port", port, 1, 65535)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"--host {host:.60}: no such address ({error!s:.60}). 127.0.0.1 is this machine") from None
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error!s:.60}). Choose another --port") from None


def _unknown(request: Any, error: Exception) -> Any:
    """gradio looks up what a stranger named, and would answer 500 where there is no such thing."""
    return _refusal(404, "there is no such job here: /gradio_api/info lists them")


def _unfit(request: Any, error: Exception) -> Any:
    return _refusal(400, "the names of the values do not fit the job: /gradio_api/info lists them")


def _refusal(status: int, problem: str) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": problem}, status)


def warn_of_strangers(host: str, auth: str) -> None:
    if host not in _LOCAL and not auth:
        print(f"vrae: warning: whoever reaches {host} can use this page. --auth NAME:PASSWORD asks who it is", file=sys.stderr)


def _user(auth: str) -> tuple[str, str] | None:
    name, colon, password = auth.partition(":")
    if not auth:
        return None
    if not (name and colon and password):
        raise UserError("--auth must be NAME:PASSWORD, both not empty")
    return name, password


def _styles(pipeline: Pipeline, chart: LatentMap | None, found: list[Attribute]) -> dict[str, Attribute]:
    """Attributes by their names; where none are given, what tells questions from the rest on the map."""
    if not found and chart:
        questions = [text for text in chart.texts if text.rstrip().endswith("?")]
        rest = [text for text in chart.texts if not text.rstrip().endswith("?")]
        try:
            found = [learn(pipeline, rest, questions, name="question", labels=("statement", "question"))]
        except ModelError:
            raise
        except UserError:  # too few of one kind: the page does without
            pass
    return {attribute.name: attribute for attribute in found}
