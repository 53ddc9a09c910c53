"""The container of a compressed file: its bytes, and who may open it.

Coding needs the same floating-point numbers on both sides. One machine with the same versions gives them, on one thread. So the
header says what model and machine a container was made with, and has a digest of what that model computes there for a fixed
turn. Where anything is different it is refused.

    magic "vraez", format (1 byte), crc32 of all that follows (4 bytes), size of the header (4 bytes), the header (JSON), the
    stack (words of 4 bytes); all numbers little-endian
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import struct
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch

from vrae.config import from_dict, shown
from vrae.corpus.batches import Window
from vrae.corpus.tokenizer import EOS
from vrae.errors import ConfigError, DataError, ModelError, UserError
from vrae.evaluation.bits_back import MAX_REACH, Grid, Probe, TurnCoder
from vrae.generation.pipeline import Pipeline
from vrae.model.folder import weights

MAGIC, FORMAT = b"vraez", 1
MAX_BYTES = 64 * 2**20  # of a file

_FRAME, _SIZE = struct.Struct("<5sBI"), struct.Struct("<I")


class Identity(NamedTuple):
    """What must be the same on both sides. Digests are cut to 64 bits."""

    model: str  # sha256 of the weights
    tokenizer: str  # sha256
    machine: str  # versions and processor
    arithmetic: str  # sha256 of what a probe computes


@dataclass(frozen=True)
class Header:
    """What the receiver must know: `Identity`, the shape of the file, `Grid`. The defaults describe an empty file."""

    model: str = ""
    tokenizer: str = ""
    machine: str = ""
    arithmetic: str = ""
    size: int = 0  # bytes of the file
    crlf: bool = False  # every line ends in CR LF
    turns: int = 0
    raw: int = 0
    blank: int = 1
    fineness: int = 0
    reach: int = 1
    spread: int = 1
    digest_words: int = 0

    def __post_init__(self) -> None:
        sound = (
            0 <= self.size <= MAX_BYTES
            and min(self.turns, self.raw, self.blank) >= 0
            and 1 <= self.lines <= self.size + 1
            and abs(self.fineness) <= 1000
            and 1 <= self.spread <= self.reach <= MAX_REACH
            and 0 <= self.digest_words <= MAX_BYTES
        )
        if not sound:
            raise ConfigError("a number is out of range")

    @property
    def lines(self) -> int:
        return self.turns + self.raw + self.blank


def pack(header: Header, words: np.ndarray) -> bytes:
    """A container of a header and the words of a stack."""
    head = json.dumps(dataclasses.asdict(header), separators=(",", ":")).encode()
    body = _SIZE.pack(len(head)) + head + words.astype("<u4").tobytes()
    return _FRAME.pack(MAGIC, FORMAT, zlib.crc32(body)) + body


def unpack(container: bytes, name: str) -> tuple[Header, np.ndarray]:
    """The header and the words of the stack. Raises DataError."""
    if len(container) < _FRAME.size + _SIZE.size or not container.startswith(MAGIC):
        raise DataError(f"{name}: not a file that `vrae compress` has written")
    _, number, checksum = _FRAME.unpack_from(container)
    if number != FORMAT:
        raise DataError(f"{name}: container format {number}, this vrae reads {FORMAT}")
    body = container[_FRAME.size :]
    if zlib.crc32(body) != checksum:
        raise DataError(f"{name}: damaged or cut short: its bytes do not match their checksum")
    end = _SIZE.size + _SIZE.unpack_from(body)[0]
    head, words = body[_SIZE.size : end], body[end:]
    try:
        header: Header = from_dict(Header, json.loads(head), "header")
    except (ValueError, RecursionError, ConfigError) as error:
        raise DataError(f"{name}: damaged: {shown(str(error), 200)}") from None
    if len(words) % 4 or not any(words[-4:]):
        raise DataError(f"{name}: damaged: no coder leaves these {len(words)} bytes")
    return header, np.frombuffer(words, "<u4").astype(np.uint32)


def identify(pipeline: Pipeline) -> Identity:
    """What is here, for a sender to state and a receiver to compare."""
    model = pipeline.model
    ids = np.arange(1, 13) ** 5 % (model.config.vocab_size - EOS - 1) + EOS + 1
    probe = Probe(np.arange(2 + model.config.latent_size, dtype=np.uint32), seal=True)  # a draw takes 24 bits at most
    window = Window([ids[:4], ids[4:]], ids, [1, 0])
    TurnCoder(model, Grid(fineness=5, reach=512, spread=256)).push(probe, window, number=0)
    probe.sha256.update(probe.words.tobytes())  # what the coder makes of the model's numbers
    versions = f"torch {torch.__version__}, constriction {version('constriction')}"
    return Identity(
        model=hashlib.sha256(safetensors.torch.save(weights(model))).hexdigest()[:16],
        tokenizer=pipeline.tokenizer.sha256[:16],
        machine=f"{versions}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        arithmetic=probe.sha256.hexdigest()[:16],
    )


def compare(header: Header, here: Identity, name: str) -> None:
    """Raises ModelError or UserError, naming what differs."""
    if (header.model, header.tokenizer) != (here.model, here.tokenizer):
        raise ModelError(
            f"{name}: compressed with another model: weights {shown(header.model)}, tokenizer {shown(header.tokenizer)}; "
            f"here {here.model}, {here.tokenizer}. Pass as --model what it was compressed with"
        )
    if header.machine != here.machine:
        raise UserError(
            f"{name}: compressed under {shown(header.machine, 200)}; here is {here.machine}. The model's numbers may differ "
            "in their last bits, and the text would be lost: decompress it where it was compressed"
        )
    if header.arithmetic != here.arithmetic:
        raise UserError(
            f"{name}: compressed where the model computes other numbers (probe {shown(header.arithmetic)}, here "
            f"{here.arithmetic}), though both are {here.machine}: decompress it on the processor it was compressed on"
        )
