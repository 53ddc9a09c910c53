"""The models that come with the package: runs made by benchmarks/search.py, in half precision, each with its card.

    vrae prepare chitchat --out corpora/chitchat
    vrae prepare chitchat --cleaning.sentences true --out corpora/sentences
    python benchmarks/search.py --data corpora --out runs chitchat-vrae chitchat-vhred
    python benchmarks/bundle.py --runs runs

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
from vrae.training.run_folder import corpus_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs, each under the name of its model")
    parser.add_argument("names", nargs="*", default=[*NAMES.values()], help="these alone")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    for name in options.names:
        run, out = options.runs / name, folder(name)
        model, corpus = vrae.load(run), vrae.Corpus(corpus_of(run))
        assert out is not None, f"{name} is none of {', '.join(NAMES.values())}"
        with tempfile.TemporaryDirectory() as place:
            report = str(Path(place, "report"))
            model.save_pretrained(place, half=True)
            config = EvaluateConfig(split="test", k=100, max_turns=1000, samples=500, paths=100, contexts=200, out=report)
            print(evaluate(vrae.load(place), corpus, config, run=run, quiet=True).table())
            model.save_pretrained(out, half=True, report=report)


if __name__ == "__main__":
    main()
