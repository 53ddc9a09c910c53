"""The page of `vrae serve`: four tabs, and the JSON API beside them.

A thin face: `Conversation`, `Service` and `Pipeline` do the work and check what they are given, `fragments` draws what gradio
has no component for. A handler takes the values of its components and returns the new ones.
"""

from __future__ import annotations

import functools
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from vrae.apps import fragments
from vrae.apps.about import about
from vrae.apps.chat import Conversation, Exchange, plain
from vrae.apps.components import JOB, html, kindly, on
from vrae.apps.latent_map import LatentMap
from vrae.apps.service import Service
from vrae.bundled import NAMES, folder
from vrae.config import TALK, changed
from vrae.errors import UserError
from vrae.generation.text_model import in_range, seed_of

_OPENINGS = ("Hi! How are you today?", "What do you like to do for fun?", "How was your weekend?")
_ENDS = ("i am going home", "what do you want to eat?")
_STEPS = 25  # of a path: enough for a slider to move smoothly
_VARIATIONS = 6
_SHOWN = 8  # replies at most
_MAX_EXCHANGES = 100  # of a conversation
_STRENGTHS = {-2.0: "two steps back", -1.0: "one step back", 0.0: "as it is", 1.0: "one step on", 2.0: "two steps on"}
_RANKS = {"fits what was said": "mmi", "most probable": "likelihood"}
_NO_CONTEXT = (
    "This model writes single sentences: it was trained without the turns before them, so it has no replies to give. "
    "Interpolate and Explore show what it can do."
)
_NO_LATENT = (
    "This model has no latent space. It was built without one, to be compared with models that have it, so there is nothing "
    "here to move through."
)
_IN_CONTEXT = (
    "This model was trained on replies to a dialogue. A sentence by itself is to it the first line of one, of which it has "
    "seen few: expect less here than of its replies."
)
_ROUGHLY = (
    "The model remembers your sentences only roughly: the way runs between what it makes of them, not between the words "
    "themselves."
)
_BITS = (
    "Click a reply to go on with it. Bits say how surprising its words are to the model: each bit halves their probability. "
    "The log-probability is the same in natural units."
)


def build(service: Service, chart: LatentMap | None, run: Path) -> gr.Blocks:
    """The page and the API, not yet served. `chart`: None without a latent; `run`: the folder the model was loaded from."""
    page = gr.Blocks(title=f"vrae: {service.name}", analytics_enabled=False, delete_cache=(3600, 3600))
    with page:
        html(f'<header class="v-title"><h1>vrae</h1><p>Talk with {escape(service.name)}, and look inside it.</p></header>')
        with gr.Tab("Respond"):
            _respond(service)
        with gr.Tab("Interpolate"):
            _interpolate(service, chart) if chart else html(fragments.note(_NO_LATENT))
        with gr.Tab("Explore"):
            _explore(service, chart) if chart else _drawn(service)
        with gr.Tab("About"):
            html(about(service.pipeline, service.name, run))
            if service.space is not service.pipeline:
                html(about(service.space, NAMES["sentences"], folder(NAMES["sentences"]) or run))
        for name, job in service.jobs.items():
            api(kindly(job), api_name=name, **JOB)
    return page


def _respond(service: Service) -> None:
    if not service.pipeline.model.config.context_turns:
        html(fragments.note(_NO_CONTEXT))
        return
    past = gr.State([], time_to_live=3600)
    usual = TALK[0].temperature
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            talk = html(fragments.transcript([]))
            line = gr.Textbox(label="Your line", placeholder="Write something, then Enter", max_length=2000)
            with gr.Row():
                say = gr.Button("Say it", variant="primary", min_width=90)
                undo, reset = (gr.Button(label, min_width=90) for label in ("Take back", "Start over"))
            with gr.Row() as first:
                openings = [gr.Button(opening, size="sm", min_width=140) for opening in _OPENINGS]
        with gr.Column(scale=4, min_width=320):
            found = html(fragments.replies([], 0))
            retry = gr.Button("Other replies")
            html(fragments.note(_BITS))
            with gr.Accordion("Settings", open=False):
                settings = [
                    gr.Slider(1, _SHOWN, 4, step=1, label="Replies to choose from"),
                    gr.Slider(0, 2, usual, step=0.05, label="Temperature", info="0: the likeliest words; higher: bolder ones"),
                    gr.Radio(list(_RANKS), value=next(iter(_RANKS)), label="The best reply is the one that is"),
                    gr.Number(1, precision=0, label="Seed", info="Same seed, same lines: same replies. Empty: always others"),
                ]

    def conversation(past: list[Exchange], n: int, temperature: float, rank: str, seed: int | None) -> Conversation:
        in_range("replies to choose from", n, 1, _SHOWN)
        return Conversation(
            service.pipeline,
            n,
            seed_of(seed),
            changed(TALK[0], "settings", temperature=temperature),
            changed(TALK[1], "settings", rank=_RANKS.get(rank, rank)),
            None,
            exchanges=list(past),
        )

    def shown(exchanges: list[Exchange]) -> tuple[Any, ...]:
        turns = [turn for exchange in exchanges for turn in (exchange.said, exchange.reply.text)]
        last = (exchanges[-1].replies, exchanges[-1].chosen) if exchanges else ([], 0)
        return fragments.transcript(turns), fragments.replies(*last), exchanges, gr.Row(visible=not exchanges)

    def answer(line: str, past: list[Exchange], *settings: Any) -> tuple[Any, ...]:
        if len(past) >= _MAX_EXCHANGES:
            raise UserError(f"a conversation here has at most {_MAX_EXCHANGES} lines of yours. Start over")
        if not isinstance(line, str) or not plain(line):
            raise UserError("there is no line to reply to. Write one first")
        talk = conversation(past, *settings)
        talk.say(plain(line))
        return "", *shown(talk.exchanges)

    def others(past: list[Exchange], *settings: Any) -> tuple[Any, ...]:
        talk = conversation(past, *settings)
        talk.retry()
        return shown(talk.exchanges)

    def choose(past: list[Exchange], event: gr.EventData) -> tuple[Any, ...]:
        index, last = event._data.get("index"), past[-1:]
        in_range("the number of a reply", index, 0, len(last[0].replies) - 1 if last else 0)
        return shown([*past[:-1], *(Exchange(one.said, one.replies, one.draws, index) for one in last)])

    outputs = [talk, found, past, first]
    for event in (line.submit, say.click):
        on(event, answer, [line, past, *settings], [line, *outputs])
    for opening, button in zip(_OPENINGS, openings, strict=True):
        on(button.click, functools.partial(answer, opening), [past, *settings], [line, *outputs])
    on(retry.click, others, [past, *settings], outputs)
    on(found.select, choose, [past], outputs)
    on(undo.click, lambda past: shown(past[:-1]), [past], outputs)
    on(reset.click, lambda: shown([]), None, outputs)


def _interpolate(service: Service, chart: LatentMap) -> None:
    reads = service.space.model.config.context_turns > 0

    def way(a: str, b: str, before: str = "") -> str:
        context = [before] if before.strip() else []
        steps = service.interpolate([a, b], _STEPS, context=context)["steps"]
        ends_2Z = service.space.encode([a, b], [context, context])[0]
        points = chart.place_way(ends_2Z, [step["t"] for step in steps])
        return fragments.path(chart, steps, points, "" if [steps[0]["text"], steps[-1]["text"]] == [a, b] else _ROUGHLY)

    if _only_in_context(service):
        html(fragments.note(_IN_CONTEXT))
    with gr.Row(equal_height=True):
        ends = [gr.Textbox(end, label=label, max_length=2000) for end, label in zip(_ENDS, ("From", "To"), strict=True)]
    if reads:
        ends.append(gr.Textbox(label="Said before (may stay empty)", max_length=2000))
    go = gr.Button("Find the way", variant="primary", elem_classes="v-go")
    path = html(way(*_ENDS))
    for event in (go.click, *(end.submit for end in ends)):
        on(event, way, ends, path)


def _explore(service: Service, chart: LatentMap) -> None:
    styles = service.attributes
    if _only_in_context(service):
        html(fragments.note(_IN_CONTEXT))
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            chosen = html(fragments.map_to_explore(chart))
        with gr.Column(scale=4, min_width=320):
            text = gr.Textbox(label="Sentence", placeholder="Choose one on the map, or write one", max_length=2000)
            radius = gr.Slider(0.1, 2, 0.5, step=0.1, label="How far to look around it")
            style = gr.Radio(list(styles), value=next(iter(styles), None), label="Style", visible=len(styles) > 1)
            look = gr.Button("Look around", variant="primary")
            around = html(fragments.note("Its neighbourhood appears here.", "empty"))

    def rows(found: list[tuple[str, str]]) -> list[tuple[str, str, fragments.Point]]:
        places = chart.place(service.space.encode([text for text, _ in found])[0]) if found else []
        return [(text, figure, place) for (text, figure), place in zip(found, places, strict=True)]

    def explore(text: str, radius: float, style: str | None) -> str:
        if not isinstance(text, str) or not text.strip():
            raise UserError("there is no sentence to look around. Choose one on the map, or write one")
        own = service.reconstruct(text)
        cost = f"{fragments.bits(-own['rate'])} idea + {fragments.bits(-own['distortion'])} wording"
        near = [
            (one["text"], fragments.bits(one["log_prob"]))
            for one in service.variations(text, _VARIATIONS, radius)["variations"]
        ]
        parts = [
            fragments.sentences("As the model remembers it", rows([(own["reconstruction"], cost)])),
            fragments.sentences("Around it", rows(near)),
        ]
        if style:
            moved = [(service.move(text, style, strength)["moved"], said) for strength, said in _STRENGTHS.items()]
            first, second = styles[style].labels
            parts.append(fragments.sentences(f"From {first} to {second}", rows(moved)))
        return "".join(parts)

    def pick(radius: float, style: str | None, event: gr.EventData) -> tuple[str, str]:
        text = event._data.get("text")
        return text, explore(text, radius, style)

    for event in (look.click, text.submit):
        on(event, explore, [text, radius, style], around)
    for event in (chosen.select, around.select):
        on(event, pick, [radius, style], [text, around])


def _drawn(service: Service) -> None:
    """What a model without a latent can show instead of a map."""
    html(fragments.note(f"{_NO_LATENT} It can draw turns as they come:"))
    go, found = gr.Button("Draw some turns", elem_classes="v-go"), html("")

    def draw() -> str:
        return fragments.lines((one["text"], fragments.bits(one["log_prob"])) for one in service.sample(_SHOWN)["samples"])

    on(go.click, draw, None, found)


def _only_in_context(service: Service) -> bool:
    """Whether training showed a sentence without a dialogue before it only where a dialogue began."""
    run = service.space.info.get("run")
    batches = run.get("batches") if isinstance(run, dict) else None
    dropped = batches.get("context_dropout", 0) if isinstance(batches, dict) else 0
    return service.space.model.config.context_turns > 0 and not dropped
