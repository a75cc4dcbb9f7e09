"""Damaged and hostile inputs for the zoo, made from sound ones by a seeded random generator."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save, save_file

CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
INF, NAN = float("inf"), float("nan")
Maker = Callable[["Mutants", random.Random, Path], None]


def _network(seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "fc1.weight": torch.randn(4, 3, generator=random),
        "fc1.bias": torch.randn(4, generator=random).half(),
        "bn.num_batches_tracked": torch.tensor(seed),
        "fc2.weight": torch.randn(2, 4, generator=random).to(torch.bfloat16),
    }


def _adapter(seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    names = [f"base_model.model.layer.{i}.q.lora_{f}.weight" for i in range(2) for f in "AB"]
    return {name: torch.randn(*((2, 6) if "_A" in name else (6, 2)), generator=random) for name in names}


class _Attack:
    """Runs a shell command when it is unpickled, if anybody lets it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class Mutants:
    """Makes mutants.

    Args:
        outside: folder that nothing may write to or read from; attacks aim at it.
    """

    def __init__(self, outside: Path) -> None:
        self.outside = outside
        (outside / "secret").mkdir(parents=True)
        save_file({"secret": torch.ones(3)}, outside / "secret/secret.safetensors")
        (outside / "secret/adapter_config.json").write_text(json.dumps(CONFIG))
        save_file(_adapter(99), outside / "secret/adapter_model.safetensors")
        self.makers: list[tuple[str, int, Maker]] = [
            ("flipped bits", 30, Mutants.flip),
            ("truncated", 14, Mutants.truncate),
            ("spliced", 8, Mutants.splice),
            ("lying header", 16, Mutants.header),
            ("huge shape", 4, Mutants.huge),
            ("duplicate key", 4, Mutants.duplicate),
            ("NaN or infinity", 5, Mutants.not_finite),
            ("shard outside", 4, Mutants.shard),
            ("link outside", 4, Mutants.link),
            ("archive traversal", 5, Mutants.traversal),
            ("code in a pickle", 4, Mutants.code),
            ("adapter configuration", 4, Mutants.configuration),
            ("metadata", 3, Mutants.metadata),
        ]

    def make(self, draw: random.Random, folder: Path) -> str:
        """Write one mutant into a new folder; returns what it is."""
        names, weights, makers = zip(*self.makers, strict=True)
        index = draw.choices(range(len(names)), weights)[0]
        folder.mkdir(parents=True)
        makers[index](self, draw, folder)
        return names[index]

    def sound(self, draw: random.Random, folder: Path) -> Path:
        """Write something sound of a random form; returns one of its files."""
        seed = draw.randrange(1 << 30)
        form = draw.choice(
            ["safetensors"] * 6
            + ["adapter"] * 4
            + ["kohya", "npz", "npz", "pt", "old", "bin", "index"]
            + ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]
        )
        state = _network(seed)
        if form == "adapter":
            (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
            save_file(_adapter(seed), folder / "adapter_model.safetensors", {"format": "pt"})
            return folder / draw.choice(["adapter_config.json"] + ["adapter_model.safetensors"] * 4)
        if form == "kohya":
            state = {
                f"lora_unet_q.lora_{n}.weight": t for n, t in zip(("down", "up"), _adapter(seed).values(), strict=False)
            }
        path = folder / f"x.{form}"
        if form == "npz":
            arrays = {name: tensor.float().numpy() for name, tensor in state.items()}
            draw.choice([np.savez, np.savez_compressed])(path, **arrays)
        elif form == "index":
            path = folder / "x.safetensors.index.json"
            names = list(state)
            save_file({n: state[n] for n in names[:2]}, folder / "x-1.safetensors")
            save_file({n: state[n] for n in names[2:]}, folder / "x-2.safetensors")
            parts = {n: f"x-{1 + (i > 1)}.safetensors" for i, n in enumerate(names)}
            path.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
        elif form in ("pt", "old", "bin"):
            path = folder / f"x.{'pt' if form == 'old' else form}"
            torch.save({"state_dict": state, "epoch": 1}, path, _use_new_zipfile_serialization=form != "old")
        elif form.startswith(("zip", "tar")):
            inner = folder / "inner"
            inner.mkdir()
            save_file(state, inner / "x.safetensors")
            kind = {"tar.gz": "gztar", "tar.bz2": "bztar", "tar.xz": "xztar"}.get(form, form)
            shutil.make_archive(str(folder / "x"), kind, inner)
            shutil.rmtree(inner)
        else:
            path = folder / "x.safetensors"
            save_file(state, path, {"format": "pt"})
        return path

    def flip(self, draw: random.Random, folder: Path) -> None:
        path = self.sound(draw, folder)
        data = bytearray(path.read_bytes())
        reach = len(data) if draw.random() < 0.5 else min(len(data), 400)  # headers matter most
        for _ in range(draw.choice((1, 1, 1, 2, 5, 50))):
            data[draw.randrange(reach)] ^= 1 << draw.randrange(8)
        path.write_bytes(data)

    def truncate(self, draw: random.Random, folder: Path) -> None:
        path = self.sound(draw, folder)
        data = path.read_bytes()
        path.write_bytes(data[: draw.randrange(len(data))])

    def splice(self, draw: random.Random, folder: Path) -> None:
        path = self.sound(draw, folder)
        data = path.read_bytes()
        a, b = sorted(draw.randrange(len(data)) for _ in range(2))
        middle = draw.choice([b"", data[a:b] * 2, draw.randbytes(draw.randrange(1, 99)), bytes(b - a)])
        path.write_bytes(data[:a] + middle + data[b:])

    def header(self, draw: random.Random, folder: Path) -> None:
        data = save(_network(draw.randrange(1 << 30)))
        (length,) = struct.unpack("<Q", data[:8])
        header, values = json.loads(data[8 : 8 + length]), data[8 + length :]
        numbers = [-1, 0, 1, 3, 1 << 31, 1 << 62, 1 << 63, 1 << 64, 10**30, 1.5, "1", None, True, [], {}, 1e400]
        for _ in range(draw.choice((1, 1, 2, 3))):
            name = draw.choice([*header, "new", "__metadata__", "a\ud800", "a\x00b", "é" * 500])
            entry = header.setdefault(name, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
            if not isinstance(entry, dict):
                continue
            field = draw.choice([*entry, "extra"])
            values_of = {"dtype": ["F32", "F16", "I64", "BOOL", "F8_E4M3", "F4", "", 3, None], "extra": [1, None]}
            if field in values_of or field not in ("shape", "data_offsets"):
                entry[field] = draw.choice(values_of.get(field, [1, "x"]))
            elif isinstance(entry[field], list) and entry[field] and draw.random() < 0.8:
                entry[field][draw.randrange(len(entry[field]))] = draw.choice(numbers)
            else:
                entry[field] = draw.choice([numbers, [], draw.choice(numbers), [[1]], [1] * draw.choice((70, 5000))])
        text = json.dumps(header).encode()
        text = draw.choice([text] * 6 + [text + b" " * 9, text[:-1], b"[" * 5000, b"{}", b"\xff" + text, text * 2])
        claimed = draw.choice([len(text)] * 9 + [0, len(text) + 1, 1 << 40, (1 << 64) - 1, draw.randrange(1 << 20)])
        (folder / "x.safetensors").write_bytes(struct.pack("<Q", claimed) + text + values)

    def huge(self, draw: random.Random, folder: Path) -> None:
        size = draw.choice([1 << 31, 1 << 40, (1 << 62) + 1])
        form = draw.choice(["npz", "npz", "npz", "safetensors", "safetensors", "pt"])
        if form == "npz":
            text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }\n" % size
            with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(1 << 16))
        elif form == "pt" and draw.random() < 0.1:  # each takes the place of a reading process
            torch.save({"w": torch.ones(1).expand(min(size, 1 << 40))}, folder / "x.pt")
        else:
            shape = draw.choice([[size], [size, size], [0, size], [1 << 20, 1 << 20, 1 << 20, 1 << 4]])
            info = {"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, draw.choice([0, 8, size])]}}
            text = json.dumps(info).encode()
            (folder / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))

    def duplicate(self, draw: random.Random, folder: Path) -> None:
        if draw.random() < 0.3:
            with zipfile.ZipFile(folder / draw.choice(["x.npz", "x.zip"]), "w") as archive:
                for value in (1.0, 2.0):
                    buffer = io.BytesIO()
                    np.save(buffer, np.float32([value]))
                    archive.writestr("a.npy", buffer.getvalue())
            return
        info = '{"dtype":"U8","shape":[4],"data_offsets":[%d,%d]}'
        extra = draw.choice(['"a":' + info % (4, 8), '"\\u0061":' + info % (0, 4), '"b":' + info % (0, 4)])
        text = ('{"a":' + info % (0, 4) + "," + extra + "}").encode()
        (folder / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(draw.choice((4, 8))))

    def not_finite(self, draw: random.Random, folder: Path) -> None:
        kind = draw.choice([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2])
        values = torch.ones(draw.choice((1, 100, 5000)))
        values[draw.randrange(len(values))] = draw.choice([NAN, INF, -INF])
        state = {"good": torch.ones(2), "bad": values.to(kind)}
        if draw.random() < 0.15:
            torch.save(state, folder / "x.pt")
        elif draw.random() < 0.3:
            np.savez(folder / "x.npz", bad=values.numpy())
        else:
            save_file(state, folder / "x.safetensors")

    def shard(self, draw: random.Random, folder: Path) -> None:
        secret = self.outside / "secret/secret.safetensors"
        save_file({"a": torch.ones(1)}, folder / "x-1.safetensors")
        (folder / "x-2.safetensors").symlink_to(secret)
        up = os.path.relpath(secret, folder)
        name = draw.choice(
            [up, str(secret), "x-2.safetensors", "./x-2.safetensors", up.replace("/", "\\"), "", ".", ".."]
        )
        parts = {"a": "x-1.safetensors", "secret": draw.choice([name, name, name, 7, None, ["x"]])}
        suffix = draw.choice([".safetensors", ".bin"])
        (folder / f"x{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))

    def link(self, draw: random.Random, folder: Path) -> None:
        secret = self.outside / "secret"
        save_file(_network(draw.randrange(1 << 30)), folder / "own.safetensors")
        which = draw.randrange(5)
        if which == 0:
            (folder / "x.safetensors").symlink_to(secret / "secret.safetensors")
        elif which == 1:
            (folder / "x").symlink_to(secret, target_is_directory=True)
        elif which == 2:
            (folder / "loop").symlink_to(folder, target_is_directory=True)
            (folder / "none.safetensors").symlink_to(folder / "nothing")
        elif which == 3:
            (folder / "adapter_config.json").symlink_to(secret / "adapter_config.json")
            shutil.copy(secret / "adapter_model.safetensors", folder)
        else:
            (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
            (folder / "adapter_model.safetensors").symlink_to(secret / "adapter_model.safetensors")

    def traversal(self, draw: random.Random, folder: Path) -> None:
        up = os.path.relpath(self.outside, folder)
        name = (
            draw.choice(["../" * 12 + str(self.outside)[1:], f"{self.outside}", up, "a/../..", "..\\..", "C:"])
            + "/evil.safetensors"
        )
        data = save(_network(draw.randrange(1 << 30)))
        if draw.random() < 0.5:
            with zipfile.ZipFile(folder / "x.zip", "w") as archive:
                info = zipfile.ZipInfo(draw.choice([name, "link.safetensors"]))
                info.external_attr = draw.choice([0, 0o120777, 0o60666, 0o10666]) << 16
                archive.writestr(info, draw.choice([data, str(self.outside / "secret/secret.safetensors").encode()]))
            return
        with tarfile.open(
            folder / "x.tar", "w", format=draw.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        ) as archive:
            kinds = [
                tarfile.REGTYPE,
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.DIRTYPE,
                tarfile.CHRTYPE,
                tarfile.FIFOTYPE,
            ]
            for entry in (draw.choice(["d", name]), draw.choice(["d/evil.safetensors", name])):
                info = tarfile.TarInfo(entry)
                info.type, info.linkname = draw.choice(kinds), str(self.outside)
                info.size = len(data) if info.type == tarfile.REGTYPE else 0
                archive.addfile(info, io.BytesIO(data))

    def code(self, draw: random.Random, folder: Path) -> None:
        marker = str(self.outside / f"ran-{draw.randrange(1 << 30)}")
        attack = draw.choice(
            [
                _Attack(os.system, f"touch {marker}"),
                _Attack(open, marker, "w"),
                _Attack(eval, f"open({marker!r}, 'w')"),
                _Attack(getattr, _Attack(__import__, "os"), "system"),
                _Attack(os.mkdir, marker),
                _Attack(shutil.copy, "/etc/hostname", marker),
            ]
        )
        holder = draw.choice([{"w": attack}, attack, {"state_dict": {"w": torch.ones(1), "x": attack}}, [attack]])
        name = draw.choice(["x.bin", "x.pt", "x.pth", "x.ckpt", "adapter_model.bin", "x.npz", "x.model", "x.pth.tar"])
        if name == "adapter_model.bin":
            (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
        if name == "x.npz":
            np.savez(folder / name, a=np.array([attack], dtype=object))
        elif draw.random() < 0.5:
            (folder / name).write_bytes(pickle.dumps(holder, protocol=draw.choice((0, 2, 4))))
        else:
            torch.save(holder, folder / name)

    def configuration(self, draw: random.Random, folder: Path) -> None:
        values = [None, 0, -1, 1 << 70, 1.5, "", "a\ud800", "\x00", [], {}, [[]], {"a": {}}, True, NAN, "x" * 5000]
        keys = [
            "peft_type",
            "r",
            "rank_pattern",
            "base_model_name_or_path",
            "lora_alpha",
            "use_dora",
            "target_parameters",
            "new",
        ]
        config: Any = {**CONFIG, **{draw.choice(keys): draw.choice(values) for _ in range(draw.randrange(1, 4))}}
        if draw.random() < 0.3:
            config["peft_type"] = draw.choice(["IA3", "LOHA", "NEW.*[", "PREFIX_TUNING"])
        text = json.dumps(draw.choice([config] * 9 + [[config], 1]))
        text = draw.choice([text] * 9 + [text[:-1], '{"a":' * 900 + "1" + "}" * 900, text * 2, "\ufeff" + text])
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")
        save_file(_adapter(draw.randrange(1 << 30)), folder / "adapter_model.safetensors")

    def metadata(self, draw: random.Random, folder: Path) -> None:
        save_file(_network(draw.randrange(1 << 30)), folder / "x.safetensors")
        values = [
            None,
            1,
            10**400,
            NAN,
            "a\ud800",
            "x",
            [],
            ["a", 1],
            {},
            {"family": "mlp", "sizes": [1 << 40, 2]},
            {"family": []},
        ]
        keys = ["task", "description", "license", "metrics", "accuracy", "architecture", "split", "lineage", "dataset"]
        text = json.dumps({draw.choice(keys): draw.choice(values) for _ in range(4)})
        (folder / "weightgen.json").write_text(
            draw.choice([text, text[:-2], "[" * 3000, '{"a":' * 90 + "1" + "}" * 90])
        )
        cards = [
            "a: &a [x]\nb: [*a, *a]",
            "license: !!python/name:os.system",
            "x: [" * 3000,
            "license: [[mit]]\ntask: {a: 1}",
            "\t",
        ]
        (folder / "README.md").write_text(
            "---\n" + draw.choice(cards) + "\n---\n" + draw.choice(["", "<!--" * 999, "text " * 999])
        )
