"""Paths in the latent space: end points, middles worked by hand, and the cases in which the circle is not defined."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vrae.generation.latent import farthest, lerp, slerp, sphere, stratify

both = pytest.mark.parametrize("path", [lerp, slerp])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def pair(seed: int, dtype: torch.dtype, size: int = 32) -> tuple[Tensor, Tensor]:
    a_Z, b_Z = torch.randn(2, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return a_Z, b_Z * 3.7


@both
@dtypes
@pytest.mark.parametrize("seed", range(5))
def test_end_points_are_the_two_vectors_exactly(
    path: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype, seed: int
) -> None:
    a_Z, b_Z = pair(seed, dtype)
    path_SZ = path(a_Z, b_Z, torch.linspace(0, 1, 7))
    assert path_SZ.shape == (7, 32)
    assert path_SZ.dtype == dtype
    assert torch.equal(path_SZ[0], a_Z)
    assert torch.equal(path_SZ[-1], b_Z)


def test_the_line_is_divided_evenly() -> None:
    path_SZ = lerp(torch.tensor([0.0, 8.0]), torch.tensor([4.0, 0.0]), torch.tensor([0.0, 0.25, 0.5, 1.0]))
    assert path_SZ.tolist() == [[0, 8], [1, 6], [2, 4], [4, 0]]


@pytest.mark.parametrize(("t", "degrees"), [(0.5, 45), (1 / 3, 30), (0.9, 81)])
def test_between_orthogonal_unit_vectors_the_circle_keeps_the_norm_and_shares_the_angle(t: float, degrees: float) -> None:
    a_Z, b_Z = torch.eye(3, dtype=torch.float64)[:2]
    point_Z = slerp(a_Z, b_Z, torch.tensor([t], dtype=torch.float64))[0]
    angle = math.radians(degrees)
    assert point_Z.tolist() == pytest.approx([math.cos(angle), math.sin(angle), 0], abs=1e-12)


def test_between_vectors_of_different_norm_the_circle_is_shoemakes_formula() -> None:
    # 60 degrees apart, norms 1 and 2: at t = 1/2 both shares are sin 30 / sin 60 = 1 / sqrt 3.
    a_Z = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b_Z = torch.tensor([1.0, math.sqrt(3)], dtype=torch.float64)
    point_Z = slerp(a_Z, b_Z, torch.tensor([0.5], dtype=torch.float64))[0]
    assert point_Z.tolist() == pytest.approx([2 / math.sqrt(3), 1.0], abs=1e-12)


@dtypes
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 2.0], [2.0, 4.0]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([1.0, 2.0], [-3.0, -6.0]),
        ([0.0, 0.0], [1.0, 2.0]),
        ([1.0, 2.0], [0.0, 0.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([1e-30, 0.0], [0.0, 1e-30]),
        ([], []),
    ],
    ids=str,
)
def test_where_there_is_no_circle_it_is_the_line(a: list[float], b: list[float], dtype: torch.dtype) -> None:
    a_Z, b_Z, t_S = torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype), torch.linspace(0, 1, 5, dtype=dtype)
    path_SZ = slerp(a_Z, b_Z, t_S)
    assert torch.isfinite(path_SZ).all()
    if dtype == torch.float32 or a != [1e-30, 0.0]:
        assert torch.equal(path_SZ, lerp(a_Z, b_Z, t_S))


@pytest.mark.parametrize("angle", [1e-6, 1e-3, math.pi - 1e-3, math.pi - 1e-6])
def test_near_parallel_and_near_opposite_vectors_stay_within_bounds(angle: float) -> None:
    a_Z, b_Z = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
    path_SZ = slerp(a_Z, b_Z, torch.linspace(0, 1, 11))
    assert path_SZ.norm(dim=1).max() < 1.01


def test_a_sphere_has_its_radius_in_units_of_the_scale_root_mean_square() -> None:
    draw = torch.Generator().manual_seed(0)
    centre_Z, scale_Z = torch.randn(2, 6, generator=draw, dtype=torch.float64).abs() + 0.1
    points_NZ = sphere(centre_Z, scale_Z, 0.7, torch.randn(50, 6, generator=draw, dtype=torch.float64))
    assert points_NZ.shape == (50, 6)
    offsets_NZ = (points_NZ - centre_Z) / scale_Z
    assert offsets_NZ.square().mean(1).sqrt().tolist() == pytest.approx([0.7] * 50)


def test_directions_on_a_sphere_are_even() -> None:
    normal_NZ = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit_NZ = sphere(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64), 3**-0.5, normal_NZ)
    assert unit_NZ.norm(dim=1).tolist() == pytest.approx([1.0] * 4000)
    # a coordinate of an even direction in three dimensions is uniform in [-1, 1]
    shares = torch.histc(unit_NZ[:, 0], 4, -1, 1) / 4000
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.03)


def test_strata_by_hand() -> None:
    order_NX, uniform_NX = torch.tensor([[1, 0], [0, 1]]), torch.tensor([[0.5, 0.5], [0.0, 0.999]], dtype=torch.float64)
    found_NX = torch.special.ndtr(stratify(uniform_NX, order_NX))
    assert found_NX.flatten().tolist() == pytest.approx([0.75, 0.25, 0.0, 0.9995], abs=1e-6)


def test_strata_are_finite_at_the_ends() -> None:
    ends_NX = stratify(torch.tensor([[0.0], [1 - 2**-24]]), torch.tensor([[0], [1]]))
    assert torch.isfinite(ends_NX).all()
    assert ends_NX[0] < -5 < 5 < ends_NX[1]


def test_the_farthest_points_of_a_line_by_hand() -> None:
    line_M1 = torch.tensor([[4.0], [0.0], [10.0], [6.5], [9.0]])
    assert farthest(line_M1, 5).tolist() == [0, 2, 1, 3, 4]
    assert farthest(line_M1, 1).tolist() == [0]


@pytest.mark.parametrize("seed", range(5))
def test_the_farthest_points_are_at_least_half_as_far_as_the_best_choice(seed: int) -> None:
    points_MZ = torch.randn(9, 2, generator=torch.Generator().manual_seed(seed))

    def nearest(chosen: tuple[int, ...]) -> float:
        return min(float((points_MZ[a] - points_MZ[b]).norm()) for a, b in itertools.combinations(chosen, 2))

    best = max(nearest(chosen) for chosen in itertools.combinations(range(9), 4))
    assert nearest(tuple(farthest(points_MZ, 4).tolist())) >= best / 2
