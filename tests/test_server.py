"""The server over HTTP, with real jobs in real processes."""

from __future__ import annotations

import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from safetensors.torch import load_file

from tests.decoding import family
from tests.serving import Connect
from weightgen import jobs
from weightgen.server.child import LOG, RESULT
from weightgen.server.paths import STATE
from weightgen.server.registry import ENDPOINTS, LEAST
from weightgen.server.requests import parameters, request_model


def events(text: str) -> list[tuple[str, Any]]:
    """Names and data of server-sent events."""
    found = [block.split("\n") for block in text.split("\n\n") if block.startswith("event:")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in found]


def until(client: TestClient, id: str, reached: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The job as soon as something is true of it."""
    for _ in range(1200):
        job = client.get(f"/v1/jobs/{id}").json()
        if reached(job):
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def public_jobs() -> set[str]:
    """Functions that ``weightgen.jobs`` offers: those of its own, and those it hands on by name."""
    return {
        name
        for name, value in vars(jobs).items()
        if callable(value)
        and not isinstance(value, type)
        and name[0] != "_"
        and value.__module__.startswith("weightgen.")
    }


def test_every_job_has_one_route_and_every_route_a_job(connect: Connect) -> None:
    assert {endpoint.job for endpoint in ENDPOINTS} == public_jobs()
    assert len({endpoint.route for endpoint in ENDPOINTS}) == len(ENDPOINTS)
    described = connect().get("/openapi.json").json()
    for endpoint in ENDPOINTS:
        posted = described["paths"][f"/v1{endpoint.route}"]["post"]
        assert posted["operationId"] == endpoint.job
        assert posted["summary"].endswith(".")
        fields = request_model(endpoint).model_fields
        assert fields.keys() == {*parameters(endpoint.job), *endpoint.inline}
        names = {*endpoint.hub, *endpoint.records, *endpoint.outputs, *endpoint.shipped}
        assert names <= parameters(endpoint.job).keys(), "the registry names what the job does not have"
        undocumented = [name for name, field in fields.items() if not field.description]
        if endpoint.job not in ("zoo_stats",):  # it refers to list_records
            assert undocumented == []
    assert all(any(name in parameters(endpoint.job) for endpoint in ENDPOINTS) for name in LEAST)


def test_a_small_job_end_to_end(connect: Connect, tiny_generator: Path, tmp_path: Path) -> None:
    client, root = connect(), tmp_path / "root"
    (root / "generator").symlink_to("real")  # links inside of the root are fine
    shutil.copytree(tiny_generator, root / "real")
    x = [[[[i % 16 / 16.0] * 8] * 8] for i in range(6)]
    request = {"generator": "generator", "arrays": {"x": x, "y": [0, 1, 0, 1, 0, 1]}, "n": 2, "seed": 3}
    made = client.post("/v1/generate", json=request)
    assert made.status_code == 202, made.json()
    id = made.json()["id"]
    assert made.headers["location"] == f"/v1/jobs/{id}"
    assert made.json()["request"]["arrays"] == "(2 sent)"
    done = client.get(f"/v1/jobs/{id}?wait=60").json()
    assert done["status"] == "done", done
    assert done["out"] == f"{STATE}/{id}/out"
    assert done["result"]["files"] == [f"{done['out']}/network-{i:03d}.safetensors" for i in (0, 1)]
    listed = {file["name"] for file in client.get(f"/v1/jobs/{id}/files").json()}
    assert listed >= {"network-000.safetensors", "network-001.safetensors", "weightgen.json"}
    one = client.get(f"/v1/jobs/{id}/files/network-001.safetensors")
    assert "attachment" in one.headers["content-disposition"]
    packed = zipfile.ZipFile(io.BytesIO(client.get(f"/v1/jobs/{id}/files.zip").content))
    assert packed.testzip() is None
    assert set(packed.namelist()) == listed
    assert packed.read("network-001.safetensors") == one.content
    there = root / done["out"] / "network-001.safetensors"
    assert load_file(there).keys()
    for outside in ("../job.json", "..%2Fjob.json", "/etc/passwd", "nothing"):
        assert client.get(f"/v1/jobs/{id}/files/{outside}").status_code in (403, 404)
    told = events(client.get(f"/v1/jobs/{id}/events").text)
    assert [name for name, _ in told] == ["status", "done"]
    assert client.delete(f"/v1/jobs/{id}").status_code == 409
    assert client.delete(f"/v1/jobs/{id}?remove=true").status_code == 200
    assert not there.exists()
    assert client.get("/v1/jobs").json() == []


def test_labelled_texts_come_in_the_request(
    connect: Connect, text_encoder: Path, adapter_zoo: Path, tmp_path: Path
) -> None:
    client, root = connect(), tmp_path / "root"
    shutil.copytree(text_encoder, root / "encoder")
    jobs.export_record(adapter_zoo, jobs.list_records(adapter_zoo).records[0].id, root / "adapter")
    request = {"path": "adapter", "base": "encoder"}
    told = client.post("/v1/evaluate", json=request)
    assert (told.status_code, told.json()["remedy"]) == (422, "add it, or labelled or arrays")
    rows = [{"text": f"the {name} sleeps", "label": f"the {name}"} for name in ("cat", "dog", "bird")]
    scored = client.post("/v1/evaluate?wait=60", json={**request, "labelled": rows}).json()
    assert scored["status"] == "done", scored
    assert scored["result"]["rows"]["weights"]["examples"] == 3
    assert scored["result"]["gain"]["against"] == "base"


def test_decoding_is_streamed(connect: Connect, tmp_path: Path) -> None:
    client = connect(warm=True)
    (tmp_path / "root" / "models").mkdir()
    family(tmp_path / "root" / "models")
    request = {
        "strong": "models/strong",
        "experts": [["models/expert", "models/anchor"]],
        "prompt": "in the",
        "max_new_tokens": 12,
    }
    with client.stream("POST", "/v1/decode", json=request, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = events("".join(answer.iter_text()))
    pieces = [data["text"] for name, data in told if name == "text"]
    name, last = told[-1]
    assert name == "done"
    assert last["status"] == "done", last
    assert pieces
    assert "".join(pieces) == last["result"]["text"] == last["text"]
    assert len(last["result"]["tokens"]) == 12
    runner = client.app.state.runner
    kept = runner._spare
    again = client.post("/v1/decode?wait=60", json=request).json()
    assert again["result"]["text"] == last["text"]
    assert runner._spare is kept, "the process was not kept for the second answer"


def test_a_job_is_cancelled_resumed_and_survives_a_restart(connect: Connect, tmp_path: Path) -> None:
    client = connect()
    recipe = {"recipe": "digits", "zoo": "zoo", "overrides": ["network.hidden=[4]", "training.epochs=10"]}
    id = client.post("/v1/zoo/build", json=recipe).json()["id"]
    waiting = client.post("/v1/zoo/build", json=recipe).json()["id"]
    assert client.delete(f"/v1/jobs/{waiting}").json()["status"] == "cancelled"
    until(client, id, lambda job: job["progress"])
    started = time.monotonic()
    assert client.delete(f"/v1/jobs/{id}").json()["status"] == "cancelled"
    assert time.monotonic() - started < 12
    held = len(client.post("/v1/zoo/ls", json={"zoo": "zoo"}).json())
    assert 128 <= held < 504
    assert client.post(f"/v1/jobs/{id}/resume").json()["status"] in ("queued", "running")
    until(client, id, lambda job: job["status"] == "running" and job["progress"][0]["done"] > held)

    client = connect()  # the first one is stopped while the job runs
    job = client.get(f"/v1/jobs/{id}").json()
    assert (job["status"], job["error"]) == ("interrupted", None)
    assert client.get(f"/v1/jobs/{waiting}").json()["status"] == "cancelled"
    assert json.loads((tmp_path / "root" / STATE / id / "job.json").read_text())["status"] == "interrupted"


def test_a_killed_server_leaves_an_interrupted_job_and_a_crash_is_told(connect: Connect, tmp_path: Path) -> None:
    client = connect()
    gone = client.post("/v1/leaderboard?wait=60", json={"results": "uploads"})
    assert gone.status_code == 404
    client.put("/v1/files/results/x.json", content=b"{")
    id = client.post("/v1/leaderboard?wait=60", json={"results": "uploads"}).json()["job"]
    folder = tmp_path / "root" / STATE / id
    known = json.loads((folder / "job.json").read_text())
    assert known["status"] == "failed"
    # As a server that was killed leaves it, and with a call that ends the process from inside.
    (folder / "job.json").write_text(json.dumps({**known, "status": "running", "answer": {}}))
    (folder / RESULT).unlink()
    client = connect()
    assert client.get(f"/v1/jobs/{id}").json()["status"] == "interrupted"
    call = json.loads((folder / "call.json").read_text())
    (folder / "call.json").write_text(json.dumps({**call, "job": "no_such_job"}))
    client.post(f"/v1/jobs/{id}/resume")
    crashed = client.get(f"/v1/jobs/{id}?wait=60").json()
    assert "exit code 1" in crashed["error"]
    assert "Traceback" not in json.dumps(crashed)
    assert "Traceback" in (folder / LOG).read_text()
    assert client.get("/health").json()["status"] == "ok"
