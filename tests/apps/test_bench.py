"""What is compared is the same work, and the figures are of the right things; that they are high enough is a slow test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

from vrae.apps import bench as module
from vrae.apps.bench import Step, Writer, bench, gpt2_time_ratio, tokens_ratio, train_of_matmul
from vrae.apps.cli import main
from vrae.apps.gpt2 import GPT2, memory_ratios
from vrae.config import CHITCHAT_CLEANING, BatchConfig, ModelConfig, PrepareConfig, RunConfig, SourceConfig, TrainConfig
from vrae.corpus.prepared import Corpus, prepare
from vrae.errors import UserError

CPU = torch.device("cpu")


def step(corpus: Corpus, context_turns: int = 0) -> Step:
    model = ModelConfig(**{**TINY, "vocab_size": 0, "context_turns": context_turns})
    batches = BatchConfig(tokens=160, max_turn_tokens=24, segment_turns=4)
    return Step(RunConfig(model=model, batches=batches, train=TrainConfig(device="cpu", precision="fp32")), corpus)


def test_steps_are_set_against_their_own_products(corpus: Corpus) -> None:
    rates = train_of_matmul(step(corpus), minutes=0)
    assert 0 < rates.train_of_matmul < 1.5
    assert rates.train_of_matmul == pytest.approx(rates.train / rates.matmul, rel=1)
    assert 0 <= rates.padding < 0.2  # with widths like these the gradients of biases weigh something
    assert rates.tokens_per_second > 0


def test_a_step_learns(corpus: Corpus) -> None:
    one = step(corpus)
    before = [parameter.detach().clone() for parameter in one.model.parameters()]
    one.run(0)
    assert not all(old.equal(new) for old, new in zip(before, one.model.parameters(), strict=True))


def test_what_repeats_turns_of_other_batches_counts_as_waste(corpus: Corpus) -> None:
    assert step(corpus, context_turns=2).wasted(0) > step(corpus).wasted(0)


def test_the_same_steps_have_the_same_rate(corpus: Corpus) -> None:
    assert 0.2 < tokens_ratio(step(corpus), step(corpus), minutes=0) < 5


def test_texts_are_counted_as_they_are_written(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 12)
    writer = Writer.fresh(corpus, CPU)
    writer.write([["hello"], ["see you"]], seed=1)
    assert writer.lengths[:2] == [[24] * 12, [24] * 8]
    assert {length for texts in writer.lengths for length in texts} == {24}  # what is nearly the same is drawn again
    assert writer.products([["hello"], ["see you"]]).operations > 2 * 20 * 24 * len(corpus.tokenizer) * 256


def test_writing_is_set_against_its_own_products(corpus: Corpus) -> None:
    writer = Writer.fresh(corpus, CPU)
    assert 0 < writer.bulk_of_matmul([["hello"]], seconds=0) < 1.2
    assert 0 < writer.respond_ms(["hello"], seconds=0) < 60_000


def test_the_other_model_is_asked_for_as_much(corpus: Corpus) -> None:
    class Other:
        def write(self, read: int, replies: int, tokens: int) -> None:
            asked.append((read, replies, tokens))

    asked: list[tuple[int, int, int]] = []
    read = len(corpus.tokenizer.encode(["hello how are you"])[0]) + 1
    assert gpt2_time_ratio(Writer.fresh(corpus, CPU), ["hello how are you"], Other(), 0) > 0  # type: ignore[arg-type]
    assert set(asked) == {(read, 10, 24)}


def test_without_transformers_the_figure_is_missing_and_a_line_says_why(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(module, "_HIDDEN", 8)
    monkeypatch.setattr(module, "_CONTEXTS", 2)
    monkeypatch.setattr(module, "_TOKENS", 3)
    real = module.bench
    monkeypatch.setattr(module, "bench", lambda *given: real(*given, seconds=0))
    assert main(["bench", "--data", str(corpus.path), "--device", "cpu", "--json"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert list(found) == [
        *("train_of_matmul", "padding", "k5_of_k1", "respond_ms", "bulk_of_matmul"),
        *("gpt2_time_ratio", "gpt2_memory_ratio", "gpt2_process_ratio", "device", "precision", "threads"),
    ]
    assert [name for name, value in found.items() if value is None] == [name for name in found if name.startswith("gpt2")]
    assert (found["device"], found["threads"]) == ("cpu", torch.get_num_threads())
    assert "pip install 'vrae[bench]'" in output.err


def test_what_is_not_there_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        bench(str(corpus.path), str(tmp_path / "none"), "cpu", 0)
    assert main(["bench", "--data", str(corpus.path), "--threads", "-1"]) == 2


@pytest.mark.slow
def test_no_rate_has_fallen(tmp_path: Path) -> None:
    """The best of several, and each against the products made beside it: a busy machine slows both."""
    corpus = prepare(PrepareConfig(SourceConfig("chitchat"), CHITCHAT_CLEANING), tmp_path / "corpus", quiet=True)
    model = ModelConfig(hidden_size=256)
    training = Step(RunConfig(model=model, batches=BatchConfig(tokens=4096), train=TrainConfig(device="cpu")), corpus)
    assert max(train_of_matmul(training, minutes=0).train_of_matmul for _ in range(4)) > 0.35
    writer, contexts = Writer.fresh(corpus, CPU), [["hello", f"how are you, number {i}?"] for i in range(26)]
    assert max(writer.bulk_of_matmul(contexts, seconds=0) for _ in range(4)) > 0.25


@pytest.mark.slow
def test_gpt2_takes_more_time_and_memory(corpus: Corpus) -> None:
    pytest.importorskip("transformers")
    writer = Writer.fresh(corpus, CPU)
    assert gpt2_time_ratio(writer, ["hello"], GPT2(CPU), 0) > 10
    ratios = memory_ratios(writer.model.config, 24, 10)
    if ratios:
        assert ratios.own > 5 > ratios.whole > 1
