"""Archives: what is sound comes in, and nothing leaves the folder it is unpacked into."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.zoo.samples import mlp, write_adapter
from zoo import archives
from zoo.collect import collect
from zoo.errors import BadArtefact, WeightgenError
from zoo.zoo import Zoo

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def pack(folder: Path, path: Path) -> Path:
    """Put a folder into an archive, named by the ending of ``path``."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, file.relative_to(folder))
            archive.writestr("__MACOSX/._net.safetensors", b"noise")
    else:
        mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
        with tarfile.open(path, mode) as archive:
            archive.add(folder, ".")
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_archives_hold_items(tmp_path: Path, suffix: str) -> None:
    write_adapter(tmp_path / "in/deep/adapter")
    save_file(dict(mlp().tensors), tmp_path / "in/net.safetensors", {"format": "pt"})
    torch.save(dict(mlp(1).tensors), tmp_path / "in/old.pt")
    (tmp_path / "in/old.weightgen.json").write_text('{"task": "digits"}')
    source = pack(tmp_path / "in", tmp_path / f"all{suffix}")
    before = sorted(path.name for path in tmp_path.iterdir())
    with Zoo.open(tmp_path / "zoo", create=True) as zoo:
        found = collect([source], zoo)
        assert [(c.path.removeprefix(f"{source}/"), c.status, c.kind) for c in found] == [
            ("net.safetensors", "added", "dense"),
            ("old.pt", "added", "dense"),
            ("deep/adapter", "added", "lora"),
        ]
        assert zoo.get(str(found[1].id)).task == "digits"
        zoo.export(str(found[0].id), tmp_path / "out")
        assert zoo.verify() == []
    assert (tmp_path / "out/net.safetensors").read_bytes() == (tmp_path / "in/net.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "zoo", "out"])


def test_archives_in_folders_and_in_archives(tmp_path: Path) -> None:
    write_adapter(tmp_path / "in/a")
    (tmp_path / "all").mkdir()
    pack(tmp_path / "in", tmp_path / "all/inner.zip")
    pack(tmp_path / "all", tmp_path / "all/outer.tar")
    (tmp_path / "all/empty.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    found = collect([tmp_path / "all"], tmp_path / "zoo", dry_run=True)
    assert [(Path(c.path).name, c.status) for c in found] == [
        ("empty.zip", "refused"),
        ("a", "added"),
        ("inner.zip", "refused"),
    ]
    assert "holds no weights" in str(found[0].reason)
    assert "an archive inside an archive" in str(found[2].reason)
    assert not (tmp_path / "zoo").exists()


def test_checkpoints_named_tar_are_checkpoints(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "model_best.pth.tar")
    (found,) = collect([tmp_path / "model_best.pth.tar"], tmp_path / "zoo")
    assert (found.status, found.kind) == ("added", "dense")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"x", **more: object) -> Callable:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
        for key, value in more.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(data))

    return add


@pytest.mark.parametrize(
    "add",
    [
        member("../out.txt"),
        member("/out.txt"),
        member("a/../../out.txt"),
        member("a\\..\\out.txt"),
        member("C:out.txt"),
        member("link", tarfile.SYMTYPE, "../out.txt"),
        member("link", tarfile.LNKTYPE, "/etc/hostname"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
        member("sparse", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9999999999999"}),
        member("x", pax_headers={"size": "99999999999999"}),
        member("a" * 300),
        member(""),
    ],
    ids=range(13),
)
def test_tar_members_that_are_no_plain_files_are_refused(tmp_path: Path, add: Callable) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member("good.txt")(archive)
        add(archive)
    target = tmp_path / "deep/target"
    target.mkdir(parents=True)
    with pytest.raises(BadArtefact):
        archives.extract(tmp_path / "a.tar", target)
    files = [path for path in tmp_path.rglob("*") if not path.is_dir() and target not in path.parents]
    assert files == [tmp_path / "a.tar"]
    assert not any(path.is_symlink() for path in target.rglob("*"))


@pytest.mark.parametrize(
    "name", ["../out.txt", "/out.txt", "a/../../out.txt", "a\\..\\out.txt", "C:/out.txt", "good.txt"]
)
def test_zip_members_that_lead_outside_or_come_twice_are_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.txt", "x")
        info = zipfile.ZipInfo("x" * len(name))
        archive.writestr(info, "y")
    data = (tmp_path / "a.zip").read_bytes().replace(b"x" * len(name), name.encode())
    (tmp_path / "a.zip").write_bytes(data)
    (tmp_path / "deep/target").mkdir(parents=True)
    with pytest.raises(BadArtefact):
        archives.extract(tmp_path / "a.zip", tmp_path / "deep/target")
    assert not (tmp_path / "out.txt").exists()
    assert not (tmp_path / "deep/out.txt").exists()


def test_links_and_strange_methods_in_zips_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    for name, method in (("link", zipfile.ZIP_STORED), ("lzma", zipfile.ZIP_LZMA), ("bz2", zipfile.ZIP_BZIP2)):
        path = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr(info if name == "link" else "a.txt", "/etc/passwd")
        (tmp_path / name).mkdir()
        with pytest.raises(BadArtefact, match=r"is a link or a device|is compressed by method"):
            archives.extract(path, tmp_path / name)


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SPARE_BYTES", 1 << 20)
    zeros = bytes(4 << 20)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in "ab":
            info = tarfile.TarInfo(name)
            info.size = len(zeros)
            archive.addfile(info, io.BytesIO(zeros))
    for suffix, compress in ((".tar.gz", gzip.compress), (".tar.bz2", bz2.compress), (".tar.xz", lzma.compress)):
        (tmp_path / f"a{suffix}").write_bytes(compress(tar.getvalue()))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", zeros)
    for path in sorted(tmp_path.iterdir()):
        target = tmp_path / f"{path.name}-out"
        target.mkdir()
        with pytest.raises(BadArtefact, match=r"expands to more than \d+ bytes, 200 times"):
            archives.extract(path, target)
        assert sum(file.stat().st_size for file in target.iterdir()) <= 8 << 20
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for i in range(4):
            archive.writestr(str(i), "x")
    (tmp_path / "many").mkdir()
    with pytest.raises(BadArtefact, match="more than 3 members"):
        archives.extract(tmp_path / "many.zip", tmp_path / "many")


def test_headers_that_claim_too_much_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member("x")(archive)
    block = bytearray((tmp_path / "a.tar").read_bytes()[:512])
    block[156:157] = tarfile.XHDTYPE
    block[124:136] = b"77777777777\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(bytes(block) + bytes(10_240))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 1 << 31, 0, 0)
    (tmp_path / "b.zip").write_bytes(bytes(100) + end)
    for name in ("a.tar", "b.zip"):
        (tmp_path / f"{name}-out").mkdir()
        with pytest.raises(BadArtefact):
            archives.extract(tmp_path / name, tmp_path / f"{name}-out")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_and_flipped_archives_give_an_error_or_their_files(tmp_path: Path, suffix: str) -> None:
    write_adapter(tmp_path / "in/a")
    source = pack(tmp_path / "in", tmp_path / f"a{suffix}")
    sound = source.read_bytes()
    for number in range(40):
        place = number * 7919 % len(sound)
        flipped = sound[:place] + bytes([sound[place] ^ (1 << number % 8)]) + sound[place + 1 :]
        source.write_bytes(sound[:place] if number % 2 else flipped)
        target = tmp_path / str(number)
        target.mkdir()
        try:
            archives.extract(source, target)
        except WeightgenError as error:
            assert isinstance(error, BadArtefact)  # noqa: PT017
