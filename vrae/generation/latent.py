"""Moving in the latent space.

Shape legend: S steps, Z latent.
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
