"""Sentences from the graphs beside this file, with numpy, onnxruntime and sentencepiece: neither torch nor vrae.

python example.py                                           five of them
python example.py "i am going home" "what do you want?"     the way from the first to the second
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


def sample(n: int, seed: int) -> list[str]:
    """n sentences, each of another draw of p(z)."""
    random = np.random.default_rng(seed)
    mean, log_var = np.zeros((2, n, CONFIG["latent_size"]), np.float32)
    if "prior" in GRAPHS:  # a mixture: of one of its components each; else N(0, I)
        prior = run("prior")
        chosen = random.choice(prior["mean"].shape[1], n, p=np.exp(prior["log_weight"][0]))
        mean, log_var = prior["mean"][0, chosen], prior["log_var"][0, chosen]
    return write(z=mean + np.exp(log_var / 2) * random.standard_normal(mean.shape, np.float32))


def interpolate(first: str, second: str, steps: int) -> list[str]:
    """The sentences on the straight line between two posterior means; at its ends the reconstructions."""
    begin, end = run("posterior", **encode([first, second]))["mean"]
    return write(z=np.linspace(begin, end, steps, dtype=np.float32))


if __name__ == "__main__":
    print(*(interpolate(sys.argv[1], sys.argv[-1], steps=7) if sys.argv[1:] else sample(n=5, seed=1)), sep="\n")
