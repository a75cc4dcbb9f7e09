"""Collecting onto a disk that becomes full: a small tmpfs where we may mount one, else a limit on file sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.stress.fork import Report, fork
from scripts.stress.kills import ITEMS, write_sources
from zoo import collect as collector
from zoo.errors import WeightgenError
from zoo.zoo import Zoo

DISK_SIZES = (40, 120, 200, 300, 500)  # KiB
FILE_SIZES = (1, 4, 11, 40, 100)  # KiB


def run(folder: Path) -> dict[str, Any]:
    """Collect with too little room of several sizes, then with enough.

    Returns:
        Which way was used, the errors, and ``problems``.
    """
    sources = write_sources(folder / "in")
    mounted = _mount(folder / "disk", DISK_SIZES[0])
    result: dict[str, Any] = {"way": "tmpfs" if mounted else "RLIMIT_FSIZE", "errors": [], "problems": []}
    try:
        for size in DISK_SIZES if mounted else FILE_SIZES:
            zoo = folder / "disk" / f"zoo-{size}" if mounted else folder / f"zoo-{size}"
            if mounted:
                _remount(folder / "disk", size)
            child = fork(
                lambda report, zoo=zoo: _collect(sources, zoo, report), file_bytes=None if mounted else size << 10
            )
            if not child.wait(300) or child.status != 0 or not child.reports:
                result["problems"].append(f"{size} KiB: the collector ended with status {child.status}")
                continue
            result["errors"].append(f"{size} KiB: {child.reports[-1]}")
            if mounted:
                _remount(folder / "disk", 1 << 16)
            result["problems"] += [f"{size} KiB: {problem}" for problem in _go_on(sources, zoo)]
            if mounted:
                subprocess.run(["rm", "-rf", str(zoo)], check=True)
            print(f"full disk: {child.reports[-1]}", file=sys.stderr, flush=True)
    finally:
        if mounted:
            subprocess.run(["umount", str(folder / "disk")], check=True)
    return result


def _mount(folder: Path, size: int) -> bool:
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _remount(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}k", str(folder)], check=True, capture_output=True)


def _collect(sources: Path, zoo: Path, report: Report) -> None:
    collector.BATCH_ENTRIES = 8
    try:
        collector.collect([sources], zoo)
    except WeightgenError as error:
        report(f"{type(error).__name__}: {error}")
    else:
        report("it had enough room")


def _go_on(sources: Path, zoo: Path) -> list[str]:
    found = collector.collect([sources], zoo)
    with Zoo.open(zoo) as opened:
        problems = opened.verify()
        if len(opened) != ITEMS or any(one.status == "refused" for one in found):
            problems.append(f"{len(opened)} of {ITEMS} records after going on")
    return problems
