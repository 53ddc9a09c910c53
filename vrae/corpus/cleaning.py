"""What is changed in the text of a dialogue, and which dialogues are dropped, with a count of everything.

Plain text of everyday length passes without a regular expression that could match: each mask is tried only where a
character that it cannot do without is there.
"""

from __future__ import annotations

import hashlib
import operator
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence

from vrae.config import CleaningConfig
from vrae.corpus.layouts import Dialogue

# C0 and C1 controls and the bidirectional overrides vanish, except that those which separate words become a space.
_CHARACTERS: dict[int, str | None] = {
    **dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF)),
    **dict.fromkeys((*range(0x09, 0x0E), *range(0x1C, 0x20), 0x85), " "),
}
_UNWANTED = re.compile(f"[{re.escape(''.join(chr(code) for code, to in _CHARACTERS.items() if to is None))}]")
_QUOTES = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}
_CURLY = re.compile("[\u2018\u2019\u201c\u201d]")

# Every quantifier is bounded or starts at a boundary of its own class, so that a long line costs linear time.
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}")
_HANDLE = re.compile(r"(?<![\w@.])@[^\W\d]\w{1,30}(?:\.\w{1,30}){0,3}")
_URL_END = r"[^\s<>\"'.,!?;:)\]}]"
_URL = re.compile(
    rf"(?:https?|ftp)://[^\s<>\"]{{0,2000}}{_URL_END}"
    rf"|(?<![\w@.-])www\.[^\s<>\"]{{0,2000}}{_URL_END}"
    # Without a scheme: a well-known ending, or a short one with a path after it ("bit.ly/x").
    r"|(?<![\w@.-])(?:[a-z0-9-]{1,63}\.){1,5}(?:"
    rf"(?:com|org|net|edu|gov|co\.uk|ac\.uk)(?![\w-])(?!\.[a-z])(?:[/?#][^\s<>\"]{{0,2000}}{_URL_END}|/)?"
    rf"|(?:ly|co|be|me|gl|gg|tv|io|us|uk|de|fr|info|app|dev)/[^\s<>\"]{{0,2000}}{_URL_END})",
    re.IGNORECASE,
)
_INNER_DOT = re.compile(r"\.\w")
_DIGITS = re.compile("[0-9][0-9)]")
_PHONE = re.compile(
    r"(?<![\w.,:/$€£#%+-])(?:"
    # +44 20 7946 0958
    r"\+[0-9]{1,15}(?:[ .-]?\([0-9]{1,4}\)[0-9]{0,12})?(?:[ .-][0-9]{1,12}){0,5}"
    # (555) 123-4567, 1-555-123-4567, 555.123.4567
    r"|(?:1[ .-]?)?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[0-9]{3}[ .-]?[0-9]{4}"
    # 07700 900123, 06 12 34 56 78: a leading zero and one separator throughout
    r"|0[0-9]{1,4}([ .-])[0-9]{2,6}(?:\1[0-9]{2,4}){0,3}"
    # 5551234567, 07700900123
    r"|[2-9][0-9]{9}|0[1-9][0-9]{8,9}|1[2-9][0-9]{9}"
    r")(?![\w%$€£/:]|[.,-][0-9])"
)

_SENTENCE_END = re.compile("(?<=[.!?]) ")

_RESTORED = {
    word.replace("'", ""): word.index("'")
    for word in ("don't", "i'm", "that's", "you're", "can't", "didn't", "doesn't", "isn't", "i've", "what's")
}
_BARE = re.compile(rf"(?<![\w'])(?:{'|'.join(_RESTORED)})(?![\w'])", re.IGNORECASE)


def _mask_phone(match: re.Match[str]) -> str:
    """`<phone>` for 9 to 15 digits of at least three kinds, not a round number; anything else stays."""
    found = match.group()
    digits = re.sub("[^0-9]", "", found)
    is_phone = 9 <= len(digits) <= 15 and len(set(digits)) >= 3 and not digits.endswith("00000")
    return "<phone>" if is_phone else found


def _restore(match: re.Match[str]) -> str:
    word = match.group()
    if word == "IM":  # also short for instant message
        return word
    at = _RESTORED[word.lower()]
    return f"{word[:at]}'{word[at:]}"


class Cleaner:
    """Applies a `CleaningConfig` to one dialogue after another, in this order.

    1. Drop a dialogue of fewer than `min_turns` turns, neighbouring messages of one speaker counted as one turn.
    2. Drop a repetitive one (`spam_messages`, `spam_distinct`), by its messages as they came.
    3. Clean every message; drop the empty ones; join neighbours of one speaker with a space.
    4. Drop a dialogue that has become shorter than `min_turns`, and one with the same turns as an earlier one,
       capitals apart.

    Attributes:
        dropped: dialogues dropped, by reason.
        changed: changes made, by kind, in the dialogues that came to step 3. Masks, empty and joined messages are
            counted one by one; the other kinds are numbers of messages.
        sentences: the messages and sentences of which the turns of the last dialogue are made, where there are several to a
            turn; none unless the configuration wants them.

    Duplicates are known by a digest of 8 bytes, 12 to 24 bytes of memory per dialogue kept. Of ten million dialogues that
    differ, two share one, and the second is lost, once in 400,000 corpora.
    """

    def __init__(self, config: CleaningConfig) -> None:
        self.config = config
        self.dropped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.sentences: list[str] = []
        self._seen = Digests()
        most = config.max_repeats
        self._any_run = re.compile("(.)" + r"\1" * min(most, 50)) if most else None  # twice as fast as with a {number}
        # Runs of digits stay: 10000 is not 1000.
        self._run = re.compile(rf"([^\s\d])\1{{{most},}}")
        self._cut = r"\1" * most

    def __call__(self, dialogue: Dialogue) -> Dialogue | None:
        """The dialogue as it should be, or None when it is dropped."""
        config = self.config
        if count_turns(dialogue.speakers) < config.min_turns:
            return self._drop("fewer turns than min_turns")
        messages = dialogue.turns
        if config.spam_messages and len(messages) >= config.spam_messages:
            distinct = len(set(messages)) / len(messages)
            if distinct < config.spam_distinct:
                return self._drop("repetitive")

        parts: list[list[str]] = []
        speakers: list[int] = []
        for message, speaker in zip(messages, dialogue.speakers, strict=True):
            text = self.text(message)
            if not text:
                self.changed["empty messages dropped"] += 1
            elif speakers and speakers[-1] == speaker:
                parts[-1].append(text)
                self.changed["messages joined to the one before"] += 1
            else:
                parts.append([text])
                speakers.append(speaker)

        turns = tuple(" ".join(part) for part in parts)
        if not turns:
            return self._drop("empty after cleaning")
        if len(turns) < config.min_turns:
            return self._drop("fewer turns than min_turns after cleaning")
        if config.drop_duplicates:
            whole = "\0".join(turns).lower().encode("utf-8", "surrogatepass")
            if not self._seen.add(hashlib.blake2b(whole, digest_size=8).digest()):
                return self._drop("duplicate")
        self.sentences = [piece for part in parts for piece in pieces(part)] if config.sentences else []
        return Dialogue(dialogue.id, turns, tuple(speakers), dialogue.split)

    def text(self, message: str) -> str:
        """One message cleaned; empty when nothing is left."""
        text = message if message.isascii() and message.isprintable() else self._characters(message)
        text = text.strip()
        if "  " in text or not text.isprintable():  # nothing that prints is white space but the space itself
            text = " ".join(text.split())
        if self.config.mask_personal:
            text = self._mask(text)
        if self._any_run is not None and self._any_run.search(text):
            text, count = self._run.subn(self._cut, text)
            if count:
                self.changed["runs of one character cut"] += 1
        if self.config.restore_apostrophes:
            restored = _BARE.sub(_restore, text)
            if restored != text:
                self.changed["apostrophes restored"] += 1
                text = restored
        return text.lower() if self.config.lowercase else text

    def substitutions(self) -> list[tuple[str, str]]:
        """`text` for programs that have no vrae: regular expressions, and what takes the place of their matches, in order.

        NFC comes before them and, with `lowercase`, lower case after them. Only phone numbers stay as they are: what is one is
        decided by more than a pattern.
        """
        config, separators = self.config, "".join(chr(code) for code, to in _CHARACTERS.items() if to)
        steps = [("[\u2018\u2019]", "'"), ("[\u201c\u201d]", '"'), (f"[{re.escape(separators)}]", " "), (_UNWANTED.pattern, "")]
        steps += [(r"\s+", " "), ("^ | $", "")]
        if config.mask_personal:
            steps += [(_EMAIL.pattern, "<email>"), (f"(?i){_URL.pattern}", "<url>"), (_HANDLE.pattern, "<user>")]
        if config.max_repeats:
            steps.append((self._run.pattern, self._cut))
        if config.restore_apostrophes:
            for word, at in _RESTORED.items():
                steps.append((rf"(?i)(?<![\w'])(?-i:(?!IM))({word[:at]})({word[at:]})(?![\w'])", r"\1'\2"))
        return steps

    def _characters(self, text: str) -> str:
        if _UNWANTED.search(text):
            self.changed["control characters removed"] += 1
        if not text.isascii():
            text = unicodedata.normalize("NFC", text)
            if _CURLY.search(text):
                self.changed["quotes straightened"] += 1
                text = text.translate(_QUOTES)
        return text.translate(_CHARACTERS)

    def _mask(self, text: str) -> str:
        if "@" in text:
            text = self._replace(_EMAIL, "<email>", text)
        if "://" in text or ("." in text and _INNER_DOT.search(text)):
            text = self._replace(_URL, "<url>", text)
        if "@" in text:
            text = self._replace(_HANDLE, "<user>", text)
        if _DIGITS.search(text):
            masked = _PHONE.sub(_mask_phone, text)
            if masked != text:
                self.changed["masked <phone>"] += masked.count("<phone>") - text.count("<phone>")
                text = masked
        return text

    def _replace(self, pattern: re.Pattern[str], mask: str, text: str) -> str:
        text, count = pattern.subn(mask, text)
        if count:
            self.changed[f"masked {mask}"] += count
        return text

    def _drop(self, reason: str) -> Dialogue | None:
        self.dropped[reason] += 1
        return None


class Digests:
    """A set of 8-byte digests in an array, half as large again while it grows: a set of Python's takes five times as much.

    Open addressing with linear probing: a digest stands in the first free place from the one that its own bits name.
    """

    def __init__(self) -> None:
        self._places = array("Q", [0]) * 2**10  # 0: free; the digest 0 is taken for 1
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, digest: bytes) -> bool:
        """Whether it is new."""
        value = int.from_bytes(digest, "little") or 1
        if not self._put(value):
            return False
        self._count += 1
        if 3 * self._count > 2 * len(self._places):
            old, self._places = self._places, array("Q", [0]) * (2 * len(self._places))
            for value in filter(None, old):
                self._put(value)
        return True

    def _put(self, value: int) -> bool:
        places, last = self._places, len(self._places) - 1
        place = value & last
        while found := places[place]:
            if found == value:
                return False
            place = (place + 1) & last
        places[place] = value
        return True


def pieces(messages: Sequence[str]) -> list[str]:
    """The messages of a turn, where it has several, and the sentences of those that have several; each once, in order."""
    found = list(messages) if len(messages) > 1 else []
    for message in messages:
        sentences = _SENTENCE_END.split(message)
        found += sentences if len(sentences) > 1 else []
    return list(dict.fromkeys(found))


def count_turns(speakers: Sequence[int]) -> int:
    """The number of runs of one speaker in `speakers`."""
    changes: int = sum(map(operator.ne, speakers, speakers[1:]))
    return changes + bool(speakers)
