"""Any adapter or network on a file of labelled examples, beside the base and the commonest label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weightgen import cli, jobs
from zoo.errors import UsageError
from zoo.zoo import Zoo


@pytest.fixture
def adapter(adapter_zoo: Path, tmp_path: Path) -> Path:
    with Zoo.open(adapter_zoo) as zoo:
        zoo.export(zoo.records(task="animals")[0].id, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_beside_its_base(
    adapter: Path, text_tasks: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", str(adapter), "--task", str(text_tasks["animals"]), "--json"])
    assert stop.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["part"] == "test"
    assert found["rows"].keys() == {"weights", "base", "majority"}
    assert found["rows"]["majority"]["macro_f1"] == pytest.approx(0.1)
    assert found["rows"]["majority"]["accuracy"] == pytest.approx(0.25)
    for row in found["rows"].values():
        low, high = row["macro_f1_interval"]
        assert low <= row["macro_f1"] <= high
        assert row["examples"] == 16
    weights, base = found["rows"]["weights"]["macro_f1"], found["rows"]["base"]["macro_f1"]
    assert found["gain"]["macro_f1"] == pytest.approx(weights - base, abs=1e-3)
    result = jobs.evaluate_weights(adapter, text_tasks["animals"], part="train")
    assert result.rows["base"]["examples"] == 40
    assert "macro-F1" in result.summary()


def test_a_network_on_examples(tiny_zoo: Path, tmp_path: Path) -> None:
    with Zoo.open(tiny_zoo) as zoo:
        record = zoo.records()[0]
        data, task = zoo.dataset(zoo.task(str(record.task)).dataset), zoo.task(str(record.task))
        zoo.export(record.id, tmp_path / "network")
    about = {"architecture": record.layout.config["architecture"]}
    (tmp_path / "network" / "weightgen.json").write_text(json.dumps(about))
    y = data["y"].numpy()
    keep = np.isin(y, task.classes)
    labels = np.searchsorted(np.array(task.classes), y[keep])
    np.savez(tmp_path / "examples.npz", x=data["x"].numpy()[keep], y=labels)
    file = next((tmp_path / "network").glob("*.safetensors"))
    result = jobs.evaluate_weights(file, tmp_path / "examples.npz")
    assert result.rows["weights"]["accuracy"] > 0.8
    assert result.gain["against"] == "majority"
    assert "base" not in result.rows
    beside = jobs.evaluate_weights(file, tmp_path / "examples.npz", base=str(file))
    assert beside.gain == {"against": "base", "macro_f1": 0.0, "interval": [0.0, 0.0]}


def test_what_does_not_fit_is_refused(
    adapter: Path, text_tasks: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "examples.npz", x=np.zeros((2, 3)), y=np.array([0, 1]))
    with pytest.raises(UsageError, match="is an adapter"):
        jobs.evaluate_weights(adapter, tmp_path / "examples.npz")
    with pytest.raises(UsageError, match="no part 'dev'"):
        jobs.evaluate_weights(adapter, text_tasks["animals"], part="dev")
    wrong: list[list[Any]] = [
        ["evaluate"],
        ["evaluate", str(adapter)],
        ["evaluate", str(adapter), "--generator", "g", "--zoo", "z", "--out", "o"],
        ["evaluate", "--generator", "g"],
    ]
    for arguments in wrong:
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        assert "remedy:" in capsys.readouterr().err
