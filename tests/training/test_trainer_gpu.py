"""What must hold on a GPU. Run with: pytest -m gpu"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from vrae.config import BatchConfig, ModelConfig, RunConfig, TrainConfig
from vrae.corpus.batches import Windows
from vrae.corpus.prepared import Corpus
from vrae.generation.pipeline import Pipeline
from vrae.model.vrae import VRAE
from vrae.training.trainer import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MODEL = ModelConfig(context_turns=2, latent_size=4, embedding_size=16, hidden_size=16, context_size=16, dropout=0.0)


def test_terms_on_the_gpu_equal_those_on_the_cpu(corpus: Corpus) -> None:
    model = VRAE(dataclasses.replace(MODEL, vocab_size=len(corpus.tokenizer))).eval()
    windows = Windows(corpus["train"], BatchConfig(tokens=512), context_turns=2)
    _, batch = next(iter(windows.in_order()))
    noise_BZ = torch.randn(len(batch.target_B), 4, generator=torch.Generator().manual_seed(0))
    expected = model(batch, noise_BZ)
    found = model.cuda()(batch.to(torch.device("cuda")), noise_BZ.cuda())
    for left, right in zip(expected, found, strict=True):
        torch.testing.assert_close(left, right.cpu(), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_and_all_jobs_run(precision: str, corpus: Corpus, tmp_path: Path) -> None:
    options = TrainConfig(max_steps=20, validate_every=10, device="cuda", precision=precision)  # type: ignore[arg-type]
    config = RunConfig(model=MODEL, batches=BatchConfig(tokens=512), train=options)
    result = train(config, corpus, tmp_path / "run", quiet=True)
    assert result.step == 20
    pipeline = Pipeline.load(result.run, "cuda")
    assert len(pipeline.respond(["hello"], 3, seed=1)) == 3
    assert len(list(pipeline.sample(3, seed=1))) == 3
    assert pipeline.reconstruct(["hello"])[0].text == "hello"
