"""Text to ids and back: SentencePiece BPE whose training is reproducible bit for bit.

One thread, no shuffling, no sampling inside the library: the same turns give the same bytes. Characters never seen in
training fall back to their UTF-8 bytes, so every text can be encoded and `<unk>` never stands for text; the model uses that
id for dropped words alone.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from vrae.config import shown
from vrae.errors import DataError, ModelError

PAD, UNK, BOS, EOS = 0, 1, 2, 3
MASKS = ("<email>", "<url>", "<phone>", "<user>")
MAX_MODEL_BYTES = 32 * 2**20
_MAX_LINE_BYTES = 1_000_000
_UNSEEN = "\U0010fffd"  # of the last private plane: no text has it
_JOINERS = "\u200c\u200d"  # within emoji, and between letters of several scripts; they print nothing themselves


def train_tokenizer(turns: Iterable[str], vocab_size: int) -> bytes:
    """Returns a serialised SentencePiece BPE model of exactly `vocab_size` pieces.

    Raises:
        DataError: the turns do not allow that many pieces, or need more.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(turns),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            num_threads=1,
            shuffle_input_sentence=False,
            max_sentence_length=_MAX_LINE_BYTES,
            normalization_rule_name="identity",
            byte_fallback=True,
            character_coverage=1.0,
            pad_id=PAD,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            user_defined_symbols=list(MASKS),
            minloglevel=2,
        )
    except RuntimeError as error:
        most = re.search(r"value <= (\d+)", str(error))
        least = re.search(r"(\d+) vs (\d+)", str(error))
        if most:
            raise DataError(
                f"--vocab_size {vocab_size}: this corpus allows at most {most[1]} pieces. "
                f"Pass --vocab_size {most[1]} or less, or bring more text"
            ) from None
        if least:
            raise DataError(
                f"--vocab_size {vocab_size}: this corpus has too many different characters for so few pieces ({least[0]}). "
                "Pass a larger --vocab_size"
            ) from None
        raise DataError(f"--vocab_size {vocab_size}: SentencePiece could not train on this corpus: {error}") from None
    return model.getvalue()


class Tokenizer:
    """A SentencePiece model with pad, unk, bos, eos = 0, 1, 2, 3.

    Args:
        model: the serialised model.
        name: where it came from, for messages.

    Raises:
        ModelError: `model` is not such a tokenizer.
    """

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        if len(model) > MAX_MODEL_BYTES:
            raise ModelError(f"{name}: {len(model)} bytes is more than a tokenizer may have ({MAX_MODEL_BYTES})")
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = bool(model) and self._processor.LoadFromSerializedProto(model)
            if loaded:
                self.pieces(range(len(self)))  # each is UTF-8
        except (RuntimeError, UnicodeDecodeError) as error:
            raise ModelError(f"{name}: not a SentencePiece model ({shown(str(error), 120)})") from None
        if not loaded or self._processor.get_piece_size() == 0:
            raise ModelError(f"{name}: not a SentencePiece model (no pieces)")
        specials = tuple(getattr(self._processor, f"{s}_id")() for s in ("pad", "unk", "bos", "eos"))
        if specials != (PAD, UNK, BOS, EOS):
            raise ModelError(
                f"{name}: pad, unk, bos, eos must be {(PAD, UNK, BOS, EOS)}. Got {specials}. "
                "Train it with `vrae prepare`, or with those ids"
            )
        if UNK in self._processor.encode(_UNSEEN):
            raise ModelError(f"{name}: has no byte pieces for characters it does not know. Train it with --byte_fallback=true")
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads a `tokenizer.model` file. Raises ModelError where there is none."""
        try:
            with open(path, "rb") as file:
                return cls(file.read(MAX_MODEL_BYTES + 1), str(path))
        except OSError as error:
            raise ModelError(f"{path}: cannot read the tokenizer: {error.strerror}") from None

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self.model,)

    def encode(self, turns: Sequence[str]) -> list[list[int]]:
        """Ids of each turn, without bos and eos. Specials written out in a turn, such as `</s>`, are read as plain text."""
        ids: list[list[int]] = self._processor.encode(list(turns), num_threads=1)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Specials vanish, and so do byte pieces that form no printable character."""
        text = str(self._processor.decode([int(i) for i in ids if i > EOS])).replace("\ufffd", "")
        if not text.isprintable():
            text = "".join(character for character in text if character.isprintable() or character in _JOINERS)
        return text.strip()

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece of each id, for people to read."""
        return [str(self._processor.id_to_piece(int(i))) for i in ids]
