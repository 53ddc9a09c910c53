"""The bound on held-out text: ELBO, rate and distortion, perplexity, bits; and the importance-weighted bound.

`measure_turns` gives the figures of each turn, `measure_information` what the latents of many turns carry together, and
`summarise` their means. Nothing is weighted; sums run over whole turns in double precision and divide at the end.

Shape legend: N turns, B turns of a batch, Z latent, X noise numbers of a draw of z, D dialogues.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from vrae.corpus.batches import Windows
from vrae.distributed import first, rank, world
from vrae.evaluation.information import ActiveUnits, Information, Verdict, information, verdict
from vrae.evaluation.turns import Turns, join_turns, measure_batch
from vrae.model.bound import Noise
from vrae.model.gaussian import each_tensor, join, select
from vrae.model.vrae import VRAE

# To first order (delta method on the log of a mean) nll_iw is too high by 1 / (2 effective) - 1 / (2 k): with 5 effective
# samples by some 0.1 nats. Weights that the draws have missed altogether come on top.
POOR_EFFECTIVE_SAMPLES = 5.0
POOR_SHARE = 0.1  # of the turns: with more of them poor, the estimate as a whole is
_INFORMATION_TURNS = 5000  # the mutual information is that of so many turns at most


@dataclass(frozen=True)
class Bound:
    """Means over turns, in nats per turn unless the name says otherwise. Errors are standard errors over turns.

    They take turns for independent. Where there is only one turn, they are None.
    """

    turns: int
    tokens: int  # predicted ones: end marks included
    elbo: float
    elbo_error: float | None
    rate: float
    rate_error: float | None
    distortion: float
    distortion_error: float | None
    k: int  # draws of z per turn that all of this is averaged over, and that nll_iw and nll_prior are made of; 0: one draw
    nll_iw: float | None  # -log p(x | c), bounded with k draws from the posterior (Burda et al. 2016); None where k is 0
    nll_iw_error: float | None
    nll_prior: float | None  # the same with k draws from the prior: what the estimate is without inference
    nll_prior_error: float | None
    effective_samples: float | None  # median over turns, of k
    poor_turns: float | None  # share of turns with fewer than 5 effective samples
    distortion_prior: float | None  # the distortion with z drawn from the prior
    perplexity: float  # exp(total nats / tokens), of nll_iw where there is one, else of -elbo
    perplexity_error: float | None
    bits_per_token: float  # the same, log 2
    bits_per_token_error: float | None
    dialogues: int  # those all of whose turns were measured
    nats_per_dialogue: float | None  # -elbo summed over the turns of a dialogue, mean of these dialogues
    nats_per_dialogue_error: float | None  # over dialogues
    mutual_information: float  # I_q(x; z), see `information`
    mutual_information_error: float | None
    mutual_information_most: float  # log N, which it cannot exceed
    aggregated_kl: float  # KL(q(z) || p(z))
    aggregated_kl_error: float | None
    information_turns: int  # N of these two
    rate_per_dimension: list[float]
    active_dimensions: list[bool]
    active_units: int
    latent_size: int
    collapse: Verdict
    warnings: list[str]  # which figures are not to be trusted, and what to do

    def units(self, name: str) -> dict[str, float]:
        """`elbo`, `rate`, `distortion`, `nll_iw` or another mean over turns, in nats and bits, per turn and per token."""
        nats = getattr(self, name)
        per_token = nats * self.turns / self.tokens
        return {
            "nats_per_turn": nats,
            "bits_per_turn": nats / math.log(2),
            "nats_per_token": per_token,
            "bits_per_token": per_token / math.log(2),
        }


def measure(model: VRAE, windows: Windows, *, limit: int = 0, k: int = 0, seed: int = 0, progress: bool = False) -> Bound:
    """The bound over the turns of a split.

    The model is put in eval mode for the time, and global random state is left as it was. Under torch.distributed the
    batches are dealt out to the processes, all of which must call this, and all get the figures that one alone would.

    Args:
        windows: the turns. Made with context_turns 0, they are measured without context, whatever the model reads.
        limit: measure an even sample of so many; 0: all.
        k: draws of z for each turn. 0: one, and no importance-weighted estimate.
        seed: of the draws.
        progress: show a bar.
    """
    turns = measure_turns(model, windows, limit=limit, k=k, seed=seed, progress=progress)
    return summarise(turns, measure_information(model, windows, limit=limit, seed=seed), windows, k)


@torch.no_grad()
def measure_turns(model: VRAE, windows: Windows, *, limit: int = 0, k: int = 0, seed: int = 0, progress: bool = False) -> Turns:
    """The figures of each turn, in the order of the split. Arguments as for `measure`. Memory grows with N times Z."""
    parts: list[Turns] = []
    with (
        _eval_mode(model),
        tqdm(
            total=min(limit or len(windows), len(windows)), unit="turn", disable=None if progress and first() else True
        ) as bar,
    ):
        for windows_B, batch in windows.in_order(limit, rank(), world()):
            parts.append(measure_batch(model, windows_B, batch.to(model.device), k=k, seed=seed))
            bar.update(len(windows_B))
    turns = join_turns(parts, model.config.latent_size)
    if world() == 1:
        return turns
    shares = [turns] * world()
    dist.all_gather_object(shares, turns)
    return join_turns(shares, model.config.latent_size)


@torch.no_grad()
def measure_information(model: VRAE, windows: Windows, *, limit: int = 0, seed: int = 0) -> Information:
    """`information` of an even sample of `limit` turns, 5,000 at most. Nothing is decoded."""
    if not model.config.latent_size:
        return Information(min(limit or len(windows), len(windows)), 0.0, None, 0.0, None)
    numbers, posteriors, priors, noises = [], [], [], []
    with _eval_mode(model):
        for windows_B, batch in windows.in_order(min(limit or _INFORMATION_TURNS, _INFORMATION_TURNS)):
            inferred = model.infer(batch.to(model.device))
            noises.append(Noise([seed, 0], windows_B).draw(1, inferred.posterior.noise_size).to(inferred.context_BC))
            numbers.append(windows_B)
            posteriors.append(inferred.posterior)
            priors.append(inferred.prior)
        order_N = torch.from_numpy(np.argsort(np.concatenate(numbers))).to(model.device)
        posterior, prior = select(join(posteriors), order_N), each_tensor(inferred.prior, lambda part: part[:1])
        if inferred.context_BC.shape[1]:  # else it is the same for all
            prior = select(join(priors), order_N)
        return information(posterior, prior, torch.cat(noises)[order_N])


def summarise(turns: Turns, carried: Information, windows: Windows, k: int) -> Bound:
    """The means over turns. A pure function: no model, no noise, nothing shared between processes."""
    N, Z = turns.rate_NZ.shape
    assert N, "no turn to summarise"
    tokens, elbo_N = int(turns.tokens_N.sum()), turns.elbo_N
    nats_N = turns.nll_iw_N if k else -elbo_N
    per_token = float(nats_N.sum()) / tokens
    # of a ratio of sums over turns, by the delta method
    per_token_error = _error(nats_N - per_token * turns.tokens_N, tokens / N)
    perplexity = math.exp(min(per_token, 700.0))
    nats_D = _per_dialogue(windows, turns.window_N, -elbo_N)
    active = ActiveUnits(Z)
    active.add(torch.from_numpy(turns.offsets_NZ))
    rate_Z, distortion = turns.rate_NZ.mean(0), float(turns.distortion_N.mean())
    rate = float(rate_Z.sum())
    distortion_prior = float(turns.distortion_prior_N.mean()) if k else None
    gain = None if distortion_prior is None else distortion_prior - distortion
    return Bound(
        turns=N,
        tokens=tokens,
        elbo=-(rate + distortion),
        elbo_error=_error(elbo_N),
        rate=rate,
        rate_error=_error(turns.rate_NZ.sum(-1)),
        distortion=distortion,
        distortion_error=_error(turns.distortion_N),
        k=k,
        nll_iw=float(turns.nll_iw_N.mean()) if k else None,
        nll_iw_error=_error(turns.nll_iw_N) if k else None,
        nll_prior=float(turns.nll_prior_N.mean()) if k else None,
        nll_prior_error=_error(turns.nll_prior_N) if k else None,
        effective_samples=float(np.median(turns.effective_N)) if k else None,
        poor_turns=float((turns.effective_N < POOR_EFFECTIVE_SAMPLES).mean()) if k else None,
        distortion_prior=distortion_prior,
        perplexity=perplexity,
        perplexity_error=None if per_token_error is None else perplexity * per_token_error,
        bits_per_token=per_token / math.log(2),
        bits_per_token_error=None if per_token_error is None else per_token_error / math.log(2),
        dialogues=len(nats_D),
        nats_per_dialogue=float(nats_D.mean()) if len(nats_D) else None,
        nats_per_dialogue_error=_error(nats_D),
        mutual_information=carried.mutual_information,
        mutual_information_error=carried.mutual_information_error,
        mutual_information_most=carried.most,
        aggregated_kl=carried.aggregated_kl,
        aggregated_kl_error=carried.aggregated_kl_error,
        information_turns=carried.turns,
        rate_per_dimension=rate_Z.tolist(),
        active_dimensions=active.active_Z.tolist(),
        active_units=active.count,
        latent_size=Z,
        collapse=verdict(torch.from_numpy(rate_Z), active.active_Z, gain),
        warnings=_warnings(turns, carried, k) if Z else [],
    )


def _error(values_N: np.ndarray, scale: float = 1.0) -> float | None:
    """Standard error of the mean over `scale`; None where there is nothing to tell it by."""
    return float(values_N.std(ddof=1)) / math.sqrt(len(values_N)) / scale if len(values_N) > 1 else None


def _per_dialogue(windows: Windows, window_N: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """Sums over the dialogues all of whose turns are among `window_N`."""
    starts = np.asarray(windows.split.dialogues)
    dialogue_N = np.searchsorted(starts, windows.target_N[window_N], side="right") - 1
    measured_D = np.bincount(dialogue_N, minlength=len(starts) - 1)
    complete_D = (measured_D == np.diff(starts)) & (measured_D > 0)
    sums_D: np.ndarray = np.bincount(dialogue_N, weights=values_N, minlength=len(starts) - 1)[complete_D]
    return sums_D


def _warnings(turns: Turns, carried: Information, k: int) -> list[str]:
    found = []
    poor = float((turns.effective_N < POOR_EFFECTIVE_SAMPLES).mean())
    if k and poor > POOR_SHARE:
        found.append(
            f"nll_iw is a poor estimate: for {poor:.0%} of the turns it rests on fewer than {POOR_EFFECTIVE_SAMPLES:g} "
            f"effective samples of {k}, and is too high there by some 0.1 nats or more. Raise k"
        )
    if carried.saturated:
        found.append(
            f"mutual_information ({carried.mutual_information:.2f} nats) is close to log N = {carried.most:.2f}, the most that "
            f"{carried.turns:,} turns can show: it may be higher, and aggregated_kl lower by as much"
        )
    return found


@contextlib.contextmanager
def _eval_mode(model: VRAE) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
