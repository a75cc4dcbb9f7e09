"""How far to move the strong model: the weight at which it moves as far as the expert moved from its anchor.

With d = E - S and r = d - E_P[d], let L(a) = log sum_i P_i exp(a r_i), the cumulant function of r under P. Then for
P~ = softmax(M + a d)

    KL(P | P~) = L(a),    KL(P~ | P) = a L'(a) - L(a),    L' = mean and L'' = variance of r under P~,

and the objective of Dynamic Logits Fusion (arXiv 2406.15480, eq. 8) is

    J(a) = (KL(P~ | P) - KL(Q_t | Q))^2 + (KL(P | P~) - KL(Q | Q_t))^2.

All 21 points of the paper's grid need only two exponentials a token, because exp(0.1 r) powers up: with exponents
written as 7 u + v, both sums over the vocabulary are one small matrix product a row. Two clamped Gauss-Newton steps
inside of the winning cell, with the third cumulant where J is convex, then give the optimum itself. a = 0 is always
stationary, and a local maximum of the fit, so it is never started from. J can have two minima; where the grid cannot
tell which one is deeper, both are followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

STEP, POINTS, GIANTS, BABIES = 0.1, 21, 3, 7
LARGEST = STEP * (POINTS - 1)
STEPS = 2
TRUST = 0.1
"""Full second derivatives are used down to this share of the Gauss-Newton ones."""
START = 0.5 * STEP
CLOSE = 4.0
"""Minima of the grid are followed both if the lower is not better by this many times what a cell can hide."""
CACHE_ELEMENTS = 1 << 15
"""Logits that are worked on at a time on a processor, so that their powers stay in its cache."""


class Move(NamedTuple):
    """What the fit knows of a row: the tilted family and the two divergences to match.

    Attributes:
        p: probabilities of the strong model.
        u: d minus its greatest value, so that no exponential overflows.
        offset: greatest value of d minus its mean under P; L(a) = log sum p exp(a u) + a offset.
        forward: KL(Q_t | Q), the target of KL(P~ | P).
        backward: KL(Q | Q_t), the target of KL(P | P~).
    """

    p: Float[Tensor, "b v"]
    u: Float[Tensor, "b v"]
    offset: Float[Tensor, " b"]
    forward: Float[Tensor, " b"]
    backward: Float[Tensor, " b"]

    def rows(self, index: Tensor) -> Move:
        """The same for some of the rows."""
        return Move(*(part[index] for part in self))


def _dot(a: Float[Tensor, "b v"], b: Float[Tensor, "b v"]) -> Float[Tensor, " b"]:
    return torch.bmm(a[:, None], b[:, :, None]).view(-1)  # a product of its own would be written and read again


@torch.no_grad()
def targets(
    expert: Float[Tensor, "b v"], anchor: Float[Tensor, "b v"], d: Float[Tensor, "b v"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """KL(Q_t | Q) and KL(Q | Q_t) from logits and their difference (0 where it is not defined)."""
    log_ratio = expert.logsumexp(-1) - anchor.logsumexp(-1)
    forward = _dot(expert.softmax(-1), d) - log_ratio
    backward = log_ratio - _dot(anchor.softmax(-1), d)
    return forward.clamp(min=0), backward.clamp(min=0)


@torch.no_grad()
def prepare(
    strong: Float[Tensor, "b v"],
    d: Float[Tensor, "b v"],
    forward: Float[Tensor, " b"],
    backward: Float[Tensor, " b"],
) -> Move:
    """Probabilities and shifted differences that every evaluation of J shares.

    Where a probability that matters is below the smallest float32, all is done in float64.
    """
    p = strong.softmax(-1)
    greatest = d.amax(-1)
    u = d - greatest[:, None]
    if p.dtype != torch.float64:
        lost = (p < torch.finfo(p.dtype).tiny) & (strong > -torch.inf) & (LARGEST * u > -100)
        if bool(lost.any().item()):
            return prepare(strong.double(), d.double(), forward.double(), backward.double())
    return Move(p, u, greatest - _dot(p, d), forward, backward)


def _objective(
    move: Move, log_sum: Tensor, mean: Tensor, alphas: Tensor
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Both residuals and L' from log sum p exp(a u) and the mean of u; arguments broadcast against the rows."""
    extra = (1,) * (log_sum.ndim - 1)
    offset, forward, backward = (x.view(-1, *extra) for x in (move.offset, move.forward, move.backward))
    cumulant, slope = log_sum + alphas * offset, mean + offset
    return alphas * slope - cumulant - forward, cumulant - backward, slope


@torch.no_grad()
def grid_objective(move: Move) -> Float[Tensor, "b points"]:
    """J at 0, 0.1, ..., 2.0, exactly."""
    rows = move.p.shape[0] if move.p.is_cuda else max(1, CACHE_ELEMENTS // move.p.shape[1])
    parts = [_power_sums(p, u) for p, u in zip(move.p.split(rows), move.u.split(rows), strict=True)]
    sums = torch.cat(parts) if len(parts) > 1 else parts[0]
    alphas = STEP * torch.arange(POINTS, device=move.p.device, dtype=move.p.dtype)
    f, g, _ = _objective(move, sums[:, 0].log(), sums[:, 1] / sums[:, 0], alphas)
    values = f.square() + g.square()
    lost = ~torch.isfinite(values).all(-1) | _underflowed(move, sums[:, 0, -1])
    if bool(lost.any().item()):
        index = lost.nonzero().squeeze(-1)
        values[index] = _grid_in_logs(move.rows(index), alphas)
    return values


def _power_sums(p: Float[Tensor, "b v"], u: Float[Tensor, "b v"]) -> Float[Tensor, "b 2 points"]:
    """sum p w^k and sum p u w^k for w = exp(0.1 u) and k = 0 .. 20."""
    babies = u.new_empty(u.shape[0], BABIES, u.shape[1])
    babies[:, 0] = 1
    torch.exp(STEP * u, out=babies[:, 1])
    for k in range(2, BABIES):
        torch.mul(babies[:, k - 1], babies[:, 1], out=babies[:, k])
    giant = babies[:, -1] * babies[:, 1]
    left = u.new_empty(u.shape[0], 2 * GIANTS, u.shape[1])
    left[:, 0] = p
    for k in range(1, GIANTS):
        torch.mul(left[:, k - 1], giant, out=left[:, k])
    torch.mul(left[:, :GIANTS], u[:, None], out=left[:, GIANTS:])
    return (left @ babies.transpose(1, 2)).view(-1, 2, POINTS)


def _underflowed(move: Move, last: Float[Tensor, " b"]) -> Bool[Tensor, " b"]:
    """Rows in which tokens with less than the smallest float of probability matter at the end of the grid."""
    smallest = torch.finfo(move.p.dtype).tiny
    tiny = (move.p < smallest) & (LARGEST * move.u > -100)
    return (last < smallest / torch.finfo(move.p.dtype).eps) | tiny.any(-1)


def _grid_in_logs(move: Move, alphas: Float[Tensor, " points"]) -> Float[Tensor, "b points"]:
    """The same by one pass a point in float64 and in logarithms: slow, and right for any logits."""
    log_p, u = move.p.double().log(), move.u.double()
    wide = Move(*(part.double() for part in move))
    values = []
    for alpha in alphas.double():
        tilted = log_p + alpha * u
        f, g, _ = _objective(wide, tilted.logsumexp(-1), _dot(tilted.softmax(-1), u), alpha)
        values.append((f.square() + g.square()).to(move.p.dtype))
    return torch.stack(values, dim=-1)


def _follow(
    move: Move, start: Float[Tensor, " b"], low: Float[Tensor, " b"], high: Float[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Clamped Newton steps from ``start``; the best weight seen and its J.

    Where J is not clearly convex, the curvature is that of Gauss and Newton, which is never negative.
    """
    alpha, best, least = start, start, torch.full_like(start, torch.inf)
    for step in range(STEPS + 1):
        weights = torch.mul(move.u, alpha[:, None]).exp_().mul_(move.p)
        total = weights.sum(-1)
        mean = _dot(weights, move.u) / total
        f, g, slope = _objective(move, total.log(), mean, alpha)
        value = f.square() + g.square()
        better = value < least
        best, least = torch.where(better, alpha, best), torch.where(better, value, least)
        if step == STEPS:
            break
        second = _dot(weights.mul_(move.u), move.u) / total
        third = _dot(weights.mul_(move.u), move.u) / total - mean * (3 * second - 2 * mean.square())
        variance = (second - mean.square()).clamp(min=0)
        f_slope = alpha * variance
        gauss = f_slope.square() + slope.square()
        full = gauss + f * (variance + alpha * third) + g * variance
        curvature = torch.where(full > TRUST * gauss, full, gauss)
        update = (f * f_slope + g * slope) / curvature.clamp(min=torch.finfo(curvature.dtype).tiny)
        alpha = (alpha - update).clamp(low, high)
    return best, least


def _cell(
    values: Float[Tensor, "b points"], index: Int[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Start, bounds and possible depth of the minimum around a grid point: vertex of the parabola through three."""
    middle = index.clamp(1, POINTS - 2)
    left, centre, right = (values.gather(1, (middle + o)[:, None]).squeeze(1) for o in (-1, 0, 1))
    bend = left - 2 * centre + right
    offset = torch.where(bend > 0, 0.5 * (left - right) / bend, torch.zeros_like(bend))
    at = index.to(values.dtype)
    vertex = (middle + offset).clamp(at - 1, at + 1)
    low, high = (STEP * (at - 1)).clamp(min=0), (STEP * (at + 1)).clamp(max=LARGEST)
    # Nothing starts at 0: in the first cell a parabola through a maximum of the fit says little.
    start = torch.where(index == 0, torch.full_like(low, START), (STEP * vertex).clamp(START, LARGEST))
    hidden = (right - left).abs() + bend.abs()
    return start, low, high, hidden


@torch.no_grad()
def solve(move: Move, refine: bool = True) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The weight in [0, 2] that minimises J, for each row.

    Args:
        move: what to fit.
        refine: go on from the grid to the optimum; without it the result is the paper's grid search.

    Returns:
        Weight and its J.
    """
    values = grid_objective(move)
    first = values.argmin(-1)
    on_grid = values.gather(1, first[:, None]).squeeze(1)
    if not refine:
        return STEP * first.to(values.dtype), on_grid
    start, low, high, hidden = _cell(values, first)
    best, least = _follow(move, start, low, high)
    padded = torch.nn.functional.pad(values, (1, 1), value=torch.inf)
    valley = (values <= padded[:, :-2]) & (values <= padded[:, 2:])
    valley[:, 0] = False  # the fit falls from 0 on unless there is nothing to fit
    near = (torch.arange(POINTS, device=values.device) - first[:, None]).abs() <= 1
    others = values.masked_fill(~valley | near, torch.inf)
    second = others.argmin(-1)
    rival = others.gather(1, second[:, None]).squeeze(1)
    doubtful = rival < on_grid + CLOSE * hidden
    if bool(doubtful.any().item()):
        rows = doubtful.nonzero().squeeze(-1)
        start, low, high, _ = _cell(values[rows], second[rows])
        other, value = _follow(move.rows(rows), start, low, high)
        better = value < least[rows]
        best[rows] = torch.where(better, other, best[rows])
        least[rows] = torch.where(better, value, least[rows])
    keep_grid = on_grid < least
    return torch.where(keep_grid, STEP * first.to(best.dtype), best), torch.minimum(on_grid, least)


def mean_target(moves: Sequence[tuple[Tensor, Tensor]]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Means of several experts' divergences: a sum of squares over experts has its minimum where the mean has."""
    forward, backward = zip(*moves, strict=True)
    return torch.stack(forward).mean(0), torch.stack(backward).mean(0)
