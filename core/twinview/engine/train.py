"""The training loop.  Every rank runs it; rank 0 writes and speaks."""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.distributed as dist

from twinview.data.loading.factory import Factory
from twinview.data.loading.loader import training_batches
from twinview.data.loading.views import BadSamples
from twinview.data.remote.shard import fetch_all
from twinview.engine.checkpoint import Checkpoint, best_of, load_model, mark_best, random_states, save_checkpoint, set_random_states, steps_in
from twinview.engine.collapse import CollapseWatch, collapses
from twinview.engine.compiled import uncompiled
from twinview.engine.deepspeed_config import micro_batch
from twinview.engine.distributed.preempt import Notice, on_sigterm
from twinview.engine.distributed.process import averaged, barrier, gathered, on_first, peak_memory, telling_lost_ranks
from twinview.engine.loss_scale import scale_of
from twinview.engine.metrics import Metrics, read_metrics
from twinview.engine.run_folder import Resume, find_start, write_run
from twinview.engine.setup import TrainSetup, build, wrap
from twinview.engine.skipped_steps import SkippedSteps
from twinview.engine.step import StepResult, take_step
from twinview.engine.zero import gathered_weights, load_whole_optimizer_state, whole_optimizer_state
from twinview.errors import CheckpointError, Preempted, RecipeError, closest
from twinview.progress import Bar
from twinview.recipe import Recipe
from twinview.values import Batch, Progress

OnProgress = Callable[[dict[str, Any]], None]


@attrs.frozen(kw_only=True)
class RunResult:
    """What a run came to."""

    folder: Path
    step: int  # optimizer steps
    seconds: float  # of all its sittings
    loss: float  # of the last step
    scores: dict[str, float]  # of the evaluations at the end
    checkpoint: Path
    collapsed: list[str]  # signs that the features or the clusters have collapsed, a line each
    bad_samples: tuple[str, ...] = ()  # that others stood in for, in this sitting, on any rank: where each lies, and why
    bad_steps: int = 0  # left out because loss or gradient were not finite; `nonfinite` in the folder names their images


def train(recipe: Recipe, run_dir: Path, *, resume: Resume = False, command: str = "", on_progress: OnProgress | None = None) -> RunResult:
    """Train a recipe to its end in the folder `run_dir`.  Raises TwinviewError (RecipeError, DataError, CheckpointError).

    In a process that a launcher started, every rank calls it.  `resume`: True goes on from the newest checkpoint, "auto" where there is one;
    the losses are those of a run that was never stopped, to the last bit on a CPU.  `on_progress` is given each logged row, on rank 0.
    """
    built = build(recipe, going_on=bool(resume) and bool(steps_in(run_dir / "checkpoints")))
    table, data = built.assembly.table(), str(built.shards.checksum)
    start = on_first(lambda: _open(built, run_dir, table, data, resume, command))
    if not (built.recipe.data.window or built.recipe.data.streaming):  # its first batch would want nearly every shard
        fetch_all(built.shards.paths)
    if start is not None:
        load_model(start, built.model, built.ranks.rank, built.ranks.world)
    with telling_lost_ranks():
        engine = wrap(built, run_dir)
        if start is not None:
            _restore(built, engine, start)
        return _Loop(built, engine, run_dir, {"data": data, "recipe": table}, start, on_progress).run()


def _open(built: TrainSetup, folder: Path, table: dict[str, Any], data: str, resume: Resume, command: str) -> Checkpoint | None:
    start = find_start(folder, table, data, resume)
    if start and built.recipe.data.streaming:
        _check_readers(start, built)
    images = built.recipe.data
    metadata = {
        "methods": built.assembly.distributions(),
        "colours": {"channels": images.channels, "white": images.white, "mean": images.mean, "std": images.std},
        "data": {"shards": [str(p) for p in built.shards.paths], "images": len(built.shards), **built.shards.metadata, "checksum": data},
    }
    sitting = {
        "command": command,
        "step": start.step if start else 0,
        "ranks": built.ranks.world,
        "device": torch.cuda.get_device_name(built.ranks.device) if built.ranks.device.type == "cuda" else "cpu",
        "precision": built.recipe.run.precision,
    }
    write_run(folder, table, metadata, sitting, fresh=start is None)
    if start and start.meta["ranks"] != built.ranks.world:
        print(f"{start.path}: was written by {start.meta['ranks']} ranks and goes on with {built.ranks.world}: not to the last bit.", file=sys.stderr)
    return start


def _check_readers(start: Checkpoint, built: TrainSetup) -> None:
    """A stream goes on in the middle of an epoch only where each worker has the share that it had.  Raises CheckpointError."""
    before = (start.meta["ranks"], max(1, start.meta["recipe"]["data"]["workers"]))
    now = (built.ranks.world, max(1, built.recipe.data.workers))
    if start.step % built.epoch and before != now:
        said = " and ".join(f"{ranks} ranks x {workers} workers" for ranks, workers in (before, now))
        ends = start.step + -start.step % built.epoch
        raise CheckpointError(f"{start.path}: streamed by {said}: they change only between epochs (the next ends at step {ends}). Write as it was.")


def _restore(built: TrainSetup, engine: Any, start: Checkpoint) -> None:
    try:
        load_whole_optimizer_state(engine, built.optimizer, built.trainable, start.load("optimizer.pt"))
    except (KeyError, ValueError) as e:
        raise CheckpointError(f"{start.path}: belongs to another model: optimizer.pt: {e}.") from None
    if start.meta["ranks"] == built.ranks.world:
        set_random_states(start.load(f"rank-{built.ranks.rank}.pt")["random"], built.ranks.device)
    scale_of(engine).load(start.meta.get("loss_scale", {}))
    built.model.followed = start.meta.get("followed", False)


class _Loop:
    """A run from where it stands to its end."""

    def __init__(
        self, built: TrainSetup, engine: Any, folder: Path, meta: dict[str, Any], start: Checkpoint | None, on_progress: OnProgress | None
    ) -> None:
        self.built, self.engine, self.folder, self.meta, self.on_progress = built, engine, folder, meta, on_progress
        self.step = start.step if start else 0
        self.spent = float(start.meta["elapsed"]) if start else 0.0  # seconds of earlier sittings
        self.began = time.monotonic()
        self.first = built.ranks.rank == 0
        self.data = Factory(built.recipe, built.dims, built.shards, built.ranks.rank, built.ranks.world)
        self.bad = BadSamples(built.recipe.data.bad_samples)
        self.left_out = SkippedSteps(built.recipe.run.bad_steps, folder, start.meta.get("left_out") if start else None)
        self.images = micro_batch(built.recipe, built.ranks.world)
        self.collapse = CollapseWatch(self.images)
        self.checkpoint = start.path if start else folder / "checkpoints"
        self.saved = self.step  # the step of the newest checkpoint
        self.notice = Notice(built.ranks.device)
        self.monitors = engine.monitor if engine.monitor.enabled else None
        engine.monitor.enabled = False  # DeepSpeed would write its own lr by images, not by steps, and W&B drops what comes with a lower number then
        self.metrics = Metrics(folder / "metrics.jsonl", upto=self.step) if self.first else None
        self.row: dict[str, Any] = {}
        self.pending = on_first(lambda: self._unwritten(start)) if start else {}
        self.seconds = self.waited = 0.0  # since the last logged step
        self.since = self.step

    def run(self) -> RunResult:
        """Every step that is left, with its hooks, rows and checkpoints."""
        built, run = self.built, self.built.recipe.run
        share = self.share()
        self.bar = Bar(built.steps, self.step, share) if self.first else None
        left = built.steps - self.step if built.steps else None
        if self.pending:
            self.log(self.pending, self.evaluate(self.due(share), share), share)
        batches = training_batches(
            built.recipe, built.dims, built.shards, rank=built.ranks.rank, world=built.ranks.world, start=self.step, steps=left, bad=self.bad
        )
        try:
            with closing(batches), on_sigterm(self.notice.tell):
                while share < 1:
                    taken = self.take(batches, share)
                    share = self.share()
                    due = self.due(share)
                    row = self.averages(taken) if self.is_logged(self.step) or due or share >= 1 else {}
                    if self.step % run.checkpoint_every == 0 or share >= 1:
                        self.save(row)  # before an evaluation, which may take long, or fail
                    if row:
                        self.log(row, self.evaluate(due, share), share)
                    if self.bar:
                        self.bar.update(self.step, share)
                    if share < 1 and self.notice.given():
                        self.end_early()
        finally:
            if self.bar:
                self.bar.close()
            if self.metrics:
                self.metrics.close()
        barrier()
        return self.result()

    def _unwritten(self, start: Checkpoint) -> dict[str, float]:
        """The row of the checkpoint's own step, where a kill came between the two."""
        row: dict[str, float] = start.meta.get("row") or {}
        return {} if any(kept["step"] == start.step for kept in read_metrics(self.folder / "metrics.jsonl")) else row

    def share(self) -> float:
        """How far the run is, 0 to 1: of its steps, or of its hours by rank 0's clock."""
        if self.built.steps:
            return self.step / self.built.steps
        clock = torch.tensor(self.elapsed() / (3600 * (self.built.recipe.run.hours or 1)), dtype=torch.float64, device=self.built.ranks.device)
        if self.built.ranks.world > 1:
            dist.broadcast(clock, 0)
        return min(1.0, float(clock))

    def elapsed(self) -> float:
        """Seconds of this run, earlier sittings too."""
        return self.spent + time.monotonic() - self.began

    def progress(self, share: float) -> Progress:
        """As hooks see it; `step` counts from 0."""
        return Progress(self.step, self.built.steps, self.step // self.built.epoch, share)

    def is_logged(self, step: int) -> bool:
        """Whether a row is due after `step` steps, counted from 1."""
        return step == 1 or step % self.built.recipe.run.log_every == 0 or step == self.built.steps

    def take(self, batches: Iterator[Batch], share: float) -> StepResult:
        """One optimizer step, and what comes before an epoch."""
        progress = self.progress(share)
        if self.step % self.built.epoch == 0:
            with gathered_weights(self.engine), uncompiled(self.built.recipe):
                self.built.assembly.calls.before_epoch(branches=self.built.model.branches, data=self.data, progress=progress)
        taken = take_step(self.built, self.engine, batches, progress, watch=self.is_logged(self.step + 1))
        if taken.left_out:
            self.say(self.left_out.add(taken.left_out))
        self.step += 1
        self.seconds += taken.seconds
        self.waited += taken.waited
        return taken

    def due(self, share: float) -> list[str]:
        """Evaluations that run now: every N steps where they say so, and at the end."""
        found = self.built.assembly.answers("evaluate")
        every = {label: self.built.assembly.uses[label][2].every for label in found}
        return [label for label in found if share >= 1 or (every[label] and self.step % every[label] == 0)]

    def evaluate(self, due: list[str], share: float) -> dict[str, float]:
        """Scores of the evaluations that are due, in eval mode and without gradient; no random state of the training moves."""
        built, scores = self.built, dict[str, float]()
        if not due:
            return scores
        states = random_states(built.ranks.device)
        built.model.eval()
        with torch.no_grad(), gathered_weights(self.engine), uncompiled(built.recipe):
            for label in due:
                name = built.assembly.uses[label][2].name
                for answer in built.assembly.only("evaluate", label)(branches=built.model.branches, data=self.data, progress=self.progress(share)):
                    scores |= {f"score/{name}.{k}" if name else f"score/{k}": float(v) for k, v in answer.items()}
        built.model.train()
        set_random_states(states, built.ranks.device)
        self.keep_if_best(scores, final=len(due) == len(built.assembly.answers("evaluate")))
        return scores

    def keep_if_best(self, scores: dict[str, float], final: bool) -> None:
        """Mark the checkpoint of this step where its score is the highest yet, after saving one if there is none.

        `final`: these are the scores of all evaluations.  Raises RecipeError where keep_best then is none of them.
        """
        name, folder = self.built.recipe.run.keep_best, self.folder / "checkpoints"

        def is_best() -> bool:
            there = [score.removeprefix("score/") for score in scores]
            if name in there:
                before = best_of(folder)
                return before is None or scores[f"score/{name}"] > before[1]
            if final:
                raise RecipeError(f"[run] keep_best: no evaluation gives {name!r}.{closest(name, there)}")
            return False

        if name and on_first(is_best):
            if self.saved != self.step:
                self.save({})
            on_first(lambda: mark_best(folder, self.step, scores[f"score/{name}"]))

    def end_early(self) -> None:
        """Save, once all ranks know that one was told to end.  Raises Preempted."""
        if self.saved != self.step:
            self.save({})
        barrier()
        raise Preempted(f"{self.folder}: told to end, and saved at step {self.step}. Go on with --resume.")

    def averages(self, taken: StepResult) -> dict[str, float]:
        """The last step's loss, terms and notes, and the pace since the row before, over all ranks."""
        images = (self.step - self.since) * self.built.recipe.run.batch_size
        pace = {"images_per_second": images / self.seconds, "data_wait": self.waited / self.seconds}
        self.seconds, self.waited, self.since = 0.0, 0.0, self.step
        return averaged(taken.numbers() | pace | self.left_out.numbers()) | {"memory_gb": max(gathered(peak_memory(self.built.ranks.device))) / 1e9}

    def log(self, values: dict[str, float], scores: dict[str, float], share: float) -> None:
        """A row of metrics.jsonl, to the monitors too."""
        if self.metrics is None:
            return
        self.row = {"step": self.step, "epoch": (self.step - 1) // self.built.epoch, **values, **scores}
        self.metrics.write(self.row)
        if self.monitors:
            self.monitors.write_events([(name, value, self.step) for name, value in (values | scores).items()])
        self.say(self.collapse.see(self.row))
        if self.bar:
            self.bar.tell(self.row, share)
        if self.on_progress:
            self.on_progress(self.row)

    def say(self, line: str) -> None:
        """A line on rank 0; nothing where it is empty."""
        if self.bar and line:
            self.bar.say(line)

    def save(self, row: dict[str, float]) -> None:
        """A checkpoint of all that the next step depends on; `row`, what is still to be written of this step."""
        if self.metrics:
            self.metrics.sync()
        kept = {"loss_scale": scale_of(self.engine).state(), "left_out": self.left_out.state(), "followed": self.built.model.followed}
        meta = {"step": self.step, "epoch": self.step // self.built.epoch, "elapsed": self.elapsed(), "row": row, **kept, **self.meta}
        state = whole_optimizer_state(self.engine, self.built.optimizer, self.built.trainable)
        self.saved = self.step
        self.checkpoint = save_checkpoint(self.folder / "checkpoints", self.built.model, state, meta, keep=self.built.recipe.run.keep)

    def result(self) -> RunResult:
        """The last row's numbers, of this sitting or of the one that reached the end."""
        row = on_first(lambda: self.row or list(read_metrics(self.folder / "metrics.jsonl"))[-1])
        scores = {k.removeprefix("score/"): v for k, v in row.items() if k.startswith("score/")}
        bad = tuple(dict.fromkeys(one for seen in gathered(list(self.bad.seen.values())) for one in seen))
        return RunResult(
            folder=self.folder, step=self.step, seconds=self.elapsed(), loss=row["loss"], scores=scores, checkpoint=self.checkpoint,
            collapsed=collapses(row, self.images), bad_samples=bad, bad_steps=self.left_out.bad,
        )
