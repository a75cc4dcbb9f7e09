"""Causal models on benchmarks of lm-eval; what needs the library is skipped where it is not installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from weightgen import cli, jobs
from zoo.errors import MissingExtra, UsageError

INSTALLED = importlib.util.find_spec("lm_eval") is not None
TASK = """task: tiny_choice
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["cat", "dog"]
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_the_library_the_install_line_is_given(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"weightgen\[lm-eval\]"):
        jobs.evaluate_language_model(tmp_path, ["arc_easy"])
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", str(tmp_path), "--lm-eval", "arc_easy"])
    assert stop.value.code == 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A GPT-2 that knows a dozen words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<eos>", "<unk>", "cat", "dog", "which", "animal", "barks", "purrs", "?"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>")
    folder = tmp_path / "gpt"
    tokenizer.save_pretrained(folder)
    config = GPT2Config(vocab_size=len(words), n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed")
@pytest.mark.filterwarnings("ignore")  # of a library that is not ours
def test_an_adapter_is_measured_beside_its_base(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": f"which animal {word} ?", "answer": i % 2} for i, word in enumerate(["purrs", "barks"] * 3)]
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    task = tmp_path / "tasks" / "tiny.yaml"
    task.write_text(TASK.format(file=tmp_path / "rows.json"))
    adapted = get_peft_model(GPT2LMHeadModel.from_pretrained(model), LoraConfig(r=2, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    result = jobs.evaluate_language_model(tmp_path / "adapter", [str(task)], base=str(model))
    assert result.base is not None
    for metrics in (result.results["tiny_choice"], result.base["tiny_choice"]):
        assert 0 <= metrics["acc,none"] <= 1
    assert "base" in result.summary()
    with pytest.raises(UsageError, match="knows no task"):
        jobs.evaluate_language_model(model, ["no_such_task"])
