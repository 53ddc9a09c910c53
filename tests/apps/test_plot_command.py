"""`vrae plot`: what is handed to the pictures, against the model and the corpus; what is refused, in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model

pytest.importorskip("matplotlib")

from vrae.apps import plot_command
from vrae.apps.plot_command import even_turns, plot, plot_map, plot_rate, plot_sheet, walk
from vrae.corpus.batches import Windows
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import EOS, Tokenizer, train_tokenizer
from vrae.errors import ModelError, UserError
from vrae.evaluation.likelihood import measure
from vrae.evaluation.paths import draw_pairs, sentences
from vrae.files import write_folder
from vrae.generation.pipeline import Pipeline
from vrae.model.folder import to_files

PAIRS = [("hello how are you", "pizza is great"), ("no", "see you tomorrow at the park")]
TEXTS = ["hello how are you?", "no", "see you tomorrow 🎉 ", "really? ", "yes we should", "what do you like?"]
MAX_TOKENS = 15  # of a turn, in training


def pipeline_of(corpus: Corpus, latent_size: int = 4, context_turns: int = 0) -> Pipeline:
    model = tiny_model(vocab_size=len(corpus.tokenizer), latent_size=latent_size, context_turns=context_turns)
    with torch.no_grad():
        model.decoder.out.bias[EOS] = 4.0  # most texts end early
    return Pipeline(model, corpus.tokenizer, {"run": {"batches": {"max_turn_tokens": MAX_TOKENS}}})


@pytest.fixture(scope="module")
def pipeline(corpus: Corpus) -> Pipeline:
    return pipeline_of(corpus)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """What each picture is given. Nothing is drawn."""
    seen: dict[str, tuple[Any, ...]] = {}

    def spy(name: str) -> Any:
        def note(*arguments: Any) -> Path:
            seen[name] = arguments
            return Path(name)

        return note

    for name in ("plot_latent_map", "plot_paths", "plot_rate_per_dimension", "plot_training"):
        monkeypatch.setattr(plot_command, name, spy(name))
    return seen


@pytest.fixture
def folder(pipeline: Pipeline, tmp_path: Path) -> Path:
    """The model on disk."""
    write_folder(tmp_path / "model", to_files(pipeline.model, pipeline.tokenizer, pipeline.info))
    return tmp_path / "model"


class TestWalk:
    def test_has_the_texts_of_interpolate(self, pipeline: Pipeline) -> None:
        for pair, path in zip(PAIRS, walk(pipeline, PAIRS, 5, "lerp"), strict=True):
            steps = pipeline.interpolate(*pair, 5, method="lerp")
            assert path.given == pair
            assert list(path.texts) == [step.text for step in steps]
            assert list(path.t_S) == [step.t for step in steps] == [0, 0.25, 0.5, 0.75, 1]

    def test_on_a_line_lies_between_the_means(self, pipeline: Pipeline) -> None:
        for pair, path in zip(PAIRS, walk(pipeline, PAIRS, 5, "lerp"), strict=True):
            a, b = pipeline.encode(pair)[0]
            by_hand = [a, 0.75 * a + 0.25 * b, (a + b) / 2, 0.25 * a + 0.75 * b, b]
            np.testing.assert_allclose(path.points_SZ, by_hand, atol=1e-6)

    def test_on_a_circle_turns_by_equal_angles(self, pipeline: Pipeline) -> None:
        (path,) = walk(pipeline, PAIRS[:1], 4, "slerp")
        np.testing.assert_allclose(path.points_SZ[[0, -1]], pipeline.encode(PAIRS[0])[0], atol=1e-5)
        between = path.points_SZ[[0, 1, 2]] / np.linalg.norm(path.points_SZ[[0, 1, 2]], axis=1, keepdims=True)
        assert not np.allclose(path.points_SZ, walk(pipeline, PAIRS[:1], 4, "lerp")[0].points_SZ, atol=1e-3)
        # on the plane of both ends
        assert np.linalg.matrix_rank(np.vstack([between, path.points_SZ[-1]]), tol=1e-4) == 2


class TestMap:
    def test_shows_the_means_by_length_in_words(self, pipeline: Pipeline, drawn: dict[str, Any]) -> None:
        plot_map(pipeline, TEXTS, "map.png", PAIRS, steps=3)
        means, attributes, out, paths = drawn["plot_latent_map"]
        np.testing.assert_array_equal(means, pipeline.encode(TEXTS)[0])
        assert attributes == {"length in words": [4, 1, 4, 1, 3, 4]}
        assert out == "map.png"
        assert [path.given for path in paths] == PAIRS
        assert {len(path.points_SZ) for path in paths} == {3}

    def test_or_by_kind(self, pipeline: Pipeline, drawn: dict[str, Any]) -> None:
        plot_map(pipeline, TEXTS, "map.png", by="kind")
        kinds = ["question", "statement", "statement", "question", "statement", "question"]
        assert drawn["plot_latent_map"][1:] == ({"kind": kinds}, "map.png", [])
        with pytest.raises(UserError, match="--by must be length or kind"):
            plot_map(pipeline, TEXTS, "map.png", by="colour")  # type: ignore[arg-type]

    def test_takes_an_even_sample_of_the_turns_the_model_can_read(self, pipeline: Pipeline, corpus: Corpus) -> None:
        split = corpus["train"]
        short = [turn for turn in range(len(split.turns) - 1) if len(split.turn(turn)) <= MAX_TOKENS]
        assert len(short) < len(split.turns) - 1
        texts = [corpus.tokenizer.decode(split.turn(turn)) for turn in short]
        assert even_turns(pipeline, corpus, "train", 10_000) == texts
        assert even_turns(pipeline, corpus, "train", 2) == [texts[0], texts[-1]]
        assert even_turns(pipeline, corpus, "train", 3) == [texts[0], texts[(len(texts) - 1) // 2], texts[-1]]

    def test_needs_two_turns(self, pipeline: Pipeline, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UserError, match="--turns must be 2 or more"):
            even_turns(pipeline, corpus, "train", 1)
        monkeypatch.setattr(Pipeline, "longest_turn", 0)
        with pytest.raises(UserError, match="test has 0 turns of at most 0 tokens, a map needs two or more"):
            even_turns(pipeline, corpus, "test", 10)


class TestRate:
    @pytest.mark.parametrize("context_turns", [0, 2])
    def test_is_what_the_bound_says(self, corpus: Corpus, drawn: dict[str, Any], context_turns: int) -> None:
        pipeline = pipeline_of(corpus, context_turns=context_turns)
        plot_rate(pipeline, corpus, "test", "rate.png", count=7, seed=3)
        rates, active, out = drawn["plot_rate_per_dimension"]
        config = plot_command.BatchConfig(tokens=4096, max_turn_tokens=MAX_TOKENS)
        bound = measure(pipeline.model, Windows(corpus["test"], config, context_turns), limit=7, seed=3)
        assert rates == pytest.approx(bound.rate_per_dimension)
        assert sum(rates) == pytest.approx(bound.rate)
        assert (active, out) == (bound.active_dimensions, "rate.png")

    def test_needs_the_corpus_of_the_model(self, pipeline: Pipeline, corpus: Corpus) -> None:
        other = Tokenizer(train_tokenizer(["a b c d e f g"] * 5, 275))
        with pytest.raises(UserError, match="its tokenizer is not the model's"):
            plot_rate(Pipeline(pipeline.model, other, {}), corpus, "test", "rate.png")
        with pytest.raises(UserError, match="--turns must be 2 or more"):  # which would be all
            plot_rate(pipeline, corpus, "test", "rate.png", count=0)


@pytest.mark.parametrize(
    "job",
    [
        lambda pipeline, corpus: plot_map(pipeline, TEXTS, "x.png"),
        lambda pipeline, corpus: plot_rate(pipeline, corpus, "test", "x.png"),
        lambda pipeline, corpus: plot_sheet(pipeline, PAIRS, "x.png"),
    ],
    ids=["map", "rate", "paths"],
)
def test_needs_a_latent(corpus: Corpus, job: Any, drawn: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="latent_size is 0"):
        job(pipeline_of(corpus, latent_size=0), corpus)
    assert not drawn


class TestCommand:
    def test_draws_every_picture(self, folder: Path, corpus: Corpus, tmp_path: Path) -> None:
        settings = {"model": str(folder), "data": str(corpus.path), "turns": 20, "steps": 3}
        for what in ("map", "rate", "paths"):
            out = plot(what, out=str(tmp_path / f"{what}.png"), paths=2, **settings)
            assert out == tmp_path / f"{what}.png"
            assert out.read_bytes().startswith(b"\x89PNG")

    def test_pairs_the_sentences(self, folder: Path, drawn: dict[str, Any], corpus: Corpus) -> None:
        texts = [text for pair in PAIRS for text in pair]
        plot("paths", texts, model=str(folder), steps=2)  # needs no corpus
        paths, out = drawn["plot_paths"]
        assert [path.given for path in paths] == PAIRS
        assert out == Path("paths.png")
        plot("map", texts, model=str(folder), data=str(corpus.path), steps=2, turns=5)
        means, *_, paths = drawn["plot_latent_map"]
        assert len(means) == 5
        assert [path.given for path in paths] == PAIRS

    def test_draws_pairs_from_the_corpus_by_seed(self, folder: Path, drawn: dict[str, Any], corpus: Corpus) -> None:
        for what, picture, place in (("paths", "plot_paths", 0), ("map", "plot_latent_map", 3)):
            plot(what, model=str(folder), data=str(corpus.path), split="train", paths=3, seed=5)
            expected = draw_pairs(sentences(corpus["train"], corpus.tokenizer), 3, seed=5)
            assert [path.given for path in drawn[picture][place]] == expected
        plot("map", model=str(folder), data=str(corpus.path), paths=0)
        assert drawn["plot_latent_map"][3] == []

    def test_of_training_needs_no_model(self, tmp_path: Path, drawn: dict[str, Any]) -> None:
        plot("training", model=str(tmp_path), out="curves.png")
        assert drawn["plot_training"] == (str(tmp_path), Path("curves.png"))

    @pytest.mark.parametrize(
        ("what", "texts", "settings", "message"),
        [
            ("pie", [], {}, "plot pie: draws map, rate, paths or training"),
            ("paths", ["a", "b", "c"], {}, "sentences come in pairs, the two ends of a path. Got 3"),
            ("map", ["a"], {}, "sentences come in pairs"),
            ("rate", ["a", "b"], {}, "plot rate takes no sentences. Got 2"),
            ("paths", [], {"model": "nowhere"}, "nowhere: no such folder"),
            ("paths", ["a", "b"], {"steps": 1}, "steps must be a whole number from 2"),
            ("paths", ["a", "b"], {"steps": 25}, "24 points or fewer. Got 25"),
            ("paths", ["a", "b"], {"method": "hop"}, "method must be slerp or lerp"),
            ("paths", ["a", "b"] * 9, {"steps": 2}, "1 to 8 paths. Got 9"),
            ("map", ["a", "b"] * 9, {"steps": 2}, "0 to 8 paths. Got 9"),
            ("paths", ["a", "b"], {"device": "tpu"}, "device 'tpu': expected auto"),
            ("paths", [], {"paths": 0}, "1 to 8 paths. Got 0"),
            ("map", [], {"paths": 9}, "--paths must be 0 to 8. Got 9"),
            ("map", [], {"split": "dev"}, "--split dev"),
            ("map", [], {"turns": 1}, "--turns must be 2 or more"),
            ("map", [], {"data": ""}, "does not say which corpus it was trained on. Pass --data"),
            ("map", [], {"paths": -1}, "--paths must be 0 to 8. Got -1"),
        ],
    )
    def test_refuses_in_one_sentence(
        self, folder: Path, corpus: Corpus, tmp_path: Path, what: str, texts: list[str], settings: Any, message: str
    ) -> None:
        out = tmp_path / "x.png"
        with pytest.raises(UserError) as error:
            plot(what, texts, **{"model": str(folder), "data": str(corpus.path), "out": str(out), **settings})
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert not out.exists()
