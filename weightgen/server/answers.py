"""What a client is told: every error is cause, value and remedy as JSON, and nothing of the inside."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from weightgen.server.child import UNEXPECTED as UNEXPECTED
from zoo.errors import BadArtefact, MissingExtra, NetworkError, UsageError, WeightgenError

STATUS: dict[type[WeightgenError], int] = {UsageError: 422, BadArtefact: 409, MissingExtra: 424, NetworkError: 502}
KINDS = {kind.__name__: status for kind, status in STATUS.items()}


class Refused(WeightgenError):
    """A request that is not carried out.

    Args:
        status: HTTP status that says why.
        cause, remedy: as in ``WeightgenError``.
        value: the offending value, where it is not in the cause.
    """

    def __init__(self, status: int, cause: str, remedy: str = "", value: Any = None) -> None:
        super().__init__(cause, remedy)
        self.status = status
        self.value = value


def status_of(error: WeightgenError) -> int:
    """HTTP status of an expected error."""
    if isinstance(error, Refused):
        return error.status
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)


def error_json(error: WeightgenError) -> dict[str, Any]:
    """The body that goes with an expected error."""
    body: dict[str, Any] = {"error": error.cause, "remedy": error.remedy, "kind": type(error).__name__}
    if isinstance(error, Refused) and error.value is not None:
        body["value"] = error.value
    return body


def invalid(problems: Sequence[Mapping[str, Any]], known: Collection[str]) -> Refused:
    """The first complaint of pydantic about a request.

    Args:
        problems: as pydantic lists them.
        known: names of the fields that the request may have.
    """
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]
    names = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    where = ".".join(names)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(names[-1], sorted(known), n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(sorted(known))}"
        return Refused(422, f"there is no field {where!r}", remedy)
    if first["type"] == "missing":
        return Refused(422, f"the field {where!r} is missing" if where else "the request has no JSON body", "add it")
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "json_invalid":
        return Refused(422, "the body is no JSON", "send one JSON object")
    if not where:
        return Refused(422, "the body is no JSON object", "send one, with the header Content-Type: application/json")
    value = first.get("input")
    plain = value if isinstance(value, str | int | None) else str(value)[:200]
    return Refused(422, f"{where}: {message}", "change the value", plain)
