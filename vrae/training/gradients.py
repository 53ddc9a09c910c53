"""The gradient of one step: parts of the batch, one after the other and shared among processes, added up.

Whatever the number of parts and processes, the gradient is that of the mean over the whole batch. What differs is in
`TrainConfig.accumulate`: the masks of dropout, and what is taken over a part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vrae.config import RunConfig
from vrae.corpus.batches import Batch, TrainingBatches
from vrae.distributed import add_up, rank, world
from vrae.errors import UserError, is_out_of_memory
from vrae.evaluation.information import offsets
from vrae.model.vrae import VRAE
from vrae.training.objective import BagOfWords, objective


class Gradients:
    """Leaves the gradient of a step in the parameters.

    Args:
        model: in training mode while it works.
        bag_of_words: the second decoder, where there is one.
        batches: of the run.
        config: of the run.
        device: of the model.
        precision: `bf16` or `fp32`.
    """

    def __init__(
        self,
        model: VRAE,
        bag_of_words: BagOfWords | None,
        batches: TrainingBatches,
        config: RunConfig,
        device: torch.device,
        precision: str,
    ) -> None:
        self.model, self.bag_of_words, self.batches, self.config = model, bag_of_words, batches, config
        self.device, self.precision = device, precision
        self.noise_shape = config.objective.importance_samples, config.model.latent_size
        self.parts = config.train.accumulate * world()
        modules = [model] if bag_of_words is None else [model, bag_of_words]
        self.parameters: list[nn.Parameter] = [p for module in modules for p in module.parameters()]
        self.buffers = [buffer for module in modules for buffer in module.buffers()]
        self._made: tuple[tuple[int, int], list[tuple[int, Batch, Tensor]]] = (-1, 0), []  # (step, parts), and `_make` of it

    def of(self, step: int, weight: float, *, pretraining: bool) -> tuple[Tensor, list[Tensor]]:
        """Of the mean over the batch of `step`; nothing waits for the device.

        Where memory runs out the step is made again with parts of half the size, and so are all that follow.

        Args:
            weight: of the rate.
            pretraining: take the posterior's mean for z.

        Returns:
            Sums over the turns that this process worked on, float64 [3], in nats: weighted loss, distortion, rate; and where
            their posteriors stand (`offsets`), [B, Z] for each part.

        Raises:
            UserError: memory runs out with parts of half the size too.
        """
        done = self._try(step, weight, pretraining)
        if done is None:
            self.parts *= 2
            done = self._try(step, weight, pretraining)
            if done is None:
                raise UserError(
                    f"out of memory at step {step + 1} on {self.device}, in parts of half the size too. Go on from the last "
                    f"checkpoint with --resume --train.accumulate {2 * self.parts // world()}, or start a new run (--out) with "
                    f"batches.tokens below {self.config.batches.tokens} or a smaller model"
                )
        self._share()
        return done

    def _try(self, step: int, weight: float, pretraining: bool) -> tuple[Tensor, list[Tensor]] | None:
        """The same without the others; None where memory runs out, and then what was held is free again."""
        try:
            return self._work(step, weight, pretraining)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        for parameter in self.parameters:
            parameter.grad = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _work(self, step: int, weight: float, pretraining: bool) -> tuple[Tensor, list[Tensor]]:
        """This process's parts of the batch."""
        turns, seed = len(self.batches.windows_of(step)), self.config.train.seed
        nats = torch.zeros(3, dtype=torch.float64, device=self.device)
        moved = []
        for parameter in self.parameters:
            parameter.grad = None
        made_for, made = self._made
        for i, batch, noise_BX in made if made_for == (step, self.parts) else self._make(step):
            torch.manual_seed(mix(seed, step, i))  # dropout
            noise_SBZ = noise_BX.view(len(noise_BX), *self.noise_shape).transpose(0, 1).to(self.device)
            noise_SBZ = torch.zeros_like(noise_SBZ) if pretraining else noise_SBZ
            with self._autocast():
                loss, terms, inferred = objective(
                    self.model, self.bag_of_words, batch.to(self.device), noise_SBZ, weight, self.config.objective
                )
            share = len(terms.distortion_B) / turns
            (loss * share).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                nats += torch.stack((loss * (share * turns), terms.distortion_B.sum(), terms.rate_BZ.sum())).detach()
                moved.append(offsets(inferred.posterior, inferred.prior))
        self._made = (step + 1, self.parts), list(self._make(step + 1))  # while a GPU works
        return nats, moved

    def _make(self, step: int) -> Iterator[tuple[int, Batch, Tensor]]:
        """The number, batch and noise of each of this process's parts of a step; one without windows is left out."""
        mine = self.parts // world()
        for i in range(rank() * mine, (rank() + 1) * mine):
            for batch, noise_BX in self.batches.parts(step, self.parts, [i]):
                yield i, batch, noise_BX

    def _share(self) -> None:
        """Adds up the gradients of all processes, of which one may have had no part; running moments are averaged."""
        if world() == 1:
            return
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        add_up([*(parameter.grad for parameter in self.parameters if parameter.grad is not None), *self.buffers])
        for buffer in self.buffers:
            buffer /= world()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def mix(seed: int, step: int, part: int) -> int:
    """A seed of torch's for each (seed, step, part)."""
    return int(np.random.SeedSequence([seed, 2, step, part]).generate_state(1, np.uint64)[0] >> 1)
