"""Generate, find, mix, fuse and judge neural network weights."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from weightgen.decode.model import WeakToStrong as WeakToStrong


def __getattr__(name: str) -> Any:
    """Load what needs torch only when it is asked for."""
    if name == "WeakToStrong":
        from weightgen.decode.model import WeakToStrong

        return WeakToStrong
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
