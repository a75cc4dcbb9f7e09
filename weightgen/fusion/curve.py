"""The best weight from the cumulant function on a grid: one curve a row, no vocabulary any more.

L(a) = log E_P[exp(a r)] is analytic, and its value and slope are known at 0, 0.1, ..., 2.0. In each cell the polynomial
of degree 7 through values and slopes at the four nearest grid points has an error of at most 1e-13 times the eighth
cumulant: it stands for L itself. The objective J (:mod:`weightgen.fusion.solver`) is then looked up every 0.01, so that
of two minima the deeper one is found, and Newton steps inside of the best hundredth give the optimum. All in float64.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

STEP, POINTS = 0.1, 21
LARGEST = STEP * (POINTS - 1)
PARTS = 10
"""Places of a cell at which J is looked up."""
NODES, DEGREE = 4, 7
NEWTON = 4
TRUST = 0.1
"""Full second derivatives are used down to this share of the Gauss-Newton ones."""
CURVED = 0.02
"""Error of the polynomial in units of its last coefficient."""


class Optimum(NamedTuple):
    """What the curve says.

    Attributes:
        alpha: weight with the least J.
        value: its J.
        stiffness: how far alpha moves for an error of 1 in L or in the divergences.
        roughness: error of L that the polynomial may have.
    """

    alpha: Float[Tensor, " b"]
    value: Float[Tensor, " b"]
    stiffness: Float[Tensor, " b"]
    roughness: Float[Tensor, " b"]


def powers(t: Float[Tensor, " n"], derivative: int = 0) -> Float[Tensor, "n terms"]:
    """Derivatives of 1, t, t^2, ... t^7 in each row."""
    order = torch.arange(DEGREE + 1, device=t.device, dtype=t.dtype)
    factor = torch.ones_like(order)
    for lower in range(derivative):
        factor = factor * (order - lower)
    return factor * t[:, None] ** (order - derivative).clamp(min=0)


@cache
def _from_nodes(device: torch.device) -> Float[Tensor, "terms terms"]:
    """Coefficients of the polynomial from four values and four slopes, in units of cells from their middle."""
    places = torch.arange(NODES, dtype=torch.float64, device=device) - (NODES - 1) / 2
    return torch.linalg.inv(torch.cat([powers(places), powers(places, 1)]))


@cache
def _derivatives(device: torch.device) -> Float[Tensor, "orders terms terms"]:
    """Matrices from values and slopes to the coefficients of the polynomial and of its first three derivatives in a."""
    order = torch.arange(DEGREE + 1, dtype=torch.float64, device=device)
    found = [_from_nodes(device)]
    for _ in range(3):
        found.append(torch.cat([order[1:, None] * found[-1][1:], torch.zeros_like(found[-1][:1])]) / STEP)
    return torch.stack(found).transpose(1, 2).contiguous()


@cache
def _fine(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Weights a = 0, 0.01, ..., and the matrices that take all values and slopes to L and STEP L' at them."""
    count = PARTS * (POINTS - 1) + 1
    place = torch.arange(count, device=device)
    start = _start(place)
    t = place.double() / PARTS - start - (NODES - 1) / 2
    matrices = []
    for derivative in (0, 1):
        local = powers(t, derivative) @ _from_nodes(device)
        wide = local.new_zeros(count, 2 * POINTS)
        columns = start[:, None] + torch.arange(NODES, device=device)
        wide.scatter_(1, torch.cat([columns, POINTS + columns], dim=1), local)
        matrices.append(wide.T.contiguous())
    return STEP / PARTS * place.double(), matrices[0], matrices[1]


def _start(place: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """First of the four grid points around a place on the fine grid."""
    return (place // PARTS - 1).clamp(0, POINTS - NODES)


def residuals(
    cumulant: Tensor, slope: Tensor, alpha: Tensor, forward: Tensor, backward: Tensor
) -> tuple[Tensor, Tensor]:
    """How far both divergences are from their targets; J is the sum of the squares."""
    return alpha * slope - cumulant - forward, cumulant - backward


def newton(
    alpha: Tensor, f: Tensor, g: Tensor, slope: Tensor, variance: Tensor, third: Tensor
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """A Newton step for J: the new weight, half of the curvature, and the sum of the slopes of both residuals.

    Where J is not clearly convex, the curvature is that of Gauss and Newton, which is never negative.
    """
    f_slope = alpha * variance
    gauss = f_slope.square() + slope.square()
    full = gauss + f * (variance + alpha * third) + g * variance
    curvature = torch.where(full > TRUST * gauss, full, gauss).clamp(min=torch.finfo(gauss.dtype).tiny)
    return alpha - (f * f_slope + g * slope) / curvature, curvature, f_slope.abs() + slope.abs()


def lowest(
    cumulant: Float[Tensor, "b points"],
    slope: Float[Tensor, "b points"],
    forward: Float[Tensor, " b"],
    backward: Float[Tensor, " b"],
) -> Optimum:
    """The weight in [0, 2] with the least J.

    Args:
        cumulant: L on the grid, float64.
        slope: L' on the grid.
        forward: target of KL(P~ | P).
        backward: target of KL(P | P~).
    """
    alphas, to_value, to_slope = _fine(cumulant.device)
    known = torch.cat([cumulant, STEP * slope], dim=1)
    f, g = residuals(known @ to_value, known @ to_slope / STEP, alphas, forward[:, None], backward[:, None])
    place = (f.square() + g.square()).argmin(-1)
    start = _start(place)
    columns = start[:, None] + torch.arange(NODES, device=start.device)
    nearest = known.gather(1, torch.cat([columns, POINTS + columns], dim=1))
    terms = (nearest @ _derivatives(known.device)).transpose(0, 1)  # [b orders terms]
    low, high = ((place + o).clamp(0, PARTS * (POINTS - 1)) * (STEP / PARTS) for o in (-1, 1))
    # Nothing starts at 0, where J has a stationary point and a maximum of the fit.
    alpha = (place * (STEP / PARTS)).clamp(min=0.5 * STEP / PARTS).double()
    middle = STEP * (start + (NODES - 1) / 2)
    curvature = reach = value = alpha
    for step in range(NEWTON + 1):
        t = ((alpha - middle) / STEP)[:, None].expand(-1, DEGREE)
        power = torch.nn.functional.pad(t, (1, 0), value=1.0).cumprod(-1)
        at = (terms * power[:, None]).sum(-1).unbind(-1)
        f, g = residuals(at[0], at[1], alpha, forward, backward)
        value = f.square() + g.square()
        moved, curvature, reach = newton(alpha, f, g, *at[1:])
        if step < NEWTON:
            alpha = moved.clamp(low, high)
    nothing = forward.square() + backward.square()
    alpha, value = torch.where(nothing <= value, 0.0, alpha), torch.minimum(nothing, value)
    return Optimum(alpha, value, (reach + f.abs() + g.abs()) / curvature, CURVED * terms[:, 0, -1].abs())
