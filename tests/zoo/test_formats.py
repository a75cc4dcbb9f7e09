"""Reading files: exact where they are sound, an error with a reason where they are not."""

from __future__ import annotations

import argparse
import json
import pickle
import random
import struct
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.zoo.samples import mlp, same
from zoo import formats, safefile, unpickle
from zoo._unpickle import select
from zoo.errors import BadArtefact, WeightgenError


def every_dtype() -> dict[str, torch.Tensor]:
    values = torch.tensor([[0.0, 1.0, -2.0], [0.5, 4.0, 1.5]])
    tensors = {}
    for name, (attribute, _) in safefile.DTYPES.items():
        source = values.abs() if name in ("U8", "U16", "U32", "U64", "F8_E8M0") else values
        if name == "F8_E8M0":
            tensors[name] = torch.full((2, 3), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)
        else:
            tensors[name] = source.to(getattr(torch, attribute))
    return tensors


def header(content: dict | str, data: bytes = b"") -> bytes:
    text = (content if isinstance(content, str) else json.dumps(content)).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_every_dtype_survives(tmp_path: Path) -> None:
    tensors = {**every_dtype(), "scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "é": torch.ones(1)}
    path = tmp_path / "a.safetensors"
    safefile.save(path, tensors, {"format": "pt"})
    found = formats.read_tensors(path)
    assert same(found.tensors, tensors)
    assert found.files[0].metadata == {"format": "pt"}
    official = load_file(path)
    assert same({n: official[n] for n in ("F32", "BF16", "scalar")}, {n: tensors[n] for n in ("F32", "BF16", "scalar")})


def test_files_of_the_official_library_come_back_byte_for_byte(tmp_path: Path) -> None:
    save_file(dict(mlp().tensors), tmp_path / "a.safetensors", {"format": "pt"})
    found = formats.read_tensors(tmp_path / "a.safetensors")
    (tmp_path / "b").mkdir()
    formats.write_tensors(tmp_path / "b", found.tensors, found.files)
    assert (tmp_path / "b/a.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_large_files_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safefile, "MAPPED_ABOVE", 0)
    path = tmp_path / "a.safetensors"
    safefile.save(path, mlp().tensors)
    assert same(formats.read_tensors(path).tensors, dict(mlp().tensors))


def test_unaligned_data_is_read(tmp_path: Path) -> None:
    info = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    for pad in range(4):
        path = tmp_path / f"{pad}.safetensors"
        path.write_bytes(header(json.dumps(info) + " " * pad, np.float32([1, 2]).tobytes()))
        assert formats.read_tensors(path).tensors["a"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least 8"),
        (struct.pack("<Q", 1 << 60), "header claims"),
        (header("[]"), "not a JSON object"),
        (header("[" * 100_000), "nested too deeply"),
        (header('{"a":1,"a":2}'), "'a' appears twice"),
        (header({"a": {"dtype": "F32"}}), "not described"),
        (header({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}), "unknown element type 'F4'"),
        (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), "not a list of sizes"),
        (header({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}), "bytes claims"),
        (header({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, b"abc"), "file holds 3"),
        (header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"ab"), "expected 0"),
        (header({"__metadata__": {"a": 1}}), "__metadata__"),
        (header({}), "no tensors"),
    ],
)
def test_lying_headers_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadArtefact, match=message):
        formats.read_tensors(path)


def test_mutated_files_give_an_error_or_an_exact_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safefile.save(path, mlp().tensors, {"format": "pt"})
    sound = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(sound[: draw.randrange(len(sound))] if draw.random() < 0.3 else sound)
        for _ in range(draw.randrange(1, 4)):
            if data:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            found = formats.read_tensors(path)
        except BadArtefact:
            refused += 1
        else:
            assert sum(t.nbytes for t in found.tensors.values()) <= len(sound)
    assert refused > 100


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    save_file({"good": torch.ones(3), "bad": torch.tensor([1.0, value]).to(dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(BadArtefact, match=r"tensor 'bad' of .* holds 1 values that are NaN or infinite"):
        formats.read_tensors(tmp_path / "a.safetensors")


def test_torch_checkpoint_with_optimiser(tmp_path: Path) -> None:
    state = OrderedDict(("module." + name, tensor) for name, tensor in mlp().tensors.items())
    state["module.view"] = torch.arange(12.0).reshape(3, 4).T
    weight = torch.nn.Parameter(torch.ones(2))
    optimiser = torch.optim.Adam([weight])
    weight.sum().backward()
    optimiser.step()
    torch.save({"epoch": 3, "state_dict": state, "optimizer": optimiser.state_dict()}, tmp_path / "a.ckpt")
    found = formats.read_tensors(tmp_path / "a.ckpt")
    assert same(found.tensors, dict(state))
    assert found.notes == ("taken from state_dict", "left aside: epoch, optimizer")
    assert found.files[0].name == "a.safetensors"


def test_selection_in_checkpoints() -> None:
    one, two = torch.ones(1), torch.ones(2)
    assert select({"model": {"net": {"a": one}}})[:2] == ({"a": one}, ["model", "net"])
    assert select({"state_dict": [{"a": one}], "err": 0.1})[1:] == (["state_dict", "0"], ["err"])
    assert list(select({"encoder": {"a": one}, "decoder": {"a": two}})[0]) == ["encoder.a", "decoder.a"]
    assert select({"encoder": {"a": one}, "opt": {"state": {}, "param_groups": []}})[2] == ["opt"]
    with pytest.raises(ValueError, match="two entries are both named"):
        select({"a": {"b": one}, "a.b": two})
    with pytest.raises(ValueError, match="no weights, only optimiser state"):
        select({"state": {0: {"exp_avg": one}}, "param_groups": []})


class _Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_malicious_pickles_run_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "a.bin").write_bytes(pickle.dumps({"weight": _Attack(marker)}))
    torch.save({"state_dict": {"weight": torch.ones(1), "x": _Attack(marker)}}, tmp_path / "b.pt")
    with unpickle.shared():
        for name in ("a.bin", "b.pt"):
            with pytest.raises(BadArtefact, match="cannot be read as plain weights"):
                formats.read_tensors(tmp_path / name)
    assert not marker.exists()


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(6.0)}, tmp_path / "sound.pt")
    data = (tmp_path / "sound.pt").read_bytes()
    values, entry = data.index(np.float32([1, 2]).tobytes()), data.rindex(b"sound/data/0") - 46
    for name, place, bit in (
        ("flipped", values, 1),
        ("folder", entry + 38, 16),
        ("twice", data.rindex(b"data/0") + 5, 1),
    ):
        damaged = bytearray(data)
        damaged[place] ^= bit
        (tmp_path / f"{name}.pt").write_bytes(damaged)
    torch.serialization.set_crc32_options(False)
    torch.save({"w": torch.arange(6.0)}, tmp_path / "unchecked.pt")
    torch.serialization.set_crc32_options(True)
    with unpickle.shared():
        for name in ("sound", "unchecked"):
            assert same(formats.read_tensors(tmp_path / f"{name}.pt").tensors, {"w": torch.arange(6.0)})
        for name, message in (("flipped", "Bad CRC-32"), ("folder", "is marked as a folder"), ("twice", "BadZipFile")):
            with pytest.raises(BadArtefact, match=message):
                formats.read_tensors(tmp_path / f"{name}.pt")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_what_holds_code_is_refused_with_a_remedy(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    torch.save(module, tmp_path / "module.pt")
    torch.jit.trace(module, torch.ones(1, 2)).save(tmp_path / "scripted.pt")
    with unpickle.shared():
        with pytest.raises(BadArtefact, match=r"class torch\.nn\.modules\.container\.Sequential.*save its state_dict"):
            formats.read_tensors(tmp_path / "module.pt")
        with pytest.raises(BadArtefact, match=r"a scripted module, which holds code\. load it with torch\.jit\.load"):
            formats.read_tensors(tmp_path / "scripted.pt")


def test_settings_and_numpy_numbers_are_left_aside(tmp_path: Path) -> None:
    state = {"fc.weight": torch.ones(2, 2), "bn.num_batches_tracked": torch.tensor((1 << 53) + 1)}
    settings = argparse.Namespace(lr=np.float32(0.5), name="x")
    torch.save({"state_dict": state, "args": settings, "best": np.float64(0.5), "e": np.arange(2)}, tmp_path / "a.pt")
    torch.save({"w": np.arange(6, dtype=">f4").reshape(2, 3), "b": torch.ones(1)}, tmp_path / "b.pt")
    with unpickle.shared():
        found = formats.read_tensors(tmp_path / "a.pt")
        assert same(found.tensors, state)
        assert found.notes == ("taken from state_dict", "left aside: args, best, e")
        assert same(
            formats.read_tensors(tmp_path / "b.pt").tensors,
            {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1)},
        )


def test_one_process_reads_many_files_and_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(40):
        torch.save({"w": torch.full((3,), float(seed))}, tmp_path / f"{seed}.pt")
    torch.save({"w": torch.ones(1).expand(1 << 40)}, tmp_path / "huge.pt")
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(process := popen(*a, **k)) or process)
    with unpickle.shared():
        for seed in range(40):
            assert formats.read_tensors(tmp_path / f"{seed}.pt").tensors["w"][0] == seed
        assert len(started) == 1
        with pytest.raises(BadArtefact, match="memory"):
            formats.read_tensors(tmp_path / "huge.pt")
        assert formats.read_tensors(tmp_path / "1.pt").tensors["w"][0] == 1
        started[-1].kill()
        started[-1].wait()
        assert formats.read_tensors(tmp_path / "2.pt").tensors["w"][0] == 2
        assert len(started) == 3
        monkeypatch.setattr(unpickle, "START_SECONDS", -2 * unpickle.SECONDS)
        with pytest.raises(BadArtefact, match="to unpickle"):
            formats.read_tensors(tmp_path / "3.pt")


def test_memory_of_the_child_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "SPARE_BYTES", 64 << 20)
    torch.save({"huge": torch.ones(1).expand(1 << 40)}, tmp_path / "a.pt")
    with pytest.raises(BadArtefact, match=r"a\.pt cannot be read as plain weights"):
        formats.read_tensors(tmp_path / "a.pt")


def test_numpy_archives(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float64).reshape(2, 3).T, "a": np.float32(2), "c": np.ones(2, ">f4")}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = formats.read_tensors(tmp_path / "a.npz").tensors
    assert list(found) == ["b", "a", "c"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), array)
    assert found["c"].dtype == torch.float32


def test_bad_numpy_archives_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "object.npz", a=np.array([{}], dtype=object))
    with pytest.raises(BadArtefact, match="not numbers"):
        formats.read_tensors(tmp_path / "object.npz")
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(12_000_000))
    with pytest.raises(BadArtefact, match="expands to"):
        formats.read_tensors(tmp_path / "bomb.npz")
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n"
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
    with pytest.raises(BadArtefact, match="claims 8000000000000 bytes"):
        formats.read_tensors(tmp_path / "lie.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(BadArtefact, match="not a readable numpy archive"):
        formats.read_tensors(tmp_path / "text.npz")


def write_shards(folder: Path, **weight_map: str) -> Path:
    save_file({"a": torch.ones(1), "c": torch.zeros(3)}, folder / "m-1.safetensors", {"format": "pt"})
    save_file({"b": torch.ones(2)}, folder / "m-2.safetensors", {"format": "pt"})
    path = folder / "m.safetensors.index.json"
    content = {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors", **weight_map}
    path.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": content}, indent=2) + "\n")
    return path


def test_shards_are_read_in_the_order_of_the_index(tmp_path: Path) -> None:
    path = write_shards(tmp_path)
    found = formats.read_tensors(path)
    assert list(found.tensors) == ["a", "b", "c"]
    (tmp_path / "out").mkdir()
    formats.write_tensors(tmp_path / "out", found.tensors, found.files, found.index)
    for file in ("m-1.safetensors", "m-2.safetensors", path.name):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_shards_stay_inside_the_folder(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    save_file({"d": torch.ones(1)}, tmp_path / "out.safetensors")
    (inner / "link.safetensors").symlink_to(tmp_path / "out.safetensors")
    for name in ("../out.safetensors", str(tmp_path / "out.safetensors"), "link.safetensors", "..\\out.safetensors"):
        with pytest.raises(BadArtefact, match="outside its folder"):
            formats.read_tensors(write_shards(inner, d=name))


def test_shards_and_index_must_agree(tmp_path: Path) -> None:
    with pytest.raises(BadArtefact, match=r"disagree about the tensors \['d'\]"):
        formats.read_tensors(write_shards(tmp_path, d="m-2.safetensors"))


def test_unknown_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(BadArtefact, match="not in a known format"):
        formats.read_tensors(tmp_path / "a.txt")
    with pytest.raises(WeightgenError, match="is not a file"):
        formats.read_tensors(tmp_path / "none.pt")


def test_what_the_format_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArtefact, match=r"'a' is torch\.complex128"):
        safefile.save(tmp_path / "a.safetensors", {"a": torch.ones(1, dtype=torch.complex128)})
    with pytest.raises(BadArtefact, match=r"'a' is torch\.sparse_coo"):
        safefile.save(tmp_path / "a.safetensors", {"a": torch.eye(2).to_sparse()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_large_values_are_numbers(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = torch.full((1000,), largest, dtype=dtype)
    safefile.check_finite({"a": values, "none": values[:0]}, "here")
    values[7] = -float("inf")
    with pytest.raises(BadArtefact, match="'a' of here holds 1 values"):
        safefile.check_finite({"a": values}, "here")


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(BadArtefact, match=r"cannot be read: Permission denied\. check its permissions"):
        safefile.load(tmp_path / "a.safetensors")
