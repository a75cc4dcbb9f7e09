"""What is shipped: generators that work right after installation, and the zoo that they were made with."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import BadArtefact, UsageError

FOLDER = Path(__file__).parent
DEFAULT = "minilm"
"""The generator that is used if none is named."""
ADAPTERS = "adapters.tar"
PAIRS = "calibration.json"
"""Which of the adapters beat the base on which tasks; see ``weightgen.retrieve.measure``."""


def adapters_archive() -> Path:
    """The archive of the adapters in the package.

    Raises:
        BadArtefact: if it is not there.
    """
    if not (FOLDER / ADAPTERS).is_file():
        raise BadArtefact("this installation ships no adapters", "install the package again")
    return FOLDER / ADAPTERS


def shipped() -> list[str]:
    """Names of the generators in the package."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def generator_folder(generator: Path | str | None) -> Path:
    """Folder of a generator, from a path or from the name of a shipped one.

    Raises:
        UsageError: if there is no such folder and none of that name is shipped.
        BadArtefact: if the package lacks its default generator.
    """
    if generator is None:
        if DEFAULT not in shipped():
            raise BadArtefact("this installation ships no generator", "give the folder of one with --generator")
        return FOLDER / DEFAULT
    path = Path(generator)
    if path.exists() or len(path.parts) != 1:
        return path
    if path.name not in shipped():
        raise UsageError(
            f"there is no folder {path} and no shipped generator of that name",
            f"shipped are: {', '.join(shipped()) or 'none'}",
        )
    return FOLDER / path.name
