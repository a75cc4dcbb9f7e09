"""Training: one LightningModule for every generator, stage after stage, interruptible and resumable."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from weightgen.checkpoint import CONFIG, check_target, read_config, read_history, save_generator
from weightgen.generators import Generator, GeneratorConfig, Stage, generator_class
from weightgen.processes import ALONE, Processes, is_first
from weightgen.progress import Progress
from weightgen.resume import SafetensorsIO
from weightgen.score import usual_bits
from weightgen.selection import KeepBest
from weightgen.training_data import TrainingData
from weightgen.types import Batch
from zoo import safefile
from zoo.config import dump_config, parse_config, read_yaml
from zoo.errors import BadArtefact, UsageError, WeightgenError
from zoo.threads import torch_threads
from zoo.zoo import Zoo

SAVE_EVERY = 50
LOG_EVERY = 20
PARTIAL = "partial"


class WeightModule(lightning.LightningModule):
    """Optimises one stage of any generator: everything that has ``.loss(batch)``."""

    def __init__(self, generator: Generator, stage: Stage) -> None:
        """Train only the submodules that the stage names."""
        super().__init__()
        self.generator = generator
        self.stage = stage
        self.log_rows: list[dict[str, float]] = []
        generator.requires_grad_(False)
        for module in stage.trains:
            module.requires_grad_(True)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss of one batch; its parts go into the log."""
        with _products_in(self.generator.config.precision, self.device):
            loss = self.stage.loss(batch)
        if not torch.isfinite(loss.total):
            raise WeightgenError(
                f"the loss of stage {self.stage.name!r} became {loss.total.item()} at step {self.global_step}",
                f"lower stages.{self.stage.name}.lr",
            )
        if self.global_step % LOG_EVERY == 0:
            parts = {name: round(value.item(), 6) for name, value in loss.parts.items()}
            self.log_rows.append({"step": self.global_step, "loss": round(loss.total.item(), 6), **parts})
        return loss.total

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle schedule."""
        config = self.stage.config
        learned = [p for p in self.generator.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=config.lr, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.lr, total_steps=config.steps + 1, pct_start=0.1, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the log with the state."""
        checkpoint["log_rows"] = self.log_rows

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the log back."""
        self.log_rows = checkpoint["log_rows"]


@contextlib.contextmanager
def _products_in(precision: str, device: torch.device) -> Iterator[None]:
    """Large products in bfloat16, attention without its fused kernel, whose gradients take three times as long then."""
    if precision == "float32":
        yield
        return
    with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


class StepBatches:
    """Endless batches, numbered by the trainer's own step counter, so that a resumed run sees the very same ones.

    Processes that train together see different ones: each every n-th of one common sequence.
    """

    def __init__(self, data: TrainingData, module: WeightModule) -> None:
        self.data, self.module = data, module

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current step on."""
        step, trainer = self.module.global_step, self.module.trainer
        while True:
            yield self.data.batch(self.module.stage, step * trainer.world_size + trainer.global_rank)
            step += 1


class Keeper(Callback):
    """Reports progress, and saves the training state every ``SAVE_EVERY`` steps."""

    def __init__(self, path: Path, progress: Progress | None) -> None:
        self.path, self.progress = path, progress

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After every update."""
        assert isinstance(pl_module, WeightModule)
        step, total = trainer.global_step, pl_module.stage.config.steps
        if self.progress and trainer.is_global_zero:
            self.progress(f"train {pl_module.stage.name}", step, total)
        if step % SAVE_EVERY == 0 and step < total:
            trainer.save_checkpoint(self.path)


def run_stage(
    generator: Generator,
    stage: Stage,
    data: TrainingData,
    state: Path,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> list[dict[str, float]]:
    """Train one stage in place, from its saved state if there is one.

    Args:
        generator: the model; ends with the averaged (EMA) weights.
        stage: what to train.
        data: where batches come from.
        state: file of the training state of this stage.
        progress: called with (stage, done, total).
        processes: how many train together.

    Returns:
        The log: step, loss and its parts; steps at which validation was measured have a row with ``val_accuracy``.

    Raises:
        KeyboardInterrupt: on Ctrl-C; the last saved state is kept.
        WeightgenError: if the loss is not finite.
    """
    module, config = WeightModule(generator, stage), stage.config
    # Interpolation, unlike a weighted sum, leaves a parameter that stands still as it is, to the last bit.
    averaging = WeightAveraging(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    best = KeepBest(averaging, lambda: data.validate(generator, stage.judged_by), config.steps, config.checks)
    trainer = lightning.Trainer(
        **processes.trainer,
        max_steps=config.steps,
        max_epochs=-1,
        gradient_clip_val=config.clip,
        callbacks=[averaging, best, Keeper(state, progress)],
        plugins=[SafetensorsIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    generator.train()
    try:
        with _own_interrupt():
            trainer.fit(module, StepBatches(data, module), ckpt_path=state if state.is_file() else None)
    finally:
        generator.requires_grad_(False).eval()
    return module.log_rows + [{"step": step, "val_accuracy": round(s, 4)} for step, s in best.scores.items()]


@contextlib.contextmanager
def _own_interrupt() -> Iterator[None]:
    """Ctrl-C raises ``KeyboardInterrupt``, and works again afterwards; the trainer exits and leaves it switched off."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if is_main and handler is not None:
            signal.signal(signal.SIGINT, handler)


def load_train_config(config: Path | str, overrides: Sequence[str] = ()) -> GeneratorConfig:
    """Read the YAML config of a generator.

    Raises:
        UsageError: if it cannot be used.
    """
    raw = read_yaml(config)
    cls = generator_class(raw.get("generator"))
    return parse_config(raw, cls.config_class, source=str(config), overrides=overrides)


def zoo_fingerprint(zoo: Zoo) -> str:
    """Identity of the networks a zoo holds, whatever their order."""
    text = ",".join(sorted(f"{record.id}:{record.split}" for record in zoo.records()))
    return hashlib.sha256(text.encode()).hexdigest()


def train_generator(
    config: GeneratorConfig,
    zoo: Zoo,
    out: Path,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Train a generator on a zoo, or go on with an interrupted training.

    Args:
        config: checked configuration.
        zoo: networks to learn from; its train and validation splits are used, never its test split.
        out: folder of the generator. A sibling ``.<name>.partial`` holds the state until it is complete.
        fresh: throw away what is there.
        progress: called with (stage, done, total).
        processes: how many train together; the first of them writes.

    Returns:
        The history: seconds, log and validation accuracy of every stage, tasks trained on.

    Raises:
        UsageError: if the folder holds something else, or, without ``fresh``, a generator of another config or zoo.
        BadArtefact: if a file of an earlier run is damaged.
    """
    partial = out.parent / f".{out.name}.{PARTIAL}"
    identity = {"config": dump_config(config), "zoo": zoo_fingerprint(zoo)}
    check_target(out)
    if fresh:
        _discard(partial)
    elif (out / CONFIG).is_file():
        read_config(out)
        history = read_history(out)
        if history["identity"] == identity:
            return history
        raise UsageError(f"{out} holds a generator of another config or zoo", "choose another folder, or add --fresh")
    data = TrainingData(zoo, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator = generator_class(config.generator)(config, data.problem)
    data.lend(generator)
    generator.requires_grad_(False).eval()  # as after every stage: torch takes other kernels while training
    stages: dict[str, Any] = _load_partial(partial, identity, generator)
    with torch_threads(config.threads), _quiet():
        for stage in generator.stages():
            if stage.name in stages or stage.config.steps == 0:
                continue
            started = time.monotonic()
            state = partial / f"{stage.name}.state"
            generator.prepare(stage.name, data.token_sets())
            log = run_stage(generator, stage, data, state, progress, processes)
            generator.finish(stage.name)
            stages[stage.name] = {
                "seconds": round(time.monotonic() - started, 1),
                "judged_by": stage.judged_by,
                **_validated(data, generator, stage),
                "log": log,
            }
            if is_first():
                _save_partial(partial, identity, generator, stages)
                state.unlink(missing_ok=True)
    history = {
        "identity": identity,
        "parameters": sum(p.numel() for p in generator.parameters()),
        **data.task_names(),
        "stages": stages,
    }
    if limits := usual_bits(generator, data):
        history["usual_bits"] = limits
    if is_first():
        save_generator(out, generator, history)
        _discard(partial)
    return history


def _validated(data: TrainingData, generator: Generator, stage: Stage) -> dict[str, float]:
    """How good the generator is after a stage; reconstructions where there are weights to reconstruct."""
    found = {"val_accuracy": round(data.validate(generator, stage.judged_by), 4)}
    if generator.learns_from == "weights":
        found["val_reconstruction_accuracy"] = round(data.validate(generator, "reconstruct"), 4)
        found["val_reconstruction_error"] = round(data.reconstruction_error(generator), 4)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the trainer's advice about loggers and devices, which is not for our users."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)


def _save_partial(folder: Path, identity: dict[str, Any], generator: Generator, stages: dict[str, Any]) -> None:
    """Keep the model after a finished stage: model first, then the JSON that names the finished stages."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"after-{len(stages)}.safetensors"
    safefile.save(folder / name, {k: v.contiguous() for k, v in generator.state_dict().items()})
    side = folder / "state.json.partial"
    side.write_text(json.dumps({"identity": identity, "model": name, "stages": stages}))
    side.replace(folder / "state.json")
    for old in folder.glob("after-*.safetensors"):
        if old.name != name:
            old.unlink()


def _load_partial(folder: Path, identity: dict[str, Any], generator: Generator) -> dict[str, Any]:
    """Load the model after the last finished stage; return what is known of the finished stages."""
    path = folder / "state.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        state = {"identity": identity, "model": None, "stages": {}}
        (folder / "state.json.partial").write_text(json.dumps(state))
        (folder / "state.json.partial").replace(path)
        return {}
    try:
        state = json.loads(path.read_text())
        known, model, stages = state["identity"], state["model"], state["stages"]
    except (KeyError, TypeError, ValueError):
        raise BadArtefact(
            f"the state {path} of an unfinished training is damaged", "start again with --fresh"
        ) from None
    if known != identity:
        raise UsageError(
            f"{folder} holds an unfinished training of another config or zoo", "finish it with that, or add --fresh"
        )
    if model is not None:
        generator.load_state_dict(safefile.load(folder / model)[0])
    return stages


def _discard(folder: Path) -> None:
    """Remove a folder of ours with its files."""
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
