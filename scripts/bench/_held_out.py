"""Networks of any architecture for tasks that none was trained on: judged as they are, and trained for an epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from weightgen.generators import Generator
    from weightgen.generators.igpg import IGPG
    from zoo.build.vectorised import TrainingConfig
    from zoo.datasets import ExampleBank, Examples, Members
    from zoo.zoo import Zoo

RATES = (0.003, 0.01, 0.03)
Networks = Mapping[str, "Tensor"]
Method = Callable[[Mapping[str, Any], "Examples", int], Networks]
"""From an architecture, what is known of tasks, and a seed, to one network a task."""


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks that no network was trained on.

    Attributes:
        examples: what methods are told.
        train: images for the epoch of training.
        judge: images that accuracy is measured on.
    """

    examples: Examples
    train: ExampleBank
    judge: ExampleBank


def tasks_of(zoo: Zoo, split: str, shots: int) -> Tasks:
    """Test tasks with their test images, or validation tasks, judged on half of their validation images."""
    import torch

    from zoo.datasets import bank_of
    from zoo.seeds import seed_of
    from zoo.tasks import TEST, TRAIN, VAL

    tasks = sorted(zoo.tasks(split=split), key=lambda task: task.name)
    rng = torch.Generator().manual_seed(seed_of("evaluation", 0))
    held = split == "test"
    told = bank_of(zoo, tasks, VAL) if held else bank_of(zoo, tasks, VAL, half=0)
    judge = bank_of(zoo, tasks, TEST) if held else bank_of(zoo, tasks, VAL, half=1)
    return Tasks(told.support(torch.arange(len(tasks)), shots, rng), bank_of(zoo, tasks, TRAIN), judge)


def nearest_tasks(zoo: Zoo, shots: int) -> Callable[[Examples], list[str]]:
    """Finds the training tasks with the nearest class means."""
    import torch

    from weightgen.evaluation.baselines import class_means
    from zoo.datasets import bank_of
    from zoo.tasks import TRAIN

    tasks = sorted(zoo.tasks(split="train"), key=lambda task: task.name)
    rng = torch.Generator().manual_seed(0)
    keys = class_means(bank_of(zoo, tasks, TRAIN).support(torch.arange(len(tasks)), shots, rng))

    def find(examples: Examples) -> list[str]:
        return [tasks[i].name for i in torch.cdist(class_means(examples), keys).argmin(-1).tolist()]

    return find


def members_of(members: Members, tasks: Sequence[str]) -> dict[str, Tensor]:
    """The networks of some tasks, in their order."""
    place = {record.task: i for i, record in enumerate(members.records)}
    chosen = [place[name] for name in tasks]
    return {name: value[chosen] for name, value in members.tensors.items()}


def accuracy(architecture: Mapping[str, Any], networks: Networks, bank: ExampleBank) -> list[float]:
    """Share of right answers by task; the networks are stacked in the order of the tasks."""
    import torch

    from zoo.networks import logits_many

    found = []
    with torch.no_grad():
        for task in range(len(bank.tasks)):
            x, y = bank.all(task)
            one = {name: value[task : task + 1] for name, value in networks.items()}
            found.append((logits_many(architecture, one, x[None]).argmax(-1) == y).float().mean().item())
    return found


def trained(
    architecture: Mapping[str, Any], starts: Networks, tasks: Tasks, training: TrainingConfig, epochs: int
) -> Networks:
    """Every network trained on the images of its task."""
    from zoo.build.vectorised import train_stages

    data = [tasks.train.all(task) for task in range(len(tasks.train.tasks))]
    steps = max(1, round(sum(len(y) for _, y in data) / len(data) / training.batch_size))
    inputs, targets = [x for x, _ in data], [y for _, y in data]
    seeds = list(range(len(data)))
    stages = train_stages(architecture, inputs, targets, seeds, training, total=epochs * steps, starts=starts)
    return list(stages)[-1][1]


def written(generator: Generator, said: Mapping[str, Any] | None = None) -> Method:
    """One network a task by a generator, which is told the architecture in words if it has an encoder for them.

    Args:
        generator: the generator.
        said: what it is told in place of the architecture that it has to write.
    """
    import torch

    from weightgen.types import Condition, Vectors
    from zoo.architectures import family
    from zoo.build.encoder import EncoderConfig, TextEncoder
    from zoo.kinds.dense import layout_of

    name = generator.problem.text_encoder
    encoder = None if name is None else TextEncoder(EncoderConfig(name=name))

    def make(architecture: Mapping[str, Any], examples: Examples, seed: int) -> Networks:
        condition = Condition(examples)
        if encoder is not None:
            told = architecture if said is None else said
            words = encoder.encode([family(told).describe(told)]).expand(len(condition), 1, -1)
            condition = Condition(examples, architecture=Vectors(words, torch.ones(len(condition), 1).bool()))
        found = generator.networks(condition, layout_of(architecture), seed)
        return {name: value[:, 0].contiguous() for name, value in found.items()}

    return make


def started(generator: IGPG) -> Method:
    """What a generator starts at for each task, with the output layer fitted: what it writes is a change of it."""
    import torch

    from weightgen.types import Condition
    from zoo.kinds.dense import layout_of

    def make(architecture: Mapping[str, Any], examples: Examples, seed: int) -> Networks:
        layout = layout_of(architecture)
        with torch.no_grad():
            values = generator.start(Condition(examples), layout)
        assert values is not None
        return generator.problem.tokenizer.tensors(values, layout)

    return fitted(make)


def fitted(make: Method) -> Method:
    """The networks of a method with output layers fitted to what is known of the tasks."""
    import torch

    from weightgen.generators.head import FittedHead

    def made(architecture: Mapping[str, Any], examples: Examples, seed: int) -> Networks:
        with torch.no_grad():
            return FittedHead()(architecture, make(architecture, examples, seed), examples)

    return made


def rows(
    make: Method,
    wanted: Mapping[str, Mapping[str, Any]],
    splits: tuple[Tasks, Tasks],
    training: TrainingConfig,
    seed: int,
) -> dict[str, Any]:
    """Accuracy of one method by architecture, before and after an epoch.

    Args:
        make: the method.
        wanted: architectures by label.
        splits: validation tasks, on which the rate of the epoch is chosen, and test tasks.
        training: of the zoo.
        seed: of the networks.
    """
    val, test = splits
    found: dict[str, Any] = {}
    for label, architecture in wanted.items():
        start, rates = make(architecture, val.examples, seed + 1), {}
        for rate in RATES:
            after = trained(architecture, start, val, training.model_copy(update={"lr": rate}), 1)
            rates[rate] = mean(accuracy(architecture, after, val.judge))
        rate = max(rates, key=lambda one: rates[one])
        start = make(architecture, test.examples, seed)
        after = trained(architecture, start, test, training.model_copy(update={"lr": rate}), 1)
        epochs = {str(i): accuracy(architecture, one, test.judge) for i, one in enumerate((start, after))}
        found[label] = {"rate": rate, **epochs}
        print(label, [round(mean(scores), 4) for scores in epochs.values()], file=sys.stderr, flush=True)
    return found
