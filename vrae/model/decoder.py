"""Writing: p(x | z, c) = prod_t p(x_t | x_<t, z, c), scored all at once or taken step by step.

Both ways run the same layers on the same inputs, and a test proves them equal.

Shape legend: B examples, T tokens, P tokens of all examples together (no padding), E embedding, H state, L layers,
V vocabulary, D the condition: z and c side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vrae.config import ModelConfig
from vrae.corpus.tokenizer import BOS
from vrae.model.dropout import Dropout
from vrae.model.encoder import like, pack
from vrae.model.products import linear, step_gru
from vrae.model.recurrence import run_gru
from vrae.model.vocabulary import log_likelihood


class DecoderState(NamedTuple):
    """Where a decoder stands in B texts."""

    condition_BE: Tensor
    skip_BE: Tensor
    state_LBH: Tensor

    def select(self, rows: Tensor) -> DecoderState:
        """The state of some of the texts."""
        return DecoderState(self.condition_BE[rows], self.skip_BE[rows], self.state_LBH[:, rows])


class Decoder(nn.Module):
    """A GRU over tokens, conditioned on d = [z; c] in its first state and at every step.

        s_0 = tanh(A d)        s_t = GRU(s_{t-1}, e(x_{t-1}) + W d)        p(x_t | .) = softmax(e(.)^T P s_t + b)

    Adding W d to the token's embedding is what appending d to it comes to, once the GRU's input matrix is multiplied out,
    and costs one product per text instead of one per token. With `tied_output` off, e(.) in the last formula is a matrix
    of its own (tying: Press & Wolf 2017). With `skip_latent`, P s_t becomes P s_t + S z: the latent reaches the output layer
    past the recurrence (Dieng et al. 2019).
    """

    def __init__(self, embedding: nn.Embedding, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = embedding
        self.dropout = Dropout(config.dropout)
        size = config.latent_size + (config.context_size if config.context_turns else 0)
        like_a_token = config.embedding_size**-0.5  # the standard deviation of embeddings before training
        self.start_state = Affine(size, config.decoder_layers * config.hidden_size, like_a_token)
        self.condition = Affine(size, config.embedding_size, like_a_token)
        self.gru = nn.GRU(
            config.embedding_size,
            config.hidden_size,
            config.decoder_layers,
            dropout=config.dropout if config.decoder_layers > 1 else 0.0,
        )
        self.project = nn.Linear(config.hidden_size, config.embedding_size)
        if config.skip_latent:
            self.skip = nn.Linear(config.latent_size, config.embedding_size, bias=False)
        self.out = nn.Linear(config.embedding_size, config.vocab_size)
        if config.tied_output:
            self.out.weight = embedding.weight

    def start(self, z_BZ: Tensor, context_BC: Tensor) -> DecoderState:
        """The state before the first token."""
        condition_BD = torch.cat([z_BZ, context_BC], -1)
        state_BX = torch.tanh(self.start_state(condition_BD))
        state_LBH = state_BX.view(z_BZ.shape[0], self.config.decoder_layers, -1).transpose(0, 1).contiguous()
        condition_BE = self.condition(condition_BD)
        skip_BE = self.skip(z_BZ) if self.config.skip_latent else torch.zeros_like(condition_BE)
        return DecoderState(condition_BE, skip_BE, state_LBH)

    def step(self, ids_B: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Reads one token of each text: logits [B, V] of the next, and the state after it. In eval mode."""
        inputs_BE = self.dropout(self.embedding(ids_B)) + state.condition_BE
        states_BH, state_LBH = step_gru(self.gru, inputs_BE, state.state_LBH)
        return self.logits(states_BH, state.skip_BE), state._replace(state_LBH=state_LBH)

    def logits(self, states_PH: Tensor, skip_PE: Tensor) -> Tensor:
        """[P, H] states and what is added to their projection, to [P, V] logits."""
        return linear(self._features(states_PH, skip_PE), self.out.weight, self.out.bias)

    def _features(self, states_PH: Tensor, skip_PE: Tensor) -> Tensor:
        """[P, E], what the output layer reads."""
        features_PE: Tensor = self.dropout(linear(states_PH, self.project.weight, self.project.bias) + skip_PE)
        return features_PE

    def log_prob(self, inputs_BT: Tensor, targets_BT: Tensor, lengths_B: Tensor, state: DecoderState) -> Tensor:
        """log p(x | z, c) in nats of each text, [B], end mark included.

        Args:
            inputs_BT: bos and the tokens; only the first lengths_B of each row are read.
            targets_BT: the tokens and eos.
            lengths_B: on the CPU.
            state: of `start`.
        """
        rows_BT = torch.arange(len(inputs_BT), device=inputs_BT.device)[:, None].expand_as(inputs_BT)
        rows, inputs, targets = (pack(values, lengths_B) for values in (rows_BT, inputs_BT, targets_BT))
        inputs_PE = self.dropout(self.embedding(inputs.data)) + state.condition_BE[rows.data]
        states_PH, _ = run_gru(self.gru, like(inputs, inputs_PE), state.state_LBH)
        features_PE = self._features(states_PH, state.skip_BE[rows.data])
        log_prob_P = log_likelihood(features_PE, self.out.weight, self.out.bias, targets.data)
        return log_prob_P.new_zeros(len(inputs_BT)).index_add(0, rows.data, log_prob_P)

    def reset_parameters(self) -> None:
        """Draws new weights, but for the token embeddings, which are not the decoder's alone."""
        for layer in self.children():
            if layer is not self.embedding and not isinstance(layer, nn.Dropout) and layer is not self.out:
                layer.reset_parameters()  # type: ignore[operator]
        if self.config.tied_output:
            nn.init.uniform_(self.out.bias, -(self.config.embedding_size**-0.5), self.config.embedding_size**-0.5)
        else:
            self.out.reset_parameters()

    def first_tokens(self, count: int) -> Tensor:
        """[count] bos ids: what `step` reads first."""
        return torch.full((count,), BOS, device=self.embedding.weight.device)


class Affine(nn.Linear):
    """What z and c add to the decoder: nn.Linear, which may have no inputs at all (then it is its bias).

    Before training z is noise, of which weights of the usual size would make, at every step, nine times what an embedding is
    (E = 256, Z = 32). A decoder that does not hear the tokens takes long to learn, so the weights start smaller: inputs of
    variance 1 come out with a standard deviation of `size`.
    """

    def __init__(self, in_features: int, out_features: int, size: float) -> None:
        self.size = size
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        if self.in_features:
            super().reset_parameters()
            nn.init.normal_(self.weight, std=self.size * self.in_features**-0.5)
        else:
            nn.init.zeros_(self.bias)
