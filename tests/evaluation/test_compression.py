"""Files there and back, whatever is in them; the bits they take against the bound; and no container opened in vain."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, make_dialogues, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from vrae.corpus.batches import Window, collate
from vrae.corpus.prepared import Corpus
from vrae.corpus.tokenizer import Tokenizer
from vrae.errors import DataError, ModelError, UserError
from vrae.evaluation import bits_back, compression
from vrae.evaluation.compression import MAX_LINE_BYTES, Account, compress, decompress, expected_bits
from vrae.evaluation.container import unpack
from vrae.generation.pipeline import Pipeline

FRAME = struct.Struct("<5sBII")  # magic, format, checksum of the rest, size of the header
DIALOGUES = make_dialogues(4, seed=1)
TALK = ("\n\n".join("\n".join(turns) for turns in DIALOGUES) + "\n").encode()

MODELS = [(0, 0), (0, 4), (2, 0), (2, 4)]
every_model = pytest.mark.parametrize(("context_turns", "latent_size"), MODELS)


@cache
def build(tokenizer: Tokenizer, context_turns: int, latent_size: int, seed: int = 0) -> Pipeline:
    """Single precision, as outside of tests; posteriors narrower than the prior and not far from it."""
    model = tiny_model(seed, vocab_size=len(tokenizer), context_turns=context_turns, latent_size=latent_size, speakers=True)
    with torch.no_grad():
        if latent_size:
            posterior: Any = model.posterior
            posterior.out.weight *= 0.5
            posterior.out.bias[latent_size:] = -2
    return Pipeline(model.float(), tokenizer, {})


@pytest.fixture
def pipeline(corpus: Corpus) -> Pipeline:
    return build(corpus.tokenizer, 2, 4)


@pytest.fixture
def container(pipeline: Pipeline) -> bytes:
    return compress(pipeline, TALK).container


def there_and_back(pipeline: Pipeline, text: bytes) -> Account:
    container, account = compress(pipeline, text)
    assert decompress(pipeline, container) == text
    # the whole container is accounted for, but for the padding to whole words
    rest = 8 * len(container) - account.bits_header - account.bits_initial - account.bits_net
    assert 0 <= rest <= 32
    assert (account.text_bytes, account.container_bytes) == (len(text), len(container))
    return account


def rewritten(container: bytes, change: Callable[[dict[str, Any]], None] = lambda header: None, code: bytes = b"") -> bytes:
    """The container with another header or code, and a checksum that fits."""
    _, _, _, size = FRAME.unpack_from(container)
    header = json.loads(container[FRAME.size : FRAME.size + size])
    change(header)
    head = json.dumps(header).encode()
    return packed(head, code or container[FRAME.size + size :])


def packed(head: bytes, code: bytes) -> bytes:
    body = struct.pack("<I", len(head)) + head + code
    return struct.pack("<5sBI", b"vraez", 1, zlib.crc32(body)) + body


class TestAnyFile:
    @every_model
    @pytest.mark.parametrize(
        ("text", "kinds"),  # turns, raw lines, blank lines
        [
            (b"", (0, 0, 1)),
            (b"\n", (0, 0, 2)),
            (b"\n\n\n", (0, 0, 4)),
            (b"hello", (1, 0, 0)),
            (b"hello\n", (1, 0, 1)),
            (b"hello\n\nhow are you\nfine", (3, 0, 1)),
            (b"hello\r\nhow are you\r\n", (2, 0, 1)),
            (b"hello\r\nhow are you\nfine", (2, 1, 0)),
            (b"hello\r", (0, 1, 0)),
            (b"\r\n", (0, 0, 2)),
            (b"\r\r\n\n", (0, 1, 2)),
            (b" hello\nhello \nhow  are\thow\n \n\t", (0, 5, 0)),
            (b"\xff\xfe\nhello\xc3\n\xc3\xa9\n\x80", (1, 3, 0)),
            (b"\0\n\x01\x02\nhello\0", (0, 3, 0)),
            ("naïve café 😀 🎉\nжду\n\u200d\n\ufeffa\n\u2028".encode(), (3, 2, 0)),
            (b"<url> <email>\n</s> <s> <unk> <pad>\n<0x41>", (3, 0, 0)),
        ],
    )  # fmt: skip
    def test_comes_back(
        self, corpus: Corpus, context_turns: int, latent_size: int, text: bytes, kinds: tuple[int, ...]
    ) -> None:
        account = there_and_back(build(corpus.tokenizer, context_turns, latent_size), text)
        assert (account.turns, account.raw_lines, account.blank_lines) == kinds

    def test_with_long_lines_comes_back(self, corpus: Corpus) -> None:
        foreign = "ж" * (MAX_LINE_BYTES // 2)  # two pieces each
        account = there_and_back(build(corpus.tokenizer, 2, 4), f"{foreign}\nhello\n{foreign}a\n{'a' * 50_000}".encode())
        assert (account.turns, account.raw_lines) == (2, 2)
        assert MAX_LINE_BYTES < account.tokens <= MAX_LINE_BYTES + 5

    @settings(max_examples=30, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        which=st.sampled_from(MODELS),
        lines=st.lists(
            st.one_of(
                st.sampled_from([b"", b"hello how are you", b"yes", *map(str.encode, WORDS)]),
                st.text(max_size=12).map(lambda text: text.encode("utf-8", "surrogatepass")),
                st.binary(max_size=12),
            ),
            max_size=7,
        ),
        newline=st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b"\n\r"]),
    )
    def test_of_random_lines_comes_back(
        self, corpus: Corpus, which: tuple[int, int], lines: list[bytes], newline: bytes
    ) -> None:
        there_and_back(build(corpus.tokenizer, *which), newline.join(lines))

    @every_model
    def test_comes_back_with_random_neighbours(self, corpus: Corpus, context_turns: int, latent_size: int) -> None:
        # what was computed in between must leave no trace
        pipeline = build(corpus.tokenizer, context_turns, latent_size)
        first, second = compress(pipeline, TALK).container, compress(pipeline, b"yes\n" * 9).container
        assert decompress(pipeline, second) == b"yes\n" * 9
        assert decompress(pipeline, first) == TALK
        assert compress(pipeline, TALK).container == first

    def test_is_as_long_as_allowed(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compression, "MAX_BYTES", 20)
        there_and_back(pipeline, b"hello\n" * 3)
        with pytest.raises(DataError, match=r"^the text has 24 bytes; at most 20 are coded in one piece"):
            compress(pipeline, b"hello\n" * 4)


class TestBits:
    @every_model
    def test_are_those_of_the_bound(self, corpus: Corpus, context_turns: int, latent_size: int) -> None:
        dialogues = make_dialogues(40, seed=2)
        text = "\n\n".join("\n".join(turns) for turns in dialogues).encode()
        pipeline = build(corpus.tokenizer, context_turns, latent_size)
        account, model = compress(pipeline, text).account, pipeline.model
        windows = []
        for turns in dialogues:
            ids = [np.array(ids) for ids in corpus.tokenizer.encode(turns)]
            for i, target in enumerate(ids):
                context = ids[max(i - context_turns, 0) : i]
                windows.append(Window(context, target, [(len(context) - j) % 2 == 0 for j in range(len(context))]))
        with torch.no_grad():
            torch.manual_seed(0)
            batch = collate(windows, context_turns)
            posterior, prior, context_BC = model.infer(batch)
            q, p = (Normal(g.mean_BZ, (g.log_var_BZ / 2).exp()) for g in (posterior, prior))
            rate = float(kl_divergence(q, p).sum()) / math.log(2)
            draws = [q.sample() for _ in range(20)]
            distortions_SB = -torch.stack([model.log_prob(batch, z_BZ, context_BC) for z_BZ in draws]) / math.log(2)
            ratios_SB = torch.stack([(q.log_prob(z_BZ) - p.log_prob(z_BZ)).sum(-1) for z_BZ in draws]) / math.log(2)
        distortion = float(distortions_SB.mean(0).sum())
        deviation = float((distortions_SB + ratios_SB).var(0).sum().sqrt())
        assert (account.turns, account.tokens) == (len(windows), batch.tokens)
        assert account.bits_turns == pytest.approx(distortion + rate, rel=0.01)
        assert abs(account.bits_turns - distortion - rate) < 3 * deviation + 1
        assert account.bits_tokens == pytest.approx(distortion, rel=0.01)
        assert account.bits_net == pytest.approx(account.bits_turns + account.bits_kinds)
        assert (account.bits_prior > account.bits_posterior > 1000) if latent_size else account.bits_posterior == 0
        expected = expected_bits(pipeline, text)
        assert expected.bits == pytest.approx(distortion + rate, rel=2e-3)
        assert expected.deviation == pytest.approx(deviation, rel=0.1)
        assert account.bits_turns > 100 * deviation  # or 1% would be a matter of chance
        assert (deviation > 1) == (latent_size > 0)

    def test_of_raw_lines_are_eight_a_byte(self, pipeline: Pipeline) -> None:
        account = there_and_back(pipeline, b" hello\n\xff\xff\nyes")
        assert account.bits_raw == pytest.approx(8 * (len(b" hello\n") + len(b"\xff\xff\n")), abs=0.01)
        assert account.tokens == len(pipeline.tokenizer.encode(["yes"])[0]) + 1

    def test_of_kinds_are_those_of_their_frequency(self, pipeline: Pipeline) -> None:
        account = there_and_back(pipeline, b"yes\n" * 12 + b"\n" * 3 + b" ")
        shares = [12 / 16, 3 / 16, 1 / 16]
        assert account.bits_kinds == pytest.approx(-16 * sum(share * math.log2(share) for share in shares), abs=0.05)
        assert there_and_back(pipeline, b"yes\nno").bits_kinds == pytest.approx(0, abs=1e-3)

    def test_of_the_digest_are_whole_words_and_as_few_as_will_do(self, corpus: Corpus) -> None:
        assert there_and_back(build(corpus.tokenizer, 0, 0), TALK).bits_initial == pytest.approx(128, abs=1)
        account = there_and_back(build(corpus.tokenizer, 0, 40), TALK)
        assert account.bits_initial < 2 * account.bits_posterior / account.turns
        assert account.bits_initial % 32 < 1

    def test_are_those_of_windows_that_end_at_blank_lines(self, pipeline: Pipeline) -> None:
        lines, _ = compression._read_lines(pipeline, b"a\n\nb\n c\nd\n e\n\n\nf\ng\nh\ni")
        ids = {letter: pipeline.tokenizer.encode([letter])[0] for letter in "abcdefghi"}
        found = [([turn.tolist() for turn in line.window.context], line.window.same_speaker) for line in lines]
        assert [line.kind for line in lines] == [0, 2, 0, 1, 0, 1, 2, 2, 0, 0, 0, 0]
        assert found[0] == found[2] == found[8] == ([], [])
        assert found[4] == ([ids["b"], []], [1, 0])  # the raw line is an empty turn
        assert [found[i] for i in (9, 10, 11)] == [
            ([ids["f"]], [0]),
            ([ids["f"], ids["g"]], [1, 0]),
            ([ids["g"], ids["h"]], [1, 0]),
        ]


class TestManners:
    @pytest.mark.parametrize("fails", [False, True])
    def test_threads_and_random_state_stay_as_they_were(
        self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, fails: bool
    ) -> None:
        threads, state = [3], torch.get_rng_state()
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
        monkeypatch.setattr(torch, "set_num_threads", threads.append)
        if fails:
            monkeypatch.setattr(pipeline.model.decoder, "step", None)
            with pytest.raises(TypeError):
                compress(pipeline, TALK)
        else:
            expected_bits(pipeline, TALK)
            compress(pipeline, TALK)
        assert threads == [3, 1, 3]
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.is_inference_mode_enabled()

    def test_quiet_is_quiet(self, pipeline: Pipeline, capfd: pytest.CaptureFixture[str]) -> None:
        decompress(pipeline, compress(pipeline, TALK, quiet=False).container, quiet=False)  # no terminal here
        assert capfd.readouterr() == ("", "")

    def test_the_header_is_small_and_readable(self, container: bytes) -> None:
        magic, number, checksum, size = FRAME.unpack_from(container)
        assert (magic, number, checksum) == (b"vraez", 1, zlib.crc32(container[10:]))
        header = json.loads(container[FRAME.size : FRAME.size + size])
        assert size < 350
        assert (header["size"], header["turns"], header["raw"]) == (len(TALK), sum(map(len, DIALOGUES)), 0)


class TestRefusals:
    def test_of_another_model(self, corpus: Corpus, container: bytes) -> None:
        with pytest.raises(ModelError, match=r"^talk.vrae: compressed with another model: weights .{16}, tokenizer .* --model"):
            decompress(build(corpus.tokenizer, 2, 4, seed=1), container, name="talk.vrae")

    def test_of_another_tokenizer(self, pipeline: Pipeline, container: bytes) -> None:
        other = Tokenizer(pipeline.tokenizer.model)
        other.sha256 = "0" * 64
        with pytest.raises(ModelError, match=r"tokenizer .{16}; here .{16}, 0{16}. Pass as --model"):
            decompress(Pipeline(pipeline.model, other, {}), container)

    def test_of_other_versions(self, pipeline: Pipeline, container: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "__version__", "9.9")
        with pytest.raises(UserError, match=r"compressed under torch 2.*; here is torch 9\.9, .* where it was compressed"):
            decompress(pipeline, container)

    def test_of_another_processor(self, pipeline: Pipeline, container: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
        with pytest.raises(UserError, match=r"here is torch .*, ABACUS\."):
            decompress(pipeline, container)

    @pytest.mark.parametrize("place", ["_probabilities", "_in_prior_units"])
    def test_of_other_arithmetic(
        self, pipeline: Pipeline, container: bytes, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        exact = getattr(bits_back, place)

        def inexact(*arguments: Any) -> Any:
            result = exact(*arguments)
            return result * (1 + 1e-7) if place == "_probabilities" else (result[0] * (1 + 1e-7), result[1])

        monkeypatch.setattr(bits_back, place, inexact)
        with pytest.raises(UserError, match=r"compressed where the model computes other numbers .* on the processor"):
            decompress(pipeline, container)

    def test_of_another_coder(self, pipeline: Pipeline, container: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bits_back.Probe, "words", np.arange(9, dtype=np.uint32))
        with pytest.raises(UserError, match=r"compressed where the model computes other numbers"):
            decompress(pipeline, container)

    def test_of_a_model_elsewhere(self, pipeline: Pipeline, container: bytes) -> None:
        away = Pipeline(tiny_model(vocab_size=len(pipeline.tokenizer)).to("meta"), pipeline.tokenizer, {})
        for work in (lambda: compress(away, b"yes"), lambda: decompress(away, container)):
            with pytest.raises(UserError, match=r"on the cpu, not meta"):
                work()

    @pytest.mark.parametrize("settings_", [dict(flow_steps=2), dict(context_turns=2, prior="mixture")])
    def test_of_densities_that_are_not_gaussian(self, corpus: Corpus, settings_: dict[str, Any]) -> None:
        model = tiny_model(vocab_size=len(corpus.tokenizer), **settings_)
        with pytest.raises(ModelError, match=r"needs a diagonal Gaussian"):
            compress(Pipeline(model, corpus.tokenizer, {}), b"yes")


class TestDamage:
    def test_of_any_bit_is_found(self, pipeline: Pipeline, container: bytes) -> None:
        for place in [*range(14), *range(14, len(container), 23), len(container) - 1]:
            damaged = bytearray(container)
            damaged[place] ^= 1 << place % 8
            with pytest.raises(DataError, match=r"^x.vrae: (not a file|container format|damaged or cut short)"):
                decompress(pipeline, bytes(damaged), name="x.vrae")

    def test_of_any_end_is_found(self, pipeline: Pipeline, container: bytes) -> None:
        for size in [*range(20), *range(20, len(container), 31), len(container) - 1]:
            with pytest.raises(DataError, match=r"^x.vrae: (not a file that `vrae compress` has written|damaged or cut short)"):
                decompress(pipeline, container[:size], name="x.vrae")
        with pytest.raises(DataError, match=r"damaged or cut short"):
            decompress(pipeline, container + b"\0")

    def test_a_container_of_the_future_is_named(self, pipeline: Pipeline, container: bytes) -> None:
        with pytest.raises(DataError, match=r"container format 2, this vrae reads 1"):
            decompress(pipeline, container[:5] + b"\2" + container[6:])

    def test_of_code_with_its_checksum_mended_is_found(self, pipeline: Pipeline, container: bytes) -> None:
        _, _, _, size = FRAME.unpack_from(container)
        code = container[FRAME.size + size :]
        random = np.random.default_rng(0)
        codes = [code[:-4], code[4:], code[4:8], code + code, code[:-1], code + bytes(4), bytes(8), random.bytes(4000)]
        for place in range(0, len(code), 61):
            codes.append(code[:place] + bytes([code[place] ^ 4]) + code[place + 1 :])
        for damaged in codes:
            with pytest.raises(DataError, match=r"^container: damaged: (no text can|the text that|no coder leaves)"):
                decompress(pipeline, rewritten(container, code=damaged))

    @pytest.mark.parametrize(
        "change",
        [
            dict(size=10**15), dict(size=-1), dict(size=0), dict(size=len(TALK) - 1), dict(turns=-1), dict(turns=10**9),
            dict(turns=0, raw=0, blank=0), dict(raw=2000), dict(blank=0), dict(turns=5), dict(crlf=True), dict(reach=2**40),
            dict(spread=0), dict(reach=1, spread=1), dict(fineness=-(10**9)), dict(fineness=1000), dict(fineness=-1000),
            dict(digest_words=10**12), dict(digest_words=-1), dict(digest_words=0), dict(size="many"), dict(size=1.5),
            dict(turns=True), dict(more=1), dict(size=None), dict(size=[]),
        ],
    )  # fmt: skip
    def test_of_the_header_is_found(self, pipeline: Pipeline, container: bytes, change: dict[str, Any]) -> None:
        with pytest.raises(DataError, match=r"^container: damaged"):
            decompress(pipeline, rewritten(container, lambda header: header.update(change)))

    @pytest.mark.parametrize(
        "head", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"{}", b'{"size":' + b"9" * 9999 + b"}"]
    )
    def test_of_the_json_is_found(self, pipeline: Pipeline, head: bytes) -> None:
        with pytest.raises((DataError, ModelError), match=r"^container: (damaged|compressed with another model)"):
            decompress(pipeline, packed(head, b"code"))

    def test_of_the_size_of_the_header_is_found(self, pipeline: Pipeline, container: bytes) -> None:
        for size in (0, 5, len(container), 2**32 - 1):
            body = struct.pack("<I", size) + container[14:]
            with pytest.raises(DataError, match=r"^container: damaged"):
                decompress(pipeline, container[:6] + struct.pack("<I", zlib.crc32(body)) + body)

    def test_of_a_turn_that_another_text_has_is_found(self, pipeline: Pipeline) -> None:
        # all is well but for the digest at the bottom
        header = unpack(compress(pipeline, b"yes").container, "")[0]
        stack = bits_back.Stack(np.arange(1, 9, dtype=np.uint32), seal=True)
        with torch.inference_mode():
            compression._send(pipeline.model, header, stack, compression._read_lines(pipeline, b"yes")[0], True)
        forged = rewritten(compress(pipeline, b"yes").container, code=stack.words.astype("<u4").tobytes())
        with pytest.raises(DataError, match=r"the text that it holds does not match its digest"):
            decompress(pipeline, forged)


def test_accounts_are_plain_numbers(pipeline: Pipeline) -> None:
    for name, value in dataclasses.asdict(compress(pipeline, TALK).account).items():
        assert type(value) is (float if name.startswith("bits_") else int)
