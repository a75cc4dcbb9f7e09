"""How far to move the strong model: the weight at which it moves as far as the expert moved from its anchor.

With d = E - S and r = d - E_P[d], let L(a) = log sum_i P_i exp(a r_i), the cumulant function of r under P. Then for
P~ = softmax(M + a d)

    KL(P | P~) = L(a),    KL(P~ | P) = a L'(a) - L(a),    L' = mean and L'' = variance of r under P~,

and the objective of Dynamic Logits Fusion (arXiv 2406.15480, eq. 8) is

    J(a) = (KL(P~ | P) - KL(Q_t | Q))^2 + (KL(P | P~) - KL(Q | Q_t))^2.

All 21 points of the paper's grid need one exponential a token, because exp(0.1 r) powers up: with exponents written as
7 u + v, both sums over the vocabulary are one small matrix product a row. From there on nothing is as long as the
vocabulary: :mod:`weightgen.fusion.curve` has the optimum from L and L' on the grid.

Divergences are small differences of large sums, so every sum is of exp(x) - 1, in the type of the logits within blocks
of tokens and in float64 over them. Each row knows how far its weight can be off for rounding; where that is more than
``TOLERANCE``, the row is done again in float64. Where r is too wide for that, or the curve not smooth enough, it is
done with logarithms and Newton steps over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightgen.fusion.curve import POINTS, STEP, lowest, newton, residuals

GIANTS, BABIES = 3, 7
TOLERANCE = 3e-5
"""Greatest error of a weight that is let pass."""
NOISE = {torch.float32: 4e-7, torch.float64: 1e-15}
"""Error of L and of the divergences from rounding, in units of the typical size of r."""
WEAK = 1e-4
"""Divergences below are found again in float64."""
FARTHEST = {torch.float32: 30.0, torch.float64: 300.0}
"""Greatest r for which no power overflows, and no token too improbable for the type matters."""
STEPS = 6
CACHE_ELEMENTS = 1 << 16
"""Logits that are worked on at a time on a processor, so that their powers stay in its cache."""
BLOCK = 1024
"""Tokens that are summed in the type of the logits; sums of blocks are gathered in float64."""

Pair = tuple[Float[Tensor, " b"], Float[Tensor, " b"]]


def _centred(logits: Float[Tensor, "b v"], d: Float[Tensor, "b v"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Softmax, its sum but for rounding, d minus its mean, and the rows that are too wide for the type."""
    p = logits.softmax(-1)
    total = p.sum(-1, dtype=torch.float64)
    r = d - ((p * d).sum(-1, dtype=torch.float64) / total).to(d.dtype)[:, None]
    return p, total, r, ~(r.amax(-1) <= FARTHEST[d.dtype])


@torch.no_grad()
def targets(anchor: Float[Tensor, "b v"], d: Float[Tensor, "b v"]) -> Pair:
    """KL(Q_t | Q) and KL(Q | Q_t) in float64, from the anchor's logits and the expert's distance from them.

    They are the divergences of the anchor tilted by 1: with s = d - E_Q[d] and L = log E_Q[exp(s)], KL(Q | Q_t) = L and
    KL(Q_t | Q) = E_Q[s exp(s)] exp(-L) - L.
    """
    q, total, s, far = _centred(anchor, d)
    grown = s.expm1().mul_(q)
    left = (q * s).sum(-1, dtype=torch.float64) / total
    more = grown.sum(-1, dtype=torch.float64) / total
    slope = left + grown.mul_(s).sum(-1, dtype=torch.float64) / total
    backward = more.log1p() - left
    forward = (slope - left * (1 + more)) / (1 + more) - backward
    redo = far
    if d.dtype != torch.float64:
        redo = far | ~(torch.minimum(forward, backward) >= WEAK)
    if bool(redo.any().item()):
        rows = redo.nonzero().squeeze(-1)
        again = _targets_in_logs if d.dtype == torch.float64 else targets
        forward[rows], backward[rows] = again(anchor[rows].double(), d[rows].double())
    return forward.clamp(min=0), backward.clamp(min=0)


def _targets_in_logs(anchor: Float[Tensor, "b v"], d: Float[Tensor, "b v"]) -> Pair:
    """The same for any distance."""
    expert = anchor + d
    ratio = expert.logsumexp(-1) - anchor.logsumexp(-1)
    return (expert.softmax(-1) * d).sum(-1) - ratio, ratio - (anchor.softmax(-1) * d).sum(-1)


def mean_target(moves: Sequence[Pair]) -> Pair:
    """Means of several experts' divergences: a sum of squares over experts has its minimum where the mean has."""
    forward, backward = zip(*moves, strict=True)
    return torch.stack(forward).mean(0), torch.stack(backward).mean(0)


@torch.no_grad()
def cumulants(
    strong: Float[Tensor, "b v"], d: Float[Tensor, "b v"]
) -> tuple[Float[Tensor, "b points"], Float[Tensor, "b points"], Bool[Tensor, " b"]]:
    """L and L' at 0, 0.1, ..., 2.0 in float64, and the rows that are too wide for the type of the logits."""
    p, total, r, far = _centred(strong, d)
    rows = p.shape[0] if p.is_cuda else max(1, CACHE_ELEMENTS // p.shape[1])
    parts = [_power_sums(*part) for part in zip(p.split(rows), r.split(rows), strict=True)]
    more, slope = ((torch.cat(parts) if len(parts) > 1 else parts[0]) / total[:, None, None]).unbind(1)
    left = slope[:, :1]  # r has this mean, from rounding, instead of 0
    return more.log1p() - _grid(p.device) * left, slope / (1 + more) - left, far


def _grid(device: torch.device) -> Float[Tensor, " points"]:
    return STEP * torch.arange(POINTS, device=device, dtype=torch.float64)


def _power_sums(p: Float[Tensor, "b v"], r: Float[Tensor, "b v"]) -> Float[Tensor, "b 2 points"]:
    """sum p (w^k - 1) and sum p r w^k for w = exp(0.1 r) and k = 0 .. 20, in float64."""
    width = _block(p.shape[1])
    whole = p.shape[1] // width * width
    found = _products(p[:, :whole].reshape(-1, width), r[:, :whole].reshape(-1, width), p.shape[0])
    if whole < p.shape[1]:
        found += _products(p[:, whole:], r[:, whole:], p.shape[0])
    found[:, 0, 0, 0] = 0
    mean = found[:, 1:, :1, :1].clone()
    found[:, 1, 0, 0] = 0
    found[:, :, 1:, 1:] += found[:, :, 1:, :1] + found[:, :, :1, 1:]  # (1 + g)(1 + b) - 1 = g + b + g b
    found[:, 1:] += mean
    return found.view(-1, 2, POINTS)


@cache
def _block(size: int) -> int:
    """Tokens a block: a divisor of the vocabulary near ``BLOCK`` if there is one."""
    widths = [w for w in range(BLOCK // 4, 2 * BLOCK) if size % w == 0]
    return min(widths, key=lambda w: abs(w - BLOCK), default=min(BLOCK, size))


def _products(p: Float[Tensor, "n w"], r: Float[Tensor, "n w"], rows: int) -> Float[Tensor, "rows 2 giants babies"]:
    """Sums of p and p r times 1, w^7 - 1, w^14 - 1 times 1, w - 1, ..., w^6 - 1, for blocks of each row."""
    babies = r.new_empty(r.shape[0], BABIES, r.shape[1])
    babies[:, 0] = 1
    one = torch.expm1(STEP * r, out=babies[:, 1])
    grown = one + 1
    for k in range(2, BABIES):
        torch.addcmul(one, babies[:, k - 1], grown, out=babies[:, k])
    giant = torch.addcmul(one, babies[:, -1], grown)
    left = r.new_empty(r.shape[0], 2 * GIANTS, r.shape[1])
    left[:, 0] = p
    torch.mul(p, giant, out=left[:, 1])
    torch.mul(left[:, 1], giant + 2, out=left[:, 2])
    torch.mul(left[:, :GIANTS], r[:, None], out=left[:, GIANTS:])
    products = left @ babies.transpose(1, 2)
    return products.view(rows, -1, 2, GIANTS, BABIES).sum(1, dtype=torch.float64)


@torch.no_grad()
def solve(
    strong: Float[Tensor, "b v"],
    d: Float[Tensor, "b v"],
    forward: Float[Tensor, " b"],
    backward: Float[Tensor, " b"],
    refine: bool = True,
) -> Pair:
    """The weight in [0, 2] that minimises J, for each row.

    Args:
        strong: logits of the strong model.
        d: expert minus anchor.
        forward: KL(Q_t | Q), the target of KL(P~ | P).
        backward: KL(Q | Q_t), the target of KL(P | P~).
        refine: find the optimum; without it the result is the paper's grid search.

    Returns:
        Weight and its J, in float64.
    """
    cumulant, slope, far = cumulants(strong, d)
    noise = NOISE[d.dtype] * (cumulant[:, -1].clamp(min=0).sqrt() + forward.sqrt())
    if refine:
        alpha, value, stiffness, roughness = lowest(cumulant, slope, forward, backward)
        redo = far | ~((noise + roughness) * stiffness < TOLERANCE)
    else:
        alpha, value, gap = _best_on_grid(cumulant, slope, forward, backward)
        redo = far if d.dtype == torch.float64 else far | ~(gap > 4 * noise)
    if bool(redo.any().item()):
        rows = redo.nonzero().squeeze(-1)
        wide = strong[rows].double(), d[rows].double(), forward[rows], backward[rows]
        again = _solve_in_logs if d.dtype == torch.float64 else solve
        alpha[rows], value[rows] = again(*wide, refine)
    return alpha, value


def _best_on_grid(cumulant: Tensor, slope: Tensor, forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's choice, its J, and what an error has to be to change it."""
    values = objective(cumulant, slope, forward, backward)
    place = values.argmin(-1, keepdim=True)
    value = values.gather(1, place)
    root = values.scatter(1, place, torch.inf).amin(-1).sqrt() - value.squeeze(1).sqrt()
    return STEP * place.squeeze(1).double(), value.squeeze(1), root


def objective(
    cumulant: Float[Tensor, "b points"],
    slope: Float[Tensor, "b points"],
    forward: Float[Tensor, " b"],
    backward: Float[Tensor, " b"],
) -> Float[Tensor, "b points"]:
    """J at 0, 0.1, ..., 2.0."""
    f, g = residuals(cumulant, slope, _grid(cumulant.device), forward[:, None], backward[:, None])
    return f.square() + g.square()


def _solve_in_logs(strong: Tensor, d: Tensor, forward: Tensor, backward: Tensor, refine: bool) -> Pair:
    """The same for any logits, one pass over the vocabulary a point: slow, and right."""
    log_p = strong.log_softmax(-1)
    r = d - (log_p.exp() * d).sum(-1, keepdim=True)

    def at(alpha: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tilted = log_p + alpha[:, None] * r
        weights = tilted.softmax(-1)
        mean = (weights * r).sum(-1)
        off = r - mean[:, None]
        weights *= off.square()
        return tilted.logsumexp(-1), mean, weights.sum(-1), (weights * off).sum(-1)

    grid = _grid(d.device)
    known = [at(a.expand(len(d)))[:2] for a in grid]
    cumulant, slope = (torch.stack(part, dim=1) for part in zip(*known, strict=True))
    values = objective(cumulant, slope, forward, backward)
    best, value, _ = _best_on_grid(cumulant, slope, forward, backward)
    if not refine:
        return best, value
    around = torch.nn.functional.pad(values, (1, 1), value=torch.inf)
    valleys = values.masked_fill((values > around[:, :-2]) | (values > around[:, 2:]), torch.inf)
    for place in valleys.argsort(-1)[:, :2].unbind(1):
        low, high = STEP * (place - 1).clamp(min=0).double(), STEP * (place + 1).clamp(max=POINTS - 1).double()
        alpha = grid[place].clamp(min=0.5 * STEP)
        for _ in range(STEPS):
            total, mean, *curved = at(alpha)
            f, g = residuals(total, mean, alpha, forward, backward)
            better = f.square() + g.square() < value
            best, value = torch.where(better, alpha, best), torch.where(better, f.square() + g.square(), value)
            alpha = torch.minimum(torch.maximum(newton(alpha, f, g, mean, *curved)[0], low), high)
    return best, value
