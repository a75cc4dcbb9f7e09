"""The commands on weak-to-strong decoding, and the doctor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.decoding import family, llama
from weightgen import WeakToStrong, cli
from weightgen.decode.doctor import examine, read_items
from weightgen.decode.scoring import score_items
from weightgen.fusion import rules
from zoo.errors import BadArtefact, UsageError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return family(tmp_path_factory.mktemp("family"))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def trio(folders: dict[str, str]) -> list[str]:
    return [part for role in ("strong", "expert", "anchor") for part in (f"--{role}", folders[role])]


def test_decode_streams_and_draws_the_weights(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "alpha.png"
    options = ["the thing", "--max-new-tokens", "6", "--alpha-trace", str(picture)]
    assert run("decode", *trio(folders), *options) == 0
    streamed = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run("decode", *trio(folders), *options, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert streamed == result["text"] + "\n"
    assert len(result["alphas"]) == len(result["tokens"]) <= 6
    assert run("decode", *trio(folders), *options, "--json", "--speculative") == 0
    assert json.loads(capsys.readouterr().out)["text"] == result["text"]


def test_decode_with_a_rule_and_its_settings(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["the", "--max-new-tokens", "3", "--rule", "static", "--set", "alpha=0.25", "--json"]
    assert run("decode", *trio(folders), *options) == 0
    assert all(row == [0.25] for row in json.loads(capsys.readouterr().out)["alphas"])
    assert run("decode", *trio(folders), "the", "--rule", "static", "--set", "alpha=50") == 2
    assert "alpha = 50" in capsys.readouterr().err
    assert run("decode", *trio(folders), "the", "--set", "alpha") == 2
    assert run("decode", *trio(folders), "", "--max-new-tokens", "2") == 2
    assert "prompt is empty" in capsys.readouterr().err


def test_what_cannot_fit_is_refused_before_loading(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightgen.decode.model.WeakToStrong.__init__", lambda *_, **__: pytest.fail("loaded"))
    assert run("decode", *trio(folders), "the", "--max-new-tokens", "1000000000000") == 1
    assert "most of it is caches" in capsys.readouterr().err


def test_every_rule_is_in_the_help_of_decode(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("decode", "--help") == 0
    shown = capsys.readouterr().out
    assert [name for name in rules() if name not in shown] == []


def test_doctor_reports_scores_and_memory(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "fusion", *trio(folders), "--data", folders["items"], "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["rows"]) == {"strong", "anchor", "expert", "static", "dynamic", "pooled"}
    gain, low, high = result["rows"]["dynamic"]["log_probability_gain"]
    assert low <= gain <= high
    assert result["memory"]["total"] > 0
    assert result["verdict"]
    assert run("doctor", "fusion", *trio(folders), "--memory-only") == 0
    assert "GB" in capsys.readouterr().out
    assert run("doctor", "fusion", *trio(folders)) == 2


def test_scores_are_the_probabilities_of_the_answer(folders: dict[str, str]) -> None:
    model = WeakToStrong(llama(0, 32), [(llama(1), llama(2))])
    items = [([5, 6, 7], [8, 9]), ([5], [6, 7, 8, 9])]
    scores = score_items(model, items, {"strong": "strong", "dynamic": ("dynamic", {}), "joint": ("joint", {})})
    for place, (prompt, answer) in enumerate(items):
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            known = {"strong": model.models[0](ids).logits, "dynamic": model(ids).logits}
        for name, logits in known.items():
            log = logits.log_softmax(-1)[0, len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])
            assert scores[name].log_probability[place].item() == pytest.approx(log.sum().item(), abs=1e-2)
    assert scores["dynamic"].tokens.tolist() == [2, 4]


@torch.no_grad()
def test_the_doctor_says_when_fusion_helps_and_when_it_hurts() -> None:
    strong, anchor = llama(0, 32), llama(2)
    good, bad = llama(2), llama(2)
    # The expert knows that the answer is token 9, in its own right the anchor is no use; the bad one avoids it.
    items = [([5 + i, 6, 7], [9]) for i in range(20)]
    for model, sign in ((good, 1.0), (bad, -1.0)):
        hidden = model.model(torch.tensor([items[0][0]])).last_hidden_state[0, -1]
        model.lm_head.weight[9] += sign * 12 * hidden / hidden.square().sum()
    helps = examine(WeakToStrong(strong, [(good, anchor)]), items)
    hurts = examine(WeakToStrong(strong, [(bad, anchor)]), items)
    assert helps[0]["static"]["log_probability_gain"][1] > 0
    assert helps[1].startswith("fusion")
    assert "hurts" not in helps[1]
    assert hurts[1].startswith("fusion hurts")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"prompt": "a", "answer": "b"}\n' * 4, UsageError, "holds 4 items"),
        ('{"prompt": "a"}\n', BadArtefact, "line 1"),
        ("not json\n", BadArtefact, "is no item"),
        ('{"prompt": "", "answer": "b"}\n', BadArtefact, "line 1"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_items(path)
