"""Every public job of a model, with every argument a stranger may send: a value or a UserError, and no job without limits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model

from vrae.config import DecodingConfig, ResponseConfig
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import EOS
from vrae.errors import UserError
from vrae.evaluation.score import score
from vrae.generation.attributes import Attribute, learn, move, projections
from vrae.generation.neighbours import Index, Turn
from vrae.generation.pipeline import Pipeline

NAN, INF = float("nan"), float("inf")
LARGE = "a" * 10_000_000
STRANGE = [
    "",
    " \n",
    "\0",
    "a\0b",
    "\x1b[2J",
    "\u202egnp",
    "\ud800",
    "\udfff\ud800",
    "\u2028",
    "\ufeff",
    "e" + "\u0300" * 500,
    "</s>",
]
WRONG: list[Any] = [None, True, 5, -1, 0.5, NAN, b"hello", object(), {"text": "hello"}, {"a", "b"}, iter("ab"), [], [[]], LARGE]
TEXT: list[Any] = [*STRANGE, *WRONG, ["hello"]]
TEXTS: list[Any] = ["hello", *WRONG, *([text] for text in (*STRANGE, *WRONG)), ["hello", LARGE]]
CONTEXT: list[Any] = [*TEXT, *([text] for text in (*STRANGE, *WRONG)), ["hello"] * 1001, ["hello"] * 1000, np.zeros(3)]
CONTEXTS: list[Any] = ["hello", *WRONG, *([context] for context in CONTEXT), [["hello"], ["hello"]]]
COUNT: list[Any] = [0, -1, 9999, 2**70, NAN, INF, 1.0, "5", None, True, [], b"5"]
SEED: list[Any] = [-1, 2**63, 2**200, 1.0, NAN, "1", True, [], b"1"]
NUMBER: list[Any] = [0, 0.0, -1, 1e-320, 1e30, NAN, INF, -INF, 10**400, "1", None, True, [], b"1"]
NAME: list[Any] = ["", "x", "\x1b[2J", "\u202e", "\ud800", LARGE, 5, None, [], {}, b"slerp"]
ARRAY: list[Any] = [
    *(np.zeros(shape) for shape in ((), (0,), (4,), (1, 3), (1, 5), (2, 2, 4), (0, 4), (10_001, 4), (1, 0))),
    *(np.full((1, 4), value) for value in (NAN, INF, 1e300, -3e38, 1e20)),
    *(np.zeros((1, 4), kind) for kind in (int, bool, complex, object, np.float16)),
    *(np.array([["a"] * 4]), np.array([[None] * 4]), None, 5, "x", [[0.0] * 4], [], torch.zeros(1, 4)),
]
FIRST, SECOND = "yes no thanks hello bye".split(), "what do are is why".split()
SHORT = DecodingConfig(max_tokens=3)

Call = Callable[..., Any]
# for each job: how it is called, sound arguments, and what else to put in the place of each
JOBS: dict[str, tuple[Call, dict[str, Any], dict[str, list[Any]]]] = {
    "respond": (
        lambda p, **given: p.respond(decoding=SHORT, **given),
        {"context": ["hello"], "n": 1, "seed": 1},
        {"context": CONTEXT, "n": COUNT, "seed": SEED},
    ),
    "respond_many": (
        lambda p, **given: p.respond_many(decoding=SHORT, **given),
        {"contexts": [["hello"]], "n": 1, "seed": 1},
        {"contexts": CONTEXTS, "n": COUNT, "seed": SEED},
    ),
    "sample": (
        lambda p, **given: list(p.sample(decoding=SHORT, **given)),
        {"n": 1, "seed": 1},
        {"n": [*COUNT[:2], 10_001, *COUNT[3:]], "seed": SEED},
    ),
    "reconstruct": (
        Pipeline.reconstruct,
        {"texts": ["hello"], "n": 0, "seed": 1},
        {"texts": TEXTS, "n": COUNT[1:], "seed": SEED},
    ),
    "interpolate": (
        Pipeline.interpolate,
        {"a": "hello", "b": "yes", "steps": 2, "method": "lerp", "context": []},
        {"a": TEXT, "b": TEXT, "steps": COUNT, "method": NAME, "context": CONTEXT},
    ),
    "variations": (
        lambda p, **given: p.variations(decoding=SHORT, **given),
        {"text": "hello", "n": 1, "radius": 1.0, "seed": 1, "context": []},
        {"text": TEXT, "n": COUNT, "radius": NUMBER, "seed": SEED, "context": CONTEXT},
    ),
    "analogy": (Pipeline.analogy, {"a": "hello", "b": "yes", "c": "no"}, {"a": TEXT, "b": TEXT, "c": TEXT}),
    "encode": (Pipeline.encode, {"texts": ["hello"], "contexts": [["yes"]]}, {"texts": TEXTS, "contexts": CONTEXTS}),
    "decode_latents": (
        lambda p, **given: p.decode_latents(decoding=SHORT, **given),
        {"z_NZ": np.zeros((1, 4)), "seed": 1},
        {"z_NZ": ARRAY, "seed": SEED},
    ),
    "score": (
        score,
        {"texts": ["hello"], "contexts": [["yes"]], "k": 1, "seed": 1},
        {
            "texts": [texts for texts in TEXTS if isinstance(texts, list)],
            "contexts": CONTEXTS,
            "k": [0, -1, 100_001, *COUNT[3:]],
            "seed": SEED,
        },
    ),
    "query": (
        lambda p, **given: _index(p).query(**given),
        {"texts": ["hello"], "n": 1, "measure": "cosine", "probes": 0},
        {"texts": TEXTS, "n": [0, -1, 1001, *COUNT[3:]], "measure": NAME, "probes": [-1, 2**16 + 1, *COUNT[3:]]},
    ),
    "query_vectors": (
        lambda p, **given: _index(p).query_vectors(**given),
        {"vectors_QZ": np.zeros((1, 4))},
        {"vectors_QZ": ARRAY},
    ),
    "learn": (
        lambda p, **given: learn(p, name="x", **given),
        {"first": FIRST, "second": SECOND},
        {"first": [text for text in TEXTS if not isinstance(text, str)], "second": [["yes"] * 10, [LARGE, *"abcd"]]},
    ),
    "move": (
        lambda p, **given: move(p, attribute=_attribute(p), **given),
        {"texts": ["hello"], "strength": 1.0, "along": "means"},
        {"texts": TEXTS, "strength": NUMBER, "along": NAME},
    ),
    "projections": (
        lambda p, **given: projections(p, attribute=_attribute(p), **given),
        {"texts": ["hello"]},
        {"texts": TEXTS},
    ),
}
CASES = [(job, name, place) for job, (_, _, hostile) in JOBS.items() for name in hostile for place in range(len(hostile[name]))]

_made: dict[str, Any] = {}  # once for all tests


def _attribute(pipeline: Pipeline) -> Attribute:
    if "attribute" not in _made:
        _made["attribute"] = learn(pipeline, FIRST, SECOND, name="x")
    attribute: Attribute = _made["attribute"]
    return attribute


def _index(pipeline: Pipeline) -> Index:
    if "index" not in _made:
        _made["index"] = Index.build(pipeline, [Turn("hello", 0, 0)])
    index: Index = _made["index"]
    return index


@pytest.fixture(scope="module")
def pipeline(corpus: Corpus) -> Pipeline:
    model = tiny_model(vocab_size=len(corpus.tokenizer), context_turns=2).float()
    with torch.no_grad():
        model.decoder.out.bias[EOS] = 6.0
    return Pipeline(model, corpus.tokenizer, {})


def test_the_table_has_every_public_job_with_every_argument() -> None:
    jobs = {name for name, _ in inspect.getmembers(Pipeline, inspect.isfunction) if name in vars(Pipeline) and name[0] != "_"}
    assert jobs <= set(JOBS)
    for name in jobs:
        arguments = set(inspect.signature(getattr(Pipeline, name)).parameters) - {"self", "decoding", "responses", "background"}
        assert arguments == set(JOBS[name][1]) == set(JOBS[name][2])


@pytest.mark.parametrize(("job", "name", "place"), CASES, ids=[f"{job}-{name}-{place}" for job, name, place in CASES])
def test_a_hostile_argument_gives_a_value_or_one_line(pipeline: Pipeline, job: str, name: str, place: int) -> None:
    call, sound, hostile = JOBS[job]
    message = "none"
    try:
        call(pipeline, **{**sound, name: hostile[name][place]})
    except UserError as error:
        message = str(error)
    assert 0 < len(message) < 500
    assert message.isprintable()


@pytest.mark.parametrize("job", JOBS)
def test_a_sound_argument_gives_a_value(pipeline: Pipeline, job: str) -> None:
    call, sound, _ = JOBS[job]
    assert call(pipeline, **sound) is not None


BEYOND = [
    *(
        ("respond", "n", 257),
        ("respond_many", "n", 9999),
        ("sample", "n", 10_001),
        ("reconstruct", "n", 257),
        ("interpolate", "steps", 201),
    ),
    *(
        ("variations", "n", 257),
        ("variations", "radius", 10.1),
        ("score", "k", 100_001),
        ("query", "n", 1001),
        ("move", "strength", 10.1),
    ),
    *(
        (job, name, "a" * 2001)
        for job, name in [("respond", "context"), ("interpolate", "a"), ("interpolate", "b"), ("analogy", "c")]
    ),
    *((job, "texts", ["a" * 2001]) for job in ("reconstruct", "encode", "score", "query", "move", "projections")),
    *(
        (job, name, ["a"] * 1001)
        for job, name in [("respond", "context"), ("interpolate", "context"), ("variations", "context")]
    ),
    ("encode", "contexts", [["a"] * 1001]),
    ("decode_latents", "z_NZ", np.zeros((10_001, 4))),
]


@pytest.mark.parametrize(("job", "name", "value"), BEYOND, ids=[f"{job}-{name}" for job, name, _ in BEYOND])
def test_no_job_goes_beyond_its_limit(pipeline: Pipeline, job: str, name: str, value: Any) -> None:
    call, sound, _ = JOBS[job]
    with pytest.raises(UserError, match=r"from|at most|N at most"):
        call(pipeline, **{**sound, name: value})


DECODING: dict[str, list[Any]] = {
    "temperature": [-0.1, 5.1, NAN, INF],
    "top_k": [-1],
    "top_p": [0.0, 1.1, NAN],
    "min_p": [-0.1, 1.1, NAN],
    "repetition_penalty": [0.9, 101.0, NAN],
    "no_repeat_ngram": [-1],
    "beams": [-1, 65],
    "length_penalty": [-0.1, 10.1, NAN],
    "max_tokens": [0, 129],
}
RESPONSES: dict[str, list[Any]] = {
    "mmi_weight": [-0.1, 1.1, NAN],
    "rank_samples": [0, 10_001],
    "candidates": [0, 101],
    "min_change": [-0.1, NAN],
}


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (cls, name, value)
        for cls, table in ((DecodingConfig, DECODING), (ResponseConfig, RESPONSES))
        for name, values in table.items()
        for value in values
    ],
)
def test_settings_beyond_their_limits_cannot_be_made(cls: Any, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        cls(**{name: value})


@pytest.mark.parametrize("value", [10**30, -1, 0, 2001, True, None, "48", 48.0, NAN, [48], {}], ids=repr)
@pytest.mark.parametrize("of", ["max_turn_tokens", "batches", "run"])
def test_a_foreign_config_does_not_say_how_long_a_turn_is(pipeline: Pipeline, of: str, value: Any) -> None:
    info = {"max_turn_tokens": {"batches": {"max_turn_tokens": value}}, "batches": {"batches": value}, "run": value}[of]
    assert Pipeline(pipeline.model, pipeline.tokenizer, {"run": info}).longest_turn == 48
