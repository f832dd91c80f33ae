"""The training loop.  Every rank runs it; rank 0 writes and speaks."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.distributed as dist

from twinview.assembly import Assembly
from twinview.data.loading.factory import Factory
from twinview.data.loading.views import BadSamples
from twinview.data.remote.base import without_queries
from twinview.data.remote.shard import fetch_all
from twinview.engine.around import before_epoch
from twinview.engine.batches import Batches, ask_choice, choice_files, load_choice
from twinview.engine.checkpoint import Checkpoint, best_of, load_model, mark_best, save_checkpoint, steps_in
from twinview.engine.collapse import collapses
from twinview.engine.compiled import graphs
from twinview.engine.deepspeed_config import micro_batch
from twinview.engine.distributed.preempt import SAVING, Notice, Told, noticing
from twinview.engine.distributed.process import averaged, barrier, gathered, join, on_first, peak_memory, telling_faults
from twinview.engine.evaluator import Evaluator
from twinview.engine.loss_scale import scale_of
from twinview.engine.metrics import read_metrics, table_of
from twinview.engine.mlflow_log import MlflowLog
from twinview.engine.resume import restore, start_run
from twinview.engine.run_folder import Resume, check_folder, make_folder, order_of
from twinview.engine.run_lock import locked
from twinview.engine.run_log import OnProgress, RunLog
from twinview.engine.schedule import warn_unreached
from twinview.engine.setup import TrainSetup, build, wrap
from twinview.engine.skipped_steps import SkippedSteps
from twinview.engine.step import StepResult, take_step
from twinview.engine.zero import plain_linear, whole_optimizer_state
from twinview.errors import RecipeError, closest
from twinview.progress import waiting
from twinview.recipe import Recipe
from twinview.scores import direction
from twinview.values import Progress

OnEnd = Callable[[TrainSetup, Factory], None]
OnMoment = Callable[[TrainSetup, Factory, int, bool], Mapping[str, Any]]  # step, whether evaluations were due -> pictures (PIL) by name
MOMENTS = 10  # of a run, besides its start


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

    @property
    def metrics(self) -> Any:
        """The logged steps as a table: a pandas DataFrame where pandas is installed, else a dict of lists, a list for each column."""
        return table_of(list(read_metrics(self.folder / "metrics.jsonl")))


def train(
    recipe: Recipe, run_dir: Path, *, assembly: Assembly | None = None, resume: Resume = False, command: str = "",
    on_progress: OnProgress | None = None, on_end: OnEnd | None = None, on_moment: OnMoment | None = None,
) -> RunResult:
    """Train a recipe to its end in the folder `run_dir`.  Raises TwinviewError (RecipeError, DataError, CheckpointError).

    In a process that a launcher started, every rank calls it.  `assembly`: the recipe's parts, where they are made already.  `resume`: True goes
    on from the newest checkpoint, "auto" where there is one; the losses are those of a run that was never stopped, to the last bit on a CPU.
    `on_progress` is given each logged row, on rank 0; `on_end` is called on every rank when all steps are done, with the model at rest, and so is
    `on_moment` at the start, at every tenth of the run and after evaluations, whose pictures go to the monitors.
    """
    with noticing() as notice, telling_faults(), ExitStack() as held:
        notice.words = f"{run_dir}: told to end before its first step; nothing has changed"
        try:
            with notice.eager():
                micro_batch(recipe, join(recipe.run.device).world)  # refused before anything is written
                on_first(lambda: _take(run_dir, resume, command, held))
                going_on = on_first(lambda: bool(resume) and bool(steps_in(run_dir / "checkpoints")))
                if going_on and not recipe.data.order:
                    recipe = attrs.evolve(recipe, data=attrs.evolve(recipe.data, order=on_first(lambda: order_of(run_dir))))
                setup = build(recipe, assembly=assembly, going_on=going_on)
                warn_unreached(setup.recipe, setup.steps, setup.epoch)
                start, meta = start_run(setup, run_dir, resume, command)
                if not (setup.recipe.data.window or setup.recipe.data.streaming):  # its first batch would want nearly every shard
                    fetch_all(setup.shards.paths)
                setup.model.stores.keep_in(run_dir / "samples", lambda: {step // setup.epoch for step in steps_in(run_dir / "checkpoints")})
                if start is not None:
                    load_model(start, setup.model, setup.ranks.rank, setup.ranks.world)
                held.enter_context(plain_linear())
                engine = wrap(setup, run_dir)
                if start is not None:
                    restore(setup, engine, start)
        except Told:
            raise notice.fault(f"{notice.words}.") from None
        data = Factory(setup.recipe, setup.dims, setup.shards, setup.ranks.rank, setup.ranks.world, setup.model.features, setup.model.alignment)
        clock = Clock(setup, float(start.meta["elapsed"]) if start else 0.0)
        log = held.enter_context(_open_log(setup, engine, run_dir, start, clock, on_progress))
        return Trainer(setup, engine, run_dir, meta, start, clock, log, Evaluator(setup, engine, data), notice).run(on_end, on_moment)


def _take(folder: Path, resume: Resume, command: str, held: ExitStack) -> None:
    """Take the folder, for this run alone, until `held` is let go of."""
    check_folder(folder, resume)
    make_folder(folder)
    held.enter_context(locked(folder, without_queries(command)))


def _open_log(
    setup: TrainSetup, engine: Any, folder: Path, start: Checkpoint | None, clock: Clock, on_progress: OnProgress | None
) -> RunLog:
    monitors = engine.monitor if engine.monitor.enabled else None
    engine.monitor.enabled = False  # DeepSpeed would write its own lr by images, not by steps, and W&B drops what comes with a lower number then
    table, mlflow = setup.recipe.deepspeed.get("mlflow", {}), None
    if table.get("enabled") and setup.ranks.rank == 0:
        mlflow = MlflowLog(folder, table, without_queries(setup.assembly.table()), start.step if start else 0)
    step, last = start.step if start else 0, len(setup.assembly.answers("evaluate"))
    return RunLog(
        folder, first=setup.ranks.rank == 0, step=step, steps=setup.steps, steps_per_epoch=setup.epoch, share=clock.share(step),
        then=f"{last} evaluation{'s' * (last > 1)}" if last else "", monitors=monitors, on_progress=on_progress, mlflow=mlflow,
    )


class Clock:
    """The time of a run, earlier sittings included."""

    def __init__(self, setup: TrainSetup, spent: float) -> None:
        """`spent`: seconds of earlier sittings."""
        self._setup, self._spent, self._began = setup, spent, time.monotonic()

    def elapsed(self) -> float:
        """Seconds."""
        return self._spent + time.monotonic() - self._began

    def share(self, step: int) -> float:
        """How far the run is after `step` steps, 0 to 1: of its steps, or of its hours by rank 0's clock.  Every rank calls it."""
        setup = self._setup
        if setup.steps:
            return step / setup.steps
        share = torch.tensor(self.elapsed() / (3600 * (setup.recipe.run.hours or 1)), dtype=torch.float64, device=setup.ranks.device)
        if setup.ranks.world > 1:
            dist.broadcast(share, 0)
        return min(1.0, float(share))


class _Pace:
    """Seconds since the last logged step, and how many of them were spent waiting for data."""

    def __init__(self, step: int) -> None:
        self.since, self.seconds, self.waited = step, 0.0, 0.0

    def add(self, taken: StepResult, waited: float) -> None:
        """`waited`: for the first batch, before the step."""
        self.seconds += taken.seconds + waited
        self.waited += taken.waited + waited

    def numbers(self, step: int, batch_size: int) -> dict[str, float]:
        """Of the steps up to `step`; counts anew from there."""
        found = {"images_per_second": (step - self.since) * batch_size / self.seconds, "data_wait": self.waited / self.seconds}
        self.since, self.seconds, self.waited = step, 0.0, 0.0
        return found


class Trainer:
    """A run from where it stands to its end: steps, rows, evaluations, checkpoints."""

    def __init__(
        self, setup: TrainSetup, engine: Any, folder: Path, meta: dict[str, Any], start: Checkpoint | None, clock: Clock, log: RunLog,
        evaluator: Evaluator, notice: Notice,
    ) -> None:
        """`meta`: what every checkpoint says of the run; `start`: the checkpoint that it goes on from."""
        self.setup, self.engine, self.folder, self.meta = setup, engine, folder, meta
        self.clock, self.log, self.evaluator = clock, log, evaluator
        self.step = start.step if start else 0
        self.saved = self.step  # the step of the newest checkpoint
        self.checkpoint = start.path if start else folder / "checkpoints"
        self.unwritten: dict[str, float] = on_first(lambda: self._unwritten(start)) if start else {}
        self.bad_samples = BadSamples(setup.recipe.data.bad_samples)
        self.choice = load_choice(start, setup)  # how often the epoch has each sample, where a part says so
        self.skipped = SkippedSteps(setup.recipe.run.bad_steps, folder, start.meta.get("left_out") if start else None)
        self.notice, self.pace = notice, _Pace(self.step)
        self.alone = setup.ranks.world == 1  # may end where it waits: no other rank waits for it
        self._last_words()

    def _unwritten(self, start: Checkpoint) -> dict[str, float]:
        """The row of the checkpoint's own step, where a kill came between the two."""
        row: dict[str, float] = start.meta.get("row") or {}
        return {} if self.log.has(start.step) else row

    def run(self, on_end: OnEnd | None = None, on_moment: OnMoment | None = None) -> RunResult:
        """Every step that is left, with its hooks, rows and checkpoints."""
        setup, run = self.setup, self.setup.recipe.run
        share = self.clock.share(self.step)
        try:
            self.write_row(self.evaluator.due(self.step, share), share)
            if not self.step:
                self.moment(on_moment, False)
            with closing(Batches(setup, self.step, self.bad_samples, self.choice)) as batches:
                while share < 1:
                    before, taken = share, self.take(batches, share)
                    share = self.clock.share(self.step)
                    due = self.evaluator.due(self.step, share)
                    self.unwritten = self.averages(taken) if self.is_logged(self.step) or due or share >= 1 else {}
                    if self.step % run.checkpoint_every == 0 or share >= 1:
                        self.save()  # before an evaluation, which may take long, or fail
                    self.write_row(due, share)
                    self.log.moved(self.step, share)
                    if due or int(MOMENTS * share) > int(MOMENTS * before):
                        self.moment(on_moment, bool(due))
                    if share < 1 and self.notice.given(setup.ranks.device):
                        self.end_early()
        except Told:  # waiting for the next step's data, or evaluating: the state is that after the last step
            self.end_early()
        barrier()
        if on_end:
            with self.evaluator.at_rest():
                on_end(setup, self.evaluator.data)
        return self.result()

    def moment(self, on_moment: OnMoment | None, evaluated: bool) -> None:
        """Let `on_moment` look at the model, and hand its pictures on."""
        if on_moment is not None:
            self.notice.stepping()
            with self.notice.eager(self.alone), self.evaluator.at_rest():
                pictures = on_moment(self.setup, self.evaluator.data, self.step, evaluated)
            self.log.pictures(self.step, pictures)

    def write_row(self, due: list[str], share: float) -> None:
        """The row of this step, where there is one, with the scores of the evaluations that are due."""
        if self.unwritten:
            self.log.write(self.step, self.unwritten, self.evaluate(due, share), share)
            self.unwritten = {}

    def progress(self, share: float) -> Progress:
        """As hooks see it; `step` counts from 0."""
        return Progress(self.step, self.setup.steps, self.step // self.setup.epoch, share)

    def is_logged(self, step: int) -> bool:
        """Whether a row is due after `step` steps, counted from 1."""
        return step == 1 or step % self.setup.recipe.run.log_every == 0 or step == self.setup.steps

    def take(self, batches: Batches, share: float) -> StepResult:
        """One optimizer step, and what comes before an epoch."""
        setup, progress, data = self.setup, self.progress(share), self.evaluator.data
        first_of_epoch = self.step % setup.epoch == 0
        chosen = first_of_epoch and setup.assembly.has("sample_weights")  # the epoch's batches wait for what a part chooses
        self.notice.stepping()
        if chosen:
            before_epoch(setup, self.engine, data, progress)
            self.choice = ask_choice(setup, self.engine, data, progress)
            batches.begin_epoch(self.step, self.choice)
        began = time.perf_counter()
        with self.notice.eager(self.alone and not chosen):  # what `before_epoch` wrote is the coming step's: it is taken first
            first = next(batches)
        waited = time.perf_counter() - began
        if first_of_epoch and not chosen:
            before_epoch(setup, self.engine, data, progress)
        self.notice.stepping()
        is_first = not self.notice.steps
        with self.first_step():
            taken = take_step(setup, self.engine, chain([first], batches), progress, watch=self.is_logged(self.step + 1))
        if is_first and setup.recipe.run.compile:
            self.log.say(graphs())
        if taken.left_out:
            self.log.say(self.skipped.add(taken.left_out))
        self.step += 1
        self.pace.add(taken, waited)
        self.notice.steps = max(self.notice.steps, taken.seconds + waited)
        return taken

    def first_step(self) -> AbstractContextManager[None]:
        """Speaks while the first step of this sitting is under way: encoders may be compiled in it, for minutes."""
        if self.notice.steps:
            return nullcontext()
        return waiting("compiling the encoders, in the first step" if self.setup.recipe.run.compile else "the first step")

    def averages(self, taken: StepResult) -> dict[str, float]:
        """The last step's loss, terms and notes, and the pace since the row before, over all ranks."""
        pace = self.pace.numbers(self.step, self.setup.recipe.run.batch_size)
        memory = max(gathered(peak_memory(self.setup.ranks.device))) / 1e9
        return averaged(taken.numbers() | pace | self.skipped.numbers()) | {"memory_gb": memory}

    # ---- evaluations
    def evaluate(self, due: list[str], share: float) -> dict[str, float]:
        """Scores of the evaluations that are due; under [run] keep_best, the checkpoint of the best score so far is marked."""
        self.notice.stepping()
        with self.notice.eager(self.alone and bool(due)):
            scores = self.evaluator.scores(due, self.progress(share))
        if due:
            self.keep_if_best(scores, final=len(due) == len(self.evaluator.labels))
        return scores

    def keep_if_best(self, scores: dict[str, float], final: bool) -> None:
        """Mark the checkpoint of this step where its score is the best yet, after saving one if there is none.

        `final`: these are the scores of all evaluations.  Raises RecipeError where keep_best then is none of them.
        """
        name, folder = self.setup.recipe.run.keep_best, self.folder / "checkpoints"

        def is_best() -> bool:
            there = [score.removeprefix("score/") for score in scores]
            if name in there:
                before, now = best_of(folder, name), scores[f"score/{name}"]
                return math.isfinite(now) and (before is None or (now - before[1]) * direction(name) > 0)
            if final:
                raise RecipeError(f"[run] keep_best: no evaluation gives {name!r}.{closest(name, there)}")
            return False

        if name and on_first(is_best):
            if self.saved != self.step:
                self.save()
            on_first(lambda: mark_best(folder, self.step, scores[f"score/{name}"], name))

    # ---- checkpoints
    def save(self) -> None:
        """A checkpoint of all that the next step depends on, and of what is still to be written of this one's row."""
        self.notice.may_take(SAVING)
        self.log.sync()
        setup = self.setup
        kept = {"loss_scale": scale_of(self.engine).state(), "left_out": self.skipped.state(), "followed": setup.model.followed}
        meta = {"step": self.step, "epoch": self.step // setup.epoch, "elapsed": self.clock.elapsed(), "row": self.unwritten, **kept, **self.meta}
        state = whole_optimizer_state(self.engine, setup.optimizer, setup.trainable)
        self.saved = self.step
        files = choice_files(self.choice)
        self.checkpoint = save_checkpoint(self.folder / "checkpoints", setup.model, state, meta, keep=setup.recipe.run.keep, more=files)
        self._last_words()
        self.notice.stepping()

    def end_early(self) -> None:
        """Save, once all ranks know that one was told to end.  Raises Preempted."""
        if self.saved != self.step:
            self.save()
        barrier()
        raise self.notice.fault(f"{self.folder}: told to end, and saved at step {self.step}. Go on with resume=True.")

    def _last_words(self) -> None:
        """What is said where this process is told to end, and the step that it is in does not end in time."""
        last = f"the last checkpoint is of step {self.saved}: go on with resume=True" if self.saved else "there is no checkpoint yet"
        self.notice.words = f"{self.folder}: told to end, and what was under way did not end in time; {last}"

    def result(self) -> RunResult:
        """The last row's numbers, of this sitting or of the one that reached the end."""
        row = on_first(self.log.newest)
        scores = {k.removeprefix("score/"): v for k, v in row.items() if k.startswith("score/")}
        bad = tuple(dict.fromkeys(one for seen in gathered(list(self.bad_samples.seen.values())) for one in seen))
        return RunResult(
            folder=self.folder, step=self.step, seconds=self.clock.elapsed(), loss=row["loss"], scores=scores, checkpoint=self.checkpoint,
            collapsed=collapses(row), bad_samples=bad, bad_steps=self.skipped.bad,
        )
