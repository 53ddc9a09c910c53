"""Every source and layout, and what is said about corpora that are not what they should be."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import itertools
import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vrae.config import SourceConfig
from vrae.corpus import sources
from vrae.corpus.cleaning import Cleaner
from vrae.corpus.readers import MAX_LINE_BYTES
from vrae.corpus.sources import Dialogue, assign_split, is_hub_id, is_revision, open_source, read_dialogues
from vrae.errors import DataError

DATA = Path(__file__).parents[2] / "data"


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rows(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def read(path: str, **settings: Any) -> list[Dialogue]:
    return list(read_dialogues(path, **settings))


def turns(path: str, **settings: Any) -> list[tuple[str, ...]]:
    return [dialogue.turns for dialogue in read(path, **settings)]


class TestSplit:
    def test_known_values(self) -> None:
        # sha256 of "vrae-v1:<id>" starts with 20530648, a13c10b0, 5d5d58f1, 36226ab4: 8, 8, 5 and 4 modulo 100.
        assert [assign_split(name) for name in ("11", "29", "110", "36")] == ["validation"] * 3 + ["test"]
        shares = Counter(assign_split(str(i)) for i in range(20_000))
        assert 900 < shares["test"] < 1100
        assert 900 < shares["validation"] < 1100

    def test_percentages(self) -> None:
        assert {assign_split(str(i), 0, 0) for i in range(300)} == {"train"}
        assert {assign_split(str(i), 50, 50) for i in range(300)} == {"validation", "test"}
        for i in range(300):  # a larger validation split takes from training alone
            assert assign_split(str(i), 30) == "validation" or assign_split(str(i), 30) == assign_split(str(i))


class TestChitchat:
    def test_counts(self) -> None:
        if importlib.util.find_spec("chitchat_dataset") is None:
            pytest.skip("chitchat-dataset is not installed")
        source = open_source(SourceConfig())
        assert (source.name, source.licence, source.fingerprint()) == ("chitchat", "MIT", sources.CHITCHAT_SHA256)
        cleaner = Cleaner(source.cleaning)
        kept = [cleaned for dialogue in source if (cleaned := cleaner(dialogue))]
        assert source.stats.rows == source.stats.dialogues == 7168
        assert cleaner.dropped == {
            "fewer turns than min_turns": 3150,
            "repetitive": 5,
            "fewer turns than min_turns after cleaning": 1,
            "duplicate": 8,
        }
        assert Counter(assign_split(dialogue.id) for dialogue in kept) == {
            "train": 3609,
            "validation": 205,
            "test": 190,
        }
        pairs: Counter[str] = Counter()
        for dialogue in kept:
            pairs[assign_split(dialogue.id)] += len(dialogue.turns) - 1
            assert all(a != b for a, b in zip(dialogue.speakers, dialogue.speakers[1:], strict=False))
        assert pairs == {"train": 117_015, "validation": 7_279, "test": 7_204}
        assert cleaner.changed["masked <phone>"] == 2
        assert cleaner.changed["masked <email>"] == 2

    def test_package_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(DataError, match=r"pip install chitchat-dataset==0.9.0"):
            list(open_source(SourceConfig()))

    def test_other_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        package = tmp_path / "chitchat_dataset"
        package.mkdir()
        (package / "__init__.py").write_text("raise SystemExit('imported')")
        (package / "dataset.json").write_text("{}")
        monkeypatch.setattr("sys.path", [str(tmp_path)])
        monkeypatch.delitem(__import__("sys").modules, "chitchat_dataset", raising=False)
        importlib.invalidate_caches()
        with pytest.raises(DataError, match=r"expected sha256 d2a5d0bf6acf..., got 44136fa355b3.*--force-reinstall"):
            list(open_source(SourceConfig()))


class TestSample:
    """The files in data/ hold the same dialogues."""

    lines = (DATA / "smalltalk_turns.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [tuple(row["turns"]) for row in map(json.loads, lines)]

    @pytest.mark.parametrize(
        ("name", "layout"),
        [
            ("smalltalk.txt", "turns"),
            ("smalltalk_eou.txt", "turns"),
            ("smalltalk_turns.jsonl", "turns"),
            ("smalltalk_chat.jsonl", "chat"),
            ("smalltalk_transcript.jsonl", "transcript"),
            ("smalltalk_flat.csv", "flat"),
        ],
    )
    def test_dialogues(self, name: str, layout: str) -> None:
        source = open_source(SourceConfig(source=str(DATA / name)))
        first = list(source)
        assert [dialogue.turns for dialogue in first] == self.expected
        assert all(d.speakers == tuple(i % 2 for i in range(len(d.turns))) for d in first)
        assert len({dialogue.id for dialogue in first}) == 12
        assert (source.stats.layout, source.stats.dialogues) == (layout, 12)
        assert list(source) == first
        assert source.stats.dialogues == 12
        assert json.loads(json.dumps(dataclasses.asdict(source.stats)))["bad_rows"] == 0

    @pytest.mark.parametrize("name", ["smalltalk_pairs.jsonl", "smalltalk_pairs.tsv"])
    def test_pairs(self, name: str) -> None:
        assert turns(str(DATA / name)) == [pair for t in self.expected for pair in itertools.pairwise(t)]

    def test_utterances(self) -> None:
        source = open_source(SourceConfig(source=str(DATA / "smalltalk_utterances.txt")))
        assert [dialogue.turns for dialogue in source] == [(turn,) for dialogue in self.expected for turn in dialogue]
        assert source.stats.layout == "utterances"
        assert "no blank line" in source.stats.description

    def test_splits_and_ids(self) -> None:
        dialogues = read(str(DATA / "smalltalk_turns.jsonl"))
        assert Counter(dialogue.split for dialogue in dialogues) == {"train": 10, "validation": 1, "test": 1}
        assert dialogues[0].id == "coffee"
        assert read(str(DATA / "smalltalk.txt"))[1].id == "smalltalk.txt:8"


class TestText:
    def test_blank_lines(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", "\n\na\nb\n \n\t\n\nc\n\n\n")
        assert read(path) == [
            Dialogue("a.txt:3", ("a", "b"), (0, 1)),
            Dialogue("a.txt:8", ("c",), (0,)),
        ]

    def test_layouts_on_request(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", "Ana: hi\nBen: hello\n\nAna: bye\n")
        assert turns(path, layout="utterances") == [("Ana: hi",), ("Ben: hello",), ("Ana: bye",)]
        assert turns(path, layout="transcript") == [("hi", "hello"), ("bye",)]
        assert turns(write(tmp_path, "b.txt", "a\nb\nc"), layout="turns") == [("a", "b", "c")]
        with pytest.raises(DataError, match=r"expected layout auto, turns, utterances or transcript.*got pairs"):
            read(path, layout="pairs")

    def test_eou(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", "\nHi ! __eou__ Hello . __eou__\n\nBye __eou__ __eou__ See you\n")
        assert turns(path) == [("Hi !", "Hello ."), ("Bye", "", "See you")]

    def test_byte_order_mark_and_windows_lines(self, tmp_path: Path) -> None:
        assert turns(write(tmp_path, "a.txt", b"\xef\xbb\xbfa\r\nb\r\n\r\nc\r\n")) == [("a", "b"), ("c",)]
        assert turns(write(tmp_path, "a.jsonl", b'\xef\xbb\xbf["a"]\r\n\r\n["b"]\r\n')) == [("a",), ("b",)]
        assert turns(write(tmp_path, "a.csv", b"\xef\xbb\xbftext\r\na\r\nb\r\n")) == [("a",), ("b",)]


class TestRows:
    @pytest.mark.parametrize(
        ("row", "expected", "speakers"),
        [
            (["a", "b"], ("a", "b"), (0, 1)),
            ({"turns": ["a", "b", "c"]}, ("a", "b", "c"), (0, 1, 0)),
            ({"dialog": ["a"], "act": [1]}, ("a",), (0,)),
            ({"dialogue": ["a", "b"], "speakers": ["X", "X"]}, ("a", "b"), (0, 0)),
            ({"utterances": ["a", "b"]}, ("a", "b"), (0, 1)),
            (
                {
                    "messages": [
                        {"role": "system", "content": "s"},
                        {"role": "user", "content": "a"},
                        {"role": "user", "content": "b"},
                    ]
                },
                ("a", "b"),
                (0, 0),
            ),
            (
                {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
                ("a", "b"),
                (0, 1),
            ),
            ({"turns": [{"speaker": "X", "utterance": "a"}, {"speaker": "Y", "utterance": "b"}]}, ("a", "b"), (0, 1)),
            ({"context": "a", "reply": "b"}, ("a", "b"), (0, 1)),
            ({"Prompt": "a", "Response": "b"}, ("a", "b"), (0, 1)),
            ({"source": "a", "target": "b"}, ("a", "b"), (0, 1)),
            ({"input": "a", "output": "b"}, ("a", "b"), (0, 1)),
            ({"question": "a", "answer": "b"}, ("a", "b"), (0, 1)),
            ({"transcript": "X: a\nY: b: c\nmore\n\nX: d"}, ("a", "b: c more ", "d"), (0, 1, 0)),
            ({"text": "User 1: a\nUser 2: b"}, ("a", "b"), (0, 1)),
            ({"text": "a"}, ("a",), (0,)),
            ({"utterance": "see https://x"}, ("see https://x",), (0,)),
            ("a", ("a",), (0,)),
        ],
    )
    def test_layouts(self, tmp_path: Path, row: Any, expected: tuple[str, ...], speakers: tuple[int, ...]) -> None:
        dialogue = read(write(tmp_path, "a.jsonl", rows(row)))[0]
        assert tuple(turn.strip() for turn in dialogue.turns) == tuple(turn.strip() for turn in expected)
        assert (dialogue.speakers, dialogue.id, dialogue.split) == (speakers, "a.jsonl:1", "")

    def test_flat(self, tmp_path: Path) -> None:
        path = write(
            tmp_path,
            "a.jsonl",
            rows(
                {"conv_id": 7, "utterance": "a", "speaker": "X", "split": "dev"},
                {"conv_id": 7, "utterance": "b", "speaker": "X", "split": "dev"},
                {"conv_id": 7, "utterance": "c", "speaker": "Y", "split": "dev"},
                {"conv_id": 8, "utterance": "d", "speaker": None},
                {"conv_id": 8, "utterance": "e", "speaker": "Y"},
            ),
        )
        assert read(path) == [
            Dialogue("7", ("a", "b", "c"), (0, 0, 1), "validation"),
            Dialogue("8", ("d", "e"), (0, 1)),
        ]

    @pytest.mark.parametrize(
        ("written", "meant"),
        [("train", "train"), ("valid", "validation"), ("dev", "validation"), ("TEST", "test"), ("", "")],
    )
    def test_split_column(self, tmp_path: Path, written: str, meant: str) -> None:
        path = write(tmp_path, "a.jsonl", rows({"text": "a", "split": written}, {"text": "b", "split": None}))
        assert [dialogue.split for dialogue in read(path)] == [meant, ""]

    def test_columns_by_name(self, tmp_path: Path) -> None:
        row = {"key": 5, "q": "a", "a": "b", "more": ["c", "d"], "talk": "X: e\nY: f"}
        path = write(tmp_path, "a.jsonl", rows(row, row))
        assert turns(path, text_column="q", reply_column="a")[0] == ("a", "b")
        assert read(path, text_column="q", reply_column="a", id_column="key")[0].id == "5"
        assert turns(path, text_column="more")[0] == ("c", "d")
        assert turns(path, text_column="talk")[0] == ("e", "f")
        assert turns(path, text_column="talk", layout="utterances")[0] == ("X: e\nY: f",)
        assert turns(path, text_column="q") == [("a",), ("a",)]
        assert turns(path, text_column="q", id_column="key") == [("a", "a")]
        assert turns(path, text_column="q", id_column="key", layout="utterances") == [("a",), ("a",)]

    def test_layout_on_request(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.jsonl", rows({"context": "a", "reply": "b", "text": "c", "id": 1}))
        assert turns(path) == [("a", "b")]
        assert turns(path, layout="utterances") == [("c",)]
        assert turns(path, layout="flat") == [("c",)]

    def test_ids_of_no_use_are_passed_over(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.jsonl", rows({"id": 1.5, "text": "a"}, {"id": "", "text": "b"}, {"id": 3, "text": "c"}))
        assert [dialogue.id for dialogue in read(path)] == ["a.jsonl:1", "a.jsonl:2", "3"]

    @pytest.mark.parametrize("second", [{"text": "b"}, {"x": 1, "text": "b"}])
    def test_rows_may_have_other_columns_besides(self, tmp_path: Path, second: Any) -> None:
        assert turns(write(tmp_path, "a.jsonl", rows({"text": "a"}, second))) == [("a",), ("b",)]


class TestTables:
    def test_line_numbers_with_line_breaks_in_fields(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.csv", 'question,answer\n"a\nb","c, ""d"""\n\ne,f\n')
        assert read(path) == [
            Dialogue("a.csv:2", ("a\nb", 'c, "d"'), (0, 1)),
            Dialogue("a.csv:5", ("e", "f"), (0, 1)),
        ]

    def test_quotes_in_tsv(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.tsv", 'question\tanswer\n"Hi" he said\t"so\n"she ""said"" so"\tb"\n')
        assert turns(path) == [('"Hi" he said', '"so'), ('she "said" so', 'b"')]

    def test_transcript(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.csv", 'persona,Best Generated Conversation\nx,"User 1: a\nUser 2: b"\n')
        assert turns(path) == [("a", "b")]

    def test_parquet(self, tmp_path: Path) -> None:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        lists = [{"dialogue": [f"a{i}", "b"], "speakers": ["X", "Y"], "id": i} for i in range(700)]
        pq.write_table(pa.Table.from_pylist(lists), tmp_path / "a.parquet", row_group_size=300)
        dialogues = read(str(tmp_path / "a.parquet"))
        assert len(dialogues) == 700
        assert dialogues[699] == Dialogue("699", ("a699", "b"), (0, 1))
        chat = [
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"messages": None},
        ]
        pq.write_table(pa.Table.from_pylist(chat), tmp_path / "b.parquet")
        source = open_source(SourceConfig(source=str(tmp_path / "b.parquet"), skip_bad_rows=True))
        assert list(source) == [Dialogue("b.parquet:1", ("a", "b"), (0, 1))]
        assert source.stats.bad_examples[0].startswith(
            f"{tmp_path / 'b.parquet'}:row 2: expected a list (layout chat), got null"
        )

    def test_parquet_that_is_none(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        with pytest.raises(DataError, match=r"expected a Parquet file"):
            read(write(tmp_path, "a.parquet", b"PAR1 not quite PAR1"))
        with pytest.raises(DataError, match=r"expected a Parquet file"):
            read(write(tmp_path, "b.parquet", b""))

    def test_parquet_with_invalid_text(self, tmp_path: Path) -> None:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        column = pa.array([b"good", b"caf\xe9"]).view(pa.string()) if hasattr(pa.Array, "view") else None
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a.parquet:row 2: expected UTF-8 text"):
            read(str(tmp_path / "a.parquet"))
        assert turns(str(tmp_path / "a.parquet"), skip_bad_rows=True) == [("good",)]


BAD = [
    ("a.txt", b"", "expected dialogues, got an empty file"),
    ("a.jsonl", b"", "expected dialogues, got an empty file"),
    ("a.csv", b"", "expected dialogues, got an empty file"),
    ("a.txt", b"\xef\xbb\xbf", "expected dialogues, got only blank lines"),
    ("a.txt", b"\n \r\n\t\n", "expected dialogues, got only blank lines"),
    ("a.jsonl", b"\n\n", "expected dialogues, got only blank lines"),
    ("a.csv", b"text\n\n", "expected dialogues, got no rows below the names of the columns"),
    ("a.txt", b"good\ncaf\xe9\n", "a.txt:2: expected UTF-8 text, got byte 0xe9 at byte 4 of the line; .*iconv"),
    ("a.txt", b"\xff\xfeh\x00", "a.txt:1: expected UTF-8 text, got byte 0xff at byte 1"),
    ("a.jsonl", b'["a"]\n["\xc3"]\n', "a.jsonl:2: expected UTF-8 text, got byte 0xc3 at byte 3"),
    ("a.csv", b"text\ngood\n\xe9\n", "a.csv:3: expected UTF-8 text"),
    ("a.txt", b"a\nb\x00c\n", "a.txt:2: expected text, got a NUL at character 2"),
    ("a.jsonl", b'["a"]\n["b\\u0000"]\n', "a.jsonl:2: expected text, got a NUL as item 1"),
    ("a.txt", b"a\n" + b"x" * (MAX_LINE_BYTES + 1) + b"\nb\n", "a.txt:2: expected a line of at most 1,000,000 bytes"),
    ("a.jsonl", b'["a"]\n["' + b"x" * 3 * MAX_LINE_BYTES, "a.jsonl:2: expected a line of at most 1,000,000 bytes"),
    (
        "a.jsonl",
        b'["a"]\n{"turns": ["b',
        "a.jsonl:2: expected one JSON value, got an error .Unterminated.*character 12",
    ),
    ("a.jsonl", b'[\n"a"\n]', "a.jsonl:1: expected one JSON value.*write each row on one line"),
    ("a.jsonl", b"[" * 100_000, "a.jsonl:1: expected one JSON value"),
    ("a.jsonl", b"1" * 10_000, "a.jsonl:1: expected one JSON value"),
    ("a.jsonl", b"7\n", "a.jsonl:1: expected an object, a list of turns or a string, got a number"),
    ("a.jsonl", b'["a"]\nnull\n', "a.jsonl:2: expected an object, a list of turns or a string, got null"),
    ("a.jsonl", b'["a", 3]\n', "a.jsonl:1: expected a list of strings, got a number as item 2"),
    ("a.jsonl", b'{"turns": ["a", null]}\n', "a.jsonl:1: expected a list of strings, got null as item 2"),
    ("a.jsonl", b'{"turns": ["a"]}\n{"turns": "a"}', r"a.jsonl:2: expected a list \(layout turns\), got a string"),
    ("a.jsonl", b'{"turns": ["a"]}\n{"turns": []}', "a.jsonl:2: expected at least one turn, got an empty list"),
    ("a.jsonl", b'{"text": "a"}\n{"text": null}', "a.jsonl:2: expected a string, got null"),
    (
        "a.jsonl",
        b'{"text": "a"}\n{"txt": "b"}',
        "a.jsonl:2: expected a column text or .*got columns txt; .*--text_column",
    ),
    ("a.jsonl", b'{"text": "a"}\n["b"]', r"a.jsonl:2: expected columns \(layout utterances\), got a list alone"),
    ("a.jsonl", b'{"foo": "a", "bar": 2}', "a.jsonl:1: expected columns that.*got columns foo, bar; pass --layout"),
    ("a.jsonl", b"{}", "a.jsonl:1: expected columns that say what they hold, got no columns"),
    ("a.jsonl", b'{"prompt": "a", "reply": 2}', "a.jsonl:1: expected a string, got a number"),
    ("a.jsonl", b'["\\ud800"]', r"a.jsonl:1: expected text, got half of a surrogate pair \(U\+D800\) as item 1"),
    ("a.jsonl", b'{"messages": [{"role": "u"}]}', "expected a list of {role, content}, got columns role in item 1"),
    ("a.jsonl", b'{"messages": [{"role": "u", "content": null}]}', "expected a string, got null as content of item 1"),
    ("a.jsonl", b'{"messages": [{"role": "u", "content": "a"}, 1]}', "got a number as item 2"),
    ("a.jsonl", b'{"messages": [{"role": "system", "content": "a"}]}', "expected at least one message"),
    ("a.jsonl", b'{"turns": ["a"], "speakers": []}', "expected one of the speakers for each turn, got 0 for 1 turns"),
    ("a.jsonl", b'{"turns": ["a"], "split": "all"}', "expected split train, validation or test, got 'all'"),
    ("a.jsonl", b'{"transcript": "no names"}', "expected lines \"Name: text\", got 'no names'"),
    ("a.jsonl", b'{"transcript": " "}', 'expected lines "Name: text", got blank text'),
    ("a.jsonl", b'{"conv_id": null, "text": "a"}', "expected a string or a whole number as id, got null"),
    ("a.csv", b"a;b\n1;2\n", "a.csv:2: expected columns that say what they hold, got columns a;b"),
    ("a.csv", b"question,answer\na,b,c\n", r"a.csv:2: expected 2 fields \(question, answer\), got 3; quote fields"),
    (
        "a.csv",
        b'text\ngood\n"open\nb\n',
        "a.csv:3: expected a row of comma-separated values.*close every quotation mark",
    ),
    ("a.csv", b"te\xe9xt\na\n", "a.csv:1: expected UTF-8 text"),
    ("a.tsv", b"question\tanswer\na\n", "a.tsv:2: expected 2 fields .*, got 1; leave no tab"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=[f"{i}-{case[0]}" for i, case in enumerate(BAD)])
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)
    assert caught.value.exit_code == 2


class TestSkipping:
    def test_counts_and_goes_on(self, tmp_path: Path) -> None:
        good, long = b'["a"]\n', b'["' + b"x" * MAX_LINE_BYTES + b'"]\n'
        bad = [b'["b", 1]\n', b"{\n", b"\xff\n", long, b"7\n", b"null\n", b'["\\udc00"]\n']
        path = write(tmp_path, "a.jsonl", good.join([b"", *bad, b""]))
        source = open_source(SourceConfig(source=path, skip_bad_rows=True))
        for _ in range(2):
            assert [dialogue.id for dialogue in source] == [f"a.jsonl:{2 * i + 1}" for i in range(8)]
            assert (source.stats.rows, source.stats.bad_rows, source.stats.dialogues) == (15, 7, 8)
            assert [message.split(": ")[0] for message in source.stats.bad_examples] == [
                f"{path}:{2 * i + 2}" for i in range(5)
            ]

    def test_nothing_is_left(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.jsonl", "1\n2\n")
        with pytest.raises(DataError, match=r"expected at least one row that can be read, got 2 bad ones of 2; .*a.jsonl:1"):
            read(path, skip_bad_rows=True)

    def test_text_block_with_a_bad_line(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", b"a\nb\n\nc\n\xff\nd\n\ne\n")
        assert turns(path, skip_bad_rows=True) == [("a", "b"), ("e",)]
        assert turns(path, skip_bad_rows=True, layout="utterances") == [("a",), ("b",), ("c",), ("d",), ("e",)]

    def test_csv_goes_on_after_a_bad_line(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.csv", b"question,answer\na,b\n\xff,c\nd,e,f\ng,h\n")
        assert turns(path, skip_bad_rows=True) == [("a", "b"), ("g", "h")]

    @pytest.mark.parametrize(
        ("bad", "left"),
        [
            ({"conv_id": 2, "text": None}, ["1", "3"]),  # known to be of dialogue 2
            ({"text": "x"}, ["3"]),  # may be of 1 or of 2
        ],
    )
    def test_flat_dialogue_with_a_bad_row(self, tmp_path: Path, bad: Any, left: list[str]) -> None:
        def row(i: int) -> dict[str, Any]:
            return {"conv_id": i, "text": "a"}

        path = write(tmp_path, "a.jsonl", rows(row(1), row(1), bad, row(2), row(2), row(3)))
        source = open_source(SourceConfig(source=path, skip_bad_rows=True))
        assert [dialogue.id for dialogue in source] == left
        assert (source.stats.bad_rows, source.stats.broken_dialogues) == (1, 3 - len(left))

    def test_long_dialogues(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vrae.corpus.readers.MAX_TURNS", 3)
        monkeypatch.setattr("vrae.corpus.layouts.MAX_TURNS", 3)
        path = write(tmp_path, "a.txt", "a\n" * 20 + "\nb\nc\nd\n")
        with pytest.raises(DataError, match=r"a.txt:4: expected at most 3 turns in a dialogue"):
            read(path)
        assert turns(path, skip_bad_rows=True) == [("b", "c", "d")]
        path = write(tmp_path, "a.csv", "conv_id,text\n" + "1,a\n" * 20 + "2,b\n")
        with pytest.raises(DataError, match=r"a.csv:5: expected at most 3 turns in a dialogue"):
            read(path)
        assert turns(path, skip_bad_rows=True) == [("b",)]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'["' + b"x" * 20_000_000 + b'"]\n' + b'["a", "b"]\n' * 30_000)
    tracemalloc.start()
    count = sum(1 for _ in read_dialogues(path, skip_bad_rows=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_000
    assert peak < 8_000_000


class TestOpening:
    @pytest.mark.parametrize("source", ["no/such.txt", "/no/such/file", "nothing", "a/b/c", "data/talk.json", "", "./x/y"])
    def test_no_such_file(self, source: str) -> None:
        with pytest.raises(DataError, match=r"no such file; accepted are `chitchat`, a .txt|expected a file"):
            open_source(SourceConfig(source=source))

    def test_other_kinds(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"expected a file, got something else"):
            open_source(SourceConfig(source=str(tmp_path)))
        with pytest.raises(DataError, match=r"expected a file that ends in .txt, .jsonl.*got .json"):
            open_source(SourceConfig(source=write(tmp_path, "a.json", "[]")))

    def test_a_file_goes_before_the_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert isinstance(open_source(SourceConfig(source="some/thing")), sources.HubSource)
        (tmp_path / "some").mkdir()
        write(tmp_path, "some/thing", "a")
        with pytest.raises(DataError, match=r"expected a file that ends in"):
            open_source(SourceConfig(source="some/thing"))

    def test_fingerprint_is_of_the_content(self, tmp_path: Path) -> None:
        prints = [
            open_source(SourceConfig(source=write(tmp_path, name, content))).fingerprint()
            for name, content in (("a.txt", "a"), ("b.txt", "a"), ("c.txt", "b"))
        ]
        assert prints[0] == prints[1] != prints[2]
        assert prints[0] == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"

    def test_name_and_cleaning(self) -> None:
        source = open_source(SourceConfig(source=str(DATA / "smalltalk.txt")))
        assert (source.name, source.licence, source.cleaning.min_turns) == ("smalltalk.txt", "not stated", 1)


NO_IDS = (
    *(
        "../x",
        "../../x",
        "a/..",
        "../..",
        "a/../b",
        "a..b/c",
        "a/b..",
        "/a/b",
        "//a",
        "a//b",
        "a/",
        "/a",
        "a/b/c",
        "a/b/",
        "./a",
    ),
    *("a/b.", "a/b-", "-a/b", ".a/b", "a/b\0", "a\0/b", "a/b\n", "\na/b", "a /b", "a/b ", "a\\b/c", "a/b\x1b[2J", "\u202ea/b"),
    *(
        "ä/b",
        "a/\u0661",
        "a/\ud800",
        "a/b?c",
        "a/b#c",
        "a/b%2e%2e",
        "a/b:c",
        "~/b",
        "$HOME/b",
        "a/" + "b" * 95,
        "",
        "a",
        "a/b@c",
    ),
)
NO_REVISIONS = (
    *("..", "../x", "a/../b", "a..b", "/a", "a/", "a//b", "-a", ".a", "a/.b", " a", "a ", "a b", "a\n", "a\0b", "\x1b[2J", "é"),
    *("\u202ea", "\ud800", "a\\b", "a:b", "a?b", "a%2fb", "a@b", "a" * 97),
)
IDS = ("a/b", "some-one/Some.thing_2", "a/" + "b" * 94, "0/0", "_a/_b")
REVISIONS = ("main", "v1.0", "refs/pr/1", "refs/convert/parquet", "0123456789abcdef" * 2 + "01234567", "my-branch_2")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the Hub for anything fails."""

    def refuse(*arguments: Any, **settings: Any) -> Any:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)


class TestHubNames:
    @pytest.mark.parametrize("name", NO_IDS, ids=lambda name: ascii(name)[:30])
    def test_that_could_lead_elsewhere_are_none(self, name: str, no_hub: None, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        assert not is_hub_id(name)
        with pytest.raises(DataError) as caught:
            list(read_dialogues(name))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("name", IDS)
    def test_of_data_sets_are_known(self, name: str) -> None:
        assert is_hub_id(name)
        assert isinstance(open_source(SourceConfig(name)), sources.HubSource)

    @pytest.mark.parametrize("revision", NO_REVISIONS, ids=lambda name: ascii(name)[:30])
    def test_of_no_revision_are_refused_before_the_hub_is_asked(self, revision: str, no_hub: None) -> None:
        assert not is_revision(revision)
        with pytest.raises(DataError, match=r"^a/b: expected --revision of a branch, tag or commit .* or none$"):
            open_source(SourceConfig("a/b", revision=revision))

    @pytest.mark.parametrize("revision", REVISIONS)
    def test_of_revisions_are_known(self, revision: str) -> None:
        assert is_revision(revision)
        open_source(SourceConfig("a/b", revision=revision))

    @pytest.mark.parametrize("setting", ["name", "split"])
    @pytest.mark.parametrize(
        "value", ["../x", "a/b", "..", "a\\b", "a\0", "a\n", "\x1b[2J", "\u202e", "\ud800", "a" * 97], ids=ascii
    )
    def test_of_configurations_and_splits_likewise(self, setting: str, value: str, no_hub: None) -> None:
        with pytest.raises(DataError, match=rf"^a/b: expected --{setting} of the data set, a name without slashes, got "):
            open_source(SourceConfig("a/b", **{setting: value}))

    @pytest.mark.parametrize(
        "setting", [{"name": "20220301.en"}, {"name": "en-US"}, {"split": "train[:10%]"}, {"split": "train+test"}]
    )
    def test_of_configurations_and_splits_are_known(self, setting: dict[str, str]) -> None:
        open_source(SourceConfig("a/b", **setting))


class TestHub:
    """Without a network: the library's entry point is replaced."""

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        datasets = pytest.importorskip("datasets")
        calls: dict[str, Any] = {"error": None, "splits": {}}

        def load_dataset(path: str, name: str | None = None, **settings: Any) -> Any:
            calls.update(settings, path=path, name=name)
            if calls["error"]:
                raise calls["error"]
            opened = {key: datasets.Dataset.from_list(rows).to_iterable_dataset() for key, rows in calls["splits"].items()}
            return opened[settings["split"]] if settings["split"] else datasets.IterableDatasetDict(opened)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(sources.HubSource, "_find_licence", lambda self: "cc-by-4.0")
        return calls

    def test_splits(self, hub: dict[str, Any]) -> None:
        hub["splits"] = {name: [{"dialogue": [name, "b"], "split": "x"}] * 2 for name in ("train", "valid", "other")}
        source = open_source(SourceConfig(source="some/talk", name="en", revision="abc"))
        dialogues = list(source)
        assert [dialogue.split for dialogue in dialogues] == ["train"] * 2 + ["validation"] * 2 + [""] * 2
        assert dialogues[3] == Dialogue("some/talk/valid:2", ("valid", "b"), (0, 1), "validation")
        assert len({dialogue.id for dialogue in dialogues}) == 6
        assert (hub["name"], hub["revision"], hub["split"], hub["streaming"]) == ("en", "abc", None, True)
        assert source.licence == source.stats.licence == "cc-by-4.0"
        assert source.fingerprint() == "some/talk@abc:en:"
        assert list(source) == dialogues

    def test_one_split_is_no_division(self, hub: dict[str, Any]) -> None:
        hub["splits"] = {"train": [{"text": "a"}], "test": [{"text": "b"}]}
        assert read("some/talk", split="test") == [Dialogue("some/talk/test:1", ("b",), (0,))]
        hub["splits"] = {"train": [{"text": "a"}]}
        assert read("some/talk") == [Dialogue("some/talk/train:1", ("a",), (0,))]

    def test_bad_rows(self, hub: dict[str, Any]) -> None:
        hub["splits"] = {"train": [{"text": "a"}, {"text": None}]}
        with pytest.raises(DataError, match=r"^some/talk:train row 2: expected a string, got null; "):
            read("some/talk")

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (
                RuntimeError("Dataset scripts are no longer supported, but found t.py"),
                "--revision refs/convert/parquet",
            ),
            (
                ConnectionError("Couldn't reach 'some/talk' on the Hub (X)"),
                "Hub cannot be reached .*; check the network",
            ),
            (TimeoutError("slow"), "Hub cannot be reached"),
            ("Dataset 'some/talk' is a gated dataset on the Hub. You must be", "gated data set.*hf auth login"),
            (
                "Dataset 'some/talk' doesn't exist on the Hub or cannot be accessed.",
                "no such file, and no data set on the Hub",
            ),
            ("Revision 'x' doesn't exist for dataset 'some/talk' on the Hub.", "no such revision"),
            (
                ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nE"),
                "'a', 'b'.*--name",
            ),
            (ValueError("BuilderConfig 'z' not found. Available: ['a']"), "Available: .'a'.; choose one with --name"),
            (ValueError("Bad split: z. Available splits: ['train']"), "Bad split: z.*--split"),
            (ZeroDivisionError(), r"cannot be read as a data set of text: ZeroDivisionError \(no message\)"),
        ],
    )
    def test_errors(self, hub: dict[str, Any], error: Exception | str, message: str) -> None:
        if isinstance(error, str):
            error = pytest.importorskip("datasets.exceptions").DatasetNotFoundError(error)
        hub["error"] = error
        with pytest.raises(DataError, match=message) as caught:
            read("some/talk")
        assert str(caught.value).startswith("some/talk: ")
        assert "\n" not in str(caught.value)

    def test_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        with pytest.raises(DataError, match=r"^some/talk: .*the Hub cannot be reached"):
            read("some/talk")


class TestStrangers:
    """What the fuzzer of `tests/faults` has found."""

    @pytest.mark.parametrize(
        "name", ["~\0/x.txt", "~nobody-here/x.txt", "a" * 5000, "x" * 5000 + ".jsonl", "~\ud800", "\0.txt"]
    )
    def test_names_that_no_file_system_takes_are_no_files(self, name: str) -> None:
        with pytest.raises(DataError, match="no such file") as error:
            read(name)
        assert str(error.value).isprintable()

    @pytest.mark.parametrize("key", ["\ud800", "\x1b[2J"])
    def test_columns_of_any_name_can_be_printed(self, tmp_path: Path, key: str) -> None:
        with pytest.raises(DataError, match="expected columns that say what they hold") as error:
            read(write(tmp_path, "a.jsonl", rows({key: "x", "y" * 100_000: 1})))
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 1500

    @pytest.mark.parametrize("levels", [10, 900, 940, 960])
    def test_speakers_of_many_levels_are_refused(self, tmp_path: Path, levels: int) -> None:
        names = "[" * levels + "]" * levels
        for line in (f'{{"turns": ["a"], "speakers": [{names}]}}', f'{{"dialogue_id": 1, "text": "a", "speaker": {names}}}'):
            with pytest.raises(DataError, match=r"expected a name or a number as speaker|one JSON value"):
                read(write(tmp_path, "a.jsonl", line))

    def test_a_file_is_closed_where_reading_ends(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", b"a\n\nb\0c\n\nd\n")
        gc.collect()
        gc.disable()
        try:
            with pytest.raises(DataError, match="a NUL"):
                read(path, layout="turns")
            assert path not in [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        finally:
            gc.enable()

    def test_values_of_parquet_that_python_cannot_hold_make_a_bad_row(self, tmp_path: Path) -> None:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        days = pa.array([1, 2**31 - 1, 2], pa.int32()).cast(pa.date32())
        pq.write_table(pa.table({"text": ["a", "b", "c"], "day": days}), tmp_path / "a.parquet")
        source = open_source(SourceConfig(str(tmp_path / "a.parquet"), skip_bad_rows=True))
        assert [dialogue.turns for dialogue in source] == [("a",), ("c",)]
        assert "row 2: expected values that Python can hold" in source.stats.bad_examples[0]
