"""Schedules at steps worked by hand, and the controller: one update by hand, its bounds, and that it settles."""

from __future__ import annotations

import math
from typing import Any

import pytest

from vrae.config import ObjectiveConfig, TrainConfig
from vrae.training.schedules import AggressivePhase, RateController, kl_weight, learning_rate


class TestKlWeight:
    @pytest.mark.parametrize(
        ("schedule", "step", "expected"),
        [
            ("constant", 0, 1.0),
            ("constant", 99_999, 1.0),
            ("linear", 0, 0.0),
            ("linear", 1, 0.001),
            ("linear", 250, 0.25),
            ("linear", 999, 0.999),
            ("linear", 1000, 1.0),
            ("linear", 1001, 1.0),
            ("linear", 10**9, 1.0),
            ("logistic", 0, 1 / (1 + math.e**6)),
            ("logistic", 500, 0.5),
            ("logistic", 750, 1 / (1 + math.e**-3)),
            ("logistic", 1000, 1 / (1 + math.e**-6)),
            ("logistic", 10**9, 1.0),
            ("cosine", 0, 0.0),
            ("cosine", 250, (1 - math.sqrt(0.5)) / 2),
            ("cosine", 500, 0.5),
            ("cosine", 1000, 1.0),
            ("cosine", 2000, 1.0),  # not down again
            # Four cycles of 1000: up over 500, then 1.
            ("cyclical", 0, 0.0),
            ("cyclical", 1, 0.002),
            ("cyclical", 499, 0.998),
            ("cyclical", 500, 1.0),
            ("cyclical", 999, 1.0),
            ("cyclical", 1000, 0.0),
            ("cyclical", 1250, 0.5),
            ("cyclical", 2000, 0.0),
            ("cyclical", 3000, 0.0),
            ("cyclical", 3999, 1.0),
            ("cyclical", 4000, 1.0),  # no fifth
            ("cyclical", 4001, 1.0),
            ("cyclical", 10**9, 1.0),
        ],
    )
    def test_by_hand(self, schedule: Any, step: int, expected: float) -> None:
        config = ObjectiveConfig(kl_schedule=schedule, kl_warmup_steps=1000, kl_cycles=4)
        assert kl_weight(step, config) == pytest.approx(expected, abs=1e-7)

    @pytest.mark.parametrize("schedule", ["constant", "linear", "logistic", "cosine", "cyclical"])
    @pytest.mark.parametrize("warmup", [1, 7, 1000])
    def test_is_beta_times_a_share(self, schedule: Any, warmup: int) -> None:
        plain, scaled = (
            ObjectiveConfig(beta=beta, kl_schedule=schedule, kl_warmup_steps=warmup, kl_cycles=3) for beta in (1, 0.3)
        )
        weights = [kl_weight(step, plain) for step in range(0, 5 * warmup, max(warmup // 50, 1))]
        assert all(0 <= weight <= 1 for weight in weights)
        assert [0.3 * weight for weight in weights] == pytest.approx(
            [kl_weight(step, scaled) for step in range(0, 5 * warmup, max(warmup // 50, 1))], abs=1e-15
        )
        if schedule != "cyclical":
            assert weights == sorted(weights)

    @pytest.mark.parametrize("warmup", [3, 7, 49, 1000])
    def test_every_cycle_starts_at_zero(self, warmup: int) -> None:
        config = ObjectiveConfig(kl_schedule="cyclical", kl_warmup_steps=warmup, kl_cycles=50)
        assert [kl_weight(cycle * warmup, config) for cycle in range(50)] == [0.0] * 50
        assert kl_weight(50 * warmup, config) == 1.0


class TestLearningRate:
    CONFIG = TrainConfig(learning_rate=0.01, final_learning_rate=0.1, warmup_steps=10)

    @pytest.mark.parametrize(
        ("step", "expected"),
        [
            (0, 0.001),  # the first step learns already
            (4, 0.005),
            (9, 0.01),
            (10, 0.01),
            (60, 0.001 + 0.009 * 0.5),  # half way from 10 to 110
            (35, 0.001 + 0.009 * 0.5 * (1 + math.sqrt(0.5))),
            (110, 0.001),
            (111, 0.001),
            (10**6, 0.001),
        ],
    )
    def test_by_hand(self, step: int, expected: float) -> None:
        assert learning_rate(step, 110, self.CONFIG) == pytest.approx(expected, rel=1e-12)

    def test_without_warm_up_starts_at_the_highest(self) -> None:
        assert learning_rate(0, 100, TrainConfig(learning_rate=0.01, warmup_steps=0)) == 0.01

    @pytest.mark.parametrize("max_steps", [1, 10, 11])
    def test_of_a_run_as_short_as_its_warm_up_is_defined(self, max_steps: int) -> None:
        rates = [learning_rate(step, max_steps, self.CONFIG) for step in range(max_steps + 2)]
        assert all(0 < rate <= 0.01 for rate in rates)

    def test_of_a_run_of_unknown_length_stays_at_the_highest(self) -> None:
        assert learning_rate(5000, 10**9, self.CONFIG) == pytest.approx(0.01, rel=1e-9)


class TestRateController:
    @pytest.mark.parametrize(
        ("rate", "exponent"),
        [(6.0, 0.0), (9.0, 0.005), (3.0, -0.005), (12.0, 0.01), (500.0, 0.01), (0.0, -0.01)],
    )
    def test_one_update_by_hand(self, rate: float, exponent: float) -> None:
        controller = RateController(target=6.0, highest=1.0, weight=0.4)
        controller.update(rate)
        assert controller.weight == pytest.approx(0.4 * math.exp(exponent), rel=1e-12)

    def test_keeps_within_its_bounds(self) -> None:
        controller = RateController(target=1.0, highest=0.7, weight=0.5)
        for _ in range(100):
            controller.update(1e9)
        assert controller.weight == 0.7
        for _ in range(2000):
            controller.update(0.0)
        assert controller.weight == 1e-3

    @pytest.mark.parametrize("highest", [0.0, 0.01, 1.0])
    def test_starts_within_its_bounds(self, highest: float) -> None:
        assert RateController(target=1.0, highest=highest).weight <= highest

    @pytest.mark.parametrize("start", [1e-3, 0.05, 0.5, 1.0])
    @pytest.mark.parametrize("target", [3.0, 12.0, 27.0])
    def test_brings_a_plant_to_its_target_from_both_sides(self, target: float, start: float) -> None:
        controller = RateController(target, highest=1.0, weight=start)
        rates = []
        for _ in range(12_000):
            rates.append(30 * (1 - controller.weight))  # the more a nat costs, the fewer are spent
            controller.update(rates[-1])
        assert rates[-1] == pytest.approx(target, rel=1e-3)
        settled = next(i for i, rate in enumerate(rates) if abs(rate - target) < 0.1 * target)
        assert all(abs(rate - target) < 0.1 * target for rate in rates[settled:])  # and stays there


class TestPretraining:
    @pytest.mark.parametrize("schedule", ["constant", "linear", "logistic", "cosine", "cyclical"])
    def test_the_rate_weighs_nothing_and_the_schedule_begins_after_it(self, schedule: Any) -> None:
        plain = ObjectiveConfig(kl_schedule=schedule, kl_warmup_steps=10, beta=0.7)
        after = ObjectiveConfig(kl_schedule=schedule, kl_warmup_steps=10, beta=0.7, pretrain_steps=25)
        assert [kl_weight(step, after) for step in range(25)] == [0.0] * 25
        assert [kl_weight(step + 25, after) for step in range(60)] == [kl_weight(step, plain) for step in range(60)]


class TestAggressivePhase:
    @staticmethod
    def updates(losses: list[float]) -> list[bool]:
        """Whether each step, with these nats on ten tokens, was the inference network's."""
        phase, whose = AggressivePhase(), []
        for nats in losses:
            whose.append(phase.trains_inference)
            phase.update(nats, 10)
        return whose

    def test_the_decoder_steps_after_a_hundred_updates_while_the_loss_falls(self) -> None:
        whose = self.updates([1000.0 - step for step in range(303)])
        assert [step for step, inference in enumerate(whose) if not inference] == [100, 201, 302]

    def test_the_decoder_steps_as_soon_as_fifteen_updates_are_worse_than_the_fifteen_before(self) -> None:
        whose = self.updates([5.0] * 15 + [4.0] * 15 + [4.1] * 15 + [9.0] + [3.0] * 15 + [3.1] * 15 + [9.0])
        assert [step for step, inference in enumerate(whose) if not inference] == [45, 76]

    def test_the_looks_weigh_batches_by_their_tokens(self) -> None:
        """9 nats over 90 tokens and then 2 over 10 is a rise per token, though the mean batch loss falls."""
        phase = AggressivePhase()
        for nats, tokens in [(9.0, 90)] * 15 + [(2.0, 10)] * 15:
            assert phase.trains_inference
            phase.update(nats, tokens)
        assert not phase.trains_inference

    def test_it_ends_for_good_when_mutual_information_has_not_risen(self) -> None:
        phase = AggressivePhase()
        assert [phase.validated(nats) for nats in (0.5, 0.6, 0.9, 0.9, 2.0)] == [False, False, False, True, True]
        assert not phase.trains_inference
