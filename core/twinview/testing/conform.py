"""The conformance kit: every check that a part has to pass, and `conformance`, which makes them."""
from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch

from twinview.errors import HookError, TwinviewError
from twinview.testing import data_checks, encoder_checks, first_checks, loss_checks, slow_checks
from twinview.testing.failure import ConformanceError, Failure, refused
from twinview.testing.subject import Setting, Subject
from twinview.testing.trial import Trial

STEP_HOOKS = ("loss", "heads", "encode", "align", "before_epoch", "after_step", "after_micro_batch", "param_groups", "sample_weights")


class Check(NamedTuple):
    """One check: what it is called, what it does, and which parts it is of."""

    name: str
    run: Callable[[Trial], Iterator[Failure]]
    of: Callable[[Subject], bool]
    extent: Literal["quick", "whole"] = "quick"
    first: bool = False  # where it fails, the others would only say the same again


def _any(_: Subject) -> bool:
    return True


def _hooks(*hooks: str) -> Callable[[Subject], bool]:
    return lambda subject: subject.answers(*hooks)


def _averages(subject: Subject) -> bool:
    """A loss that learns from an average; one with labels may keep it for evaluations alone."""
    needs = subject.traits.needs
    return subject.slot == "loss" and "averaged_target" in needs and not needs.intersection(("labels", "label_maps", "objects"))


def _steps(subject: Subject) -> bool:
    return subject.answers(*STEP_HOOKS) or bool(subject.wraps) or subject.answers("make_encoder")


CHECKS = (
    Check("documented", first_checks.documented, _any),
    Check("small", first_checks.small, _any, first=True),
    Check("assembles", first_checks.assembles, _any, first=True),
    Check("geometry", data_checks.geometry, _hooks("sample_views"), first=True),
    Check("shapes", first_checks.shapes, _any, first=True),
    Check("masks", data_checks.masks, _hooks("make_masks")),
    Check("photometry", data_checks.photometry, _hooks("apply_augment")),
    Check("alone", data_checks.alone, _hooks("sample_views", "apply_augment", "make_masks")),
    Check("workers", data_checks.same_for_workers, _hooks("sample_views", "apply_augment", "make_masks")),
    Check("spec", encoder_checks.spec, _hooks("make_encoder")),
    Check("by image", encoder_checks.by_image, _hooks("make_encoder")),
    Check("same start", encoder_checks.same_start, _hooks("make_encoder")),
    Check("reaches all", encoder_checks.reaches_all, _hooks("make_encoder")),
    Check("hides", encoder_checks.hides, _hooks("make_encoder")),
    Check("channels", encoder_checks.channels, _hooks("make_encoder")),
    Check("blocks", encoder_checks.blocks, _hooks("make_encoder")),
    Check("places", encoder_checks.places, _hooks("align")),
    Check("alignment by image", encoder_checks.alignment_by_image, _hooks("align")),
    Check("gradients", loss_checks.gradients, _steps),
    Check("target", loss_checks.looks_at_target, _averages),
    Check("repeats", loss_checks.repeats, _steps),
    Check("micro-batches", loss_checks.keeps_state_until_the_step, _steps),
    Check("order", loss_checks.order_of_batch, _steps),
    Check("bf16", loss_checks.low_precision, _steps),
    Check("scores", first_checks.scores, _hooks("evaluate")),
    Check("resumes", loss_checks.resumes, _any),
    Check("exports", encoder_checks.exports, _hooks("make_encoder")),
    Check("several ranks", slow_checks.several_ranks, _steps, "whole"),
    Check("new process", slow_checks.new_process, _any, "whole"),
    Check("compiles", slow_checks.compiles, _hooks("make_encoder"), "whole"),
    Check("loads elsewhere", slow_checks.loads_elsewhere, _hooks("make_encoder"), "whole"),
)


def checks_of(subject: Subject) -> list[Check]:
    """Those that a part has to pass, of its setting's extent, without those that it skips.  Raises ValueError for a skipped one that there is not."""
    unknown = set(subject.setting.skip) - {check.name for check in CHECKS}
    if unknown:
        raise ValueError(f"skip: there is no check {sorted(unknown)[0]!r}. There is: {', '.join(check.name for check in CHECKS)}.")
    wanted = ("quick", "whole") if subject.setting.extent == "whole" else ("quick",)
    return [check for check in CHECKS if check.extent in wanted and check.of(subject) and check.name not in subject.setting.skip]


def failures_of(trial: Trial, check: Check) -> list[Failure]:
    """What a check finds; a refusal of the core's and an error of the part's own code are findings too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums then do not depend on the machine's cores
    try:
        return list(check.run(trial))
    except HookError as e:
        return [Failure(trial.subject.name, check.name, f"{e}", "no error")]
    except TwinviewError as e:
        return [refused(trial.subject.name, e, check.name)]
    except Exception as e:
        frames = traceback.extract_tb(e.__traceback__)
        at = next((frame for frame in reversed(frames) if trial.subject.package in frame.filename), frames[-1])
        said = " ".join(str(e).split())[:300]
        return [Failure(trial.subject.name, check.name, f"{type(e).__name__}: {said} ({at.filename}, line {at.lineno})", "no error")]
    finally:
        torch.set_num_threads(threads)


def conformance(part: str, setting: Setting | None = None, /, **options: Any) -> None:
    """Check everything that a part promises: `conformance("acme.contrast", queue=64)`.

    `options` are the part's own; "{shards}" in one stands for the shards that it is tried on.  A small recipe is made around the part, its other
    slots filled with installed parts.  Raises ConformanceError with a line for each failure: part, hook, what it got, what it wanted.
    """
    try:
        trial = Trial(part, options, setting or Setting())
    except TwinviewError as e:
        raise ConformanceError([refused(part, e, "parts")]) from None
    found: list[Failure] = []
    for check in checks_of(trial.subject):
        found += failures_of(trial, check)
        if found and check.first:
            break
    if found:
        raise ConformanceError(found)
