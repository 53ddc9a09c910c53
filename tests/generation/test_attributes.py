"""Attributes: the discriminant against known Gaussians, moves against geometry, files against what they must refuse."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from torch.distributions import MultivariateNormal

from vrae.corpus.prepared import Corpus
from vrae.errors import DataError, ModelError, UserError
from vrae.generation.attributes import (
    Attribute,
    Move,
    discriminant,
    held_out_accuracy,
    learn,
    move,
    projections,
    read_labelled,
    read_sentences,
    shrunk_covariance,
)
from vrae.generation.pipeline import Pipeline, Sample

FIRST = ["i am fine thanks", "see you tomorrow", "pizza is great", "yes", "no maybe later", "we should meet"]
SECOND = [
    "how are you today",
    "what do you like to eat",
    "do you like pizza",
    "how is it",
    "what",
    "do you know",
    "meet at the park",
]


def clouds(count0: int, count1: int, seed: int = 0, Z: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points of two Gaussians, [count, Z] each, the difference of their means and the covariance that they share."""
    rng = np.random.default_rng(seed)
    root_ZZ = rng.standard_normal((Z, Z)) + np.eye(Z)
    m0_Z, m1_Z = rng.standard_normal((2, Z))
    z0_NZ, z1_NZ = (m_Z + rng.standard_normal((n, Z)) @ root_ZZ.T for m_Z, n in ((m0_Z, count0), (m1_Z, count1)))
    return z0_NZ, z1_NZ, m1_Z - m0_Z, root_ZZ @ root_ZZ.T


def attribute_of(z0_NZ: np.ndarray, z1_NZ: np.ndarray, **fields: Any) -> Attribute:
    direction_Z, normal_Z, offset, distance = discriminant(z0_NZ, z1_NZ)
    found: dict[str, Any] = dict(
        name="size",
        labels=("small", "large"),
        direction_Z=tuple(direction_Z),
        normal_Z=tuple(normal_Z),
        offset=offset,
        distance=distance,
        accuracy=0.5,
        sentences=(len(z0_NZ), len(z1_NZ)),
        model="",
    )
    return Attribute(**{**found, **fields})


def pooled(z0_NZ: np.ndarray, z1_NZ: np.ndarray) -> np.ndarray:
    return np.concatenate([z0_NZ - z0_NZ.mean(0), z1_NZ - z1_NZ.mean(0)])


class TestDiscriminant:
    def test_finds_the_direction_and_the_normal_of_known_gaussians(self) -> None:
        z0_NZ, z1_NZ, difference_Z, covariance_ZZ = clouds(200_000, 300_000)
        direction_Z, normal_Z, _, distance = discriminant(z0_NZ, z1_NZ)
        expected_Z = np.linalg.inv(covariance_ZZ) @ difference_Z
        assert direction_Z == pytest.approx(difference_Z, abs=0.04)
        assert distance == pytest.approx(math.sqrt(difference_Z @ expected_Z), rel=0.01)
        assert normal_Z == pytest.approx(expected_Z / (difference_Z @ expected_Z), abs=0.02 * np.abs(normal_Z).max())

    def test_projects_the_means_to_0_and_1(self) -> None:
        z0_NZ, z1_NZ, *_ = clouds(30, 50)
        attribute = attribute_of(z0_NZ, z1_NZ)
        assert attribute.project(z0_NZ).mean() == pytest.approx(0, abs=1e-12)
        assert attribute.project(z1_NZ).mean() == pytest.approx(1)
        assert attribute.project(z1_NZ)[:1] == pytest.approx(attribute.project(z1_NZ[:1]))

    def test_gives_the_log_odds_of_the_two_gaussians(self) -> None:
        z0_NZ, z1_NZ, *_ = clouds(30, 50)
        attribute = attribute_of(z0_NZ, z1_NZ)
        shared = torch.from_numpy(shrunk_covariance(pooled(z0_NZ, z1_NZ), means=2))
        p0, p1 = (MultivariateNormal(torch.from_numpy(z_NZ.mean(0)), shared) for z_NZ in (z0_NZ, z1_NZ))
        z_NZ = torch.from_numpy(np.concatenate([z0_NZ, z1_NZ]))
        expected = (p1.log_prob(z_NZ) - p0.log_prob(z_NZ)).numpy()
        assert attribute.log_odds(attribute.project(z_NZ.numpy())) == pytest.approx(expected, abs=1e-9)

    def test_refuses_points_that_are_all_alike(self) -> None:
        rng = np.random.default_rng(0)
        with pytest.raises(UserError, match="encodes the sentences of both labels alike"):
            discriminant(np.ones((6, 3)), np.ones((7, 3)))
        same_NZ = rng.standard_normal((6, 3))
        with pytest.raises(UserError, match="there is no direction between them"):
            discriminant(same_NZ, same_NZ)


class TestStep:
    """Both ways add 1 to the projection; each is the shortest to do so in its own metric."""

    @pytest.mark.parametrize("along", ["means", "normal"])
    def test_adds_one_to_the_projection(self, along: Any) -> None:
        z0_NZ, z1_NZ, *_ = clouds(30, 50)
        attribute = attribute_of(z0_NZ, z1_NZ)
        moved = attribute.project(z0_NZ + 0.7 * attribute.step(along))
        assert moved == pytest.approx(attribute.project(z0_NZ) + 0.7)

    def test_of_the_means_lands_one_on_the_other(self) -> None:
        z0_NZ, z1_NZ, *_ = clouds(30, 50)
        step_Z = attribute_of(z0_NZ, z1_NZ).step()
        assert (z0_NZ + step_Z).mean(0) == pytest.approx(z1_NZ.mean(0))
        assert (z1_NZ - step_Z).mean(0) == pytest.approx(z0_NZ.mean(0))

    def test_is_the_shortest_of_its_kind(self) -> None:
        z0_NZ, z1_NZ, *_ = clouds(30, 50)
        attribute = attribute_of(z0_NZ, z1_NZ)
        inverse_ZZ = np.linalg.inv(shrunk_covariance(pooled(z0_NZ, z1_NZ), means=2))
        other_MZ = np.random.default_rng(1).standard_normal((200, 5))
        other_MZ = attribute.step() + other_MZ - np.outer(other_MZ @ np.array(attribute.normal_Z), attribute.step())
        assert other_MZ @ np.array(attribute.normal_Z) == pytest.approx(np.ones(200))
        means_Z, normal_Z = attribute.step("means"), attribute.step("normal")
        deviations_M = np.einsum("mi,ij,mj->m", other_MZ, inverse_ZZ, other_MZ)
        assert (deviations_M > means_Z @ inverse_ZZ @ means_Z).all()
        assert means_Z @ inverse_ZZ @ means_Z == pytest.approx(attribute.distance**2)
        assert (np.linalg.norm(other_MZ, axis=1) > np.linalg.norm(normal_Z)).all()
        assert np.linalg.norm(normal_Z) < np.linalg.norm(means_Z)

    def test_knows_two_ways(self) -> None:
        with pytest.raises(UserError, match=r"along must be means or normal\. Got 'mean'"):
            attribute_of(*clouds(9, 9)[:2]).step("mean")  # type: ignore[arg-type]


class TestShrunkCovariance:
    @pytest.mark.parametrize(("count", "means"), [(7, 1), (40, 2)])
    def test_is_that_of_ledoit_and_wolf_point_by_point(self, count: int, means: int) -> None:
        rng = np.random.default_rng(count)
        x_NZ = rng.standard_normal((count, 4)) @ np.diag([3.0, 1, 0.5, 0.1])
        S_ZZ = sum(np.outer(x_Z, x_Z) for x_Z in x_NZ) / (count - means)
        mu = sum(S_ZZ[i, i] for i in range(4)) / 4
        d2 = sum((S_ZZ[i, j] - mu * (i == j)) ** 2 for i in range(4) for j in range(4))
        b2 = sum(((np.outer(x_Z, x_Z) - S_ZZ) ** 2).sum() for x_Z in x_NZ) / count**2
        share = min(b2, d2) / d2
        assert 0 < share < 1
        assert shrunk_covariance(x_NZ, means) == pytest.approx(share * mu * np.eye(4) + (1 - share) * S_ZZ)

    def test_of_points_spread_evenly_is_nearly_a_multiple_of_the_identity(self) -> None:
        x_NZ = np.random.default_rng(1).standard_normal((300, 30))
        found, sample = shrunk_covariance(x_NZ, 1), x_NZ.T @ x_NZ / 299
        assert np.trace(found) == pytest.approx(np.trace(sample))
        assert np.abs(found - np.eye(30)).max() < 0.3 * np.abs(sample - np.eye(30)).max()

    def test_of_fewer_points_than_dimensions_can_be_inverted(self) -> None:
        x_NZ = np.random.default_rng(2).standard_normal((6, 9)) * np.arange(1, 10)
        assert np.linalg.eigvalsh(shrunk_covariance(x_NZ, 1)).min() > 1e-3

    def test_of_one_dimension_is_the_variance(self) -> None:
        assert shrunk_covariance(np.array([[-1.0], [2.0], [-1.0]]), 1) == pytest.approx(np.array([[3.0]]))


class TestHeldOutAccuracy:
    def test_is_the_closed_form_for_known_gaussians(self) -> None:
        z0_NZ, z1_NZ, difference_Z, covariance_ZZ = clouds(20_000, 20_000)
        distance = math.sqrt(difference_Z @ np.linalg.inv(covariance_ZZ) @ difference_Z)
        expected = 0.5 * (1 + math.erf(distance / 2 / math.sqrt(2)))  # Phi(distance / 2)
        assert 0.55 < expected < 0.95
        assert held_out_accuracy(z0_NZ, z1_NZ) == pytest.approx(expected, abs=4 * 0.5 / 200)

    def test_is_worked_point_by_point(self) -> None:
        z0_NZ, z1_NZ, *_ = clouds(11, 23)
        shares = []
        for own_NZ, sign in ((z0_NZ, -1), (z1_NZ, 1)):
            right = 0
            for i, z_Z in enumerate(own_NZ):
                rest = [np.array([z for j, z in enumerate(z_NZ) if j % 5 != i % 5]) for z_NZ in (z0_NZ, z1_NZ)]
                attribute = attribute_of(*rest)
                right += bool(sign * attribute.log_odds(attribute.project(z_Z[None]))[0] > 0)
            shares.append(right / len(own_NZ))
        assert shares[0] != shares[1]
        assert held_out_accuracy(z0_NZ, z1_NZ) == pytest.approx(sum(shares) / 2)

    def test_is_chance_where_there_is_nothing_to_find(self) -> None:
        z_NZ = np.random.default_rng(0).standard_normal((600, 40))
        assert held_out_accuracy(z_NZ[:300], z_NZ[300:]) == pytest.approx(0.5, abs=4 * 0.5 / 600**0.5)


@pytest.fixture(scope="module")
def pipeline(corpus: Corpus) -> Pipeline:
    model = tiny_model(context_turns=0, latent_size=4, vocab_size=len(corpus.tokenizer))
    return Pipeline(model, corpus.tokenizer, {})


@pytest.fixture(scope="module")
def attribute(pipeline: Pipeline) -> Attribute:
    return learn(pipeline, FIRST, SECOND, name="question", labels=("statement", "question"))


class TestLearn:
    def test_is_from_the_posterior_means_of_different_sentences(self, pipeline: Pipeline, attribute: Attribute) -> None:
        z0_NZ, z1_NZ = (pipeline.encode(texts)[0].astype(np.float64) for texts in (FIRST, SECOND))
        assert np.array(attribute.direction_Z) == pytest.approx(z1_NZ.mean(0) - z0_NZ.mean(0))
        assert attribute.project(z1_NZ).mean() == pytest.approx(1)
        assert attribute.accuracy == held_out_accuracy(z0_NZ, z1_NZ)
        assert (attribute.name, attribute.labels, attribute.sentences) == ("question", ("statement", "question"), (6, 7))
        repeated = learn(pipeline, FIRST + FIRST[:3], SECOND * 2, name="question", labels=("statement", "question"))
        assert repeated == attribute

    @pytest.mark.parametrize(
        ("first", "labels", "message"),
        [
            (FIRST[:4] * 3, ("a", "b"), "needs 5 different sentences of each label. 'a' has 4"),
            (FIRST, ("a", "a"), "two different labels. Got 'a' twice"),
        ],
    )
    def test_refuses(self, pipeline: Pipeline, first: list[str], labels: tuple[str, str], message: str) -> None:
        with pytest.raises(UserError, match=message):
            learn(pipeline, first, SECOND, name="x", labels=labels)

    def test_needs_a_latent(self, corpus: Corpus) -> None:
        model = tiny_model(context_turns=0, latent_size=0, vocab_size=len(corpus.tokenizer))
        with pytest.raises(ModelError, match="no latent"):
            learn(Pipeline(model, corpus.tokenizer, {}), FIRST, SECOND, name="x")


class TestMove:
    @pytest.fixture
    def points(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
        """What is decoded; the n-th point becomes the n-th word."""
        seen: list[np.ndarray] = []

        def spy(z_NZ: np.ndarray) -> list[Sample]:
            seen.append(z_NZ)
            return [Sample(word, 0.0) for word in "pizza park weather song".split()[: len(z_NZ)]]

        monkeypatch.setattr(pipeline, "decode_latents", spy, raising=False)
        return seen

    @pytest.mark.parametrize(("strength", "along"), [(1.0, "means"), (-0.5, "means"), (2, "normal"), (0, "normal")])
    def test_decodes_the_mean_and_so_many_steps(
        self, pipeline: Pipeline, attribute: Attribute, points: list[np.ndarray], strength: float, along: Any
    ) -> None:
        texts = FIRST[:3]
        results = move(pipeline, texts, attribute, strength, along=along)
        means_NZ = pipeline.encode(texts)[0]
        assert points[0] == pytest.approx(means_NZ + strength * attribute.step(along), abs=1e-5)
        assert points[0].dtype == means_NZ.dtype
        after = projections(pipeline, ["pizza", "park", "weather"], attribute)
        before = projections(pipeline, texts, attribute)
        assert results == [Move(*row) for row in zip(texts, ["pizza", "park", "weather"], before, after, strict=True)]
        assert attribute.project(points[0]) == pytest.approx(np.array(before) + strength, abs=1e-5)

    @pytest.mark.parametrize("strength", [10.5, -11, math.nan, math.inf, "1", None, True])
    def test_refuses_a_strength_out_of_range(self, pipeline: Pipeline, attribute: Attribute, strength: Any) -> None:
        with pytest.raises(UserError, match=r"strength must be a number from -10 to 10\. Got"):
            move(pipeline, ["yes"], attribute, strength)

    def test_refuses_another_model_or_another_tokenizer(
        self, pipeline: Pipeline, attribute: Attribute, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        attribute.check(Pipeline(tiny_model(latent_size=4, vocab_size=len(corpus.tokenizer)), corpus.tokenizer, {}))
        other = Pipeline(tiny_model(1, latent_size=4, vocab_size=len(corpus.tokenizer)), corpus.tokenizer, {})
        jobs: list[Callable[[Pipeline], Any]] = [
            lambda p: move(p, ["yes"], attribute, 1.0),
            lambda p: projections(p, ["yes"], attribute),
        ]
        for job in jobs:
            with pytest.raises(ModelError, match="attribute 'question': was learnt with another model"):
                job(other)
        monkeypatch.setattr(pipeline.tokenizer, "model", pipeline.tokenizer.model + b"\0")
        with pytest.raises(ModelError, match="another model"):
            attribute.check(pipeline)


class TestFile:
    def test_comes_back_as_it_was(self, attribute: Attribute, tmp_path: Path) -> None:
        attribute.save(tmp_path / "question.json")
        assert Attribute.load(tmp_path / "question.json") == attribute
        values = json.loads((tmp_path / "question.json").read_text())
        assert list(values) == ["format", *(field.name for field in dataclasses.fields(Attribute))]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (dict(format=2), "attribute format 2, this vrae reads 1"),
            (dict(labels="x"), "damaged attribute .ValueError"),
            (dict(labels=["x", 1]), "1 is no text"),
            (dict(labels=["x", "y", "z"]), "damaged attribute .ValueError"),
            (dict(name=["x"]), "is no text"),
            (dict(direction_Z=["x"]), "'x' is no number"),
            (dict(direction_Z="1234"), "'1' is no number"),
            (dict(normal_Z=[1e200] * 4), "no number of at most"),
            (dict(normal_Z=[1e-200] * 4), "direction_Z . normal_Z is not 1"),
            (dict(direction_Z=[1.0]), "differ in length"),
            (dict(normal_Z=[0.0] * 4), "direction_Z . normal_Z is not 1"),
            (dict(offset=math.nan), "nan is no number"),
            (dict(distance=math.inf), "inf is no number"),
            (dict(sentences=None), "damaged attribute .TypeError"),
            (dict(accuracy=math.nan), "nan is no number"),
            (dict(accuracy=None), "damaged attribute .TypeError"),
        ],
    )
    def test_that_is_damaged_is_refused(
        self, attribute: Attribute, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        attribute.save(tmp_path / "x.json")
        values = json.loads((tmp_path / "x.json").read_text())
        (tmp_path / "x.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(UserError, match=message) as caught:
            Attribute.load(tmp_path / "x.json")
        assert str(caught.value).startswith(f"{tmp_path / 'x.json'}: ")

    @pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[1]", "attribute format None"), ("\udcff", "not JSON")])
    def test_that_is_none_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=message):
            Attribute.load(tmp_path / "x.json")

    def test_of_another_latent_size_is_refused(self, attribute: Attribute, pipeline: Pipeline) -> None:
        with pytest.raises(ModelError, match="was learnt with another model"):
            move(pipeline, ["hi"], dataclasses.replace(attribute, direction_Z=(1.0,), normal_Z=(1.0,)))

    def test_that_is_missing_or_cannot_be_written_is_refused(self, attribute: Attribute, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"gone.json: cannot read the attribute: No such file"):
            Attribute.load(tmp_path / "gone.json")
        with pytest.raises(UserError, match=r"x.json: cannot write: No such file"):
            attribute.save(tmp_path / "gone" / "x.json")


class TestReading:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("x.jsonl", '{"text": "hi", "label": "b"}\n\n{"text": " yes ", "label": "a"}\n{"label": "b", "text": "no"}\n'),
            ("x.csv", 'label,text\nb,hi\na," yes "\nb,no\n'),
            ("x.tsv", "text\tlabel\nhi\tb\n yes \ta\nno\tb\n"),
        ],
    )
    def test_of_a_labelled_file(self, tmp_path: Path, name: str, content: str) -> None:
        (tmp_path / name).write_text(content)
        assert read_labelled(tmp_path / name) == (("a", "b"), (["yes"], ["hi", "no"]))
        assert read_sentences(tmp_path / name) == ["hi", "yes", "no"]

    def test_of_numbers_as_labels(self, tmp_path: Path) -> None:
        (tmp_path / "x.jsonl").write_text('{"text": "hi", "label": 1}\n{"text": "yes", "label": 0}\n')
        assert read_labelled(tmp_path / "x.jsonl") == (("0", "1"), (["yes"], ["hi"]))

    @pytest.mark.parametrize(("name", "content"), [("x.txt", "hi\n\n yes\n"), ("x.jsonl", '"hi"\n{"text": "yes"}\n')])
    def test_of_the_sentences_of_one_label(self, tmp_path: Path, name: str, content: str) -> None:
        (tmp_path / name).write_text(content)
        assert read_sentences(tmp_path / name) == ["hi", "yes"]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("x.jsonl", '{"text": "hi", "label": "a"}\n{"text": "yes"}\n', r"x.jsonl:2: expected a label, .* got None"),
            ("x.jsonl", '{"text": "hi", "label": ""}\n', r"x.jsonl:1: expected a label, .* got ''"),
            ("x.jsonl", '{"text": 5, "label": "a"}\n', r"x.jsonl:1: expected a text, got 5"),
            ("x.jsonl", '{"text": " ", "label": "a"}\n', r"x.jsonl:1: expected a text, got ' '"),
            ("x.jsonl", "{\n", r"x.jsonl:1: expected one JSON value"),
            ("x.jsonl", '"hi"\n', r"x.jsonl:1: expected a label"),
            ("x.csv", "text,label\nhi,a\nyes,b\nno,c\n", r"between two labels\. Got 3 \(a, b, c\)"),
            ("x.csv", "text,label\nhi,a\n", r"between two labels\. Got 1 \(a\)"),
            ("x.doc", "", r"sentences are read from \.txt, \.jsonl, \.csv, \.tsv, \.parquet\. Got \.doc"),
            ("x.txt", "hi\n", r"x.txt:1: expected a label"),
        ],
    )
    def test_refuses_what_has_no_text_or_label(self, tmp_path: Path, name: str, content: str, message: str) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=message):
            read_labelled(tmp_path / name)

    def test_of_a_missing_file_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"gone.txt: cannot be read"):
            read_sentences(tmp_path / "gone.txt")
