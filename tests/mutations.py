"""Breaks the code in plausible ways, one at a time, and looks whether a test fails each time.

    python tests/mutations.py [PART OF A NAME]

Works on a copy. Exits 1 where a mistake survives. The list is that of CONTRIBUTING.md; a mistake that was made, or feared,
belongs in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """`old`, which stands once in `file`, becomes `new`, and one of `tests` should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(
        "the rate is added to the ELBO",
        "vrae/model/vrae.py",
        "return -(self.distortion_B + self.rate_B)",
        "return self.rate_B - self.distortion_B",
        "tests/model/test_vrae.py tests/training/test_objective.py",
    ),
    Mutation(
        "the KL runs from prior to posterior",
        "vrae/model/gaussian.py",
        "return posterior.kl(prior)",
        "return prior.kl(posterior)",
        "tests/model/test_gaussian.py tests/model/test_vrae.py tests/evaluation/test_closed_forms.py",
    ),
    Mutation(
        "the bag of words is averaged over tokens",
        "vrae/training/objective.py",
        ".masked_fill(~real_BT, 0.0).sum(-1)",
        ".masked_fill(~real_BT, 0.0).sum(-1) / lengths_B1[:, 0]",
        "tests/training/test_objective.py",
    ),
    Mutation(
        "padding is counted in the bag of words",
        "vrae/training/objective.py",
        ".masked_fill(~real_BT, 0.0).sum(-1)",
        ".sum(-1)",
        "tests/training/test_objective.py",
    ),
    Mutation(
        "padding is counted among the predicted tokens",
        "vrae/corpus/batches.py",
        "return int(self.target_lengths_B.sum())",
        "return int(self.inputs_BT.numel())",
        "tests/corpus/test_batches.py",
    ),
    Mutation(
        "free bits per turn are taken on the batch mean",
        "vrae/training/objective.py",
        "rate = terms.rate_B.clamp(min=F).mean()",
        "rate = terms.rate_B.mean().clamp(min=F)",
        "tests/training/test_objective.py",
    ),
    Mutation(
        "the end mark is dropped from the target",
        "vrae/corpus/batches.py",
        "torch.from_numpy(np.asarray(lengths_N[target_B] + 1, np.int64)),",
        "torch.from_numpy(np.maximum(lengths_N[target_B], 1)),",
        "tests/corpus/test_batches.py tests/model/test_vrae.py",
    ),
    Mutation(
        "the importance-weighted bound is the mean of the logs",
        "vrae/model/bound.py",
        "log_sum_B = torch.logaddexp(log_sum_B, log_weight_BS.logsumexp(1))",
        "log_sum_B = torch.logaddexp(log_sum_B, log_weight_BS.mean(1) + math.log(S))",
        "tests/model/test_bound.py tests/evaluation/test_closed_forms.py tests/evaluation/test_likelihood.py",
    ),
    Mutation(
        "the importance-weighted objective is the mean of the logs",
        "vrae/training/objective.py",
        "bound_B = log_weight_SB.logsumexp(0) - math.log(len(noise_SBZ))",
        "bound_B = log_weight_SB.mean(0)",
        "tests/training/test_objective.py",
    ),
    Mutation(
        "the posterior is sampled once for all k",
        "vrae/model/bound.py",
        "noise.draw(S, source.noise_size)",
        "noise.draw(1, source.noise_size).repeat_interleave(S, 0)",
        "tests/model/test_bound.py tests/evaluation/test_closed_forms.py tests/evaluation/test_likelihood.py",
    ),
    Mutation(
        "the doubly reparameterised factor forgets the weight of the rate",
        "vrae/training/objective.py",
        "((1 - kl_weight) + kl_weight * share_SB[s])",
        "share_SB[s]",
        "tests/training/test_objective.py",
    ),
    Mutation(
        "a cycle too many",
        "vrae/training/schedules.py",
        "progress >= config.kl_cycles",
        "progress > config.kl_cycles",
        "tests/training/test_schedules.py",
    ),
    Mutation(
        "a weighted ELBO is reported",
        "vrae/training/gradients.py",
        "terms.distortion_B.sum(), terms.rate_BZ.sum()",
        "terms.distortion_B.sum(), weight * terms.rate_BZ.sum()",
        "tests/training/test_trainer.py",
    ),
    Mutation(
        "the scale of the normalised mean is left out",
        "vrae/model/gaussian.py",
        "return self.scale * (values_BZ - mean_Z)",
        "return (values_BZ - mean_Z)",
        "tests/model/test_gaussian.py",
    ),
    Mutation(
        "the flow's Jacobian has the wrong sign",
        "vrae/model/flow.py",
        ".log_prob(z_BZ) - log_scale_BZ",
        ".log_prob(z_BZ) + log_scale_BZ",
        "tests/model/test_flow.py",
    ),
    Mutation(
        "the mixture forgets its weights",
        "vrae/model/mixture.py",
        "joint_BMZ = self.log_weight_BM[:, :, None] + parts_BMZ.cumsum(2)",
        "joint_BMZ = parts_BMZ.cumsum(2)",
        "tests/model/test_mixture.py",
    ),
    Mutation(
        "variances are divided by n",
        "vrae/evaluation/information.py",
        "max(self._n - 1, 1)",
        "self._n",
        "tests/evaluation/test_information.py",
    ),
    Mutation(
        "pre-training hears the noise",
        "vrae/training/gradients.py",
        "torch.zeros_like(noise_SBZ) if pretraining else noise_SBZ",
        "noise_SBZ",
        "tests/training/test_trainer.py",
    ),
    Mutation(
        "beam search gives up while a longer text could still win",
        "vrae/generation/decoding.py",
        "(score_RW[:, 0] / longest)",
        "(score_RW[:, 0] / length**config.length_penalty)",
        "tests/generation/test_decoding.py",
    ),
    Mutation(
        "an n-gram may repeat at the very end",
        "vrae/generation/decoding.py",
        "if 0 < ngram <= T:",
        "if 0 < ngram < T:",
        "tests/generation/test_decoding.py",
    ),
    Mutation(
        "anti-dullness adds what it should subtract",
        "vrae/generation/responses.py",
        "given - responses.mmi_weight * free",
        "given + responses.mmi_weight * free",
        "tests/generation/test_responses.py",
    ),
    Mutation(
        "anti-dullness subtracts the evidence with the context",
        "vrae/generation/responses.py",
        "[Window([], target.target, []) for target in targets]",
        "targets",
        "tests/generation/test_responses.py",
    ),
    Mutation(
        "strata are the same in all dimensions",
        "vrae/generation/responses.py",
        "order = rng.permuted(np.tile(np.arange(many)[:, None], (1, prior.noise_size)), axis=0)",
        "order = np.tile(rng.permutation(many)[:, None], (1, prior.noise_size))",
        "tests/generation/test_responses.py",
    ),
    Mutation(
        "all contexts get the noise of the first",
        "vrae/generation/responses.py",
        "digest(windows[b])] for b in rows",
        "digest(windows[0])] for b in rows",
        "tests/generation/test_responses.py tests/generation/test_pipeline.py",
    ),
    Mutation(
        "a radius forgets the number of dimensions",
        "vrae/generation/latent.py",
        "radius * len(centre_Z) ** 0.5 * scale_Z",
        "radius * scale_Z",
        "tests/generation/test_latent.py tests/generation/test_pipeline.py",
    ),
    Mutation(
        "an analogy adds b",
        "vrae/generation/pipeline.py",
        "means_3Z[0] - means_3Z[1] + means_3Z[2]",
        "means_3Z[0] + means_3Z[1] + means_3Z[2]",
        "tests/generation/test_pipeline.py",
    ),
    Mutation(
        "every process works the same part",
        "vrae/training/gradients.py",
        "range(rank() * mine, (rank() + 1) * mine)",
        "range(mine)",
        "tests/training/test_parallel.py",
    ),
    Mutation(
        "a part weighs as much as another, whatever its turns",
        "vrae/training/gradients.py",
        "share = len(terms.distortion_B) / turns",
        "share = 1 / self.parts",
        "tests/training/test_parallel.py tests/training/test_trainer.py",
    ),
    Mutation(
        "a process stops for its own signal alone",
        "vrae/training/trainer.py",
        "return (signals.number, signals.save) if world() == 1 else self.agreed",
        "return signals.number, signals.save",
        "tests/training/test_parallel.py",
    ),
    Mutation(
        "the gradient of the update gate has the wrong sign",
        "vrae/model/recurrence.py",
        "torch.sub(h_bH, n_bH, out=by_u)",
        "torch.sub(n_bH, h_bH, out=by_u)",
        "tests/model/test_recurrence.py",
    ),
    Mutation(
        "the target's own probability is left out of the gradient of its likelihood",
        "vrae/model/vocabulary.py",
        "probability_C1 - 1",
        "0 * probability_C1 - 1",
        "tests/model/test_vocabulary.py",
    ),
]


def passes(tests: str, copy: Path) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    done = subprocess.run(command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode == 0


def survives(mutation: Mutation, copy: Path) -> bool:
    """Whether all tests pass with the mistake in place."""
    path = copy / mutation.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.name}: {mutation.file} must hold once: {mutation.old}"
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        return passes(mutation.tests, copy)
    finally:
        path.write_text(text, encoding="utf-8")


def main() -> int:
    wanted = [mutation for mutation in MUTATIONS if " ".join(sys.argv[1:]) in mutation.name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        kept = ("vrae", "tests", "configs", "data", "pyproject.toml")
        for name in kept:
            source = ROOT / name
            shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy / name)
        for tests in sorted({mutation.tests for mutation in wanted}):
            assert passes(tests, copy), f"without any mistake, {tests} fail already"
        left = [mutation.name for mutation in wanted if report(mutation, survives(mutation, copy))]
    print(f"{len(wanted) - len(left)} of {len(wanted)} mistakes are caught")
    return 1 if left else 0


def report(mutation: Mutation, alive: bool) -> bool:
    print(f"{'SURVIVES' if alive else 'caught':<9} {mutation.name}", flush=True)
    return alive


if __name__ == "__main__":
    sys.exit(main())
