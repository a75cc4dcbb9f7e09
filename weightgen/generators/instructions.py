"""Instructions to learn announcements from: a network that is wanted, put into words in one of many ways.

Counts and sizes are said as numerals or as words; depth as hidden layers or as layers with the output; sizes once, one
after the other, or loosely; before or after the kind of network, in one sentence or two; and something may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from weightgen.generators.announce import AnnounceConfig, Shape
from zoo.architectures import Architecture, family

ONES = (
    *("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
LOOSE = {
    "low": ("narrow", "thin", "small", "slim", "tiny"),
    "middle": ("medium", "medium-sized", "middling"),
    "high": ("wide", "broad", "large", "big"),
}
LOOSE_AFTER = {
    "low": ("few units", "narrow layers", "not many neurons"),
    "middle": ("a middling number of units", "layers of medium width"),
    "high": ("lots of units", "many neurons", "wide layers"),
}
UNITS = ("units", "neurons", "hidden units", "nodes")
PERCEPTRONS = ("MLP", "multi-layer perceptron", "perceptron", "fully connected network", "dense network")
ANY = ("network", "net", "classifier", "feed-forward net", "model")
STARTS = ("", "", "a ", "a ", "write a ", "I want a ", "I need a ", "give me a ", "make me a ", "can you build a ")
CONVOLUTIONAL = ("convolutional network", "CNN", "convnet", "network of convolutions", "conv net")


def pick(options: Sequence[str], rng: torch.Generator) -> str:
    """One of some options."""
    return options[int(torch.randint(len(options), (), generator=rng))]


def chance(share: float, rng: torch.Generator) -> bool:
    """True in a share of the cases."""
    return torch.rand((), generator=rng).item() < share


def spelled(number: int) -> str:
    """A number below 100 in words."""
    if number < len(ONES):
        return ONES[number]
    tens, rest = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[rest]}" if rest else "")


def _said(number: int, rng: torch.Generator, words: float = 0.3) -> str:
    return spelled(number) if number < 100 and chance(words, rng) else str(number)


def _depth(depth: int, rng: torch.Generator) -> str:
    """The number of hidden layers, ready to follow the kind of network."""
    count, every = _said(depth, rng, 0.6), _said(depth + 1, rng, 0.5)
    layer = "hidden layer" if depth == 1 else "hidden layers"
    ways = [
        *(f"with {count} {layer}", f"with exactly {count} {layer}", f"that has {count} {layer}", f"{count} {layer}"),
        *(f"of {count} {layer}", f"{count} {layer} deep", f"with {count} {layer} between input and output"),
        *(f"{every} layers counting the output", f"with {every} layers of weights", f"of depth {every}"),
        *(f"{every} layers in all", f"{every} linear layers"),
    ]
    if depth == 1:
        ways += [
            "with a single hidden layer",
            "just one hidden layer",
            "only one hidden layer",
            "one hidden layer only",
        ]
        ways += ["with no more than one hidden layer"]
    if depth == 2:
        ways += ["with a pair of hidden layers", "with a couple of hidden layers"]
    return pick(ways, rng)


def _both(hidden: Sequence[int], rng: torch.Generator) -> str:
    """Depth and sizes in one phrase."""
    depth = len(hidden)
    listed = [_said(size, rng, 0.15) for size in hidden]
    units = pick(UNITS, rng)
    joined = ", ".join(listed[:-1]) + f" and {listed[-1]}" if depth > 1 else listed[0]
    layer = "hidden layer" if depth == 1 else "hidden layers"
    ways = [
        *(f"hidden sizes {', '.join(listed)}", f"{layer}: {', '.join(listed)}", f"{layer} of {joined} {units}"),
        *(f"{layer} {'-'.join(listed)}", f"layers of {joined} {units}", f"hidden layer sizes {' and '.join(listed)}"),
        f"the {'layer has' if depth == 1 else 'layers have'} {joined} {units}",
    ]
    if depth > 1:
        order = [f"{'the ' if i else ''}{ORDINALS[i]} hidden layer {size} {units}" for i, size in enumerate(listed)]
        ways += [", ".join(order), f"from input to output {' then '.join(listed)} {units}"]
        ways += [f"first {' then '.join(f'{size} {units}' for size in listed)}"]
    if len(set(hidden)) == 1:
        size, count = _said(hidden[0], rng, 0.25), _said(depth, rng, 0.6)
        each = pick(["each", "in each of them", "per layer", "in every layer"], rng)
        if depth > 1:
            ways = [
                *ways,
                f"{count} hidden layers of {size} {units} {each}",
                f"{count} hidden layers, {size} {units} {each}",
            ]
            ways += [f"{count} hidden layers of size {size}", f"with {count} times {size} hidden units"]
            ways += [
                f"{size} {units} in each of its {count} hidden layers",
                f"{count} hidden layers, all of size {size}",
            ]
            ways += [f"{count} hidden layers. {pick(['Each has', 'Every one has'], rng)} {size} {units}"]
        else:
            ways += [f"one hidden layer of {size} {units}", f"with {size} {units} in its only hidden layer"]
            ways += [f"whose hidden part is one layer of {size} {units}", f"hidden layer size {size}, just one of them"]
            ways += [f"a single hidden layer with {size} {units}", f"through one layer of {size} {units}"]
    return pick(ways, rng)


def _loose(hidden: Sequence[int], config: AnnounceConfig) -> str:
    share = (sum(hidden) / len(hidden) - config.narrowest) / max(config.widest - config.narrowest, 1)
    return "low" if share < 1 / 3 else "high" if share > 2 / 3 else "middle"


def _width(hidden: Sequence[int], config: AnnounceConfig, rng: torch.Generator) -> tuple[str, str]:
    """The common size of all hidden layers, as something to say before the kind of network and after it."""
    if chance(0.4, rng):
        how = _loose(hidden, config)
        return (pick(LOOSE[how], rng), "") if chance(0.7, rng) else ("", pick(LOOSE_AFTER[how], rng))
    size, units = _said(hidden[0], rng, 0.25), pick(UNITS, rng)
    each = [
        f"{size} {units} a layer",
        f"{size} {units} per layer",
        f"every layer {size} wide",
        f"each of {size} {units}",
    ]
    return "", pick(
        [f"{size} units wide", f"of width {size}", f"with {size} {units}", f"{size} {units} across", *each], rng
    )


def _sizes(shape: Shape, inputs: Sequence[int], classes: int, rng: torch.Generator) -> str:
    """All sizes in a row."""
    between = pick(["-", "-", " -> ", ", ", " x "], rng)
    sizes = between.join(map(str, [torch.Size(inputs).numel(), *shape.hidden, classes]))
    kind, activation = pick([*PERCEPTRONS, "network"], rng), f"{shape.kind} " if chance(0.7, rng) else ""
    return pick(
        [f"{sizes} {activation}{kind}", f"{activation}{kind} {sizes}", f"{activation}{kind} of sizes {sizes}"], rng
    )


def phrase(shape: Shape, inputs: Sequence[int], classes: int, config: AnnounceConfig, rng: torch.Generator) -> str:
    """Say in words which perceptron is wanted, in one of many ways; some things are left out.

    Args:
        shape: the network.
        inputs: shape of an example.
        classes: number of outputs.
        config: what counts as narrow and wide.
        rng: decides how it is said.
    """
    if chance(0.15, rng):
        return _sizes(shape, inputs, classes, rng)
    hidden, before, after = shape.hidden, [], []
    same = len(set(hidden)) == 1
    if not same or chance(0.4, rng):
        after.append(_both(hidden, rng))
        if chance(0.2, rng):
            before.append(pick(LOOSE[_loose(hidden, config)], rng))
    else:
        if chance(0.15, rng):
            how, count = pick(LOOSE[_loose(hidden, config)], rng), _said(len(hidden), rng, 0.7)
            return f"{count} {how} hidden layer{'s' if len(hidden) > 1 else ''}"
        if chance(0.9, rng):
            every = len(hidden) + 1
            short = chance(0.2, rng)
            (before if short else after).append(
                f"{pick([str(every), spelled(every)], rng)}-layer" if short else _depth(len(hidden), rng)
            )
        if chance(0.85, rng):
            early, late = _width(hidden, config, rng)
            before += [early] if early else []
            after += [late] if late else []
    if len(hidden) > 2 and chance(0.2, rng):
        before.append("deep")
    if len(hidden) == 1 and chance(0.3, rng):
        before.append("shallow")
    kind = pick([*PERCEPTRONS, *PERCEPTRONS, *ANY], rng)
    return _sentence(before, kind, after, shape.kind, _about(inputs, classes, rng), rng)


def phrase_of(architecture: Architecture, rng: torch.Generator) -> str:
    """Say in words that a network is wanted that is no perceptron: by its own name, or loosely."""
    called = family(architecture).describe(architecture)
    if architecture["family"] != "cnn" or chance(0.1, rng):
        return called
    count, before, after = len(architecture["channels"]), [], []
    channels = [str(size) for size in architecture["channels"]]
    if chance(0.4, rng):
        before.append(pick(LOOSE["low"], rng))
    if chance(0.6, rng):
        number = _said(count, rng, 0.6)
        layers = "convolution" if count == 1 else "convolutions"
        after.append(
            pick([f"with {number} {layers}", f"{number} {layers} deep", f"with {number} convolutional layers"], rng)
        )
    if chance(0.5, rng):
        listed = " and ".join(channels)
        after.append(pick([f"of {'-'.join(channels)} channels", f"with {listed} channels", f"{listed} filters"], rng))
    about = _about(architecture["input"][1:], architecture["classes"], rng)
    return _sentence(before, pick(CONVOLUTIONAL, rng), after, architecture["activation"], about, rng)


def _about(inputs: Sequence[int], classes: int, rng: torch.Generator) -> str:
    """What the network is for, or nothing."""
    where = "x".join(map(str, inputs[-2:]))
    data = ["", "", "", f"for {where} images", f"for {where} digits", f"for {classes} classes", "for digits"]
    return pick([*data, "for handwritten digits"], rng)


def _sentence(before: list[str], kind: str, after: list[str], activation: str, about: str, rng: torch.Generator) -> str:
    """Put the parts together."""
    if chance(0.6, rng):
        before.append(activation)
    elif chance(0.2, rng):
        after.append(f"with {activation}")
    before = [before[i] for i in torch.randperm(len(before), generator=rng).tolist()]
    after = [after[i] for i in torch.randperm(len(after), generator=rng).tolist()]
    after.insert(int(torch.randint(len(after) + 1, (), generator=rng)), about)
    after = [part for part in after if part]
    if after and chance(0.25, rng):  # the parts first, or alone
        joiner = pick([", ", " and "], rng)
        last = pick(["", f", {kind}", f": a {' '.join([*before, kind])}", ", please"], rng)
        text = joiner.join([*(before if ":" not in last else []), *after]) + last
        return text.removeprefix("with ").removeprefix("that has ")
    start = pick(
        [
            "",
            "",
            "a ",
            "a ",
            "write a ",
            "I want a ",
            "I need a ",
            "please give me a ",
            "make me a ",
            "can you build a ",
        ],
        rng,
    )
    text = start + " ".join([*before, kind])
    for part in after:
        text += pick([" ", ", ", ", "], rng) + part
    return text + pick(["", "", "", ".", ", please"], rng)
