"""The weighted mean of networks after their hidden units were matched."""

from __future__ import annotations

import torch

from weightgen.compose.delta import Bank, Delta, uniform
from weightgen.compose.registry import Mixture, Plain, Problem, method
from zoo.errors import UsageError
from zoo.symmetry import align, fit_reference


@method("aligned_mean", mean=True, affine=True, adapters=False)
def aligned_mean(problem: Problem, config: Plain) -> Mixture:
    """Move all networks onto a common reference, then average (Ainsworth et al. 2023, arXiv 2209.04836).

    Raises:
        UsageError: if the hidden units are not known, or a base is given: changes of a base share its units already.
    """
    if problem.based:
        raise UsageError("networks with a common base are aligned already", "use the method linear or task_arithmetic")
    if not problem.groups:
        raise UsageError(
            "the hidden units of these networks are not known", "declare the architecture, or use the method linear"
        )
    networks = [{name: delta.values() for name, delta in source.items()} for source in problem.sources]
    reference = fit_reference(networks, problem.groups)
    moved = [align(network, reference, problem.groups) for network in networks]
    bank = Bank([{name: Delta.of(value) for name, value in network.items()} for network in moved])
    changed = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in zip(networks, moved, strict=True)]
    return Mixture(bank.mix(uniform(bank, problem.weights)), {"networks_moved": sum(changed)})
