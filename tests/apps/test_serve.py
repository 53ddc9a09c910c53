"""`vrae serve` without a browser: the JSON API and its promised keys, the page's handlers, and what strangers may send."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import math
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from conftest import tiny_model

from vrae.apps import fragments
from vrae.apps.about import about
from vrae.apps.chat import Exchange
from vrae.apps.cli import main
from vrae.apps.latent_map import latent_map
from vrae.apps.page import build
from vrae.apps.serve import Served, serve
from vrae.apps.service import MAX_K, MAX_POINTS, MAX_TEXTS, Service
from vrae.config import DecodingConfig
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import EOS
from vrae.errors import ModelError, UserError
from vrae.evaluation.score import score
from vrae.files import write_folder
from vrae.generation.attributes import learn, move
from vrae.generation.card import MARK
from vrae.generation.pipeline import Pipeline, load
from vrae.generation.responses import Reply
from vrae.model.folder import to_files

ROOT = Path(__file__).parents[2]
JSON = {"Content-Type": "application/json"}


def make(corpus: Corpus, **overrides: Any) -> Pipeline:
    """A model that was never trained, and ends its turns."""
    shape = {"context_turns": 2, "latent_size": 6, "vocab_size": len(corpus.tokenizer), "speakers": True}
    model = tiny_model(**{**shape, **overrides}).float()
    with torch.no_grad():
        model.decoder.out.bias[EOS] = 1.0
    return Pipeline(model, corpus.tokenizer, {}, max_seconds=20)


def save(pipeline: Pipeline, folder: Path) -> str:
    write_folder(folder, to_files(pipeline.model, pipeline.tokenizer, pipeline.info))
    return str(folder)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def model(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(make(corpus), tmp_path_factory.mktemp("served") / "tiny-model")


@pytest.fixture(scope="module")
def served(model: str, corpus: Corpus) -> Iterator[Served]:
    server = serve(load(model, max_seconds=20), model, data=str(corpus.path), attributes=[], port=free_port())
    yield server
    server.close()


def call(server: Served, job: str, values: dict[str, Any]) -> Any:
    """The README of docs/serving.md in Python: ask, then wait. The result, or {"error": ..}."""
    address = f"{server.local}gradio_api/call"
    request = urllib.request.Request(f"{address}/v2/{job}", json.dumps(values).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/{job}/{event}", timeout=60) as answer:
        kind, data = re.findall(r"event: (\w+)\ndata: (.*)\n", answer.read().decode())[-1]
    found = json.loads(data)
    return found[0] if kind == "complete" else found


def status(server: Served, path: str, body: bytes | None = None, **headers: str) -> int:
    try:
        request = urllib.request.Request(server.local + path, body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            code: int = answer.status
            return code
    except urllib.error.HTTPError as error:
        return error.code


def answers(server: Served) -> bool:
    return len(call(server, "sample", {"n": 2, "seed": 1})["samples"]) == 2


class TestApi:
    @pytest.mark.parametrize(
        ("job", "values", "command"),
        [
            (
                "respond",
                {"context": ["hello", "how are you"], "n": 3, "seed": 1},
                ["respond", "hello", "how are you", "-n3"],
            ),
            ("reconstruct", {"text": "hello"}, ["reconstruct", "hello"]),
            ("reconstruct", {"text": "hello", "n": 2, "seed": 1}, ["reconstruct", "hello", "-n2"]),
            ("interpolate", {"texts": ["hello", "see you"], "steps": 4}, ["interpolate", "hello", "see you", "--steps=4"]),
            ("variations", {"text": "hello", "n": 3, "seed": 1, "radius": 2}, ["variations", "hello", "-n3", "--radius=2"]),
            ("analogy", {"texts": ["hello", "you", "pizza"]}, ["analogy", "hello", "you", "pizza"]),
            ("encode", {"text": "hello", "context": ["yes"]}, ["encode", "hello", "--context", "yes"]),
            ("score", {"text": "hello", "context": ["yes"], "k": 4}, ["score", "hello", "--context", "yes", "--k=4"]),
        ],
    )
    def test_a_job_answers_what_the_command_prints(
        self, served: Served, model: str, job: str, values: Any, command: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        seed = ["--seed=1"] if "seed" in values else []
        assert main([*command, *seed, "--model", model, "--json"]) == 0
        assert call(served, job, values) == json.loads(capsys.readouterr().out)

    def test_samples_are_those_of_the_command(self, served: Served, model: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["sample", "-n3", "--seed=1", "--model", model, "--json"]) == 0
        printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert call(served, "sample", {"n": 3, "seed": 1}) == {"samples": printed}

    def test_words_of_samples_are_drawn_at_a_temperature(self, served: Served, model: str) -> None:
        found = call(served, "sample", {"n": 3, "seed": 1, "temperature": 2.0, "top_p": 0.5})["samples"]
        wanted = load(model).sample(3, seed=1, decoding=DecodingConfig(temperature=2.0, top_p=0.5))
        assert found == [dataclasses.asdict(sample) for sample in wanted]

    def test_settings_of_a_reply_reach_the_model(self, served: Served, model: str, capsys: pytest.CaptureFixture[str]) -> None:
        settings = {"temperature": 1.5, "top_p": 0.5, "rank": "importance_weighted", "candidates": 3}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        assert main(["respond", "hello", "-n2", "--seed=3", "--model", model, "--json", *flags]) == 0
        found = call(served, "respond", {"context": ["hello"], "n": 2, "seed": 3, **settings})
        assert found == json.loads(capsys.readouterr().out)

    def test_a_style_is_learnt_from_the_questions_of_the_map(self, served: Served, corpus: Corpus) -> None:
        """There are none in this corpus, and so there is no style; a file brings one."""
        assert call(served, "about", {})["attributes"] == {}
        assert status(served, "gradio_api/call/v2/move", b'{"text": "hello", "attribute": "question"}', **JSON) == 404

    def test_about_says_what_the_model_is_and_not_where_it_lies(self, served: Served, model: str) -> None:
        found = call(served, "about", {})
        assert found["name"] == "tiny-model"
        assert found["parameters"] == sum(p.numel() for p in load(model).model.parameters())
        assert found["model"]["latent_size"] == 6
        assert str(Path(model).parent) not in json.dumps(found)

    def test_a_python_client_needs_nothing_but_the_names(self, served: Served) -> None:
        """The example of docs/serving.md, as it stands there."""
        page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
        examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        assert len(examples) == 2
        for example in examples:
            code = example.replace("http://127.0.0.1:7860", served.local.rstrip("/"))
            assert code != example
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()

    def test_the_shell_example_works(self, served: Served, tmp_path: Path) -> None:
        page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
        (example,) = re.findall(r"<!-- curl -->\n```bash\n(.*?)```", page, re.DOTALL)
        script = example.replace("http://127.0.0.1:7860", served.local.rstrip("/"))
        done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert '"replies"' in done.stdout


def test_the_space_moves_and_the_other_model_replies_and_scores(corpus: Corpus) -> None:
    reader, space = make(corpus), make(corpus, latent_size=5)
    texts, context = ["hello", "see you"], ["yes"]
    tone = learn(space, list("abcde"), list("vwxyz"), name="tone")
    service = Service(reader, "two", {"tone": tone}, space)
    assert service.respond(context, 1, 1)["replies"][0]["log_prob"] == reader.respond(context, 1, seed=1)[0].log_prob
    assert service.score("hello", context, 3) == dataclasses.asdict(score(reader, ["hello"], [context], k=3, seed=0)[0])
    assert service.sample(2, 1) == {"samples": [dataclasses.asdict(one) for one in space.sample(2, seed=1)]}
    assert service.encode("hello", context)["mean"] == space.encode(["hello"], [context])[0][0].tolist()
    assert service.analogy([*texts, "no"])["log_prob"] == space.analogy(*texts, "no").log_prob
    assert service.reconstruct("hello")["rate"] == space.reconstruct(["hello"])[0].rate
    path = space.interpolate(*texts, 3, context=context)
    assert service.interpolate(texts, 3, context=context) == {"steps": [dataclasses.asdict(step) for step in path]}
    found = space.variations("hello", 2, radius=2, seed=1, context=context)
    assert service.variations("hello", 2, 2, 1, context)["variations"] == [dataclasses.asdict(one) for one in found]
    (moved,) = move(space, ["hello"], tone, 3.0, along="normal")
    assert service.move("hello", "tone", 3.0, "normal") == dataclasses.asdict(moved)


class TestStrangers:
    """Fault 25: whatever is sent, a line comes back, and the server answers the next one."""

    NAN, LONG = float("nan"), "a " * 50_000

    @pytest.mark.parametrize(
        ("job", "values", "problem"),
        [
            ("respond", {"context": [LONG]}, "at most 2000 characters. Got 100000"),
            ("score", {"text": LONG}, "at most 2000 characters. Got 100000"),
            ("respond", {"context": 5}, "a context must be a list of turns. Got int"),
            ("respond", {"context": None}, "a context must be a list of turns. Got NoneType"),
            ("respond", {"context": [None]}, "a text must be a string. Got NoneType"),
            ("respond", {"context": ["hi"] * 1001}, "number of turns must be"),
            ("respond", {"context": ["hi"], "n": 9999}, f"n must be a whole number from 1 to {MAX_TEXTS}. Got 9999"),
            ("respond", {"context": ["hi"], "n": 64, "candidates": 5}, "n * candidates must be"),
            ("respond", {"context": ["hi"], "candidates": "many"}, "candidates must be"),
            ("respond", {"context": ["hi"], "temperature": NAN}, "temperature must be in [0, 5]. Got nan"),
            ("respond", {"context": ["hi"], "temperature": "hot"}, "temperature must be float"),
            ("respond", {"context": ["hi"], "rank": ["mmi"]}, "rank must be str"),
            ("respond", {"context": ["hi"], "seed": -1}, "seed must be"),
            ("sample", {"n": 9999}, f"n must be a whole number from 1 to {MAX_TEXTS}. Got 9999"),
            ("sample", {"n": True}, "n must be a whole number"),
            ("sample", {"top_p": NAN}, "top_p must be in (0, 1]. Got nan"),
            ("reconstruct", {"text": {"a": 1}}, "a text must be a string. Got dict"),
            ("reconstruct", {"text": "hi", "n": 65}, "n must be"),
            ("interpolate", {"texts": ["hi"]}, "interpolate takes 2 turns. Got 1"),
            ("interpolate", {"texts": "hi"}, "texts must be a list of strings. Got str"),
            ("interpolate", {"texts": ["a", "b"], "steps": 51}, f"steps must be a whole number from 2 to {MAX_POINTS}. Got 51"),
            ("interpolate", {"texts": ["a", "b"], "method": "<b>"}, "method must be slerp or lerp. Got '<b>'"),
            ("variations", {"text": "hi", "radius": NAN}, "radius must be above 0 and at most 10. Got nan"),
            ("variations", {"text": "hi", "n": 65}, "n must be"),
            ("analogy", {"texts": ["a"] * 4}, "analogy takes 3 turns. Got 4"),
            ("encode", {"text": "hi", "context": {"a": 1}}, "a context must be a list of turns. Got dict"),
            ("score", {"text": "hi", "k": 1001}, f"k must be a whole number from 1 to {MAX_K}. Got 1001"),
            ("score", {"text": "hi", "seed": None}, "seed must be"),
        ],
    )
    def test_what_cannot_be_worked_with_is_refused_in_a_line(
        self, served: Served, job: str, values: Any, problem: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        refused = call(served, job, values)
        assert problem in refused["error"]
        assert "Traceback" not in refused["error"] + capfd.readouterr().err

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("gradio_api/call/v2/nothing", b"{}"),
            ("gradio_api/call/nothing", b'{"data": []}'),
            ("gradio_api/call/v2/respond", b'{"n": 2}'),
            ("gradio_api/call/v2/respond", b'{"context": ["hi"], "allowed": 1}'),
            ("gradio_api/call/v2/respond", b"[1]"),
            ("gradio_api/call/v2/respond", b"\xff\x00 no json"),
            ("gradio_api/call/respond", b'{"data": 5}'),
            ("gradio_api/call/v2/_respond", b"{}"),
            ("gradio_api/run/sample", b'{"data": [2, 1, 0.5, 0.9]}'),  # sound, but past the queue
            ("gradio_api/api/sample", b'{"data": [2, 1, 0.5, 0.9]}'),
            ("gradio_api/queue/join", b'{"data": [], "fn_index": 9999}'),
            ("gradio_api/queue/join", b'{"data": [], "fn_index": -1, "session_hash": "a"}'),
            ("gradio_api/component_server", b'{"data": "x", "component_id": 1, "fn_name": "f", "session_hash": "a"}'),
        ],
    )
    def test_a_request_that_fits_no_job_is_refused(self, served: Served, path: str, body: bytes) -> None:
        assert 400 <= status(served, path, body, **JSON) < 500

    @pytest.mark.parametrize(
        "path",
        [
            *("gradio_api/file=/etc/passwd", "file=/etc/passwd", "gradio_api/file=../../../../etc/passwd"),
            *("gradio_api/file=http://127.0.0.1/", "gradio_api/proxy=http://127.0.0.1/", "monitoring", "docs"),
            *("gradio_api/mcp/sse", "gradio_api/runs", "static/../../../../etc/passwd", "assets/..%2f..%2f..%2fetc/passwd"),
        ],
    )
    def test_no_file_and_no_back_door_is_served(self, served: Served, path: str) -> None:
        assert 400 <= status(served, path) < 500

    def test_an_upload_beyond_a_few_kilobytes_is_refused(self, served: Served) -> None:
        body = (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + b"a" * 5_000_000 + b"\r\n--x--\r\n"
        )
        refused = 413
        with contextlib.suppress(urllib.error.URLError):  # closed before all of it was sent
            refused = status(served, "gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=x"})
        assert refused == 413
        assert answers(served)

    @pytest.mark.parametrize("origin", ["https://example.com", "null"])  # of a page in a frame without rights
    def test_another_site_may_not_ask_through_a_visitors_browser(self, served: Served, origin: str) -> None:
        request = urllib.request.Request(f"{served.local}config", headers={"Origin": origin, "Host": "127.0.0.1"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                allowed = answer.headers.get("Access-Control-Allow-Origin")
        except urllib.error.HTTPError as error:
            allowed = error.headers.get("Access-Control-Allow-Origin")
        assert allowed is None

    def test_of_two_hundred_at_once_some_are_answered_and_the_rest_told_that_it_is_busy(self, served: Served) -> None:
        codes: list[int] = []
        body = json.dumps({"text": "hello how are you", "k": 200}).encode()

        def ask() -> None:
            codes.append(status(served, "gradio_api/call/v2/score", body, **JSON))

        threads = [threading.Thread(target=ask) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(codes) == {200, 503}
        assert codes.count(200) >= 16
        answered = False
        while not answered:  # as soon as there is room
            time.sleep(0.2)
            with contextlib.suppress(urllib.error.HTTPError):
                answered = answers(served)

    def test_one_who_leaves_in_the_middle_harms_nobody(self, served: Served) -> None:
        host = served.local.removeprefix("http://").rstrip("/")
        for leave_early in (True, False):
            connection = http.client.HTTPConnection(host, timeout=60)
            body = json.dumps({"text": "hello how are you", "k": 1000})
            connection.request("POST", "/gradio_api/call/v2/score", body, {"Content-Type": "application/json"})
            if not leave_early:
                event = json.loads(connection.getresponse().read())["event_id"]
                connection.request("GET", f"/gradio_api/call/score/{event}")
            connection.sock.close()
            connection.close()
        assert answers(served)

    def test_visitors_are_forgotten(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever gradio remembers of a request or of who made it has a limit."""
        queue = served._page._queue
        assert queue.pending_event_ids_session.max_size == 2000
        full = len(queue.pending_event_ids_session)
        monkeypatch.setattr(queue.pending_event_ids_session, "max_size", full)
        for _ in range(20):
            call(served, "about", {})
        assert len(queue.event_analytics) <= 16
        assert len(queue.pending_event_ids_session) == full
        assert queue.pending_messages_per_session.max_size == 2000
        assert answers(served)

    def test_a_request_that_takes_too_long_is_ended(self, corpus: Corpus, tmp_path: Path) -> None:
        pipeline = make(corpus)
        pipeline.max_seconds = 1e-6
        job = Service(pipeline, "slow", {}).score
        with pytest.raises(UserError, match="took longer than max_seconds"):
            job("hello", k=1000)


@pytest.fixture(scope="module")
def pipeline(corpus: Corpus) -> Pipeline:
    return make(corpus)


@pytest.fixture(scope="module")
def handlers(pipeline: Pipeline, corpus: Corpus) -> dict[str, Callable[..., Any]]:
    """The functions behind the page, by name."""
    chart = latent_map(pipeline, "", str(corpus.path), 40)
    tone = learn(pipeline, chart.texts[:20], chart.texts[20:], name="tone", labels=("cold", "warm"))
    page = build(Service(pipeline, "tiny", {"tone": tone}), chart, Path("nowhere"))
    return {fn.fn.__name__: fn.fn for fn in page.fns.values() if fn.fn is not None and hasattr(fn.fn, "__name__")}


class TestPage:
    """The handlers of the page, called as gradio calls them."""

    SETTINGS = (3, 1.0, "most probable", 1)

    def test_a_line_gets_replies_and_the_best_is_said(self, handlers: Any) -> None:
        line, talk, found, past, openings = handlers["answer"]("hello <b>", [], *self.SETTINGS)
        assert line == ""
        assert "hello &lt;b&gt;" in talk
        assert "<b>" not in talk
        replies = past[0].replies
        assert found.count("data-index") == len(replies) > 1
        assert re.findall(r'data-index="(\d)" aria-pressed="true"', found) == ["0"]
        assert f"{-replies[0].log_prob / math.log(2):.1f} bits" in found
        assert past[0].reply is replies[0]
        assert openings.visible is False

    def test_a_reply_that_is_clicked_is_what_was_said(self, handlers: Any) -> None:
        *_, past, _ = handlers["answer"]("hello", [], *self.SETTINGS)
        talk, found, chosen, _ = handlers["choose"](past, gr.EventData(None, {"index": 1}))
        assert re.findall(r'data-index="(\d)" aria-pressed="true"', found) == ["1"]
        assert past[0].replies[1].text in re.sub(r"&#?\w+;", "", talk) or fragments.escape(past[0].replies[1].text) in talk
        *_, longer, _ = handlers["answer"]("how are you", chosen, *self.SETTINGS)
        assert longer[0].reply.text == past[0].replies[1].text

    @pytest.mark.parametrize("index", [-1, 99, None, "0", True])
    def test_a_reply_that_is_not_there_cannot_be_chosen(self, handlers: Any, index: Any) -> None:
        *_, past, _ = handlers["answer"]("hello", [], *self.SETTINGS)
        with pytest.raises(gr.Error, match="the number of a reply must be"):
            handlers["choose"](past, gr.EventData(None, {"index": index}))
        with pytest.raises(gr.Error, match="the number of a reply must be"):
            handlers["choose"]([], gr.EventData(None, {"index": 1}))

    def test_other_replies_are_drawn_to_the_same_line_and_the_past_stays_as_it_was(self, handlers: Any) -> None:
        *_, past, _ = handlers["answer"]("hello", [], *self.SETTINGS)
        before = dataclasses.replace(past[0])
        _, _, others, _ = handlers["others"](past, *self.SETTINGS)
        assert past == [before]
        assert others[0].said == "hello"
        assert [reply.text for reply in others[0].replies] != [reply.text for reply in past[0].replies]
        with pytest.raises(gr.Error, match="nothing has been said yet"):
            handlers["others"]([], *self.SETTINGS)

    def test_the_same_seed_gives_the_same_conversation(self, handlers: Any) -> None:
        assert handlers["answer"]("hello", [], *self.SETTINGS)[3] == handlers["answer"]("hello", [], *self.SETTINGS)[3]

    @pytest.mark.parametrize(
        ("settings", "problem"),
        [
            ((9, 1.0, "most probable", 1), "replies to choose from must be a whole number from 1 to 8"),
            ((3, float("nan"), "most probable", 1), "temperature must be in"),
            ((3, "1", "most probable", 1), "temperature must be float"),
            ((3, 1.0, "whatever", 1), "rank must be one of"),
            ((3, 1.0, "most probable", -1), "seed must be"),
        ],
    )
    def test_settings_are_checked_here_and_not_in_the_browser(self, handlers: Any, settings: Any, problem: str) -> None:
        with pytest.raises(gr.Error, match=problem):
            handlers["answer"]("hello", [], *settings)

    def test_a_conversation_has_an_end(self, handlers: Any) -> None:
        past = [Exchange("hello", [Reply("hi", -1.0, -1.0, 1, ())], 0)] * 100
        with pytest.raises(gr.Error, match="at most 100 lines of yours"):
            handlers["answer"]("hello", past, *self.SETTINGS)

    @pytest.mark.parametrize("line", ["", "  \n", "\x1b", None, 5])
    def test_an_empty_line_is_asked_for_again(self, handlers: Any, line: Any) -> None:
        with pytest.raises(gr.Error, match="there is no line to reply to"):
            handlers["answer"](line, [], *self.SETTINGS)

    def test_a_message_is_no_html(self, handlers: Any) -> None:
        with pytest.raises(gr.Error, match=re.escape("rank must be one of")) as caught:
            handlers["answer"]("hello", [], 3, 1.0, "<img src=x>", 1)
        assert "<img" not in caught.value.message
        assert "&lt;img" in caught.value.message

    def test_a_mistake_of_ours_tells_strangers_nothing(
        self, handlers: Any, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("/secret/path")

        monkeypatch.setattr(pipeline, "respond", fail)
        with pytest.raises(gr.Error, match="something went wrong here") as caught:
            handlers["answer"]("hello", [], *self.SETTINGS)
        assert "secret" not in caught.value.message
        assert caught.value.print_exception  # to the log

    def test_a_path_is_on_the_page_whole(self, handlers: Any, pipeline: Pipeline) -> None:
        shown = handlers["way"]("hello", "see you", "yes")
        steps = pipeline.interpolate("hello", "see you", 25, context=["yes"])
        assert shown.count("<li data-x=") == 25
        assert re.findall(r'<span class="v-share">(\d+)%', shown) == [f"{100 * step.t:.0f}" for step in steps]
        for step in steps:
            assert f"<span>{fragments.escape(step.text) or '(nothing)'}</span><small>{fragments.bits(step.log_prob)}" in shown
        assert 'max="24"' in shown

    def test_the_ends_of_a_path_lie_where_the_sentences_do(self, handlers: Any, pipeline: Pipeline, corpus: Corpus) -> None:
        chart = latent_map(pipeline, "", str(corpus.path), 40)
        texts = chart.texts[0], chart.texts[7]
        shown = handlers["way"](*texts)
        places = [tuple(map(float, place)) for place in re.findall(r'<li data-x="(.*?)" data-y="(.*?)"', shown)]
        for place, point_2 in zip((places[0], places[-1]), chart.points_N2[[0, 7]], strict=True):
            assert place == pytest.approx((point_2[0], -point_2[1]), abs=1e-3)

    def test_around_a_sentence_there_are_others_and_its_styles(self, handlers: Any, pipeline: Pipeline) -> None:
        text, shown = handlers["pick"](2.0, "tone", gr.EventData(None, {"text": "hello"}))
        assert text == "hello"
        own = pipeline.reconstruct(["hello"])[0]
        assert f"{own.rate / math.log(2):.1f} bits idea + {own.distortion / math.log(2):.1f} bits wording" in shown
        assert "From cold to warm" in shown
        assert shown.count("two steps on") == 1
        for bad in ("", None, 5):
            with pytest.raises(gr.Error, match="there is no sentence to look around"):
                handlers["pick"](2.0, "tone", gr.EventData(None, {"text": bad}))
        with pytest.raises(gr.Error, match="radius must be above 0"):
            handlers["explore"]("hello", float("nan"), "tone")


class TestCard:
    """The About tab shows the card that lies beside the model, whoever wrote it."""

    def test_it_is_the_one_in_the_folder_of_the_model(self, pipeline: Pipeline, tmp_path: Path) -> None:
        assert "Its model card" in about(pipeline, "tiny", tmp_path)
        (tmp_path / "README.md").write_text(f"---\nlicense: mit\n---\n{MARK}\n\n# Of strangers <script>alert(1)</script>")
        assert "Of strangers" not in about(pipeline, "tiny", tmp_path)  # of something else, perhaps
        (tmp_path / "config.json").write_text("{}")
        shown = about(pipeline, "tiny", tmp_path)
        assert "<h4>Of strangers &lt;script&gt;alert(1)&lt;/script&gt;</h4>" in shown
        assert "license" not in shown
        assert "Written by vrae" not in shown
        (tmp_path / "README.md").write_bytes(b"\xff" * 10_000_000)
        assert len(about(pipeline, "tiny", tmp_path)) < 50_000

    def test_without_one_it_is_written_from_the_records(self, pipeline: Pipeline) -> None:
        shown = about(pipeline, "tiny", Path("nowhere"))
        assert "<h5>Limits</h5>" in shown
        assert "must not be used" in shown
        assert "library_name" not in shown
        assert "Written by vrae" not in shown

    def test_records_that_strangers_wrote_are_text(self, pipeline: Pipeline) -> None:
        evil = "<img src=x onerror=alert(1)>[a](javascript:alert(1))![b](https://example.com/b.png)"
        info = {"corpus": {"source": evil, "licence": evil, "splits": {evil: {"turns": evil}}}}
        info |= {"run": {"train": {"seed": evil}, evil: {evil: evil}}, "versions": {evil: evil}, "step": evil}
        shown = about(Pipeline(pipeline.model, pipeline.tokenizer, info), evil, Path("nowhere"))
        assert "<img" not in shown
        assert "href" not in shown
        for odd in (5, None, [], "x", {"train": 5, "splits": []}):
            info = dict.fromkeys(("corpus", "run", "versions", "validation", "hardware", "step"), odd)  # type: ignore[arg-type]
            assert "Its model card" in about(Pipeline(pipeline.model, pipeline.tokenizer, info), "tiny", Path("nowhere"))


class TestModelsThatCannot:
    """A tab says kindly what its model cannot do; the API does not offer it."""

    def page(self, pipeline: Pipeline, corpus: Corpus, name: str = "tiny") -> str:
        chart = latent_map(pipeline, "", str(corpus.path), 20) if pipeline.model.config.latent_size else None
        page = build(Service(pipeline, name, {}), chart, Path("nowhere"))
        return " ".join(str(block.value) for block in page.blocks.values() if isinstance(block, gr.HTML))

    def test_without_context_there_are_no_replies(self, corpus: Corpus) -> None:
        pipeline = make(corpus, context_turns=0)
        assert "has no replies to give" in self.page(pipeline, corpus, "<b>evil")
        assert "<b>evil" not in self.page(pipeline, corpus, "<b>evil")
        assert "respond" not in Service(pipeline, "tiny", {}).jobs

    def test_without_latent_there_is_no_map_but_turns_can_be_drawn(self, corpus: Corpus) -> None:
        pipeline = make(corpus, latent_size=0)
        assert "has no latent space" in self.page(pipeline, corpus)
        assert set(Service(pipeline, "tiny", {}).jobs) == {"about", "sample", "score", "respond"}
        page = build(Service(pipeline, "tiny", {}), None, Path("nowhere"))
        (draw,) = [fn.fn for fn in page.fns.values() if fn.fn is not None and fn.fn.__name__ == "draw"]
        assert draw().count("<li>") == 8

    def test_a_model_of_replies_alone_says_that_single_sentences_are_not_its_trade(self, corpus: Corpus) -> None:
        pipeline = make(corpus)
        assert "trained on replies to a dialogue" in self.page(pipeline, corpus)
        pipeline.info["run"] = {"batches": {"context_dropout": 0.5}}
        assert "trained on replies to a dialogue" not in self.page(pipeline, corpus)


class TestStart:
    def test_sharing_asks_for_a_password(self, model: str) -> None:
        with pytest.raises(UserError, match="--share puts the page on the internet"):
            serve(load(model), model, attributes=[], share=True)

    @pytest.mark.parametrize("auth", ["name", ":", "name:", ":word"])
    def test_a_name_and_a_password_are_both_needed(self, model: str, auth: str) -> None:
        with pytest.raises(UserError, match="--auth must be NAME:PASSWORD"):
            serve(load(model), model, attributes=[], auth=auth)

    @pytest.mark.parametrize("port", [0, -1, 65536])
    def test_a_port_is_a_number_of_two_bytes(self, model: str, port: int) -> None:
        with pytest.raises(UserError, match="--port must be"):
            serve(load(model), model, attributes=[], port=port)

    def test_a_port_that_is_taken_is_named(self, served: Served, model: str, corpus: Corpus) -> None:
        taken = int(served.local.rstrip("/").rpartition(":")[2])
        with pytest.raises(UserError, match=f"--port {taken}: cannot listen there"):
            serve(load(model), model, data=str(corpus.path), attributes=[], port=taken)

    @pytest.mark.slow
    def test_the_first_visitor_waits_no_longer_than_others(self, model: str, corpus: Corpus) -> None:
        """What is loaded at first use was loaded before the address was given: a process of its own shows it."""
        program = f"""
import json, sys, urllib.request
from vrae.apps.serve import serve
from vrae.generation.pipeline import load
server = serve(load({model!r}, max_seconds=20), {model!r}, data={str(corpus.path)!r}, attributes=[], port={free_port()})
before = set(sys.modules)
address, values = server.local + "gradio_api/call", json.dumps({{"context": ["hello"]}}).encode()
request = urllib.request.Request(address + "/v2/respond", values, {{"Content-Type": "application/json"}})
event = json.load(urllib.request.urlopen(request))["event_id"]
answer = urllib.request.urlopen(f"{{address}}/respond/{{event}}").read().decode()
server.close()
assert "event: complete" in answer, answer
print(sorted(set(sys.modules) - before))
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[]"

    def test_with_a_password_a_stranger_gets_nothing(self, model: str, corpus: Corpus) -> None:
        server = serve(load(model), model, data=str(corpus.path), attributes=[], port=free_port(), auth="me:secret word:2")
        try:
            assert dict(server._page._queue.events_recorded_per_fn) == {"respond": 1, "interpolate": 1}  # warm all the same
            assert status(server, "config") == 401
            assert status(server, "gradio_api/call/v2/sample", b"{}", **JSON) == 401
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            assert status(server, "login", b"username=me&password=secret", **form) == 400
            assert status(server, "login", b"username=me&password=secret+word%3A2", **form) == 200
        finally:
            server.close()

    def test_a_style_of_another_model_is_refused(self, model: str, corpus: Corpus, tmp_path: Path) -> None:
        texts = latent_map(make(corpus), "", str(corpus.path), 20).texts
        path = str(tmp_path / "tone.json")
        learn(make(corpus, latent_size=4), texts[:10], texts[10:], name="tone", labels=("a", "b")).save(path)
        with pytest.raises(ModelError, match="was learnt with another model"):
            serve(load(model), model, data=str(corpus.path), attributes=[path])

    @pytest.mark.parametrize("package", ["gradio", "markdown_it"])
    def test_without_its_packages_one_line_says_what_to_install(
        self, package: str, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        assert main(["serve", model]) == 2
        assert capsys.readouterr().err == "vrae: serve needs gradio and markdown-it-py: pip install 'vrae[serve]'\n"

    def test_the_command_says_where_it_is_and_ends_with_ctrl_c(
        self, model: str, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        seen: list[Served] = []

        def interrupted(server: Served) -> None:
            seen.append(server)
            assert answers(server)
            assert status(server, "gradio_api/file=/etc/passwd") == 403
            raise KeyboardInterrupt

        monkeypatch.setattr(Served, "wait", interrupted)
        monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/etc")  # of another program, perhaps
        port = free_port()
        try:
            assert main(["serve", model, "--data", str(corpus.path), "--port", str(port), "--json"]) == 130
        finally:
            seen[0].close()
        assert json.loads(capsys.readouterr().out) == {"url": f"http://127.0.0.1:{port}/", "share_url": None}

    def test_the_limit_of_time_holds_for_whoever_asks(self, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        def start(pipeline: Pipeline, name: str, **options: Any) -> Served:
            seen.append((pipeline.max_seconds, options["host"]))
            raise UserError("enough")

        monkeypatch.setattr("vrae.apps.serve.serve", start)
        assert main(["serve", model]) == main(["serve", model, "--max_seconds", "3"]) == 2
        assert seen == [(20, "127.0.0.1"), (3, "127.0.0.1")]

    def test_a_model_is_named_once(self, model: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["serve", model, "--model", model]) == 2
        assert "a model is given twice" in capsys.readouterr().err

    def test_an_open_door_is_warned_of(self, capsys: pytest.CaptureFixture[str]) -> None:
        from vrae.apps.serve import warn_of_strangers

        for host, auth, warned in (("127.0.0.1", "", False), ("0.0.0.0", "me:word", False), ("0.0.0.0", "", True)):
            warn_of_strangers(host, auth)
            assert ("whoever reaches" in capsys.readouterr().err) == warned


def test_what_is_shown_is_escaped() -> None:
    evil = "<script>alert(1)</script>\"'&"
    reply = Reply(evil, -0.0, -1.0, 3, ())
    shown = [
        fragments.transcript([evil, evil]),
        fragments.replies([reply], 0),
        fragments.sentences(evil, [(evil, evil, (0.0, 0.0))]),
        fragments.lines([(evil, evil)]),
        fragments.table(evil, [(evil, evil)]),
        fragments.note(evil),
        fragments.curve(evil, [(0, 1.0), (1, 2.0)], evil),
    ]
    for html in shown:
        assert "<script" not in html
        assert evil not in html
        assert "&lt;script&gt;" in html
    assert "-0.0" not in shown[1]


def test_bits_are_of_two() -> None:
    assert fragments.bits(-3 * math.log(2)) == "3.0 bits"


def test_where_no_model_is_named_one_replies_and_the_other_is_the_space() -> None:
    reader, space = load(max_seconds=20), load(job="sentences", max_seconds=20)
    server = serve(reader, "chitchat-vhred", space=space, attributes=[], port=free_port())
    try:
        said, ends = ["How was your weekend?"], ["i am going home", "see you tomorrow"]
        found = call(server, "respond", {"context": said, "n": 2, "seed": 1})["replies"]
        assert [reply["text"] for reply in found] == [reply.text for reply in reader.respond(said, 2, seed=1)]
        path = call(server, "interpolate", {"texts": ends, "steps": 3})["steps"]
        assert [step["text"] for step in path] == [step.text for step in space.interpolate(*ends, steps=3)]
    finally:
        server.close()
