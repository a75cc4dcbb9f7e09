"""What adapters of the validation tasks are worth after the codec of IGPG, by the number of words it has for them.

    python scripts/bench/adapters_text_codec.py --tasks DIR --zoo DIR

The codecs are fitted to the adapters of the training tasks. ``adapters_text.py`` renders the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from scripts.bench.adapters_text_choose import MOST  # noqa: E402
from scripts.bench.adapters_text_measure import RESULTS, Given, scored  # noqa: E402
from scripts.bench.adapters_text_tasks import VALIDATION  # noqa: E402
from weightgen.codecs.quantisers import QuantiserConfig  # noqa: E402
from weightgen.codecs.vq import VQ, VQConfig  # noqa: E402
from zoo.build.encoder import EncoderConfig, TextEncoder  # noqa: E402
from zoo.datasets import load_groups  # noqa: E402
from zoo.tasks import VAL  # noqa: E402
from zoo.tokens import Tokenizer  # noqa: E402
from zoo.zoo import Zoo  # noqa: E402

CODECS = {
    "48 weights a word": VQConfig(group=48, quantiser=QuantiserConfig(size=512)),
    "16 weights a word": VQConfig(group=16, quantiser=QuantiserConfig(size=256)),
    "48 weights, 3 words": VQConfig(group=48, quantiser=QuantiserConfig(kind="residual", size=256, depth=3)),
}
WIDTH = 384


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True)
    options = parser.parse_args()
    with Zoo.open(options.zoo) as zoo:
        train, held = (load_groups(zoo, split)[0] for split in ("train", "val"))
    tokenizer = Tokenizer.fit(train.weights(), WIDTH)
    mask, position = tokenizer.template(train.layout)
    values, own = (tokenizer.values(members.tensors, members.layout) for members in (train, held))
    layers, _, many, chunks = (position.amax(0) + 1).tolist()
    sizes = (layers, len(tokenizer.roles), many, chunks)
    adapters, about = {"base": torch.zeros_like(own), "own": own}, {}
    for name, config in CODECS.items():
        torch.manual_seed(0)
        codec = VQ(config, WIDTH, sizes)
        codec.fit([(values, mask, position)], torch.Generator().manual_seed(0))
        codes = codec.encode(own, mask, position)
        adapters[name] = codec.decode(codes, mask, position)
        error = codec.error(adapters[name], own, mask, position).item()
        words = int((codes[0] >= 0).sum())
        about[name] = {"words": words, "bits": codec.bits_a_weight(mask, position), "error": round(error, 3)}
    encoder, rows = TextEncoder(EncoderConfig()), {}
    by_task = {record.task: i for i, record in enumerate(held.records)}
    for task in VALIDATION:
        given = Given(options.tasks, task, VAL, MOST)
        for name, tokens in adapters.items():
            tensors = tokenizer.tensors(tokens[by_task[task]], held.layout)
            found = scored(encoder, held.layout, tensors, given.known, given.texts, given.y)
            rows.setdefault(name, {})[task] = found
    result = {"texts": MOST, "codecs": about, "rows": rows}
    (RESULTS / "codec.json").write_text(json.dumps(result, indent=1))
    print(about, {name: sum(one[0] for one in row.values()) / len(row) for name, row in rows.items()})


if __name__ == "__main__":
    main()
