"""An index of turns: what it holds against the corpus, what it finds, and the refusal of every damage by name."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import prepare_config, tiny_model, write_dialogues

from vrae.corpus.batches import Window, collate
from vrae.corpus.prepared import Corpus, prepare
from vrae.errors import DataError, ModelError, UserError
from vrae.files import check_folder, write_folder
from vrae.generation.neighbours import Index, Neighbour, Turn, corpus_turns
from vrae.generation.text_model import TextModel
from vrae.generation.vector_search import distance

TALK = [["hello how are you", "fine", "hello how are you", "see you"], ["fine", "naïve 🎉", "fine"]]
TURNS = [Turn(text, d, t) for d, turns in enumerate(TALK) for t, text in enumerate(turns)]
FILES = ["index.json", "texts.txt", "turns.npy", "vectors.npy"]

MakeModel = Callable[..., TextModel]


@pytest.fixture(scope="module")
def make(corpus: Corpus) -> MakeModel:
    def make(seed: int = 0, info: dict[str, Any] | None = None, **overrides: Any) -> TextModel:
        model = tiny_model(seed, **{"vocab_size": len(corpus.tokenizer), "latent_size": 8, **overrides}).float()
        return TextModel(model, corpus.tokenizer, info or {})

    return make


@pytest.fixture(scope="module")
def model(make: MakeModel) -> TextModel:
    return make()


@pytest.fixture
def folder(model: TextModel, tmp_path: Path) -> Path:
    Index.build(model, TURNS, {"corpus": "by hand"}).save(tmp_path / "index")
    return tmp_path / "index"


def refile(folder: Path, **files: bytes) -> None:
    """Writes these files into an index, and a manifest that fits them: damage that no checksum tells."""
    kept = {name: (folder / name).read_bytes() for name in FILES}
    write_folder(folder, {**kept, **{name.replace("_", "."): data for name, data in files.items()}})


def npy(array: np.ndarray, path: Path) -> bytes:
    np.save(path, array)
    return path.read_bytes()


class TestBuild:
    def test_counts_each_distinct_turn_and_says_where_it_is_first(self, model: TextModel) -> None:
        index = Index.build(model, TURNS)
        assert (len(index), index.occurrences) == (4, 7)
        found = {n.text: (n.count, n.dialogue, n.turn) for n in index.query(["fine"], 10)[0]}
        assert found == {"hello how are you": (2, 0, 0), "fine": (3, 0, 1), "see you": (1, 0, 3), "naïve 🎉": (1, 1, 1)}

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_holds_the_turns_of_a_split(self, model: TextModel, corpus: Corpus, split: str) -> None:
        index, chosen = Index.of_corpus(model, corpus, split), corpus[split]
        turns = [corpus.tokenizer.decode(chosen.turn(i)) for i in range(len(chosen.speakers))]
        assert (len(index), index.occurrences) == (len(set(turns)), len(turns))
        counts = Counter(turns)
        for neighbour in index.query([turns[0]], 1000)[0]:
            first = int(chosen.dialogues[neighbour.dialogue]) + neighbour.turn
            assert first < chosen.dialogues[neighbour.dialogue + 1]
            assert (neighbour.text, neighbour.count) == (turns[first], counts[neighbour.text])
            assert first == turns.index(neighbour.text)

    def test_encodes_what_the_corpus_holds(self, model: TextModel, corpus: Corpus, tmp_path: Path) -> None:
        """The vectors, in the order of first occurrence, against the posterior means of the stored ids, one at a time."""
        Index.of_corpus(model, corpus, "test").save(tmp_path / "index")
        vectors = np.load(tmp_path / "index" / "vectors.npy", allow_pickle=False)
        chosen = corpus["test"]
        distinct = dict.fromkeys(chosen.turn(i).tobytes() for i in range(len(chosen.speakers)))
        assert len(vectors) == len(distinct) > 20
        for vector, ids in zip(vectors, distinct, strict=True):
            window = Window([], np.frombuffer(ids, "<u2").astype(np.int64), [])
            with torch.inference_mode():
                posterior = model.model.infer(collate([window], 0)).posterior
            assert vector == pytest.approx(posterior.mean_BZ[0].numpy(), abs=1e-5)

    def test_leaves_out_turns_longer_than_those_of_training(self, make: MakeModel, corpus: Corpus) -> None:
        model = make(info={"run": {"batches": {"max_turn_tokens": 9}}})
        index, lengths = Index.of_corpus(model, corpus, "train"), np.diff(corpus["train"].turns)
        assert index.occurrences == (lengths <= 9).sum() > 0
        assert index.occurrences < index.source["turns"] == len(lengths)
        expected = {"corpus": corpus.fingerprint, "split": "train", "turns": len(lengths), "max_turn_tokens": 9}
        assert index.source == expected
        assert max(lengths[place(corpus, "train", n)] for n in index.query(["fine"], 1000)[0]) == 9

    def test_takes_a_corpus_of_another_tokenizer(self, model: TextModel, corpus: Corpus, tmp_path: Path) -> None:
        talk = [[f"hello number {i}", "i am fine", *"abcdefgh"] for i in range(20)]
        other = prepare(prepare_config(write_dialogues(tmp_path / "t.txt", talk), vocab_size=310), tmp_path / "c", quiet=True)
        assert other.tokenizer.sha256 != model.tokenizer.sha256
        found = Index.of_corpus(model, other, "train").query(["i am fine"], 1)[0][0]
        assert (found.text, found.turn) == ("i am fine", 1)
        assert found.distance < 1e-5

    def test_of_many_turns_keeps_each_with_its_own(self, model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
        turns = [Turn("hello " * (i % 7) + str(i), 0, i) for i in range(90)]
        monkeypatch.setattr("vrae.generation.neighbours._ENCODED", 8)
        for turn, found in zip(turns, Index.build(model, turns).query([turn.text for turn in turns], 1), strict=True):
            assert (found[0].text, found[0].turn) == (turn.text, turn.turn)
            assert found[0].distance < 1e-5

    @pytest.mark.parametrize("quiet", [True, False])
    def test_shows_a_bar_on_a_terminal_alone(
        self, model: TextModel, quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        Index.build(model, TURNS, quiet=quiet)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("encoding" in captured.err and "4/4" in captured.err) is not quiet

    def test_of_nothing_is_refused(self, model: TextModel, make: MakeModel, corpus: Corpus) -> None:
        with pytest.raises(DataError, match="no turn"):
            Index.build(model, [])
        with pytest.raises(ModelError, match="latent_size is 0"):
            Index.build(make(latent_size=0, context_turns=1), TURNS)
        with pytest.raises(DataError, match="--split nothing"):
            Index.of_corpus(model, corpus, "nothing")


def place(corpus: Corpus, split: str, neighbour: Neighbour) -> int:
    return int(corpus[split].dialogues[neighbour.dialogue]) + neighbour.turn


class TestCorpusTurns:
    def test_are_counted_with_those_that_are_left_out(self, corpus: Corpus) -> None:
        chosen, all_turns = corpus["test"], list(corpus_turns(corpus, "test", 10**6))
        assert len(all_turns) == len(chosen.speakers)
        starts = [turn.turn == 0 for turn in all_turns]
        assert np.flatnonzero(starts).tolist() == chosen.dialogues[:-1].tolist()
        short = [turn for i, turn in enumerate(all_turns) if len(chosen.turn(i)) <= 6]
        assert list(corpus_turns(corpus, "test", 6)) == short
        assert 0 < len(short) < len(all_turns)

    def test_are_left_out_where_no_model_would_take_them(self, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vrae.generation.neighbours.MAX_CHARACTERS", 12)
        texts = [turn.text for turn in corpus_turns(corpus, "train", 10**6)]
        assert max(map(len, texts)) == 12


class TestQuery:
    @pytest.mark.parametrize("measure", ["euclidean", "cosine"])
    def test_finds_a_turn_that_is_there_first(self, model: TextModel, corpus: Corpus, measure: Any) -> None:
        index = Index.of_corpus(model, corpus, "test")
        texts = sorted({turn.text for turn in corpus_turns(corpus, "test", 48)})[::5]
        for text, found in zip(texts, index.query(texts, 3, measure=measure), strict=True):
            assert found[0].text == text
            assert found[0].distance < 1e-5
            assert found[0].distance <= found[1].distance <= found[2].distance

    @pytest.mark.parametrize("measure", ["euclidean", "cosine"])
    def test_gives_distances_of_posterior_means(self, model: TextModel, measure: Any) -> None:
        texts = ["hello how are you", "fine", "see you", "naïve 🎉"]
        means = model.infer(model.windows(["hello pizza", *texts])).posterior.mean_BZ.numpy()
        expected = sorted(zip(distance(means[0], means[1:], measure).tolist(), texts, strict=True))
        found = Index.build(model, TURNS).query(["hello pizza"], 4, measure=measure)[0]
        assert [neighbour.text for neighbour in found] == [text for _, text in expected]
        assert [neighbour.distance for neighbour in found] == pytest.approx([far for far, _ in expected], abs=1e-5)

    def test_is_euclidean_unless_told(self, model: TextModel) -> None:
        index = Index.build(model, TURNS)
        assert index.query(["see you pizza"], 4) == index.query(["see you pizza"], 4, measure="euclidean")
        assert index.query(["see you pizza"], 4) != index.query(["see you pizza"], 4, measure="cosine")

    def test_cleans_as_the_corpus_of_the_model_was(self, make: MakeModel) -> None:
        index = Index.build(make(info={"corpus": {"cleaning": {"lowercase": True}}}), TURNS)
        assert index.query(["HELLO How are you"], 1)[0][0].text == "hello how are you"
        assert index.query(["HELLO How are you"], 1)[0][0].distance < 1e-5

    def test_gives_all_where_there_are_fewer_and_nothing_for_nothing(self, model: TextModel) -> None:
        index = Index.build(model, TURNS)
        assert [len(found) for found in index.query(["fine", "see"], 1000)] == [4, 4]
        assert index.query([]) == []
        assert len(Index.build(model, TURNS[:1]).query(["x"])[0]) == 1

    def test_reads_vectors_of_any_number_type(self, model: TextModel) -> None:
        index, ones = Index.build(model, TURNS), np.ones((2, 8))
        assert index.query_vectors(ones, 2) == index.query_vectors(ones.astype(np.int64), 2)
        assert index.query_vectors(ones[:0], 2) == []

    @pytest.mark.parametrize(
        ("job", "names", "value"),
        [
            (lambda i: i.query(["x"], 0), "n must be a whole number from 1 to 1000", "0"),
            (lambda i: i.query(["x"], 1001), "n must be", "1001"),
            (lambda i: i.query(["x"], "5"), "n must be", "'5'"),
            (lambda i: i.query(["x"], probes=-1), "probes must be", "-1"),
            (lambda i: i.query("x"), "texts must be a list", "str"),
            (lambda i: i.query(["x" * 2001]), "2000 characters", "2001"),
            (lambda i: i.query(["x"], measure="l1"), "measure must be one of euclidean, cosine", "'l1'"),
            (lambda i: i.query_vectors(np.zeros((2, 7))), r"shape \[N, 8\]", "[2, 7]"),
            (lambda i: i.query_vectors(np.zeros(8)), r"shape \[N, 8\]", "[8]"),
            (lambda i: i.query_vectors(np.full((1, 8), np.nan)), "numbers of at most 1e\\+15", ""),
        ],
    )
    def test_refuses_by_name_and_value(self, model: TextModel, job: Callable[[Index], Any], names: str, value: str) -> None:
        with pytest.raises(UserError, match=names) as caught:
            job(Index.build(model, TURNS))
        assert not value or str(caught.value).endswith(f"Got {value}")


class TestFolder:
    def test_an_index_from_disk_is_the_one_in_memory(self, model: TextModel, corpus: Corpus, tmp_path: Path) -> None:
        memory = Index.of_corpus(model, corpus, "test")
        memory.save(tmp_path / "index")
        disk = Index.load(tmp_path / "index", model)
        assert (len(disk), disk.occurrences, disk.source) == (len(memory), memory.occurrences, memory.source)
        texts = ["hello pizza", "fine 🎉", ""]
        for measure in ("euclidean", "cosine"):
            assert disk.query(texts, 40, measure=measure) == memory.query(texts, 40, measure=measure)
        assert isinstance(disk._search.vectors_NZ, np.memmap)
        assert not disk._search.vectors_NZ.flags.writeable

    def test_is_made_of_plain_files(self, folder: Path) -> None:
        assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "manifest.json"])
        assert check_folder(folder) == ""
        assert (folder / "texts.txt").read_text(encoding="utf-8") == "hello how are you\nfine\nsee you\nnaïve 🎉\n"
        assert np.load(folder / "vectors.npy", allow_pickle=False).dtype == np.float32
        assert np.load(folder / "turns.npy", allow_pickle=False)["count"].tolist() == [2, 3, 1, 1]
        assert json.loads((folder / "index.json").read_bytes())["source"] == {"corpus": "by hand"}

    def test_keeps_strange_texts(self, model: TextModel, tmp_path: Path) -> None:
        texts = ["", "a\nb", "\n", "\u2028x", "a\ud800", "😀" * 9, " hello "]
        Index.build(model, [Turn(text, 0, i) for i, text in enumerate(texts)]).save(tmp_path / "index")
        found = Index.load(tmp_path / "index", model).query(["x"], 10)[0]
        kept = [text.replace("\ud800", "?") for text in texts]
        assert [n.text for n in sorted(found, key=lambda n: n.turn)] == kept

    def test_replaces_an_index_when_told_and_nothing_else_ever(self, model: TextModel, folder: Path, tmp_path: Path) -> None:
        index = Index.build(model, TURNS[:1])
        with pytest.raises(UserError, match=r"exists already.*--overwrite"):
            index.save(folder)
        assert len(Index.load(folder, model)) == 4
        index.save(folder, overwrite=True)
        assert len(Index.load(folder, model)) == 1
        (tmp_path / "mine").mkdir()
        index.save(tmp_path / "mine")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "letter.txt").write_text("dear")
        with pytest.raises(UserError, match="exists already"):
            index.save(tmp_path / "other", overwrite=True)
        with pytest.raises(UserError, match="exists already"):
            index.save(tmp_path / "other" / "letter.txt", overwrite=True)
        with pytest.raises(UserError, match="cannot write"):
            index.save(tmp_path / "other" / "letter.txt" / "index")
        assert (tmp_path / "other" / "letter.txt").read_text() == "dear"

    def test_of_another_model_is_refused(self, make: MakeModel, model: TextModel, folder: Path) -> None:
        other = make()
        assert other.fingerprint() == model.fingerprint()
        with torch.no_grad():
            other.model.decoder.out.bias[7] += 1e-3
        for unlike in (other, make(seed=1), make(latent_size=4)):
            with pytest.raises(ModelError, match=f"--index {folder}: was built with another model"):
                Index.load(folder, unlike)

    @pytest.mark.parametrize("name", FILES)
    def test_that_lacks_a_file_or_has_a_damaged_one_is_refused_by_name(self, model: TextModel, folder: Path, name: str) -> None:
        data = (folder / name).read_bytes()
        changed = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
        for damaged in (b"", data[:-1], data[: len(data) // 2], data + b"x", changed, None):
            (folder / name).unlink()
            if damaged is not None:
                (folder / name).write_bytes(damaged)
            with pytest.raises(DataError, match=f"--index {folder}: .*{name}"):
                Index.load(folder, model)

    @pytest.mark.parametrize("manifest", [b"", b"[]", b'{"files": ', b'{"files": {"index.json": 5}}', None])
    def test_without_a_manifest_is_refused(self, model: TextModel, folder: Path, manifest: bytes | None) -> None:
        (folder / "manifest.json").unlink()
        if manifest is not None:
            (folder / "manifest.json").write_bytes(manifest)
        with pytest.raises(DataError, match=r"manifest\.json"):
            Index.load(folder, model)

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("vectors_npy", lambda a: a[:-1]),
            ("vectors_npy", lambda a: a[:, :-1]),
            ("vectors_npy", lambda a: a.astype(np.float64)),
            ("vectors_npy", lambda a: a.astype(">f4")),
            ("vectors_npy", lambda a: a.ravel()),
            ("vectors_npy", lambda a: np.where(a == a[2, 3], np.nan, a).astype(np.float32)),
            ("vectors_npy", lambda a: np.where(a == a[2, 3], np.inf, a).astype(np.float32)),
            ("turns_npy", lambda a: a[:-1]),
            ("turns_npy", lambda a: a[:, None]),
            ("turns_npy", lambda a: a[0]),
            ("turns_npy", lambda a: a["end"]),
            ("turns_npy", lambda a: a[::-1].copy()),
            ("turns_npy", lambda a: a[[1, 0, 2, 3]]),
            ("turns_npy", lambda a: np.array([(-9, 1, 0, 0), (5, 1, 0, 0), (9, 1, 0, 0), (48, 1, 0, 0)], a.dtype)),
        ],
    )
    def test_whose_arrays_do_not_fit_is_refused_by_name(
        self, model: TextModel, folder: Path, tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        file = name.replace("_", ".")
        refile(folder, **{name: npy(change(np.load(folder / file)), tmp_path / "a.npy")})
        with pytest.raises(DataError, match=f"--index {folder}: .*{file}"):
            Index.load(folder, model)

    @pytest.mark.parametrize("name", ["vectors_npy", "turns_npy"])
    def test_never_unpickles(self, model: TextModel, folder: Path, tmp_path: Path, name: str) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "sprung",)

        np.save(tmp_path / "object.npy", np.array([Trap()], object), allow_pickle=True)
        np.savez(tmp_path / "archive.npz", a=np.zeros(3))
        for data in (
            pickle.dumps(Trap()),
            (tmp_path / "object.npy").read_bytes(),
            (tmp_path / "archive.npz").read_bytes(),
        ):
            refile(folder, **{name: data})
            with pytest.raises(DataError, match=f"cannot read {name.replace('_', '.')}"):
                Index.load(folder, model)
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize(
        "change", [(b")", b"("), (b"(4", b"(-4"), (b"{", b"x" * 20 + b"{"), (b"'", b""), (b"NUMPY", b"PICKL")]
    )
    def test_with_a_damaged_header_is_refused_by_name(
        self, model: TextModel, folder: Path, change: tuple[bytes, bytes]
    ) -> None:
        for name in ("vectors.npy", "turns.npy"):
            sound = {name: (folder / name).read_bytes() for name in FILES}
            refile(folder, **{name.replace(".", "_"): sound[name].replace(*change)})
            with pytest.raises(DataError, match=f"cannot read {name}") as caught:
                Index.load(folder, model)
            assert "\n" not in str(caught.value)
            write_folder(folder, sound)

    @pytest.mark.parametrize(
        "info", [b"", b"[]", b"5", b"{}", b'{"format": 1}', b"\xff", b"[" * 100_000, b'{"format": 1, "model": "", "source": 5}']
    )
    def test_whose_description_is_none_is_refused(self, model: TextModel, folder: Path, info: bytes) -> None:
        refile(folder, index_json=info)
        with pytest.raises(DataError, match=r"cannot read index\.json"):
            Index.load(folder, model)

    def test_of_a_later_format_is_refused(self, model: TextModel, folder: Path) -> None:
        refile(folder, index_json=b'{"format": 2, "model": "", "source": {}}')
        with pytest.raises(DataError, match="index format 2, this vrae reads 1"):
            Index.load(folder, model)

    def test_that_is_none_is_refused(self, model: TextModel, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("hello")
        write_folder(tmp_path / "model", {"config.json": b"{}"})
        for name in ("gone", "file", "model", "a\0b", "x" * 300):
            with pytest.raises(DataError, match="--index ") as caught:
                Index.load(tmp_path / name, model)
            assert "vrae neighbours build" in str(caught.value)


def test_a_model_with_a_flow_is_indexed_and_asked(make: MakeModel) -> None:
    index = Index.build(make(flow_steps=2), TURNS)
    assert [near[0].text for near in index.query(["see you", "fine"], 1)] == ["see you", "fine"]


@pytest.mark.parametrize("run", [5, {"batches": [1]}, {"batches": {"max_turn_tokens": "x"}}], ids=str)
def test_a_run_that_is_none_leaves_the_default_length(make: MakeModel, corpus: Corpus, run: object) -> None:
    assert Index.of_corpus(make(info={"run": run}), corpus, "test").source["max_turn_tokens"] == 48


def test_places_of_texts_that_overflow_are_refused(model: TextModel, folder: Path, tmp_path: Path) -> None:
    records_N = np.load(folder / "turns.npy")
    records_N["end"][1] = -(2**63)
    refile(folder, turns_npy=npy(records_N, tmp_path / "a.npy"))
    with pytest.raises(DataError, match="the places of texts"):
        Index.load(folder, model)


def test_a_header_that_python_would_warn_of_is_refused(model: TextModel, folder: Path) -> None:
    sound = (folder / "vectors.npy").read_bytes()
    refile(folder, vectors_npy=sound.replace(b"'<f4'", b"'\\8f4'"[:5]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(DataError, match=r"cannot read vectors\.npy"):
            Index.load(folder, model)
    assert not caught


def test_a_manifest_cannot_write_to_the_terminal(model: TextModel, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["index.json"]["bytes"] = "\x1b[2J\ud800"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="no index, or a damaged one") as error:
        Index.load(folder, model)
    assert str(error.value).isprintable()
