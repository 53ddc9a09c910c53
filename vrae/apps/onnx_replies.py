"""Replies from the graphs beside this file, with numpy, onnxruntime and sentencepiece: neither torch nor vrae.

python example.py "Hi!" "Hello, how was your weekend?"
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

HERE = Path(__file__).parent
CONFIG = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
PIECES = sentencepiece.SentencePieceProcessor(model_file=str(HERE / "tokenizer.model"))
GRAPHS = {name: onnxruntime.InferenceSession(HERE / graph["file"]) for name, graph in CONFIG["graphs"].items()}
BOS, EOS = CONFIG["ids"]["bos"], CONFIG["ids"]["eos"]


def run(name: str, **values: Any) -> dict[str, Any]:
    """The outputs of a graph by name. It takes its inputs out of `values`."""
    graph = CONFIG["graphs"][name]
    return dict(zip(graph["outputs"], GRAPHS[name].run(None, {key: values[key] for key in graph["inputs"]}), strict=True))


def encode(texts: list[str]) -> dict[str, Any]:
    """Ids, each row a turn, its end mark, padding; and lengths. The texts are cleaned as those of training were."""
    turns = []
    for text in (unicodedata.normalize("NFC", text) for text in texts):
        for pattern, replacement in CONFIG["cleaning"]["substitutions"]:
            text = re.sub(pattern, replacement, text)
        turns.append([*PIECES.encode(text.lower() if CONFIG["cleaning"]["lowercase"] else text), EOS])
    lengths = [len(turn) for turn in turns]
    ids = [turn + [EOS] * (max(lengths) - len(turn)) for turn in turns]
    return {"ids": np.array(ids, np.int64), "lengths": np.array(lengths, np.int64)}


def write(**known: Any) -> list[str]:
    """A text for each row of `known`: always the most probable piece."""
    known = run("start", **known)
    rows = [np.full(len(known["condition"]), BOS, np.int64)]
    while len(rows) <= CONFIG["max_tokens"] and (rows[-1] != EOS).any():
        found = run("step", ids=rows[-1], **known)
        found["logits"][:, CONFIG["never_written"] + [EOS] * (len(rows) == 1)] = -np.inf  # and no text is empty
        rows.append(np.where(rows[-1] == EOS, EOS, found["logits"].argmax(-1)))
        known["state"] = found["next_state"]
    texts = PIECES.decode([[int(i) for i in ids if i > EOS] for ids in np.transpose(rows)])
    return ["".join(c for c in text if (c.isprintable() or c in "\u200c\u200d") and c != "\ufffd").strip() for text in texts]


def respond(dialogue: list[str], n: int, seed: int) -> list[str]:
    """n replies to a dialogue, each of another draw of p(z | dialogue)."""
    turns, random = encode(dialogue[-CONFIG["context_turns"] :]), np.random.default_rng(seed)
    count = len(turns["ids"])
    given = {**turns, "count": count, "same_speaker": np.arange(count, 0, -1) % 2 == 0}
    found = run("context", **{name: np.array([value], np.int64) for name, value in given.items()})
    mean, log_var = found.get("mean", 0), found.get("log_var", 0)  # neither where the model has no latent
    if "log_weight" in found:  # a mixture: of one of its components each
        chosen = random.choice(mean.shape[1], n, p=np.exp(found["log_weight"][0]))
        mean, log_var = mean[0, chosen], log_var[0, chosen]
    noise = random.standard_normal((n, CONFIG["latent_size"]), np.float32)
    return write(z=mean + np.exp(log_var / 2) * noise, context=np.repeat(found["context"], n, 0))


if __name__ == "__main__":
    print(*dict.fromkeys(respond(sys.argv[1:] or ["Hi!"], n=5, seed=1)), sep="\n")
