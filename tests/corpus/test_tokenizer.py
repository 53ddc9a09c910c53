"""Text to ids and back: nothing is lost, nothing is special, and the same turns give the same bytes."""

from __future__ import annotations

import io
import pickle
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from conftest import VOCAB, WORDS

from vrae.corpus.tokenizer import BOS, EOS, MASKS, MAX_MODEL_BYTES, PAD, UNK, Tokenizer, train_tokenizer
from vrae.errors import DataError, ModelError

SPECIALS = ["<pad>", "<unk>", "<s>", "</s>"]


def foreign_model(turns: list[str], **options: object) -> bytes:
    """A SentencePiece model made with other options than ours."""
    model = io.BytesIO()
    settings = dict(
        model_type="bpe", vocab_size=VOCAB, minloglevel=2, byte_fallback=True, pad_id=0, unk_id=1, bos_id=2, eos_id=3
    )
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(turns), model_writer=model, **{**settings, **options})
    return model.getvalue()


@pytest.fixture(scope="module")
def turns(dialogues: list[list[str]]) -> list[str]:
    return [turn for dialogue in dialogues for turn in dialogue]


@pytest.fixture(scope="module")
def model(turns: list[str]) -> bytes:
    return train_tokenizer(turns, VOCAB)


@pytest.fixture(scope="module")
def tokenizer(model: bytes) -> Tokenizer:
    return Tokenizer(model)


# Training


def test_the_same_turns_give_the_same_bytes(turns: list[str], model: bytes) -> None:
    assert train_tokenizer(turns, VOCAB) == model


def test_another_turn_gives_other_bytes(turns: list[str], model: bytes) -> None:
    assert train_tokenizer([*turns, "zyzzyva " * 50], VOCAB) != model


@pytest.mark.parametrize("size", [300, VOCAB])
def test_it_has_exactly_the_pieces_asked_for(turns: list[str], size: int) -> None:
    assert len(Tokenizer(train_tokenizer(turns, size))) == size


def test_too_many_pieces_are_refused_with_the_largest_number_that_works(turns: list[str]) -> None:
    with pytest.raises(DataError, match=r"--vocab_size 5000: .* at most (\d+) pieces") as error:
        train_tokenizer(turns, 5000)
    most = int(re.findall(r"at most (\d+)", str(error.value))[0])
    assert len(Tokenizer(train_tokenizer(turns, most))) == most
    with pytest.raises(DataError, match=f"at most {most}"):
        train_tokenizer(turns, most + 1)


def test_too_few_pieces_for_the_characters_are_refused(turns: list[str]) -> None:
    with pytest.raises(DataError, match=r"--vocab_size 300: .* too many different characters.*Pass a larger --vocab_size"):
        train_tokenizer([*turns, "".join(chr(0x4E00 + i) for i in range(500))], 300)


def test_no_turns_are_refused() -> None:
    with pytest.raises(DataError, match="--vocab_size 300"):
        train_tokenizer([], 300)


# Text to ids and back


@pytest.mark.parametrize(
    "text",
    [
        "hello how are you",
        "HELLO! 1,234.56 -- (ok?) [x] {y} ~ ^ | \\ / \" ' `",
        "naïve café, Ångström",
        "你好,世界",
        "مرحبا بالعالم",
        "Привет, как дела",
        "नमस्ते दुनिया",
        "สวัสดี",
        "안녕하세요",
        "こんにちは",
        "😀 🎉 🇩🇪 ❤️ 👍🏽",
        "👩‍👩‍👧",
        "a",
        "\U00010348",
        "<email> and <url> and <phone> and <user>",
        "<0x41>",
    ],
)
def test_text_comes_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_every_turn_it_was_trained_on_comes_back(tokenizer: Tokenizer, turns: list[str]) -> None:
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(turns)] == turns


def test_a_turn_has_the_same_ids_alone_and_beside_others(tokenizer: Tokenizer, turns: list[str]) -> None:
    assert [tokenizer.encode([turn])[0] for turn in turns[:20]] == tokenizer.encode(turns[:20])


def test_an_empty_turn_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([""]) == [[]]
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("written", SPECIALS)
@pytest.mark.parametrize("form", ["{}", "say {} now", "hello{}", "{0}{0}"])
def test_specials_written_by_a_user_stay_text(tokenizer: Tokenizer, written: str, form: str) -> None:
    text = form.format(written)
    ids = tokenizer.encode([text])[0]
    assert min(ids) > EOS
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("character", [chr(0x4E2D), "\U0001f9ff", "\ue000", "\U0010ffff", "\u0378"])
def test_no_character_is_unknown(tokenizer: Tokenizer, character: str) -> None:
    assert UNK not in tokenizer.encode([character])[0]


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_is_one_piece(tokenizer: Tokenizer, mask: str) -> None:
    assert len([piece for piece in tokenizer.pieces(tokenizer.encode([mask])[0]) if piece != "▁"]) == 1


def test_specials_vanish_from_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["hello you"])[0]
    assert tokenizer.decode([BOS, *ids, EOS, PAD, PAD]) == "hello you"
    assert tokenizer.decode([UNK, *ids]) == "hello you"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_ids_are_drawn_the_text_can_be_printed(tokenizer: Tokenizer, seed: int) -> None:
    """Half of the ids are byte pieces, which seldom form a character."""
    draw = np.random.default_rng(seed)
    text = tokenizer.decode(np.concatenate([draw.integers(0, len(tokenizer), 100), draw.integers(4, 270, 100)]))
    assert "\ufffd" not in text
    assert not [character for character in text if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")]
    assert text == text.strip()


def test_pieces_put_together_are_the_text(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.pieces(tokenizer.encode(["hello how are you"])[0])
    assert "".join(pieces).replace("▁", " ").strip() == "hello how are you"


def test_words_of_the_corpus_take_fewer_pieces_than_characters(tokenizer: Tokenizer) -> None:
    text = " ".join(WORDS[:10])
    assert len(tokenizer.encode([text])[0]) < len(text) / 2


# What it is read from


def test_a_pickled_one_encodes_the_same(tokenizer: Tokenizer, turns: list[str]) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(turns) == tokenizer.encode(turns)
    assert copy.sha256 == tokenizer.sha256


def test_a_loaded_one_has_the_bytes_of_its_file(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model)
    assert Tokenizer.load(path).model == model


@pytest.mark.parametrize("content", [b"", b"\0", b"not a model", b"\x80\x04K\x01.", b"\x0a\x00" * 10], ids=repr)
def test_what_is_no_model_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "some.model"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"some\.model: "):
        Tokenizer.load(path)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.999])
def test_a_truncated_model_is_refused(model: bytes, share: float) -> None:
    with pytest.raises(ModelError):
        Tokenizer(model[: int(share * len(model))])


def test_a_model_cut_between_two_fields_is_refused(model: bytes) -> None:
    """Whatever part of it still parses: all pieces may be there while the options that give bytes their meaning are not."""
    last_piece = model.rindex(Tokenizer(model).pieces([VOCAB - 1])[0].encode())
    for end in range(last_piece, last_piece + 60):
        with pytest.raises(ModelError):
            Tokenizer(model[:end])


def test_a_model_too_large_to_be_one_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "huge.model"
    with open(path, "wb") as file:
        file.truncate(MAX_MODEL_BYTES + 1)
    with pytest.raises(ModelError, match=r"huge\.model: .* is more than a tokenizer may have"):
        Tokenizer.load(path)


def test_a_model_with_other_special_ids_is_refused_with_those_it_has(turns: list[str]) -> None:
    with pytest.raises(ModelError, match=r"must be \(0, 1, 2, 3\)\. Got \(-1, 0, 1, 2\)"):
        Tokenizer(foreign_model(turns, pad_id=-1, unk_id=0, bos_id=1, eos_id=2))


def test_a_model_without_byte_pieces_is_refused(turns: list[str]) -> None:
    """It would read characters it does not know as <unk>, the id of dropped words."""
    with pytest.raises(ModelError, match="no byte pieces"):
        Tokenizer(foreign_model(turns, byte_fallback=False, vocab_size=120))


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_foreign_model_with_our_ids_and_byte_pieces_is_accepted(turns: list[str], model_type: str) -> None:
    tokenizer = Tokenizer(foreign_model(turns, model_type=model_type, vocab_size=320))
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(turns)] == turns


@pytest.mark.parametrize("name", ["missing.model", "."])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape(str(tmp_path / name))):
        Tokenizer.load(tmp_path / name)


def test_a_model_with_pieces_that_are_no_text_is_refused(model: bytes) -> None:
    piece = "▁hello".encode()
    assert piece in model
    with pytest.raises(ModelError, match="not a SentencePiece model"):
        Tokenizer(model.replace(piece, piece[:-1] + b"\xb1"))
