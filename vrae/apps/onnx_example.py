"""Texts from the graphs beside this file, with numpy, onnxruntime and sentencepiece: neither torch nor vrae.

python example.py "Hi!" "Hello, how was your weekend?"      replies to a dialogue, where the model reads one
python example.py "i am going home" "what do you want?"     else the way from the first sentence to the last
"""

import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import sentencepiece

HERE = Path(__file__).resolve().parent
CONFIG = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
PIECES = sentencepiece.SentencePieceProcessor(model_file=str(HERE / "tokenizer.model"))
GRAPHS = {name: onnxruntime.InferenceSession(HERE / graph["file"]) for name, graph in CONFIG["graphs"].items()}
PAD, BOS, EOS = (CONFIG["ids"][name] for name in ("pad", "bos", "eos"))


def run(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The outputs of a graph by name. It takes its inputs out of `values`."""
    graph = CONFIG["graphs"][name]
    return dict(zip(graph["outputs"], GRAPHS[name].run(None, {key: values[key] for key in graph["inputs"]}), strict=True))


def clean(text: str) -> str:
    """What was done to the text that the model learnt from."""
    text = unicodedata.normalize("NFC", text)
    for pattern, replacement in CONFIG["cleaning"]["substitutions"]:
        text = re.sub(pattern, replacement, text)
    return text.lower() if CONFIG["cleaning"]["lowercase"] else text


def encode(texts: list[str]) -> dict[str, Any]:
    """Ids, each row a turn, its end mark, padding; and lengths."""
    turns = [[*PIECES.encode(clean(text)), EOS] for text in texts]
    lengths = np.array([len(turn) for turn in turns], np.int64)
    ids = np.full((len(turns), lengths.max()), PAD, np.int64)
    for row, turn in zip(ids, turns, strict=True):
        row[: len(turn)] = turn
    return {"ids": ids, "lengths": lengths}


def write(values: dict[str, Any]) -> list[str]:
    """A text for each row of `values`: always the most probable piece."""
    values = run("start", values)
    ids = np.full(len(values["condition"]), BOS, np.int64)
    written = np.zeros((len(ids), 0), np.int64)
    while written.shape[1] < CONFIG["max_tokens"] and not (written == EOS).any(1).all():
        found = run("step", {"ids": ids, **values})
        found["logits"][:, CONFIG["never_written"]] = -np.inf
        ids, values["state"] = found["logits"].argmax(-1), found["next_state"]
        written = np.column_stack([written, ids])
    texts = [PIECES.decode([*row, EOS][: [*row, EOS].index(EOS)]) for row in written.tolist()]
    return ["".join(c for c in text if (c.isprintable() or c in "\u200c\u200d") and c != "\ufffd").strip() for text in texts]


def respond(dialogue: list[str], n: int, seed: int) -> list[str]:
    """Replies to a dialogue: at the prior's mean, and at n - 1 draws of the prior."""
    turns = encode(dialogue[-CONFIG["context_turns"] :])
    same_speaker = np.arange(len(turns["lengths"]), 0, -1) % 2 == 0
    values = {name: array[None] for name, array in turns.items()}
    values |= {"count": np.array([len(same_speaker)]), "same_speaker": same_speaker[None].astype(np.int64)}
    found = run("context", values)
    if not CONFIG["latent_size"]:  # one reply, then
        return write(found)
    noise = np.random.default_rng(seed).standard_normal((n, CONFIG["latent_size"]), np.float32)
    noise[0] = 0
    return write({"z": found["mean"] + np.exp(found["log_var"] / 2) * noise, "context": np.repeat(found["context"], n, 0)})


def interpolate(first: str, last: str, steps: int) -> list[str]:
    """The texts on the straight line between two posterior means; at its ends the reconstructions."""
    ends = run("posterior", encode([first, last]))["mean"]
    share = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
    return write({"z": (1 - share) * ends[0] + share * ends[1]})


if __name__ == "__main__":
    asked = sys.argv[1:]
    texts = respond(asked, n=5, seed=1) if CONFIG["context_turns"] else interpolate(asked[0], asked[-1], steps=7)
    print("\n".join(texts))
