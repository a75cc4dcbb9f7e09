"""The weighted sum of the parents; the mean if no weights are given."""

from __future__ import annotations

from weightgen.compose.delta import Bank, uniform
from weightgen.compose.registry import Mixture, Plain, Problem, method


@method("linear", mean=True, affine=True)
def linear(problem: Problem, config: Plain) -> Mixture:
    """Add up the changes, each times its weight; exact before the rank is cut.

    Networks without a base are added as they are: weights that add up to 1 give a mean (Wortsman et al. 2022,
    arXiv 2203.05482).
    """
    bank = Bank(problem.sources)
    return Mixture(bank.mix(uniform(bank, problem.weights)))
