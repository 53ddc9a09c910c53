"""Moving in the latent space, and spreading points over it.

Shape legend: S steps, N points, M points to choose from, Z latent, X noise numbers of a point.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lerp(a_Z: Tensor, b_Z: Tensor, t_S: Tensor) -> Tensor:
    """[S, Z], the straight line (1 - t) a + t b."""
    return (1 - t_S[:, None]) * a_Z + t_S[:, None] * b_Z


def slerp(a_Z: Tensor, b_Z: Tensor, t_S: Tensor) -> Tensor:
    """[S, Z], the great circle: sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b, w the angle (Shoemake 1985).

    Points between keep a norm typical of the prior, which those of a straight line do not (White 2016). Parallel vectors,
    for which the circle is not defined, get the straight line.
    """
    a_unit_Z, b_unit_Z = a_Z / a_Z.norm(), b_Z / b_Z.norm()
    # unlike arccos of the dot product, exact near 0 and pi too
    angle = 2 * torch.atan2((a_unit_Z - b_unit_Z).norm(), (a_unit_Z + b_unit_Z).norm())
    sine = torch.sin(angle)
    if not torch.isfinite(angle) or sine < 1e-4:
        return lerp(a_Z, b_Z, t_S)
    share_S1 = t_S[:, None]
    return torch.sin((1 - share_S1) * angle) / sine * a_Z + torch.sin(share_S1 * angle) / sine * b_Z


def sphere(centre_Z: Tensor, scale_Z: Tensor, radius: float, normal_NZ: Tensor) -> Tensor:
    """[N, Z], points at one distance from `centre_Z`: directions drawn evenly, lengths `radius` root-mean-square `scale_Z`.

    With the prior's standard deviations as the scale, a draw of the prior lies at a radius of about 1 from the prior's mean.
    """
    unit_NZ = normal_NZ / normal_NZ.norm(dim=1, keepdim=True)
    points_NZ: Tensor = centre_Z + radius * len(centre_Z) ** 0.5 * scale_Z * unit_NZ
    return points_NZ


def stratify(uniform_NX: Tensor, order_NX: Tensor) -> Tensor:
    """Standard normal numbers [N, X], in each column one from each of N parts of equal probability (McKay et al. 1979).

    Each row by itself is distributed as plain noise is; together the rows cover the space more evenly.

    Args:
        uniform_NX: in [0, 1), the place within the part.
        order_NX: columns that are permutations of 0 .. N - 1, the part.
    """
    share_NX = (order_NX + uniform_NX.double()) / len(order_NX)
    normal_NX: Tensor = torch.special.ndtri(share_NX.clamp(1e-9, 1 - 1e-9))
    return normal_NX.to(uniform_NX.dtype)


def farthest(points_MZ: Tensor, count: int) -> Tensor:
    """[count] places of points that lie far from each other: the first, then always the one farthest from those chosen.

    The smallest distance between chosen points is at least half of what any choice could reach (Gonzalez 1985).
    """
    assert 1 <= count <= len(points_MZ)
    chosen, distance_M = [0], (points_MZ - points_MZ[0]).norm(dim=1)
    while len(chosen) < count:
        chosen.append(int(distance_M.argmax()))
        distance_M = torch.minimum(distance_M, (points_MZ - points_MZ[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen, device=points_MZ.device)
