"""The models that come with the package: runs made by benchmarks/search.py, in half precision, each with its card.

    vrae prepare chitchat --out corpora/chitchat
    python benchmarks/search.py --data corpora/chitchat --out runs/search chitchat-vrae chitchat-vhred
    python benchmarks/bundle.py --data corpora/chitchat --runs runs/search

Writes vrae/weights/NAME. The figures of the card are those of the weights as they are written, on the test split.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

import vrae
from vrae.apps.evaluate import evaluate
from vrae.bundled import NAMES, folder
from vrae.config import EvaluateConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="prepared chitchat")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs, each under the name of its model")
    parser.add_argument("names", nargs="*", default=[*NAMES.values()], help="these alone")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    corpus = vrae.Corpus(options.data)
    for name in options.names:
        model, out = vrae.load(options.runs / name), folder(name)
        assert out is not None, f"{name} is none of {', '.join(NAMES.values())}"
        with tempfile.TemporaryDirectory() as place:
            report = str(Path(place, "report"))
            model.save_pretrained(place, half=True)
            config = EvaluateConfig(split="test", k=100, max_turns=1000, samples=500, paths=100, contexts=200, out=report)
            print(evaluate(vrae.load(place), corpus, config, run=options.runs / name, quiet=True).table())
            model.save_pretrained(out, half=True, report=report)


if __name__ == "__main__":
    main()
