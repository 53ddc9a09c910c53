"""The model: one turn x given the K turns before it, through a latent z.

    z ~ p(z | c)          prior       N(0, I) when K = 0, a learnt Gaussian of the context when K >= 1; or a learnt mixture
    x ~ p(x | z, c)       decoder     a GRU; z and c start its state and enter every step
    q(z | x, c)           posterior   a Gaussian (or flow) read off a GRU encoding of x, and c
    c = ContextGRU(TurnGRU(u_1) .. TurnGRU(u_K))

K = 0 is the variational recurrent autoencoder (Fabius & van Amersfoort 2014; Bowman et al. 2016), K = 1 the conditional one
that responds (Zhao et al. 2017), K = N the VHRED (Serban et al. 2016). With latent_size 0 the same three are the recurrent
language model, the sequence-to-sequence model and HRED.

Shape legend: B windows, N distinct turns, K context turns, T tokens, H turn vector, C context state, Z latent, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vrae.config import ModelConfig
from vrae.corpus.batches import Batch
from vrae.model.decoder import Decoder
from vrae.model.encoder import ContextEncoder, TurnEncoder
from vrae.model.flow import FlowPosterior
from vrae.model.gaussian import Density, DiagonalGaussian, StandardPrior, divergence
from vrae.model.mixture import FreeMixture, MixturePrior


class ElboTerms(NamedTuple):
    """The two sides of the bound, in nats: log p(x | c) >= -(distortion + rate)."""

    distortion_B: Tensor  # -log p(x | z, c) at one z drawn from q(z | x, c)
    rate_BZ: Tensor  # KL(q(z | x, c) || p(z | c)) of each latent dimension, or its estimate at that z (`divergence`)

    @property
    def rate_B(self) -> Tensor:
        return self.rate_BZ.sum(-1)

    @property
    def elbo_B(self) -> Tensor:
        """Never weighted."""
        return -(self.distortion_B + self.rate_B)


class Inferred(NamedTuple):
    """What is known about z and the condition before anything is decoded."""

    posterior: Density
    prior: Density
    context_BC: Tensor


class VRAE(nn.Module):
    """The generative model p(x, z | c) and its inference network q(z | x, c).

    Args:
        config: the architecture; its vocab_size must be set.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vocab_size > 0, "vocab_size comes from the tokenizer"
        self.config = config
        embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        nn.init.normal_(embedding.weight, std=config.embedding_size**-0.5)
        context_size = config.context_size if config.context_turns else 0
        if config.latent_size or config.context_turns:
            self.turn_encoder = TurnEncoder(embedding, config)
        if config.context_turns:
            self.context_encoder = ContextEncoder(config)
        self.posterior: nn.Module = StandardPrior(0)
        self.prior: nn.Module = StandardPrior(config.latent_size)
        if config.latent_size:
            in_size = config.hidden_size + context_size
            self.posterior = DiagonalGaussian(in_size, config.latent_size, mean_scale=config.batch_norm_scale)
            if config.flow_steps:
                self.posterior = FlowPosterior(
                    self.posterior, in_size, config.hidden_size, config.latent_size, config.flow_steps
                )
            if config.prior_of_context == "gaussian":
                self.prior = DiagonalGaussian(context_size, config.latent_size, context_size)
            elif config.prior_of_context == "mixture" and context_size:
                self.prior = MixturePrior(context_size, config.latent_size, context_size, config.prior_components)
            elif config.prior_of_context == "mixture":
                self.prior = FreeMixture(config.latent_size, config.prior_components)
        self.decoder = Decoder(embedding, config)

    def forward(self, batch: Batch, noise_BZ: Tensor | None = None) -> ElboTerms:
        """The bound of each window of the batch, at one posterior sample (made of `noise_BZ` where given)."""
        inferred = self.infer(batch)
        z_BZ = inferred.posterior.sample(noise_BZ)
        distortion_B = -self.log_prob(batch, z_BZ, inferred.context_BC)
        return ElboTerms(distortion_B, divergence(inferred.posterior, inferred.prior, z_BZ))

    def infer(self, batch: Batch) -> Inferred:
        """Encodes each distinct turn once; returns q(z | x, c), p(z | c) and c of every window."""
        turns_NH = self.encode_turns(batch)
        context_BC = self.encode_context(batch, turns_NH)
        target_BH = turns_NH[batch.target_B]
        return Inferred(self.posterior(torch.cat([target_BH, context_BC], -1)), self.prior(context_BC), context_BC)

    def condition(self, batch: Batch) -> tuple[Density, Tensor]:
        """p(z | c) and c alone: what generation starts from. The targets of `batch` do not matter."""
        context_BC = self.encode_context(batch, self.encode_turns(batch))
        return self.prior(context_BC), context_BC

    def encode_turns(self, batch: Batch) -> Tensor:
        """[N, H] vectors of the distinct turns; width 0 where the model reads none (latent_size 0, K = 0)."""
        if not (self.config.latent_size or self.config.context_turns):
            return self.decoder.out.bias.new_zeros(len(batch.turns_NT), 0)
        turns_NH: Tensor = self.turn_encoder(batch.turns_NT, batch.turn_lengths_N)
        return turns_NH

    def encode_context(self, batch: Batch, turns_NH: Tensor) -> Tensor:
        """[B, C] context states; width 0 when K = 0."""
        if not self.config.context_turns:
            return turns_NH.new_zeros(len(batch.target_B), 0)
        context_BC: Tensor = self.context_encoder(
            turns_NH[batch.context_BK], batch.context_lengths_B, batch.same_speaker_BK, batch.unknown_BK
        )
        return context_BC

    def log_prob(self, batch: Batch, z_BZ: Tensor, context_BC: Tensor) -> Tensor:
        """log p(x | z, c) in nats of each window's target, [B]."""
        T = batch.inputs_BT.shape[1]
        targets_BT = batch.turns_NT[batch.target_B, :T]
        return self.decoder.log_prob(batch.inputs_BT, targets_BT, batch.target_lengths_B, self.decoder.start(z_BZ, context_BC))

    def inference_network(self) -> list[nn.Parameter]:
        """The parameters that q(z | x) alone depends on, at K = 0: all but the token embeddings, which the decoder shares."""
        assert self.config.context_turns == 0, "with a context the turn encoder serves the decoder too"
        shared = self.decoder.embedding.weight
        modules = (self.turn_encoder, self.posterior) if self.config.latent_size else ()
        return [parameter for module in modules for parameter in module.parameters() if parameter is not shared]

    @property
    def device(self) -> torch.device:
        return self.decoder.out.bias.device
