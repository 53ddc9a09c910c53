"""From the model to the number that is minimised: every remedy against collapse that lives in the loss.

Nothing here reaches a reported figure: the terms of the bound are returned beside the loss, unweighted.

Shape legend: B turns, S posterior samples, T tokens, Z latent, C context state, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vrae.config import ModelConfig, ObjectiveConfig
from vrae.corpus.batches import Batch
from vrae.model.gaussian import divergence, each_tensor
from vrae.model.vrae import VRAE, ElboTerms, Inferred


def objective(
    model: VRAE,
    bag_of_words: BagOfWords | None,
    batch: Batch,
    noise_SBZ: Tensor,
    kl_weight: float,
    config: ObjectiveConfig,
) -> tuple[Tensor, ElboTerms, Inferred]:
    """The loss of a batch, mean over its turns, in weighted nats; and the bound's terms that it was made of.

    Args:
        noise_SBZ: S is `config.importance_samples`; noise of zeros stands for the posterior mean.
        kl_weight: of this step.
    """
    inferred = model.infer(batch)
    if config.weighted_samples:
        value, terms = importance_weighted(model, batch, inferred, noise_SBZ, kl_weight, config.doubly_reparameterised)
    else:
        z_BZ = inferred.posterior.sample(noise_SBZ[0])
        distortion_B = -model.log_prob(batch, z_BZ, inferred.context_BC)
        terms = ElboTerms(distortion_B, divergence(inferred.posterior, inferred.prior, z_BZ))
        value = loss(terms, kl_weight, config)
    if bag_of_words is not None:
        z_BZ = inferred.posterior.sample(noise_SBZ[0])
        value = value - config.bag_of_words * bag_of_words(batch, z_BZ, inferred.context_BC).mean()
    return value, terms, inferred


def loss(terms: ElboTerms, kl_weight: float, config: ObjectiveConfig) -> Tensor:
    """Mean over turns of distortion + kl_weight * rate, in weighted nats, with the first `free_bits` of the rate free.

    With F = free_bits, the rate counts by `free_bits_per` as
        dimension   sum_d max(mean_B rate_d, F)     Kingma et al. 2016, appendix C.8
        value       mean_B sum_d max(rate_d, F)     Li et al. 2019, section 3
        turn        mean_B max(rate, F)
        batch       max(mean_B rate, F)
    """
    rate_BZ, F = terms.rate_BZ, config.free_bits
    if not F:
        rate = terms.rate_B.mean()
    elif config.free_bits_per == "dimension":
        rate = rate_BZ.mean(0).clamp(min=F).sum()
    elif config.free_bits_per == "value":
        rate = rate_BZ.clamp(min=F).sum(-1).mean()
    elif config.free_bits_per == "turn":
        rate = terms.rate_B.clamp(min=F).mean()
    else:
        rate = terms.rate_B.mean().clamp(min=F)
    return terms.distortion_B.mean() + kl_weight * rate


def importance_weighted(
    model: VRAE, batch: Batch, inferred: Inferred, noise_SBZ: Tensor, kl_weight: float, doubly_reparameterised: bool
) -> tuple[Tensor, ElboTerms]:
    """Mean over turns of -log 1/S sum_s w_s, log w = log p(x | z, c) + kl_weight * (log p(z | c) - log q(z | x, c)).

    With kl_weight 1 it is the bound of Burda et al. 2016, eq. 8; S = 1 is the ELBO with its rate estimated at the sample.

    Doubly reparameterised, the posterior's parameters are trained through z alone: their gradient within log q is left out,
    and that through z_s is multiplied by v_s = w_s / sum w once more, which comes to the same in expectation with less noise
    (Tucker et al. 2019, eq. 8). Their derivation, done for any weight b of the rate, gives the factor (1 - b) + b * v_s: the
    part left out, -b v_s d log q, equals -b v_s (1 - v_s) d log w / dz dz in expectation.

    Returns the terms of the ELBO too, averaged over the samples.
    """
    posterior = each_tensor(inferred.posterior, Tensor.detach) if doubly_reparameterised else inferred.posterior
    log_weights, distortions, rates = [], [], []
    share_SB = torch.empty(0)
    for s, noise_BZ in enumerate(noise_SBZ):
        z_BZ = inferred.posterior.sample(noise_BZ)
        if doubly_reparameterised and z_BZ.requires_grad:
            z_BZ.register_hook(lambda grad_BZ, s=s: grad_BZ * ((1 - kl_weight) + kl_weight * share_SB[s])[:, None])  # type: ignore[no-untyped-call]
        log_prob_B = model.log_prob(batch, z_BZ, inferred.context_BC)
        log_ratio_BZ = inferred.prior.log_prob(z_BZ) - posterior.log_prob(z_BZ)
        log_weights.append(log_prob_B + kl_weight * log_ratio_BZ.sum(-1))
        distortions.append(-log_prob_B.detach())
        rates.append(divergence(inferred.posterior, inferred.prior, z_BZ).detach())
    log_weight_SB = torch.stack(log_weights)
    share_SB = log_weight_SB.detach().softmax(0)  # read by the hooks, which run in the backward pass
    bound_B = log_weight_SB.logsumexp(0) - math.log(len(noise_SBZ))
    return -bound_B.mean(), ElboTerms(torch.stack(distortions).mean(0), torch.stack(rates).mean(0))


class BagOfWords(nn.Module):
    """log p(words of x | z, c) with each word drawn independently from softmax(MLP([z; c])) (Zhao et al. 2017, section 3.3).

    A second, weak decoder that training alone sees: it cannot lean on the words before, so z has to say what the turn is about.
    """

    def __init__(self, config: ModelConfig, hidden_size: int = 400) -> None:
        super().__init__()
        context_size = config.context_size if config.context_turns else 0
        self.hidden = nn.Linear(config.latent_size + context_size, hidden_size)
        self.out = nn.Linear(hidden_size, config.vocab_size)

    def forward(self, batch: Batch, z_BZ: Tensor, context_BC: Tensor) -> Tensor:
        """The sum over a turn's tokens, end mark included, of their log probability in nats, [B]."""
        log_prob_BV: Tensor = self.out(torch.tanh(self.hidden(torch.cat([z_BZ, context_BC], -1)))).log_softmax(-1)
        targets_BT = batch.turns_NT[batch.target_B, : batch.inputs_BT.shape[1]]
        lengths_B1 = batch.target_lengths_B.to(z_BZ.device, non_blocking=True)[:, None]
        real_BT = torch.arange(targets_BT.shape[1], device=z_BZ.device) < lengths_B1
        return log_prob_BV.gather(1, targets_BT).masked_fill(~real_BT, 0.0).sum(-1)
