"""Fusion rules: identities, the paper's grid, the optimum, and awkward logits; one contract for every rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from weightgen.fusion import find_rule, fuse, rules
from weightgen.fusion.curve import POINTS, STEP
from weightgen.fusion.dexperts import top_p_filter
from weightgen.fusion.joint import direction
from weightgen.fusion.solver import cumulants, objective, solve, targets
from zoo.errors import UsageError

NAMES = sorted(rules())
FULL = {  # settings under which an expert of an anchor equal to strong is reproduced
    "static": {"alpha": 1.0},
    "dexperts": {"alpha": 1.0, "top_p": 1.0},
    "average": {"weight": 1.0},
    "joint": {"refit": False},
}


def logits(
    rows: int = 12, size: int = 60, moved: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """A strong model, and a related anchor with its expert."""
    strong = 3 * torch.randn(rows, size, dtype=dtype)
    anchor = 0.7 * strong + 2 * torch.randn(rows, size, dtype=dtype)
    return strong, anchor + moved * torch.randn(rows, size, dtype=dtype), anchor


def divergence(one: Tensor, other: Tensor) -> Tensor:
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def direct_objective(strong: Tensor, expert: Tensor, anchor: Tensor, alpha: Tensor | float) -> Tensor:
    """The paper's objective by four divergences, as written down there."""
    fused = strong + torch.as_tensor(alpha, dtype=strong.dtype)[..., None] * (expert - anchor)
    first = divergence(fused, strong) - divergence(expert, anchor)
    second = divergence(strong, fused) - divergence(anchor, expert)
    return first.square() + second.square()


def solved(strong: Tensor, expert: Tensor, anchor: Tensor, refine: bool = True) -> tuple[Tensor, Tensor]:
    d = expert - anchor
    forward, backward = targets(anchor, d)
    return solve(strong, d, forward, backward, refine)


def finest(strong: Tensor, expert: Tensor, anchor: Tensor) -> Tensor:
    """Optimum by a dense grid of the direct objective and golden sections around its best point."""
    points = torch.linspace(0, 2, 201, dtype=torch.float64)
    best = points[direct_objective(strong, expert, anchor, points[:, None]).argmin(0)]
    low, high = (best - 0.01).clamp(min=0), (best + 0.01).clamp(max=2)
    for _ in range(30):
        left, right = low + (high - low) * 0.381966, low + (high - low) * 0.618034
        nearer = direct_objective(strong, expert, anchor, left) < direct_objective(strong, expert, anchor, right)
        low, high = torch.where(nearer, low, left), torch.where(nearer, right, high)
    return (low + high) / 2


def test_targets_are_the_direct_divergences() -> None:
    strong, expert, anchor = logits()
    forward, backward = targets(anchor, expert - anchor)
    assert (forward - divergence(expert, anchor)).abs().max() < 1e-10
    assert (backward - divergence(anchor, expert)).abs().max() < 1e-10
    assert strong.shape == expert.shape


@pytest.mark.parametrize("moved", [0.1, 1.0, 3.0])
def test_the_grid_is_the_direct_objective(moved: float) -> None:
    models = logits(moved=moved)
    d = models[1] - models[2]
    cumulant, slope, _ = cumulants(models[0], d)
    forward, backward = targets(models[2], d)
    values = objective(cumulant, slope, forward, backward)
    direct = torch.stack(
        [direct_objective(*models, torch.full((12,), STEP * k, dtype=torch.float64)) for k in range(POINTS)], dim=-1
    )
    assert (values - direct).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_parity_mode_is_the_grid_search_of_the_paper(dtype: torch.dtype) -> None:
    models = logits(rows=200, dtype=dtype)
    _, alphas = fuse("dynamic", models[0], [models[1]], [models[2]], parity=True)
    wide = models[0].double(), models[1].double(), models[2].double()
    direct = torch.stack(
        [direct_objective(*wide, torch.full((200,), STEP * k, dtype=torch.float64)) for k in range(POINTS)], dim=-1
    )
    assert torch.equal((alphas[:, 0] / STEP).round().long(), direct.argmin(-1))


@pytest.mark.parametrize("moved", [0.02, 0.2, 1.0, 2.5])
def test_the_optimum_is_that_of_a_fine_search(moved: float) -> None:
    models = logits(rows=150, moved=moved)
    alpha, value = solved(*models)
    best = finest(*models)
    assert ((alpha - best).abs() < 1e-4).double().mean() >= 0.99
    assert torch.allclose(direct_objective(*models, alpha), value, rtol=1e-3, atol=1e-7)
    strong, expert, anchor = (m.float() for m in models)
    in_float32, _ = solved(strong, expert, anchor)
    assert (
        (in_float32 - finest(strong.double(), expert.double(), anchor.double())).abs() < 1e-4
    ).double().mean() >= 0.99


def test_of_two_minima_the_deeper_one_is_found() -> None:
    # One token of P = 1e-4 is pulled up by 9: J has minima on both sides of where that token takes over.
    found = 0
    for pull in torch.linspace(5, 12, 8):
        for target in (0.5, 2.0):
            strong = torch.zeros(1, 400, dtype=torch.float64)
            strong[0, 1:] = torch.randn(399, dtype=torch.float64) - 4
            strong[0, 1] = -9.0
            anchor = torch.randn(1, 400, dtype=torch.float64)
            expert = anchor + 0.3 * torch.randn(1, 400, dtype=torch.float64)
            expert[0, 1] += pull
            expert[0, 2] += target
            alpha, value = solved(strong, expert, anchor)
            dense = torch.linspace(0, 2, 401, dtype=torch.float64)
            curve = direct_objective(strong, expert, anchor, dense)
            valleys = ((curve[1:-1] < curve[:-2]) & (curve[1:-1] < curve[2:])).sum()
            found += int(valleys > 1)
            assert value[0] <= curve.min() * (1 + 1e-3) + 1e-9
            assert direct_objective(strong, expert, anchor, alpha)[0] <= curve.min() * (1 + 1e-6) + 1e-9
            assert 0 <= alpha[0] <= 2
    assert found > 0


def test_an_expert_equal_to_its_anchor_changes_nothing() -> None:
    strong, _, anchor = logits()
    for name in ("dynamic", "joint", "static"):
        fused, alphas = fuse(name, strong, [anchor], [anchor])
        assert torch.allclose(fused.softmax(-1), strong.softmax(-1))
        assert torch.isfinite(alphas).all()


def test_the_weight_undoes_the_scale_of_the_strong_model() -> None:
    # M = S: moving as far as the expert is a weight of 1.
    _, expert, anchor = logits()
    fused, alphas = fuse("dynamic", anchor, [expert], [anchor])
    assert (alphas - 1).abs().max() < 1e-6
    assert torch.allclose(fused.softmax(-1), expert.softmax(-1), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_contract_shapes_and_precision(name: str, shape: tuple[int, ...]) -> None:
    for dtype, wanted in (
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ):
        models = [torch.randn(*shape, 40).to(dtype) for _ in range(5)]
        fused, alphas = fuse(name, models[0], models[1:3], models[3:])
        assert fused.shape == (*shape, 40)
        assert alphas.shape == (*shape, 2)
        assert fused.dtype == alphas.dtype == wanted
        assert torch.isfinite(fused.logsumexp(-1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_contract_no_expert_is_the_strong_model(name: str) -> None:
    strong, _, _ = logits()
    fused, alphas = fuse(name, strong, [], [])
    assert torch.equal(fused, strong)
    assert alphas.shape == (12, 0)


@pytest.mark.parametrize("name", sorted(FULL))
def test_contract_one_expert_of_full_weight_is_that_expert(name: str) -> None:
    _, expert, anchor = logits()
    fused, _ = fuse(name, anchor, [expert], [anchor], **FULL[name])
    assert (fused.softmax(-1) - expert.softmax(-1)).abs().max() < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_contract_forbidden_tokens(name: str) -> None:
    strong, expert, anchor = logits(rows=4)
    strong[:, 0] = -torch.inf  # for the strong model alone
    expert[:, 1] = -torch.inf  # for the expert alone
    anchor[:, 2] = -torch.inf  # for the anchor alone
    for model in (expert, anchor):
        model[:, 3] = -torch.inf  # padding of the small vocabulary
    fused, alphas = fuse(name, strong, [expert], [anchor])
    probability = fused.softmax(-1)
    assert torch.isfinite(probability).all()
    assert torch.isfinite(alphas).all()
    if name != "contrastive":
        assert (probability[:, 0] == 0).all()
    if name in ("static", "dynamic", "dexperts", "joint"):
        assert (probability[:, 1] == 0).all()
    if name in ("static", "dynamic"):
        rest = strong[:, 2] - fused[:, 2]
        assert torch.allclose(rest, strong[:, 3] - fused[:, 3])  # both keep the value of the strong model


def test_huge_and_tiny_probabilities_are_solved_in_logarithms() -> None:
    strong, expert, anchor = logits(rows=6, dtype=torch.float32)
    strong[:, 5] = -150.0  # below the smallest float32 as a probability
    expert[:, 5] = anchor[:, 5] + 100.0
    alpha, _ = solved(strong, expert, anchor, refine=False)
    wide = strong.double(), expert.double(), anchor.double()
    direct = torch.stack(
        [direct_objective(*wide, torch.full((6,), STEP * k, dtype=torch.float64)) for k in range(POINTS)], dim=-1
    )
    chosen = direct.gather(1, (alpha / STEP).round().long()[:, None]).squeeze(1)
    assert torch.allclose(chosen, direct.amin(-1), rtol=1e-3)


def test_one_expert_at_a_time_minimises_the_sum_of_all_objectives() -> None:
    strong, first, anchor = logits(rows=40)
    second = anchor + 2 * torch.randn_like(anchor)
    _, alphas = fuse("dynamic", strong, [first, second], [anchor, anchor], parity=True)
    assert ((alphas > 0).sum(-1) <= 1).all()
    sums = []
    for active in (first, second):
        for k in range(POINTS):
            fused = strong + STEP * k * (active - anchor)
            total = torch.zeros(40, dtype=torch.float64)
            for expert in (first, second):
                total += (divergence(fused, strong) - divergence(expert, anchor)).square()
                total += (divergence(strong, fused) - divergence(anchor, expert)).square()
            sums.append(total)
    best = torch.stack(sums).argmin(0)
    chosen = torch.where(best < POINTS, alphas[:, 0], alphas[:, 1])
    assert torch.allclose(chosen, STEP * (best % POINTS).double())


def test_the_pool_lies_between_the_fusion_and_the_expert() -> None:
    strong, expert, anchor = logits()
    dynamic, alphas = fuse("dynamic", strong, [expert], [anchor])
    assert torch.equal(fuse("pooled", strong, [expert], [anchor], weight=0.0)[0], dynamic)
    pooled, same = fuse("pooled", strong, [expert], [anchor], weight=0.3)
    expected = 0.7 * dynamic.log_softmax(-1) + 0.3 * expert.log_softmax(-1)
    assert torch.allclose(pooled.softmax(-1), expected.softmax(-1))
    assert torch.equal(same, alphas)
    # An expert that is not active in a row takes no part in it.
    other = anchor + 0.1 * torch.randn_like(anchor)
    several, weights = fuse("pooled", strong, [other, expert], [anchor, anchor], weight=0.3)
    base, _ = fuse("dynamic", strong, [other, expert], [anchor, anchor])
    active = [other, expert][int(weights[0].argmax())]
    expected = 0.7 * base[0].log_softmax(-1) + 0.3 * active[0].log_softmax(-1)
    assert torch.allclose(several[0].softmax(-1), expected.softmax(-1))


def test_joint_follows_the_evidence() -> None:
    strong, first, anchor = logits()
    second = anchor + torch.randn_like(anchor)
    sure = torch.tensor([[60.0, 0.0]], dtype=torch.float64).expand(12, 2)
    fused, alphas = fuse("joint", strong, [first, second], [anchor, anchor], evidence=sure, trust=1.0)
    alone, alpha = fuse("dynamic", strong, [first], [anchor])
    assert torch.allclose(fused.softmax(-1), alone.softmax(-1), atol=1e-8)
    assert torch.allclose(alphas[:, :1], alpha)
    swapped, _ = fuse("joint", strong, [second, first], [anchor, anchor], evidence=sure.flip(1), trust=1.0)
    assert torch.allclose(swapped, fused)
    twice, _ = fuse("joint", strong, [first, first], [anchor, anchor], evidence=sure * 0)
    assert torch.allclose(twice.softmax(-1), alone.softmax(-1), atol=1e-6)


def test_evidence_becomes_a_posterior() -> None:
    evidence = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-50.0, -50.0]])
    weights = direction(evidence, 1.0, anchor=False)
    assert torch.allclose(weights.sum(-1), torch.ones(3))
    assert torch.isclose(weights[1, 0] / weights[1, 1], torch.tensor(2.0).exp())
    assert direction(evidence, 1.0, anchor=True)[2].sum() < 1e-6
    assert torch.allclose(direction(evidence, 0.0, anchor=False), torch.full((3, 2), 0.5))


def test_dexperts_keeps_the_smallest_set_with_the_mass() -> None:
    probability = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    kept = torch.isfinite(top_p_filter(probability.log(), 0.7))
    assert kept.tolist() == [[True, True, False, False]]
    assert torch.isfinite(top_p_filter(probability.log(), 0.5)).tolist() == [[True, False, False, False]]


def test_contrastive_prefers_what_the_anchor_does_not_know() -> None:
    strong = torch.tensor([[0.4, 0.35, 0.2, 0.05]]).log()
    anchor = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log()
    fused, _ = fuse("contrastive", strong, [anchor], [anchor], beta=1.0, plausible=0.3)
    assert fused.argmax(-1).item() == 1
    assert torch.isinf(fused[0, 3])
    expected = 2 * strong[0, 1] - anchor[0, 1]
    assert torch.isclose(fused[0, 1], expected)


def test_rows_are_independent_of_each_other_and_of_their_number() -> None:
    models = logits(rows=5, size=70_000, dtype=torch.float32)
    together, alphas = fuse("dynamic", models[0], [models[1]], [models[2]])
    alone, alpha = fuse("dynamic", models[0][3:4], [models[1][3:4]], [models[2][3:4]])
    assert torch.allclose(alphas[3:4], alpha, atol=1e-4)
    assert torch.allclose(together[3:4], alone, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dynamik", {}, "there is no fusion rule 'dynamik'"),
        ("static", {"alpha": 11.0}, "alpha = 11.0"),
        ("static", {"alpha": float("nan")}, "alpha"),
        ("average", {"weight": 1.5}, "weight = 1.5"),
        ("dexperts", {"top_p": 0.0}, "top_p = 0.0"),
        ("dynamic", {"alfa": 1}, "unknown key 'alfa'"),
    ],
)
def test_wrong_rules_and_settings_are_named(name: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        find_rule(name, settings)
    assert error.value.remedy


def test_experts_need_as_many_anchors() -> None:
    strong, expert, anchor = logits()
    with pytest.raises(UsageError, match="2 experts have 1 anchors"):
        fuse("static", strong, [expert, expert], [anchor])
