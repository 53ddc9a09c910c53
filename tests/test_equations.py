"""The equations of docs/equations.md, run as they stand there, against the functions that they name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import gru_by_hand, random_windows, tiny_model
from torch import Tensor, nn

from vrae.config import DecodingConfig, ObjectiveConfig
from vrae.corpus.batches import collate
from vrae.evaluation.information import ActiveUnits, information
from vrae.generation.decoding import choose
from vrae.generation.latent import slerp
from vrae.model.bound import Noise, draw
from vrae.model.flow import FlowPosterior
from vrae.model.gaussian import DiagonalGaussian, Gaussian
from vrae.model.mixture import GaussianMixture
from vrae.model.products import step_gru
from vrae.model.vrae import ElboTerms
from vrae.training.objective import loss
from vrae.training.schedules import RateController, kl_weight

PAGE = (Path(__file__).parents[1] / "docs" / "equations.md").read_text(encoding="utf-8")
NAME = re.compile(r"`(vrae\.[\w.]+)`")
BLOCKS = re.findall(r"([^\n]+(?:\n[^\n]+)*)\n\n```python\n(.*?)```", PAGE, re.DOTALL)
EQUATIONS = {NAME.findall(text)[0]: block for text, block in BLOCKS}  # the first name before a block is what computes it

Values = dict[str, Any]
NUMPY: Values = {name: getattr(np, name) for name in """
    exp log tanh sqrt sin cos arccos pi zeros concatenate array arange diag mean var cumsum argmax minimum maximum clip prod
""".split()}  # fmt: skip


def total(values: Any, axis: int | None = None) -> Any:
    """numpy's sum, which takes what Python's takes too."""
    return np.sum(np.stack(list(values)) if not isinstance(values, np.ndarray) else values, axis=axis)


NUMPY |= {
    "sum": total,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "softmax": lambda a: np.exp(a) / np.exp(a).sum(),
    "normal": lambda z, mean, log_var: np.exp(-((z - mean) ** 2) / np.exp(log_var) / 2) / np.sqrt(2 * np.pi * np.exp(log_var)),
}


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values)


def gru_of(layer: nn.GRU, suffix: str = "l0") -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """One step of a torch GRU, by hand."""
    return lambda x, h: gru_by_hand(layer, tensor(np.array(x))[None], tensor(np.array(h)), suffix)[0].numpy()


def a_gru_step() -> tuple[Values, Values]:
    gru = nn.GRU(3, 4).double()
    x, h = drawn(3), drawn(4, seed=1)
    parts = dict(zip("VWbd", (p.detach().numpy().reshape(3, 4, -1).squeeze() for p in gru.parameters()), strict=True))
    found, _ = step_gru(gru, tensor(x)[None], tensor(h)[None, None])
    gates = {f"{name}_{gate}": value[i] for name, value in parts.items() for i, gate in enumerate("run")}
    return {"x": x, "h": h, **gates}, {"h_next": found[0]}


def a_turn() -> tuple[Values, Values]:
    encoder, tokens = tiny_model(bidirectional=True).turn_encoder, [5, 9, 3]
    found = encoder(torch.tensor([tokens]), torch.tensor([3]))[0]
    ways = {"gru": gru_of(encoder.gru), "gru_backwards": gru_of(encoder.gru, "l0_reverse")}
    return {"tokens": tokens, "H": 6, "e": encoder.embedding.weight.numpy(), **ways}, {"h": found}


def a_context() -> tuple[Values, Values]:
    encoder, turns = tiny_model(context_turns=2).context_encoder, drawn(2, 6)
    nothing = torch.zeros(1, 2, dtype=torch.long)
    found = encoder(tensor(turns)[None], torch.tensor([2]), nothing, nothing.bool())[0]
    return {"turns": turns, "c_empty": encoder.empty_C.numpy(), "gru": gru_of(encoder.gru)}, {"c": found}


def two_gaussians() -> tuple[Values, Gaussian, Gaussian]:
    values = dict(zip(("mean", "log_var", "mean_p", "log_var_p"), drawn(4, 5), strict=True))
    q, p = (Gaussian(tensor(values[f"mean{of}"]), tensor(values[f"log_var{of}"])) for of in ("", "_p"))
    return values, q, p


def a_draw() -> tuple[Values, Values]:
    values, q, _ = two_gaussians()
    return {**values, "noise": drawn(5, seed=1)}, {"z": q.sample(tensor(drawn(5, seed=1)))}


def a_density() -> tuple[Values, Values]:
    values, q, _ = two_gaussians()
    return {**values, "z": drawn(5, seed=1)}, {"log_density": q.log_prob(tensor(drawn(5, seed=1)))}


def a_rate() -> tuple[Values, Values]:
    values, q, p = two_gaussians()
    return values, {"rate": q.kl(p)}


def a_mixture() -> tuple[Values, Values]:
    weight, means, log_vars, z = np.array([0.2, 0.5, 0.3]), drawn(3, 4), drawn(3, 4, seed=1), drawn(4, seed=2)
    found = GaussianMixture(tensor(np.log(weight))[None], tensor(means)[None], tensor(log_vars)[None]).log_prob(tensor(z)[None])
    return {"weight": weight, "means": means, "log_vars": log_vars, "M": 3, "z": z}, {"log_density": found.sum()}


def a_flow() -> tuple[Values, Values]:
    flow = FlowPosterior(DiagonalGaussian(3, 6), 3, 5, 6, steps=1).double()
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.5)
    posterior, u = flow(tensor(drawn(1, 3))), drawn(6, seed=1)
    coupling: Any = flow.couplings[0]
    s, t = (value[0].detach().numpy() for value in coupling.terms(tensor(u)[None], posterior.features_BX))
    z = coupling(tensor(u)[None], posterior.features_BX)
    mean, log_var = posterior.base_mean_BZ[0].detach().numpy(), posterior.base_log_var_BZ[0].detach().numpy()
    given = {"u": u, "s": s, "t": t, "mean": mean, "log_var": log_var}
    return given, {"z": z[0], "log_density": posterior.log_prob(z).sum()}


def a_decoder() -> tuple[Any, Values, Tensor, Tensor]:
    decoder = tiny_model(context_turns=1).decoder
    z, c = drawn(4), drawn(7, seed=1)
    names = {"A": "start_state.weight", "a": "start_state.bias", "W": "condition.weight", "w": "condition.bias"}
    names |= {"P": "project.weight", "p": "project.bias", "b": "out.bias", "e": "embedding.weight"}
    weights = {name: decoder.get_parameter(path).numpy() for name, path in names.items()}
    return decoder, {"z": z, "c": c, **weights, "gru": gru_of(decoder.gru)}, tensor(z)[None], tensor(c)[None]


def a_start() -> tuple[Values, Values]:
    decoder, given, z_1Z, c_1C = a_decoder()
    return given, {"s": decoder.start(z_1Z, c_1C).state_LBH[0, 0]}


def a_step() -> tuple[Values, Values]:
    decoder, given, z_1Z, c_1C = a_decoder()
    state = decoder.start(z_1Z, c_1C)
    logits_1V, after = decoder.step(torch.tensor([8]), state)
    return {**given, "token": 8, "s": state.state_LBH[0, 0].numpy()}, {"s_next": after.state_LBH[0, 0], "logits": logits_1V[0]}


def a_choice() -> tuple[Values, Values]:
    logits, config = np.array([-np.inf, -np.inf, -np.inf, *drawn(20)]), DecodingConfig(temperature=0.7, top_p=1.0)
    found = choose(tensor(logits)[None].clone(), torch.tensor([[7]]), torch.tensor([0.62]), config)
    return {"logits": logits, "temperature": 0.7, "uniform": 0.62}, {"piece": found[0]}


def a_path() -> tuple[Values, Values]:
    a, b = drawn(2, 5)
    return {"a": a, "b": b, "t": 0.3}, {"point": slerp(tensor(a), tensor(b), torch.tensor([0.3], dtype=torch.float64))[0]}


def a_distortion() -> tuple[Values, Values]:
    decoder, _, z_1Z, c_1C = a_decoder()
    tokens, inputs = torch.tensor([7, 4, 3]), torch.tensor([2, 7, 4])
    state, logits = decoder.start(z_1Z, c_1C), []
    for token in inputs:
        logits_1V, state = decoder.step(token[None], state)
        logits.append(logits_1V[0].numpy())
    found = decoder.log_prob(inputs[None], tokens[None], torch.tensor([3]), decoder.start(z_1Z, c_1C))
    return {"logits": logits, "tokens": tokens.tolist(), "T": 3}, {"distortion": -found[0]}


def an_elbo() -> tuple[Values, Values]:
    rate, distortion = drawn(5) ** 2, 3.0
    return {"rate": rate, "distortion": distortion}, {"elbo": ElboTerms(torch.tensor([3.0]), tensor(rate)[None]).elbo_B[0]}


def a_bound() -> tuple[Values, Values]:
    model, k = tiny_model(context_turns=1), 6
    batch, window = collate(random_windows(2, 1)[1:], 1), np.array([9])
    inferred = model.infer(batch)
    posterior, prior = inferred.posterior, inferred.prior
    found = draw(model, batch, inferred, posterior, k, Noise([1], window))
    z_kZ = posterior.sample(Noise([1], window).draw(k, 4).double())
    likelihood = torch.cat([model.log_prob(batch, z_1Z[None], inferred.context_BC) for z_1Z in z_kZ])
    given = {
        "log_likelihood": likelihood,
        "log_prior": prior.log_prob(z_kZ).sum(1),
        "log_posterior": posterior.log_prob(z_kZ).sum(1),
    }
    return {name: value.numpy() for name, value in given.items()}, {"bound": found.log_mean_B, "effective": found.effective_B}


def a_schedule() -> tuple[Values, Values]:
    def weight(schedule: Any) -> float:
        return kl_weight(270, ObjectiveConfig(beta=0.8, kl_schedule=schedule, kl_warmup_steps=400))

    names = ("linear", "cosine", "logistic", "cyclical")
    return {"beta": 0.8, "step": 270, "warmup": 400}, {name: weight(name) for name in names}


def a_controller() -> tuple[Values, Values]:
    controller = RateController(target=8.0, highest=1.0, weight=0.2)
    controller.update(6.5)
    return {"target": 8.0, "weight": 0.2, "rate": 6.5}, {"weight_next": controller.weight}


def free_bits() -> tuple[Values, Values]:
    rate = drawn(6, 4) ** 2
    terms = ElboTerms(torch.zeros(6, dtype=torch.float64), tensor(rate))

    def cost(per: Any) -> Tensor:
        return loss(terms, 1.0, ObjectiveConfig(free_bits=0.9, free_bits_per=per))

    return {"rate": rate, "F": 0.9}, {per: cost(per) for per in ("dimension", "value", "turn", "batch")}


def what_is_carried() -> tuple[Values, Values]:
    mean, log_var, noise = drawn(5, 3), drawn(5, 3, seed=1), drawn(5, 3, seed=2)
    posterior, zeros = Gaussian(tensor(mean), tensor(log_var)), torch.zeros(5, 3, dtype=torch.float64)
    found = information(posterior, Gaussian(zeros, zeros), tensor(noise))
    given = {"z": posterior.sample(tensor(noise)).numpy(), "means": mean, "log_vars": log_var, "N": 5}
    return given, {"mutual_information": found.mutual_information, "aggregated_kl": found.aggregated_kl}


def active_units() -> tuple[Values, Values]:
    means = drawn(8, 4)
    means *= np.sqrt([1, 0.0105, 0.0095, 0.015]) / means.std(0, ddof=1)  # the second is below, divided by n
    units = ActiveUnits(4)
    units.add(tensor(means))
    return {"means": means}, {"active": units.active_Z}


CASES: dict[str, Callable[[], tuple[Values, Values]]] = {
    "vrae.model.products.step_gru": a_gru_step,
    "vrae.model.encoder.TurnEncoder.forward": a_turn,
    "vrae.model.encoder.ContextEncoder.forward": a_context,
    "vrae.model.gaussian.Gaussian.sample": a_draw,
    "vrae.model.gaussian.Gaussian.log_prob": a_density,
    "vrae.model.gaussian.Gaussian.kl": a_rate,
    "vrae.model.mixture.GaussianMixture.log_prob": a_mixture,
    "vrae.model.flow.Flow.log_prob": a_flow,
    "vrae.model.decoder.Decoder.start": a_start,
    "vrae.model.decoder.Decoder.step": a_step,
    "vrae.generation.decoding.choose": a_choice,
    "vrae.generation.latent.slerp": a_path,
    "vrae.model.decoder.Decoder.log_prob": a_distortion,
    "vrae.model.vrae.ElboTerms.elbo_B": an_elbo,
    "vrae.model.bound.draw": a_bound,
    "vrae.training.schedules.kl_weight": a_schedule,
    "vrae.training.schedules.RateController.update": a_controller,
    "vrae.training.objective.loss": free_bits,
    "vrae.evaluation.information.information": what_is_carried,
    "vrae.evaluation.information.ActiveUnits": active_units,
}


def test_every_equation_has_its_numbers() -> None:
    assert list(EQUATIONS) == list(CASES)
    assert PAGE.count("```python") == len(CASES)


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_the_equation_gives_what_the_function_gives(name: str) -> None:
    torch.manual_seed(0)
    given, wanted = CASES[name]()
    values = {**NUMPY, **given}
    exec(EQUATIONS[name], values)
    for key, value in wanted.items():
        np.testing.assert_allclose(values[key], np.asarray(value), rtol=1e-9, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", sorted(set(NAME.findall(PAGE))))
def test_every_name_is_there(name: str) -> None:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return
