"""A text file as a container of bits-back code, and back byte for byte.

The file has one turn a line and blank lines between dialogues. Before each line goes its kind: a blank line, which empties the
context; a turn, coded by the model (`bits_back.py`); or a raw line, sent as bytes, because the tokenizer does not give it back
exactly or because it is very long. Raw lines stand in contexts as empty turns. How frequent each kind is, the header says.

What goes on a stack last comes off first, so the sender starts at the end of the file. The receiver then reads it forwards, and
knows the context of each turn. The first draw of z needs bits that no turn has left. A digest of the file serves, and as it
comes to light when all else has been taken off, the receiver checks the file by it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from vrae.corpus.batches import Window, collate
from vrae.errors import DataError, UserError
from vrae.evaluation.bits_back import MAX_TOKENS, Grid, Stack, StackError, TurnCoder, entropy_coders, fit_grid
from vrae.evaluation.container import MAX_BYTES, Header, compare, identify, pack, unpack
from vrae.generation.pipeline import Pipeline
from vrae.model.gaussian import divergence
from vrae.model.vrae import VRAE

MAX_LINE_BYTES = MAX_TOKENS - 2  # of a turn: a piece for each byte, one for the start of the line, the end mark
TURN, RAW, BLANK = range(3)  # kinds of lines

_DIGEST_WORDS = 4  # at least, of 32 bits
_ROWS = 64  # windows in a batch
_NO_IDS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Account:
    """Where the bits of a container went. They are real numbers: what a symbol adds to log2 of the stack's state."""

    text_bytes: int
    container_bytes: int
    turns: int
    raw_lines: int
    blank_lines: int
    tokens: int  # of the turns, end marks included
    bits_prior: float  # paid for z
    bits_posterior: float  # got back from drawing z
    bits_tokens: float  # paid for the turns given z
    bits_kinds: float  # paid for the kinds of lines
    bits_raw: float  # paid for raw lines, 8 a byte
    bits_initial: float  # the digest
    bits_header: float

    @property
    def bits_turns(self) -> float:
        """What the turns took: -elbo in bits, but for chance in z, the grid, and probabilities of 24 bits."""
        return self.bits_prior - self.bits_posterior + self.bits_tokens

    @property
    def bits_net(self) -> float:
        """What all lines took. With the digest, the header and at most 32 bits of padding it is the container."""
        return self.bits_turns + self.bits_kinds + self.bits_raw


class Compressed(NamedTuple):
    container: bytes
    account: Account


class Expected(NamedTuple):
    """What the turns of a file take according to the model, in bits."""

    bits: float  # -elbo
    deviation: float  # standard deviation of what one coding takes, by chance in z


def compress(pipeline: Pipeline, text: bytes, *, quiet: bool = True) -> Compressed:
    """A file of turns as a container. Any bytes are allowed.

    Raises:
        DataError: more than MAX_BYTES.
        ModelError: the posterior or the prior of the model is not a diagonal Gaussian.
        UserError: the model is not on the CPU, or constriction is not installed.
    """
    if len(text) > MAX_BYTES:
        raise DataError(f"the text has {len(text):,} bytes; at most {MAX_BYTES:,} are coded in one piece. Split it")
    lines, crlf = _read_lines(pipeline, text)
    turns = [line.window for line in lines if line.kind == TURN]
    kinds = Counter(line.kind for line in lines)
    with _reproducibly(pipeline.model):
        identity = identify(pipeline)
        grid = fit_grid(pipeline.model, turns)
        # a place within `spread`, which is six standard deviations, has less than log2(spread) bits
        first_draw = pipeline.model.config.latent_size * math.log2(grid.spread)
        for words in count(max(_DIGEST_WORDS, math.ceil(first_draw / 32))):
            header = Header(*identity, len(text), crlf, kinds[TURN], kinds[RAW], kinds[BLANK], *grid, words)
            stack = Stack(_digest(text, words), seal=True)
            initial = stack.bits
            try:
                _send(pipeline.model, header, stack, lines, quiet)
                break
            except StackError:  # by chance the first draws want more bits
                continue
    container = pack(header, stack.words)
    account = Account(
        text_bytes=len(text),
        container_bytes=len(container),
        turns=kinds[TURN],
        raw_lines=kinds[RAW],
        blank_lines=kinds[BLANK],
        tokens=sum(len(window.target) + 1 for window in turns),
        bits_prior=stack.growth["prior"],
        bits_posterior=-stack.growth["posterior"],
        bits_tokens=stack.growth["tokens"],
        bits_kinds=stack.growth["kinds"],
        bits_raw=stack.growth["raw"],
        bits_initial=initial,
        bits_header=8.0 * len(container) - 32 * len(stack.words),
    )
    return Compressed(container, account)


def decompress(pipeline: Pipeline, container: bytes, *, name: str = "container", quiet: bool = True) -> bytes:
    """The file that `compress` was given.

    Args:
        pipeline: with the model that it was compressed with.
        name: of the container, for messages.

    Raises:
        DataError: no container, or a damaged one.
        ModelError: compressed with another model.
        UserError: compressed on another machine or with other versions; the model is not on the CPU; no constriction.
    """
    header, words = unpack(container, name)
    with _reproducibly(pipeline.model):
        compare(header, identify(pipeline), name)
        stack = Stack(words)
        try:
            text = _receive(pipeline, header, stack, quiet)
        except StackError:
            raise DataError(f"{name}: damaged: no text can have been compressed to this") from None
    if not np.array_equal(stack.words, Stack(_digest(text, header.digest_words), seal=True).words):
        raise DataError(f"{name}: damaged: the text that it holds does not match its digest")
    return text


@torch.no_grad()
def expected_bits(pipeline: Pipeline, text: bytes, *, samples: int = 16, seed: int = 0) -> Expected:
    """-elbo in bits of the turns of a file: what `compress` must take for them, computed without a coder.

    Args:
        samples: draws of z for the distortion, 2 or more; between Gaussians the rate is exact.
    """
    model = pipeline.model
    windows = [line.window for line in _read_lines(pipeline, text)[0] if line.kind == TURN]
    generator = torch.Generator().manual_seed(seed)
    nats = variance = 0.0
    for start in range(0, len(windows), _ROWS):
        batch = collate(windows[start : start + _ROWS], model.config.context_turns).to(model.device)
        posterior, prior, context_BC = model.infer(batch)
        draws = []
        for _ in range(samples):
            noise_BN = torch.randn(len(context_BC), posterior.noise_size, generator=generator, dtype=context_BC.dtype)
            z_BZ = posterior.sample(noise_BN.to(model.device))
            distortion_B = -model.log_prob(batch, z_BZ, context_BC).double()
            nats += float((distortion_B + divergence(posterior, prior, z_BZ).double().sum(-1)).sum()) / samples
            draws.append(distortion_B + (posterior.log_prob(z_BZ) - prior.log_prob(z_BZ)).double().sum(-1))
        variance += float(torch.stack(draws).var(0).sum())
    return Expected(nats / math.log(2), math.sqrt(variance) / math.log(2))


class _Line(NamedTuple):
    kind: int
    raw: bytes
    window: Window  # with a target where the line is a turn


def _send(model: VRAE, header: Header, stack: Stack, lines: list[_Line], quiet: bool) -> None:
    """Puts the lines on the stack, the last one first. Raises StackError."""
    turns, kinds, byte = _coders(model, header)
    for number in tqdm(reversed(range(len(lines))), "compressing", len(lines), disable=True if quiet else None):
        line = lines[number]
        if line.kind == TURN:
            turns.push(stack, line.window, number)
        elif line.kind == RAW:
            stack.push("raw", np.frombuffer(line.raw + b"\n", np.uint8), byte)
        stack.push("kinds", [line.kind], kinds)


def _receive(pipeline: Pipeline, header: Header, stack: Stack, quiet: bool) -> bytes:
    """Takes the lines off the stack, the first one first. Raises StackError."""
    turns, kinds, byte = _coders(pipeline.model, header)
    context: deque[np.ndarray] = deque(maxlen=pipeline.model.config.context_turns)
    lines: list[bytes] = []
    for number in tqdm(range(header.lines), "decompressing", disable=True if quiet else None):
        line, ids = bytearray(), _NO_IDS
        kind = int(stack.pop("kinds", kinds)[0])
        if kind == TURN:
            ids = turns.pop(stack, _window(context), number)
            line += pipeline.tokenizer.decode(ids.tolist()).encode()
        elif kind == RAW:
            while not line.endswith(b"\n"):
                line += bytes(stack.pop("raw", byte).tolist())
            del line[-1]
        lines.append(bytes(line))
        _remember(context, kind, ids)
    text = (b"\r\n" if header.crlf else b"\n").join(lines)
    if len(text) != header.size:
        raise StackError
    return text


def _coders(model: VRAE, header: Header) -> tuple[TurnCoder, Any, Any]:
    """What turns, kinds of lines and bytes are coded by."""
    family = entropy_coders().model
    counts = np.array([header.turns, header.raw, header.blank], np.float64)
    turns = TurnCoder(model, Grid(header.fineness, header.reach, header.spread))
    return turns, family.Categorical(counts / counts.sum(), perfect=False), family.Uniform(256)


def _read_lines(pipeline: Pipeline, text: bytes) -> tuple[list[_Line], bool]:
    """The lines, and whether each of them ends in CR LF."""
    crlf = 0 < text.count(b"\n") == text.count(b"\r\n")
    raws = text.split(b"\r\n" if crlf else b"\n")
    # a line of which something is cut off or ignored here differs from its tokens, and so becomes a raw one
    tokens = pipeline.tokenizer.encode([raw[:MAX_LINE_BYTES].decode("utf-8", "ignore") for raw in raws])
    context: deque[np.ndarray] = deque(maxlen=pipeline.model.config.context_turns)
    lines = []
    for raw, ids in zip(raws, tokens, strict=True):
        kind = BLANK if not raw else TURN if pipeline.tokenizer.decode(ids).encode() == raw else RAW
        target = np.array(ids, np.int64) if kind == TURN else _NO_IDS
        lines.append(_Line(kind, raw, _window(context, target)))
        _remember(context, kind, target)
    return lines, crlf


def _remember(context: deque[np.ndarray], kind: int, ids: np.ndarray) -> None:
    """What a line does to the context of the next."""
    if kind == BLANK:
        context.clear()
    else:
        context.append(ids)


def _window(context: Iterable[np.ndarray], target: np.ndarray = _NO_IDS) -> Window:
    """Speakers are taken to alternate."""
    turns = list(context)
    return Window(turns, target, [(len(turns) - i) % 2 == 0 for i in range(len(turns))])


def _digest(text: bytes, words: int) -> np.ndarray:
    """SHAKE-256, as uint32."""
    return np.frombuffer(hashlib.shake_256(text).digest(4 * words), "<u4").astype(np.uint32)


@contextmanager
def _reproducibly(model: VRAE) -> Iterator[None]:
    """One thread of the CPU, and no record for gradients."""
    if model.device.type != "cpu":
        raise UserError(
            f"bits-back coding needs numbers that repeat to the last bit: load the model on the cpu, not {model.device}"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
