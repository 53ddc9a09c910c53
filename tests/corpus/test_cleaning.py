"""What the cleaner changes, drops and counts."""

from __future__ import annotations

import random
import re
import sys
import time
import unicodedata

import pytest

from vrae.config import CleaningConfig
from vrae.corpus.cleaning import Cleaner, Digests, count_turns
from vrae.corpus.sources import Dialogue


def talk(*turns: str, speakers: tuple[int, ...] | None = None, id: str = "a", split: str = "") -> Dialogue:
    return Dialogue(id, turns, tuple(i % 2 for i in range(len(turns))) if speakers is None else speakers, split)


def text(message: str, **settings: bool | int) -> str:
    return Cleaner(CleaningConfig(**settings)).text(message)  # type: ignore[arg-type]


OFF: dict[str, bool | int] = {"mask_personal": False, "max_repeats": 0}


class TestText:
    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            ("  two\t words \r\n", "two words"),
            ("line\nbreak", "line break"),
            ("no\u00a0break and\u2003wide", "no break and wide"),
            ("bell\x07 null\x00 c1\x9f delete\x7f", "bell null c1 delete"),
            ("next\x85line", "next line"),
            ("a\u202eb\u2066c\u2069d\u202a", "abcd"),
            ("\ufeffstart", "start"),
            ("it\u2019s \u2018so\u2019 \u201cgood\u201d", "it's 'so' \"good\""),
            ("caf\u00e9 na\u00efve 你好 👩\u200d👩\u200d👧", "caf\u00e9 na\u00efve 你好 👩\u200d👩\u200d👧"),
            ("\x07\u202e \t", ""),
        ],
    )
    def test_characters(self, message: str, expected: str) -> None:
        assert text(message) == expected

    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            ("write to ann.b+c@mail.example.org.", "write to <email>."),
            ("(see https://example.com/a?b=c#d).", "(see <url>)."),
            ("http://localhost:8000/x", "<url>"),
            ("www.example.org, or not", "<url>, or not"),
            ("it was on example.com!", "it was on <url>!"),
            ("is it example.com?", "is it <url>?"),
            ("example.com/a/b.html?x=1, ok", "<url>, ok"),
            ("bit.ly/3xYz", "<url>"),
            ("ask @ann_b, or @ben.c.", "ask <user>, or <user>."),
            ("see you @ five, @5pm", "see you @ five, @5pm"),
            ("ok.So what.then", "ok.So what.then"),
            ("and so on... e.g. this", "and so on... e.g. this"),
            ("I use node.js and asp.net.core", "I use node.js and asp.net.core"),
        ],
    )
    def test_masks(self, message: str, expected: str) -> None:
        assert text(message) == expected

    @pytest.mark.parametrize(
        "number",
        [
            "+44 20 7946 0958",
            "+1 (801) 555-0142",
            "+4915123456789",
            "(801) 555-0142",
            "801-555-0142",
            "801.555.0142",
            "1-801-555-0142",
            "8015550142",
            "07700 900123",
            "07700900123",
            "06 12 34 56 78",
        ],
    )
    def test_phone_numbers(self, number: str) -> None:
        assert text(f"call {number}, please") == "call <phone>, please"
        assert text(number) == "<phone>"

    @pytest.mark.parametrize(
        "message",
        [
            "I was there 2013-2015.",
            "10-15 people, maybe 100-200",
            "we won 21-14 and 3:0",
            "$1,000,000.00 or 25000000 euros",
            "it costs 1000000000 or 2500000000",
            "born 01-02-2018 or 2018-02-01 10:30",
            "3.141592653589793",
            "1010000010100101011010101010",
            "01000101010 01000101010",
            "call 911 at 8.30",
            "1 2 3 4 5 6 7 8 9 10 11 12",
            "+1000 points, +10000000000 more",
            "flight 4711, gate 12",
            "192.168.100.101",
        ],
    )
    def test_numbers_that_are_not_phones(self, message: str) -> None:
        assert text(message) == message

    def test_masks_off(self) -> None:
        message = "ann@example.org www.example.org @ann 801-555-0142"
        assert text(message, mask_personal=False) == message

    @pytest.mark.parametrize(
        ("most", "message", "expected"),
        [
            (3, "sooooo coooool!!!!!!", "sooo coool!!!"),
            (3, "hmm... ok!!!", "hmm... ok!!!"),
            (1, "hello", "helo"),
            (0, "sooooo", "sooooo"),
            (3, "10000 or 1000000", "10000 or 1000000"),
            (3, "😂😂😂😂😂", "😂😂😂"),
        ],
    )
    def test_runs(self, most: int, message: str, expected: str) -> None:
        assert text(message, max_repeats=most) == expected

    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            ("dont im thats youre cant", "don't i'm that's you're can't"),
            ("didnt doesnt isnt ive whats", "didn't doesn't isn't i've what's"),
            ("Dont! Im here. CANT", "Don't! I'm here. CAN'T"),
            ("its id lets were well wont IM", "its id lets were well wont IM"),
            ("don't i'm important", "don't i'm important"),
        ],
    )
    def test_apostrophes(self, message: str, expected: str) -> None:
        assert text(message, restore_apostrophes=True) == expected
        assert text(message) == message

    @pytest.mark.parametrize("settings", [{}, {"lowercase": True, "restore_apostrophes": True, "max_repeats": 2}, OFF], ids=str)
    @pytest.mark.parametrize(
        "message",
        [
            *("  two\t words \r\n", "line\nbreak", "no\u00a0break and\u2003wide", "bell\x07 null\x00 c1\x9f", "next\x85line"),
            *(
                "a\u202eb\u2066c\u2069d\u202a",
                "\ufeffstart",
                "it\u2019s \u2018so\u2019 \u201cgood\u201d",
                "cafe\u0301 你好",
                "",
            ),
            *("write to me@example.com or @some_one", "see https://a.b/c?d=e, and www.site.org/x.", "bit.ly/x v1.2 e.g. this"),
            *(
                "sooooo goooood!!!!!!",
                "10000000",
                "a" * 60,
                "IM me, im here, Im and iM",
                "Dont, dont; THATS don't cant_do whats",
            ),
        ],
    )
    def test_as_regular_expressions(self, message: str, settings: dict[str, bool | int]) -> None:
        cleaner = Cleaner(CleaningConfig(**settings))  # type: ignore[arg-type]
        found = unicodedata.normalize("NFC", message)
        for pattern, replacement in cleaner.substitutions():
            found = re.sub(pattern, replacement, found)
        assert (found.lower() if settings.get("lowercase") else found) == cleaner.text(message)

    def test_lowercase(self) -> None:
        assert text("Hello ÉCOLE", lowercase=True) == "hello école"

    @pytest.mark.parametrize(
        "part",
        ["a", "a.", "a@", "@", ".", "1", "+1", "1 ", "1-", "(1)", "http://", "www.", "+1(1", "a-", "'", "com.", "im "],
    )
    def test_time_is_linear(self, part: str) -> None:
        message = part * (200_000 // len(part)) + " @.com +1 dont"
        start = time.process_time()
        text(message, restore_apostrophes=True)
        assert time.process_time() - start < 5


class TestDialogues:
    def test_turns_of_one_speaker_are_joined(self) -> None:
        cleaner = Cleaner(CleaningConfig())
        cleaned = cleaner(talk("Hi ", "there", "Hello", speakers=(4, 4, 1), split="test"))
        assert cleaned == Dialogue("a", ("Hi there", "Hello"), (4, 1), "test")
        assert cleaner.changed == {"messages joined to the one before": 1}

    def test_empty_messages_go_and_their_neighbours_meet(self) -> None:
        cleaner = Cleaner(CleaningConfig())
        cleaned = cleaner(talk("Hi", " \x07", "you", "Hello"))
        assert cleaned == Dialogue("a", ("Hi you", "Hello"), (0, 1))
        assert cleaner.changed["empty messages dropped"] == 1

    def test_min_turns_counts_turns_and_not_messages(self) -> None:
        cleaner = Cleaner(CleaningConfig(min_turns=2))
        assert cleaner(talk("Hi", "Anyone?", speakers=(0, 0))) is None
        assert cleaner(talk("Hi", " ")) is None
        assert cleaner(talk("Hi", "Hello")) is not None
        assert cleaner.dropped == {"fewer turns than min_turns": 1, "fewer turns than min_turns after cleaning": 1}

    def test_nothing_left(self) -> None:
        cleaner = Cleaner(CleaningConfig())
        assert cleaner(talk(" ", "\u202e")) is None
        assert cleaner(talk()) is None
        assert cleaner.dropped["empty after cleaning"] == 1

    def test_repetitive_dialogues(self) -> None:
        spam = talk(*["a", "b"] * 8)
        cleaner = Cleaner(CleaningConfig(spam_messages=15, spam_distinct=0.7))
        assert cleaner(spam) is None
        assert cleaner(talk(*["a", "b"] * 7)) is not None
        assert cleaner.dropped == {"repetitive": 1}
        assert Cleaner(CleaningConfig())(spam) is not None

    def test_duplicates_differ_in_more_than_capitals(self) -> None:
        cleaner = Cleaner(CleaningConfig())
        assert cleaner(talk("Hello?", "hi")) is not None
        assert cleaner(talk("hello?", " Hi ", id="b")) is None
        assert cleaner(talk("hello? hi", id="c")) is not None
        assert cleaner.dropped == {"duplicate": 1}

    def test_dialogues_that_differ_are_told_apart(self) -> None:
        cleaner = Cleaner(CleaningConfig())
        assert all(cleaner(talk(f"number {n}")) for n in range(20_000))

    def test_duplicates_kept(self) -> None:
        cleaner = Cleaner(CleaningConfig(drop_duplicates=False))
        assert cleaner(talk("Hello?")) == cleaner(talk("Hello?"))

    def test_digests_are_a_set_that_grows(self) -> None:
        """Most of them stand close together at the end of the array, so that places are searched for across it."""
        draw = random.Random(0)
        numbers = [draw.choice([draw.getrandbits(64), 2**64 - 1 - draw.randrange(5000)]) for _ in range(20_000)]
        digests, expected = Digests(), set[int]()
        for number in [*numbers, *numbers[:100]]:
            assert digests.add(number.to_bytes(8, "little")) == (number not in expected)
            expected.add(number)
        assert len(digests) == len(expected)

    def test_the_digest_that_marks_a_free_place_is_kept_too(self) -> None:
        digests = Digests()
        assert [digests.add(bytes(8)) for _ in range(2)] == [True, False]

    def test_a_digest_takes_at_most_24_bytes(self) -> None:
        digests = Digests()
        for number in range(1, 30_001):
            digests.add((number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "little"))
            if number > 1000:
                assert sys.getsizeof(digests._places) <= 24 * number + 100

    def test_changes_are_counted(self) -> None:
        cleaner = Cleaner(CleaningConfig(restore_apostrophes=True))
        cleaner(talk("a@b.org c@d.org \u2019tis", "www.x.org @ann 801-555-0142 or 801-555-0143", "sooooo dont\x07"))
        assert cleaner.changed == {
            "masked <email>": 2,
            "masked <url>": 1,
            "masked <user>": 1,
            "masked <phone>": 2,
            "quotes straightened": 1,
            "runs of one character cut": 1,
            "apostrophes restored": 1,
            "control characters removed": 1,
        }


@pytest.mark.parametrize(("speakers", "turns"), [((), 0), ((0,), 1), ((0, 0), 1), ((0, 1, 1, 0), 3)])
def test_count_turns(speakers: tuple[int, ...], turns: int) -> None:
    assert count_turns(speakers) == turns


def test_sentences_are_the_messages_and_sentences_of_turns_that_have_several() -> None:
    said = ("Hello", "How are you? I am fine.", "Yes.", "Well. Well. Bye")
    dialogue = Dialogue("d", said, (0, 0, 1, 0))
    cleaner = Cleaner(CleaningConfig(sentences=True))
    assert cleaner(dialogue).turns == ("Hello How are you? I am fine.", "Yes.", "Well. Well. Bye")
    assert cleaner.sentences == ["Hello", "How are you? I am fine.", "How are you?", "I am fine.", "Well.", "Bye"]
    plain = Cleaner(CleaningConfig())
    plain(dialogue)
    assert plain.sentences == []
