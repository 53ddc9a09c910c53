"""The DailyDialog table: contexts and targets by hand, settings and fixed replies by their rules, one small run of it all."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import dailydialog
import dailydialog_baselines as baselines
import numpy as np
import pytest
from conftest import WORDS
from dailydialog_protocol import Context, Records, choose, contexts_of, even_sample, read_corpus, score
from dailydialog_report import PUBLISHED, Row, below_random, rows_of, write_report

from vrae.config import SPLITS
from vrae.errors import UserError
from vrae.evaluation.bleu import method7_bleu

TALK = {
    "train": ["Hi ! __eou__ How are you ? __eou__ I ’ m fine . __eou__", "Hi ! __eou__ Bye . __eou__ So soon ? __eou__"],
    "validation": ["Hello . __eou__ Hi there . __eou__"],
    "test": [
        "Hi ! __eou__ How are you ? __eou__ Not well . __eou__ Oh . __eou__",
        " ".join(f"Turn {i} __eou__" for i in range(12)),
        f"{'so ' * 50} __eou__ good __eou__",
    ],
}


def write_talk(folder: Path, talk: dict[str, list[str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in talk.items():
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def found(**values: Any) -> dict[str, Any]:
    """A record as `score` makes it."""
    bleu = {"precision": 0.2, "recall": 0.3, "f1": values.pop("f1", 0.24), "statement": "legacy: so; contexts: 2"}
    inter = {"inter_1": 0.5, "inter_2": 0.7, "intra_1": 0.9, "intra_2": 1.0, "corpus_1": 0.1, "corpus_2": 0.2}
    figures = {"contexts": 2, "reference_words": 3.0, "words": 9.0, "bleu": {"legacy": bleu, "standard": bleu}, **inter}
    return {"system": "hred", "seed": 1, "setting": "greedy", "examples": ["so"], **figures, **values}


def test_every_turn_but_the_last_is_predicted_from_nine_at_most(tmp_path: Path) -> None:
    corpus = read_corpus(write_talk(tmp_path, TALK))
    first, long, cut = corpus["test"]
    contexts = contexts_of(corpus["test"], corpus["train"])
    assert len(contexts) == 3 + 11 + 1
    assert [(c.turns, c.reply) for c in contexts[:3]] == [
        ((), ("hi", "!")),
        ((("hi", "!"),), ("how", "are", "you", "?")),
        ((("hi", "!"), ("how", "are", "you", "?")), ("not", "well", ".")),
    ]
    assert contexts[3].turns == ()
    assert contexts[13].turns == tuple(("turn", str(i)) for i in range(1, 10))
    assert contexts[13].reply == ("turn", "10")
    assert cut[0] == ("so",) * 38
    assert [c.seen for c in contexts[:4]] == [True, True, False, False]
    assert corpus["train"][0][2] == ("i", "'", "m", "fine", ".")
    assert len(first) == 4
    assert len(long) == 12


def test_a_reply_is_seen_after_the_same_turn_alone() -> None:
    a, b, c = ("a",), ("b",), ("c",)
    training = [[a, b], [c, a]]
    seen = {(x.turns, x.reply): x.seen for x in contexts_of([[a, b, c], [b, a, b], [a, c, a]], training)}
    assert seen == {
        ((), a): True,
        ((a,), b): True,
        ((), b): False,  # b begins no training dialogue
        ((b,), a): False,
        ((a,), c): False,
    }


def test_the_number_of_contexts_is_that_of_the_papers() -> None:
    folder = os.environ.get("DAILYDIALOG", "")
    if not folder:
        pytest.skip("DAILYDIALOG names no folder with the data set, which is not free")
    corpus = read_corpus(Path(folder))
    assert {split: len(corpus[split]) for split in SPLITS} == {"train": 11118, "validation": 1000, "test": 1000}
    assert len(contexts_of(corpus["test"], corpus["train"])) == 6740


def test_an_even_sample_begins_at_the_first_and_repeats_none() -> None:
    contexts = [Context((), (str(i),), False) for i in range(10)]
    assert [c.reply[0] for c in even_sample(contexts, 4)] == ["0", "2", "5", "7"]
    assert even_sample(contexts, 99) == contexts


def test_figures_are_means_over_contexts_and_of_those_unseen() -> None:
    """The best of two replies is recall, their mean precision; F1 of the means."""
    contexts = [Context((), ("good", "morning", "to", "you"), True), Context((), ("so", "it", "is"), False)]
    replies = [["good morning to you", "what"], ["it is", "no no no"]]

    def bleu(reference: str, reply: str) -> float:
        return method7_bleu([*reference.split(), "</s>"], [*reply.split(), "</s>"], "legacy")

    table = [[bleu(" ".join(c.reply), reply) for reply in some] for c, some in zip(contexts, replies, strict=True)]
    recall, precision = np.mean([max(row) for row in table]), np.mean(table)
    figures = score(contexts, replies, "by hand", ["legacy"])
    assert figures["bleu"]["legacy"]["recall"] == pytest.approx(recall)
    assert figures["bleu"]["legacy"]["precision"] == pytest.approx(precision)
    assert figures["bleu"]["legacy"]["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert figures["unseen"]["bleu"]["legacy"]["recall"] == pytest.approx(max(table[1]))
    assert figures["words"] == pytest.approx((4 + 1 + 2 + 3) / 4)
    assert figures["reference_words"] == pytest.approx(3.5)
    assert figures["inter_1"] == pytest.approx((5 / 5 + 3 / 5) / 2, abs=1e-5)


def test_the_longest_replies_are_kept_and_of_equal_ones_the_earlier() -> None:
    replies = [("a",), ("b", "c"), ("d", "e", "f"), ("g", "h"), ()]
    assert baselines.longest(replies, 2) == [("d", "e", "f"), ("b", "c")]


def test_random_turns_of_the_same_lengths_stand_in_for_replies() -> None:
    """Equal replies get equal turns, and where no turn is so long the nearest length serves."""
    material = baselines.Material([[(f"{i}",) * n for n in (1, 2, 5) for i in range(50)]], ())
    (some,) = baselines.same_lengths(material, [["a b", "c d", "a b", "a b c d e f g", "", "!"]], 1)
    assert [len(reply.split()) for reply in some] == [2, 2, 2, 5, 1, 1]
    assert some[0] == some[2] != some[1]
    (known,) = baselines.true_length(material, [Context((), ("a", "b"), False)], 1)
    assert {len(reply.split()) for reply in known} == {2}
    assert len(set(known)) > 5


def test_the_setting_chosen_is_the_best_of_those_varied_enough() -> None:
    def chosen(**f1_and_inter: tuple[float, float, float]) -> str:
        records = [found(setting=s, f1=f1, inter_1=a, inter_2=b) for s, (f1, a, b) in f1_and_inter.items()]
        return choose([*records, found(system="vhred", setting="other", f1=9.9)], "hred")

    assert chosen(cold=(0.9, 0.1, 0.9), warm=(0.3, 0.5, 0.7), hot=(0.4, 0.5, 0.7)) == "hot"
    assert chosen(cold=(0.9, 0.1, 0.9), warm=(0.3, 0.5, 0.7), hot=(0.4, 0.5, 0.59)) == "warm"
    assert chosen(cold=(0.9, 0.1, 0.2), hot=(0.4, 0.1, 0.3)) == "hot"


def test_a_setting_is_chosen_by_its_mean_over_seeds() -> None:
    records = [found(setting=s, seed=n, f1=f1) for s, n, f1 in (("a", 1, 0.5), ("a", 2, 0.1), ("b", 1, 0.35), ("b", 2, 0.35))]
    assert choose(records, "hred") == "b"


@pytest.mark.parametrize("latent", [True, False])
def test_settings_have_names_of_their_own_and_the_papers_is_among_them(latent: bool) -> None:
    tried = dailydialog.settings(latent)
    assert dailydialog.PAPERS in tried
    assert len({setting.name for setting in tried}) == len(tried)


def test_fixed_replies_are_chosen_one_after_the_other_for_f1() -> None:
    scores_RH = np.random.default_rng(0).random((6, 8))

    def f1(columns: list[int]) -> float:
        precision, recall = scores_RH[:, columns].mean(), scores_RH[:, columns].max(1).mean()
        return float(2 * precision * recall / (precision + recall))

    chosen: list[int] = []
    for _ in range(3):
        chosen.append(max(set(range(8)) - set(chosen), key=lambda h: f1([*chosen, h])))
    assert baselines.greedy_set(scores_RH, 3) == chosen
    assert len(set(baselines.greedy_set(scores_RH * [9, 1, 1, 1, 1, 1, 1, 1], 3))) == 3  # the best is taken once


def test_the_nearest_context_is_the_one_that_shares_rare_words() -> None:
    training = [
        [("do", "you", "like", "tea"), ("green", "tea"), ("fine",)],
        [("do", "you", "like", "cats"), ("cats", "purr"), ("fine",)],
        [("do", "you", "swim"), ("in", "summer"), ("fine",)],
    ]
    asked = [Context((("cats",),), ("x",), False), Context((), ("x",), False)]
    cats, opening = baselines.nearest(baselines.Material(training, ()), asked, 1)
    assert cats[0] == "cats purr"
    assert set(opening) <= {" ".join(dialogue[0]) for dialogue in training}


def test_random_replies_have_the_length_asked_for_and_hang_on_the_seed() -> None:
    material = baselines.Material([[("a",) * n for n in range(1, 39)]], ())
    asked = [Context((), ("x",), False)] * 3
    draw = baselines.drawn(10, 19)
    replies = draw(material, asked, 1)
    assert all(sorted(len(reply.split()) for reply in some) == list(range(10, 20)) for some in replies)
    assert replies == draw(material, asked, 1) != draw(material, asked, 2)


def test_one_pair_right_scores_less_than_none_from_five_words_on() -> None:
    """What the report says of the metric: two words of the true reply, side by side or apart."""
    for words in range(3, 39):
        rest, reference = ["x"] * (words - 2), ["a", "b", "</s>"]
        pair = method7_bleu(reference, ["a", "b", *rest, "</s>"], "legacy")
        apart = method7_bleu(reference, ["b", *rest, "a", "</s>"], "legacy")
        assert (pair < apart) is (words >= 5)


def test_published_f1_is_that_of_their_precision_and_recall() -> None:
    stated = [0.232, 0.270, 0.242, 0.239, 0.251, 0.265, 0.277, 0.306, 0.323]
    assert [row.f1 for row in PUBLISHED] == pytest.approx(stated, abs=0.0006)


def test_a_row_is_the_mean_over_seeds_with_its_spread() -> None:
    row = Row("hred", "papers", [found(words=8.0), found(words=10.0), found(words=12.0)])
    assert row.cell("words", decimals=1) == "10.0 ± 2.0"
    assert row.cell("nothing") == "-"


def test_a_model_has_two_rows_where_another_setting_was_chosen() -> None:
    test = [found(system=name, setting="") for name in ("fixed", "random")]
    test += [found(), found(setting="T 1"), found(setting="T 2")]
    validation = [found(), found(setting="T 1", f1=0.5)]
    assert [(row.system, row.rule, row.setting) for row in rows_of(test, validation)] == [
        ("hred", "papers", "greedy"),
        ("hred", "chosen", "T 1"),
        ("random", "", ""),
        ("fixed", "", ""),
    ]
    assert [row.rule for row in rows_of(test, [found()])] == ["chosen", "", ""]


def test_published_rows_are_held_against_random_turns_of_their_length() -> None:
    """A line from 0.20 at 10 words to 0.30 at 20: CVAE, CVAE-BOW and HRED are above it, and others below."""
    baselines = [
        Row(f"random-{least}-{most}", "", [found(words=words, f1=f1)])
        for least, most, words, f1 in ((1, 9, 0.0, 0.1), (10, 19, 10.0, 0.2), (20, 29, 20.0, 0.3), (30, 38, 30.0, 0.4))
    ]
    above = [p.name for p in PUBLISHED if p.f1 >= 0.1 + p.words / 100]
    assert {"CVAE", "CVAE-BOW", "HRED"} <= set(above)
    assert below_random(baselines) == len(PUBLISHED) - len(above) > 0
    assert below_random([]) == 0


def test_the_report_is_made_of_what_is_stored(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for seed, f1 in ((1, 0.330), (2, 0.332)):
        for kind in ("test", "validation"):
            records.get(f"{kind}/vhred.{seed}", lambda f1=f1, seed=seed: found(system="vhred", seed=seed, f1=f1))
    records.get("test/random.1", lambda: found(system="random", setting="", f1=0.111))
    write_report(records, tmp_path / "report.png")
    text = (tmp_path / "README.md").read_text()
    assert "| vhred | chosen: greedy | 2 | 0.200 ± 0.000 | 0.300 ± 0.000 | 0.331 ± 0.001 |" in text
    assert "| random | no model | 1 | 0.200 | 0.300 | 0.111 |" in text
    assert "*DialogWAE-GMP, published*" in text
    assert "recalled from the literature" in text
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_without_records_there_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        dailydialog.main(["--records", str(tmp_path / "none"), "--report"])
    assert stop.value.code == 2
    assert str(tmp_path / "none" / "test") in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_all_of_it_runs_and_nothing_is_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    talk = {
        split: [
            "".join(f"{' '.join(draw.choices(WORDS, k=draw.randint(1, 30)))} __eou__ " for _ in range(draw.randint(2, 5)))
            for _ in range(count)
        ]
        for split, count in (("train", 40), ("validation", 6), ("test", 6))
    }
    data, out, kept = write_talk(tmp_path / "data", talk), tmp_path / "out", tmp_path / "records"
    small = ["--max_steps", "3", "--vocab_size", "400", "--chosen_on", "4", "--contexts", "5", "--seeds", "1"]
    command = [
        "--data",
        str(data),
        "--out",
        str(out),
        "--records",
        str(kept),
        "--picture",
        str(tmp_path / "report.png"),
        *small,
        "--only",
        "cvae",
        "random",
        "fixed",
    ]
    tried = {True: dailydialog.settings(True)[:2], False: dailydialog.settings(False)[:2]}
    monkeypatch.setattr(dailydialog, "settings", tried.__getitem__)
    dailydialog.main(command)
    dailydialog.main([*command, "--seeds", "2"])  # by itself it chooses no setting anew
    assert {path.name.split(".")[1] for path in (kept / "validation").iterdir()} == {"1"}
    files = {path: path.stat().st_mtime_ns for path in kept.rglob("*.json")}
    names = {path.relative_to(kept).as_posix() for path in files}
    assert {"training/cvae.1.json", "test/random.1.json", "test/cvae.1.greedy.json", "test/cvae.2.greedy.json"} <= names
    record = json.loads((kept / "test" / "cvae.1.greedy.json").read_bytes())
    assert record["contexts"] == record["lengths_alone"]["contexts"] == 5
    assert len(record["examples"]) == 10
    assert record["bleu"].keys() == {"legacy", "standard"}

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("done twice")

    for name in ("train", "score", "prepare"):
        monkeypatch.setattr(dailydialog, name, again)
    dailydialog.main(command)
    with pytest.raises(SystemExit, match="other settings"):
        dailydialog.main([*command, "--max_steps", "4"])
    dailydialog.main(["--records", str(kept), "--picture", str(tmp_path / "report.png"), "--report"])
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.json")} == files
    text = (kept / "README.md").read_text()
    assert all(f"| {name} |" in text for name in ("cvae", "random", "fixed"))


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer is asked to resume, and a run without a record of its end is taken up again."""
    asked = []

    def stop(config: Any, corpus: Any, run: Path, *, resume: bool) -> None:
        asked.append((run, resume))
        raise UserError("stopped")

    monkeypatch.setattr(dailydialog, "train", stop)
    data = write_talk(tmp_path / "data", {split: [" ".join(WORDS) + " __eou__ hello __eou__"] * 9 for split in SPLITS})
    kept = tmp_path / "records"
    folders = [
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--records",
        str(kept),
        "--picture",
        str(tmp_path / "report.png"),
    ]
    command = [*folders, "--only", "hred", "--seeds", "2", "--vocab_size", "330"]
    for _ in range(2):
        with pytest.raises(SystemExit, match="stopped"):
            dailydialog.main(command)
    assert asked == [(tmp_path / "out" / "runs" / "hred.2", True)] * 2
    assert not list(kept.rglob("*.json"))
