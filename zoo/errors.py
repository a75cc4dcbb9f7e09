"""The errors that both packages raise.

Every message names the cause, the value that caused it, and the remedy. The exit code is what the
command line returns for that class, so scripts can tell a typing mistake from a damaged file.
"""

from __future__ import annotations


class WeightgenError(Exception):
    """Base of all expected failures.

    Args:
        cause: what is wrong, with the offending value in it.
        remedy: what the reader can do about it; empty if nothing helps.
    """

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"{cause.rstrip('.')}. {remedy}" if remedy else cause)


class UsageError(WeightgenError):
    """An argument or a configuration value that cannot be used."""

    exit_code = 2


class BadArtefact(WeightgenError):
    """A file or folder that is missing, damaged, or not what it claims to be."""

    exit_code = 3


class MissingExtra(WeightgenError):
    """An optional dependency is needed and not installed."""

    exit_code = 4


class NetworkError(WeightgenError):
    """A remote source could not be reached."""

    exit_code = 5
