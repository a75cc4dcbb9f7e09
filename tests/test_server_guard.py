"""Who may speak to the server, what they may name, and what they are told."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.serving import Connect
from weightgen import cli, server
from weightgen.server import ServerConfig
from weightgen.server.app import create_app
from weightgen.server.page import PAGE, policy
from weightgen.server.paths import MINILM, STATE
from weightgen.server.runner import Runner
from zoo.build import encoder
from zoo.errors import MissingExtra, UsageError

TOKEN = "0123456789abcdef"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs stay in the queue here."""

    async def rest(self: Runner) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Runner, "_work", rest)


def post(client: TestClient, route: str, **request: Any) -> tuple[int, dict[str, Any]]:
    answer = client.post(f"/v1{route}", json=request)
    return answer.status_code, answer.json()


def test_paths_are_confined(connect: Connect, tmp_path: Path) -> None:
    client = connect()
    root, outside = tmp_path / "root", tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "data.txt").write_text("secret")
    (root / "link").symlink_to(outside)
    (root / "folder").mkdir()
    (root / "folder" / "weights.safetensors").symlink_to(outside / "data.txt")
    (root / "inside.txt").write_text("a text")
    (root / "outside-too").mkdir()
    hostile = ["/etc/passwd", "..", "../outside/data.txt", "link/data.txt", "folder/../../outside", "~/x", "folder"]
    for path in hostile:
        for route, request in [
            ("/generate", {"data": path}),
            ("/generate", {"generator": path}),
            ("/generate", {"architecture": path}),
            ("/compose", {"parents": ["inside.txt", path]}),
            ("/decode", {"strong": "folder", "experts": [["inside.txt", path]], "prompt": "x"}),
            ("/zoo/collect", {"sources": [path], "zoo": "zoo"}),
            ("/zoo/ls", {"zoo": path}),
            ("/explore", {"model": "inside.txt", "data": f"{path}#train", "out": "o"}),
        ]:
            status, told = post(client, route, **request)
            assert (status, told["kind"]) == (403, "Refused"), (route, path, told)
            assert "secret" not in json.dumps(told)
    for out in ["/tmp/x", "../x", "link/x", "", ".", STATE, f"{STATE}/abc/out"]:
        assert post(client, "/kit", out=out)[0] == 403, out
    for name in ["missing", "a\0b"]:
        assert post(client, "/generate", data=name)[0] in (404, 422)
    assert post(client, "/generate", data="inside.txt")[0] == 202
    made = json.loads(next((root / STATE).glob("*/call.json")).read_text())
    assert made["arguments"]["data"] == "inside.txt"


def test_configs_cannot_name_what_a_request_cannot(connect: Connect, tmp_path: Path) -> None:
    client = connect()
    for override in ["data.sources=[/etc/passwd]", "data.sources={a: [../x]}", "network.initial=~/x"]:
        assert post(client, "/zoo/build", recipe="digits", zoo="zoo", overrides=[override])[0] == 403
    (tmp_path / "root" / "own.yaml").write_text("recipe: text_lora\ndata: {sources: [tasks, ../../etc]}\n")
    status, told = post(client, "/zoo/build", recipe="own.yaml", zoo="zoo")
    assert status == 403
    assert "own.yaml" in told["error"]
    assert post(client, "/zoo/build", recipe="digits", zoo="zoo", overrides=["data.source=sklearn-digits"])[0] == 202
    # Whatever the file is called, and whatever other readers of YAML stumble over.
    (tmp_path / "root" / "own.txt").write_text("recipe: text_lora\n2024-13-45: x\ndata: {sources: [/etc/passwd]}\n")
    assert post(client, "/zoo/build", recipe="own.txt", zoo="zoo")[0] == 403
    client.put("/v1/files/own.yaml", content=b"recipe: class_subsets\nseed: 3\n")
    status, told = post(client, "/zoo/build", recipe="uploads/own.yaml", zoo="zoo")
    assert status == 202
    client.put("/v1/files/own.yaml?force=true", content=b"data: {sources: [/etc/passwd]}\n")
    folder = tmp_path / "root" / STATE / told["id"]
    used = tmp_path / "root" / json.loads((folder / "call.json").read_text())["arguments"]["recipe"]
    assert used.read_text() == "recipe: class_subsets\nseed: 3\n"
    assert post(client, "/generate", data=f"{STATE}/{told['id']}/job.json")[0] == 403
    kept = {path.name for path in (tmp_path / "root" / STATE).iterdir() if path.is_dir()}
    assert kept == {job["id"] for job in client.get("/v1/jobs").json()}, "what was refused left something"
    status, told = post(client, "/evaluate/language-model", path=MINILM, tasks=["arc_easy", "uploads/task.yaml"])
    assert (status, told["error"]) == (403, "'uploads/task.yaml' is no name")


def test_models_of_the_hub_need_permission(connect: Connect, tmp_path: Path) -> None:
    request = {"strong": "org/big", "expert": "org/small", "anchor": "gpt2", "data": None}
    client = connect()
    status, told = post(client, "/doctor/fusion", **request)
    assert status == 403
    assert "--allow-hub" in told["remedy"]
    assert post(client, "/generate", base=MINILM, description="x")[0] == 202  # what is shipped belongs to it
    client = connect(allow_hub=True)
    status, told = post(client, "/doctor/fusion", **request)
    assert status == 202
    call = json.loads((tmp_path / "root" / STATE / told["id"] / "call.json").read_text())
    assert call["arguments"] == request
    assert MINILM == encoder.MINILM
    assert post(client, "/doctor/fusion", **{**request, "strong": "../outside"})[0] == 403


def test_a_token_is_wanted_for_everything_but_the_page(connect: Connect) -> None:
    client = connect(token=TOKEN)
    for path in ("/v1/jobs", "/openapi.json", "/v1/zoos"):
        wrong = [{}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": "Bearer é"}]
        for headers in wrong:
            answer = client.get(path, headers={k: v.encode() for k, v in headers.items()})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/").status_code == 200
    assert client.get("/health").json() == {"status": "ok", "version": "0.1.0", "token": True}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8421"}, 200),
        ({"Host": "[::1]:8421"}, 200),
        ({"Host": "proxy.example"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "[broken"}, 421),
        ({"Origin": "http://127.0.0.1:8421"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_names_and_origins(connect: Connect, headers: dict[str, str], status: int) -> None:
    answer = connect(hosts=("proxy.example",)).get("/v1/jobs", headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


def test_sizes_and_the_queue_are_bounded(connect: Connect, tmp_path: Path) -> None:
    client = connect(most_json=1000, most_upload=5000, queue=2)
    assert post(client, "/generate", description="x" * 1000)[0] == 413
    assert client.post("/v1/generate", content=iter([b" " * 600] * 2)).status_code == 413  # says no length
    assert client.put("/v1/files/big", content=b"x" * 5001).status_code == 413
    assert client.put("/v1/files/big", content=iter([b"x" * 3000] * 2)).status_code == 413
    assert list((tmp_path / "root").glob("uploads/*")) == []
    codes = [post(client, "/generate", description="x")[0] for _ in range(3)]
    assert codes == [202, 202, 429]
    first = client.get("/v1/jobs").json()[-1]["id"]
    assert client.delete(f"/v1/jobs/{first}").json()["status"] == "cancelled"
    assert post(client, "/generate", description="x")[0] == 202
    assert client.post(f"/v1/jobs/{first}/resume").status_code == 429


def test_uploads(connect: Connect, tmp_path: Path) -> None:
    client = connect()
    assert client.put("/v1/files/a/b.txt", content=b"1").json() == {"path": "uploads/a/b.txt", "bytes": 1}
    assert client.put("/v1/files/a/b.txt", content=b"2").status_code == 409
    assert client.put("/v1/files/a/b.txt?force=true", content=b"2").status_code == 201
    assert (tmp_path / "root" / "uploads" / "a" / "b.txt").read_bytes() == b"2"
    for name in ("..%2F..%2Fx", "..%2Fx"):
        assert client.put(f"/v1/files/{name}", content=b"3").status_code == 403, name
    assert client.put("/v1/files/%2Fetc%2Fx", content=b"3").json()["path"] == "uploads/etc/x"
    assert post(client, "/generate", data="uploads/a/b.txt")[0] == 202
    assert post(client, "/generate", data="uploads/a/b.txt", texts=["x"])[0] == 422


@pytest.mark.parametrize(
    ("route", "request_", "status", "words"),
    [
        ("/generate", {"descripton": "x"}, 422, ["descripton", "did you mean 'description'?"]),
        ("/zoo/ls", {}, 422, ["'zoo' is missing"]),
        ("/generate", {"n": 0}, 422, ["n: should be greater", "0"]),
        ("/retrieve", {"zoo": "nowhere"}, 404, ["nowhere", "upload"]),
        ("/nothing", {}, 404, ["/v1/nothing", "openapi"]),
        ("/zoo/ls", {"zoo": "uploads"}, 409, ["does not hold a zoo", "weightgen zoo build"]),
    ],
)
def test_errors_say_what_to_do(
    connect: Connect, tmp_path: Path, route: str, request_: dict[str, Any], status: int, words: list[str]
) -> None:
    client = connect()
    client.put("/v1/files/x", content=b"x")
    code, told = post(client, route, **request_)
    assert code == status
    assert set(told) <= {"error", "remedy", "kind", "value"}
    assert all(word in json.dumps(told) for word in words), told
    assert str(tmp_path) not in json.dumps(told)


def test_what_is_no_json_is_told_so(connect: Connect, tmp_path: Path) -> None:
    client = connect()
    assert client.post("/v1/kit", content="{", headers=JSON).status_code == 422
    for body in ('{"temperature": NaN}', '{"settings": {"alpha": 1e999}}'):
        request = '{"strong": "x", "experts": [], "prompt": "x", ' + body[1:]
        (tmp_path / "root" / "x").touch()
        assert client.post("/v1/decode", content=request, headers=JSON).status_code == 422
    deep = '{"arrays": {"y": [], "x": ' + "[" * 100_000 + "]" * 100_000 + "}}"
    assert client.post("/v1/generate", content=deep, headers=JSON).status_code in (400, 422)
    assert client.post("/v1/kit?wait=nan", json={}).status_code == 422
    told = client.post("/v1/kit", data={"out": "x"}).json()
    assert "Content-Type: application/json" in told["remedy"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "without a token"),
        ({"host": "::"}, "without a token"),
        ({"host": "example.org"}, "without a token"),
        ({"token": "short"}, "can be guessed"),
        ({"port": 70000}, "no port"),
        ({"workers": 0}, "run nothing"),
        ({"root": Path("/nowhere/at/all")}, "no folder"),
        ({"root": Path(__file__)}, "no folder"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ServerConfig(**{"root": tmp_path, **settings})
    assert TOKEN not in repr(ServerConfig(tmp_path, host="0.0.0.0", token=TOKEN))


def test_a_root_that_is_missing_is_made(tmp_path: Path) -> None:
    config = ServerConfig(tmp_path / "new", warm=False)
    assert not config.root.exists()
    with TestClient(create_app(config), base_url="http://localhost") as client:
        assert client.get("/health").status_code == 200
        assert config.root.is_dir()


def test_one_server_a_root(connect: Connect, tmp_path: Path) -> None:
    connect()
    with pytest.raises(UsageError, match="another server"), TestClient(create_app(ServerConfig(tmp_path / "root"))):
        pass


def test_the_command_tells_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve", "--host", "0.0.0.0", "--root", str(tmp_path)])
    assert stop.value.code == 2
    assert "WEIGHTGEN_TOKEN" in capsys.readouterr().err

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(server.importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'weightgen\[serve\]'"):
        server.serve(ServerConfig(tmp_path))


def test_the_page_runs_nothing_but_itself(connect: Connect) -> None:
    text = PAGE.read_text(encoding="utf-8")
    client = connect()
    answer = client.get("/")
    assert answer.text == text
    assert answer.headers["content-security-policy"] == policy(text)
    assert policy(text).count("'sha256-") == 2
    assert re.findall(r'(?:src|href)="(?!#|data:|/openapi\.json)', text) == []
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\sstyle=", text)
    assert 'href="/openapi.json"' in text
    assert client.get("/docs").status_code == 404
