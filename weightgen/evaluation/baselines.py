"""The simplest alternatives to a generator, under the same conditions: same examples, same number of candidates.

Each is a function ``(setting, examples, seed, candidates) -> networks`` registered under its name. Adding one is a
function with a decorator; the card picks it up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from sklearn.linear_model import Ridge

from weightgen.evaluation.setting import Setting, Stacked
from zoo.build.vectorised import TrainingConfig, train_many
from zoo.datasets import ExampleBank, Examples
from zoo.seeds import seed_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Method = Callable[[Setting, Examples, int, int], Stacked]
METHODS: dict[str, Method] = {}
RIDGE_STRENGTHS = (0.1, 1.0, 10.0, 100.0)
RIDGE_DRAWS = 4


def method(name: str) -> Callable[[Method], Method]:
    """Register a method for the card."""

    def register(function: Method) -> Method:
        METHODS[name] = function
        return function

    return register


def _spread(networks: Stacked, tasks: int, candidates: int) -> Stacked:
    """Give every task the same networks: values with a leading axis of 1 or ``candidates``."""
    return {k: v.expand(tasks, candidates, *v.shape[1:]) for k, v in networks.items()}


def class_means(examples: Examples) -> Float[Tensor, "b f"]:
    """Mean example of every class, one vector a task: the condition in its simplest form."""
    mask = examples.mask.view(*examples.mask.shape, *[1] * (examples.x.ndim - 3))
    return ((examples.x * mask).sum(2) / mask.sum(2)).flatten(1)


def flatten(networks: Stacked, start: int = 1) -> Float[Tensor, "... w"]:
    """All weights of a network in one vector."""
    return torch.cat([v.flatten(start) for v in networks.values()], -1)


def unflatten(flat: Float[Tensor, "b w"], like: Stacked) -> dict[str, Tensor]:
    """Inverse of ``flatten`` for networks shaped like those of ``like`` (leading axis aside)."""
    sizes = [v[0].numel() for v in like.values()]
    pieces = flat.split(sizes, -1)
    return {k: p.reshape(len(flat), *like[k].shape[1:]) for (k, p) in zip(like, pieces, strict=True)}


@method("zoo_mean")
def zoo_mean(setting: Setting, examples: Examples, seed: int, candidates: int) -> Stacked:
    """Mean of all training networks as they are."""
    mean = {k: v.mean(0, keepdim=True) for k, v in setting.raw.tensors.items()}
    return _spread(mean, len(setting.tasks), candidates)


@method("zoo_mean_aligned")
def zoo_mean_aligned(setting: Setting, examples: Examples, seed: int, candidates: int) -> Stacked:
    """Mean of all training networks after hidden-unit alignment."""
    mean = {k: v.mean(0, keepdim=True) for k, v in setting.aligned.tensors.items()}
    return _spread(mean, len(setting.tasks), candidates)


@method("nearest")
def nearest(setting: Setting, examples: Examples, seed: int, candidates: int) -> Stacked:
    """Training networks of the tasks whose class means are nearest to those of the examples."""
    tasks = torch.arange(len(setting.train_tasks))
    generator = torch.Generator().manual_seed(seed_of("nearest", seed))
    keys = class_means(setting.train_support.support(tasks, setting.shots, generator))
    number = {task.name: i for i, task in enumerate(setting.train_tasks)}
    task_of = torch.tensor([number[r.task] for r in setting.raw.records if r.task is not None])
    distance = torch.cdist(class_means(examples), keys)[:, task_of]
    chosen = distance.argsort(dim=-1, stable=True)[:, :candidates]
    return {k: v[chosen] for k, v in setting.raw.tensors.items()}


@method("gaussian")
def gaussian(setting: Setting, examples: Examples, seed: int, candidates: int) -> Stacked:
    """Independent Gaussians fitted to every weight of the aligned training networks."""
    generator = torch.Generator().manual_seed(seed_of("gaussian", seed))
    result = {}
    for name, value in setting.aligned.tensors.items():
        noise = torch.randn((len(setting.tasks), candidates, *value.shape[1:]), generator=generator)
        result[name] = value.mean(0) + value.std(0) * noise
    return result


def _fit_ridge(setting: Setting, strength: float) -> Ridge:
    """Regression from class means to aligned weights; several draws of examples a network."""
    number = {task.name: i for i, task in enumerate(setting.train_tasks)}
    task_of = torch.tensor([number[r.task] for r in setting.aligned.records if r.task is not None])
    targets = flatten(setting.aligned.tensors)
    inputs = [
        class_means(
            setting.train_support.support(task_of, setting.shots, torch.Generator().manual_seed(seed_of("ridge", i)))
        )
        for i in range(RIDGE_DRAWS)
    ]
    return Ridge(alpha=strength).fit(torch.cat(inputs).numpy(), targets.repeat(RIDGE_DRAWS, 1).numpy())


def _apply_ridge(setting: Setting, model: Ridge, examples: Examples) -> dict[str, Tensor]:
    flat = torch.from_numpy(model.predict(class_means(examples).numpy())).float()
    return {k: v[:, None] for k, v in unflatten(flat, setting.aligned.tensors).items()}


@functools.lru_cache(maxsize=1)
def choose_ridge(setting: Setting) -> tuple[Ridge, float]:
    """Fit ridge regressions and keep the strength that is best on the validation tasks."""
    tasks = torch.arange(len(setting.val_tasks))
    examples = setting.val_support.support(tasks, setting.shots, torch.Generator().manual_seed(seed_of("ridge val")))
    scored = []
    for strength in RIDGE_STRENGTHS:
        model = _fit_ridge(setting, strength)
        accuracy = setting.accuracy(_apply_ridge(setting, model, examples), setting.val_bank).mean().item()
        scored.append((accuracy, strength, model))
    _, strength, model = max(scored, key=lambda item: item[:2])
    return model, strength


@method("ridge")
def ridge(setting: Setting, examples: Examples, seed: int, candidates: int) -> Stacked:
    """Ridge regression from class means to aligned weights, strength chosen on validation tasks."""
    model, _ = choose_ridge(setting)
    networks = _apply_ridge(setting, model, examples)
    return {k: v.expand(-1, candidates, *v.shape[2:]) for k, v in networks.items()}


def _train(
    setting: Setting, data: list[tuple[Tensor, Tensor]], name: str, seed: int, candidates: int, config: TrainingConfig
) -> Stacked:
    repeated = [one for one in data for _ in range(candidates)]
    seeds = [seed_of(name, seed, i) for i in range(len(repeated))]
    stacked = train_many(setting.architecture, [x for x, _ in repeated], [y for _, y in repeated], seeds, config)
    return {k: v.unflatten(0, (len(data), candidates)) for k, v in stacked.items()}


@method("scratch")
def scratch(setting: Setting, examples: Examples, seed: int, candidates: int) -> Stacked:
    """Training from a random initialisation on the very examples the generator is given, with the zoo's recipe."""
    data = [examples.flat(i) for i in range(len(setting.tasks))]
    usual = setting.training
    changes = {"batch_size": min(usual.batch_size, len(data[0][1])), "epochs": 4 * usual.epochs}
    return _train(setting, data, "scratch", seed, candidates, usual.model_copy(update=changes))


@method("scratch_one_epoch")
def scratch_one_epoch(setting: Setting, examples: Examples, seed: int, candidates: int) -> Stacked:
    """Training from a random initialisation for one pass over all training images of the task."""
    data = [setting.train_bank.all(i) for i in range(len(setting.tasks))]
    return _train(setting, data, "one epoch", seed, candidates, setting.training.model_copy(update={"epochs": 1}))


@method("oracle")
def oracle(setting: Setting, examples: Examples, seed: int, candidates: int) -> Stacked:
    """Networks of the zoo's test split: trained in full on the held-out task itself."""
    chosen = []
    for task in setting.tasks:
        own = [i for i, record in enumerate(setting.oracles.records) if record.task == task.name]
        chosen.append([own[(seed + c) % len(own)] for c in range(candidates)])
    return {k: v[torch.tensor(chosen)] for k, v in setting.oracles.tensors.items()}


def nearest_class_mean(examples: Examples, bank: ExampleBank) -> Float[Tensor, "tasks 1"]:
    """Accuracy of the rule that needs no network at all: the class whose mean example is nearest."""
    means = class_means(examples).unflatten(1, (examples.mask.shape[1], -1))
    rows = []
    for task in range(len(bank.tasks)):
        x, y = bank.all(task)
        predicted = torch.cdist(x.flatten(1), means[task]).argmin(-1)
        rows.append((predicted == y).float().mean())
    return torch.stack(rows)[:, None]
