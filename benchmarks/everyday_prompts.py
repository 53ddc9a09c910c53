"""Do everyday prompts that are not in the training data each get n distinct, non-empty replies without special tokens?

python benchmarks/everyday_prompts.py --model vrae-demo/model --data vrae-demo/corpus
"""

from __future__ import annotations

import argparse
import json
import re

import numpy as np

import vrae
from vrae import Corpus

PROMPTS = (
    "Did you sleep well last night?",
    "My bus was late again this morning.",
    "Could you recommend a good book?",
    "I burned my dinner yesterday.",
    "What should we do on Saturday evening?",
    "My sister is getting married in June!",
    "It has been raining all week here.",
    "Which season do you like the most?",
    "I forgot my umbrella at the office.",
    "Do you prefer tea or coffee?",
)
SPECIAL = re.compile(r"<unk>|<pad>|<s>|</s>|\u2047|\ufffd|<0x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("-n", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    model, corpus = vrae.load(options.model), Corpus(options.data)
    train = corpus["train"]
    seen = {train.turn(i).tobytes() for i in range(len(train.turns) - 1)}
    prompts = (np.asarray(ids, train.tokens.dtype) for ids in corpus.tokenizer.encode(PROMPTS))
    in_training = sum(ids.tobytes() in seen for ids in prompts)
    answers = model.respond_many([[prompt] for prompt in PROMPTS], options.n, seed=options.seed)
    for prompt, replies in zip(PROMPTS, answers, strict=True):
        print(f"> {prompt}")
        for reply in replies:
            print(f"    {reply.log_prob:7.1f}  {reply.text}")
    texts = [reply.text for replies in answers for reply in replies]
    samples = [sample.text for sample in model.sample(1000, seed=options.seed)]
    print(
        json.dumps(
            {
                "prompts": len(PROMPTS),
                "prompts_in_training_data": in_training,
                "fewest_distinct_replies": min(len({r.text for r in replies if r.text}) for replies in answers),
                "texts_with_special_tokens": sum(bool(SPECIAL.search(text)) for text in texts + samples),
                "texts_checked": len(texts) + len(samples),
                "distinct_replies_over_all_prompts": len(set(texts)) / len(texts),
            }
        )
    )


if __name__ == "__main__":
    main()
