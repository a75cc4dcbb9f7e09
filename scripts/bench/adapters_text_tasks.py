"""Tasks of the study of adapters from words: which are held out, other words for them, and a zoo of the rest."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import torch

from zoo import kinds
from zoo.build.text_tasks import TextTask, load_text_task
from zoo.tasks import TRAIN, VAL
from zoo.types import Task
from zoo.zoo import Zoo

VALIDATION = (
    *("clinc_banking", "hwu_qa", "rt_polarity", "sst5", "tweet_hate", "persona_politics", "stance_climate"),
    *("goemotions_ekman", "goemotions_group", "snips", "ohsumed", "clickbait", "transit_chatbot"),
)
NEAR = (
    *("clinc_work", "hwu_play", "sentences_yelp", "tweet_emotion", "stance_feminist", "persona_religion"),
    *("ethos_binary", "ethos_target"),
)
FAR = ("ag_news", "atis", "asdiv_type", "svamp_operation", "subj", "prompt_injection")
TEST = (*NEAR, *FAR)
MOST = 1000
"""Training texts of a task that are kept."""
MOST_VALIDATION = 96
"""Validation texts of a validation task that are kept: every stage of training scores adapters on half of them."""

REPHRASED = {
    "clinc_work": "What employees ask a digital helper regarding their job: pay, holidays, taxes, meetings, insurance.",
    "hwu_play": "Someone asks a smart speaker for songs, radio stations, podcasts, games or spoken books.",
    "sentences_yelp": "Customers of restaurants write one line: were they happy or not?",
    "tweet_emotion": "Which feeling does a Twitter message express?",
    "stance_feminist": "Twitter posts on feminism: is the writer for it, against it, or neither?",
    "persona_religion": "A person says what they believe, in the first person; guess their faith or philosophy.",
    "ethos_binary": "Remarks from social media videos and forums. Are they hateful?",
    "ethos_target": "Hate posts from the web: find the trait of the victims that is attacked.",
    "ag_news": "Short press articles that belong to the sections world, sport, economy or technology.",
    "atis": "What travellers ask about flights by voice.",
    "asdiv_type": "Arithmetic story problems for school children; which kind of calculation do they need?",
    "svamp_operation": "Simple word problems; which arithmetic operation gives the answer?",
    "subj": "Lines about films: a personal opinion, or a plain fact about the plot?",
    "prompt_injection": "User inputs to a chatbot. Detect those that try to hijack it.",
}
JUNK = "green ladder seven otters quickly beneath the violin xqzt 4417 marmalade of Tuesday"


def load(tasks: Path, name: str) -> TextTask:
    """One task."""
    return load_text_task(tasks / f"{name}.json.gz", 0.15, 0)


def make_zoo(tasks: Path, adapters: Path, out: Path, seeds: str = "*") -> Path:
    """A zoo of the training and validation tasks with the adapters that exist for them.

    Training texts that occur in a held-out task are left out. The test tasks are not part of it.

    Args:
        tasks: folder of task files with an index.
        adapters: folder of PEFT folders ``TASK--seedK``.
        out: folder of the zoo; nothing is done if it is complete.
        seeds: pattern of the numbers K that are taken.
    """
    names = [entry["name"] for entry in json.loads((tasks / "index.json").read_text(encoding="utf-8"))]
    held = {_plain(text) for name in (*VALIDATION, *TEST) for text in load(tasks, name).texts}
    with Zoo.open(out, create=True) as zoo:
        for name in names:
            if name in TEST or zoo.records(task=name):
                continue
            split = "val" if name in VALIDATION else "train"
            task = load(tasks, name)
            task = _few(task) if split == "val" else _without(task, held)
            zoo.put_dataset(name, task.tensors(), description=task.description, license=task.license)
            classes = tuple(range(len(task.label_names)))
            zoo.put_tasks([Task(name, task.description, name, classes, task.class_names, split)])
            for folder in sorted(adapters.glob(f"{name}--seed{seeds}")):
                found = kinds.get("lora").read(folder)
                zoo.add(
                    found.weights,
                    task=name,
                    description=task.description,
                    lineage=name,
                    split=split,
                    license=task.license,
                    dataset=name,
                )
    return out


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def _without(task: TextTask, held: set[str]) -> TextTask:
    keep, seen = [], 0
    for i, text in enumerate(task.texts):
        if int(task.part[i]) == TRAIN:
            if _plain(text) in held or seen >= MOST:
                continue
            seen += 1
        keep.append(i)
    return _only(task, torch.tensor(keep))


def _few(task: TextTask) -> TextTask:
    number = (task.part == VAL).cumsum(0)
    return _only(task, ((task.part != VAL) | (number <= MOST_VALIDATION)).nonzero()[:, 0])


def _only(task: TextTask, rows: torch.Tensor) -> TextTask:
    keep = rows.tolist()
    return replace(task, texts=tuple(task.texts[i] for i in keep), y=task.y[rows], part=task.part[rows])
