"""What a user would otherwise pick: a language model of the size of GPT-2 (Radford et al. 2019), as `transformers` has it.

Its weights are random, which serves for time and memory, and nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vrae.config import DecodingConfig, ModelConfig
from vrae.corpus.batches import Window, collate
from vrae.errors import UserError
from vrae.generation.decoding import decode
from vrae.model.gaussian import repeat
from vrae.model.vrae import VRAE


class GPT2:
    """GPT-2 small, 124 million parameters in single precision, or another of the family.

    Args:
        device: where.
        sizes: of `GPT2Config`, where they are not those of GPT-2 small.

    Raises:
        UserError: `transformers` is not installed.
    """

    def __init__(self, device: torch.device, **sizes: int) -> None:
        try:
            library: Any = importlib.import_module("transformers")
        except ImportError:
            raise UserError("the comparison with GPT-2 needs transformers: pip install 'vrae[bench]'") from None
        torch.manual_seed(1)
        self.model = library.GPT2LMHeadModel(library.GPT2Config(**sizes)).eval().to(device)
        self.model.generation_config.eos_token_id = None  # every reply has as many tokens as are asked for
        self.model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def write(self, read: int, replies: int, tokens: int) -> None:
        """So many replies, drawn side by side among the 50 most probable pieces each time, to a context of `read` tokens."""
        ids = torch.randint(self.model.config.vocab_size, (1, read), device=self.model.device)
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=50,
            num_return_sequences=replies,
            max_new_tokens=tokens,
            use_cache=True,
        )


class Memory(NamedTuple):
    """Bytes in memory."""

    libraries: int  # once they are imported, and have served a tiny model
    most: int  # at any time


class MemoryRatios(NamedTuple):
    """Of GPT-2 over those of the other model."""

    own: float  # what comes on top of the libraries
    whole: float


def memory_ratios(config: ModelConfig, tokens: int, replies: int) -> MemoryRatios | None:
    """Memory of GPT-2 over that of a model of `config`, each in a process of its own that builds it and writes as many replies.

    None where the system does not tell (it is read from /proc).

    Raises:
        UserError: a process failed, as where `transformers` is not installed.
    """
    if not _STATUS.exists():
        return None
    gpt2, own = (_in_child(sizes, tokens, replies) for sizes in (None, dataclasses.asdict(config)))
    return MemoryRatios((gpt2.most - gpt2.libraries) / (own.most - own.libraries), gpt2.most / own.most)


_STATUS = Path("/proc/self/status")


def _in_child(config: dict[str, Any] | None, tokens: int, replies: int) -> Memory:
    job = json.dumps([config, tokens, replies, torch.get_num_threads()])
    done = subprocess.run([sys.executable, "-m", "vrae.apps.gpt2", job], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the process that measures memory failed: {done.stderr.strip()[-300:]}")
    return Memory(*json.loads(done.stdout))


def _measure(config: dict[str, Any] | None, tokens: int, replies: int, threads: int) -> Memory:
    """Of GPT-2, or of a model of `config`; in a process that has done nothing else."""
    torch.set_num_threads(threads)
    if config is None:
        GPT2(torch.device("cpu"), n_embd=12, n_layer=1, vocab_size=100).write(_READ, replies, tokens)
        libraries = _status("VmRSS")
        GPT2(torch.device("cpu")).write(_READ, replies, tokens)
    else:
        tiny = dict(vocab_size=100, embedding_size=8, hidden_size=8, context_size=8)
        _write(VRAE(ModelConfig(**{**config, **tiny})).eval(), tokens, replies)
        libraries = _status("VmRSS")
        _write(VRAE(ModelConfig(**config)).eval(), tokens, replies)
    return Memory(libraries, _status("VmHWM"))


@torch.inference_mode()
def _write(model: VRAE, tokens: int, replies: int) -> None:
    batch = collate([Window([np.arange(4, 4 + _READ)], np.zeros(0, np.int64), [0])], model.config.context_turns)
    prior, context_1C = model.condition(batch)
    z_BZ = repeat(prior, replies).sample(torch.randn(replies, prior.noise_size))
    state = model.decoder.start(z_BZ, context_1C.expand(replies, -1))
    decode(model.decoder, state, torch.rand(replies, tokens), DecodingConfig(max_tokens=tokens))


_READ = 12  # tokens of the context


def _status(key: str) -> int:
    """A size of this process in bytes: VmRSS is that in memory now, VmHWM the most there ever was."""
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    print(json.dumps(_measure(*json.loads(sys.argv[1]))))
