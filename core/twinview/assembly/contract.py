"""Watches the hook calls of one manager: what a hook gives is checked the first time, and what it raises names the part and the author's own line."""
from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pluggy

from twinview.assembly.answers import CHECKS, promised
from twinview.assembly.checks import CORE
from twinview.assembly.plugins import packages
from twinview.errors import ContractError, HookError, RecipeError, TwinviewError
from twinview.faults import explained

SINGLE = (  # one answer, not a list
    *("sample_views", "sample_views_batch", "draw_augment", "draw_augment_batch", "apply_augment", "make_masks", "make_encoder", "encode", "align"),
    "param_groups",
)
OPTIONAL = ("sample_views_batch", "draw_augment_batch", "make_masks", "param_groups")  # of these, those where None is an answer

EVERY_TIME = ("param_groups", "loss")  # asked once for each parameter; may end in another line when a part's time has come


class Contract:
    """Of one manager.  After the first call of a hook (by view and role) a call costs a look into a set: about two microseconds."""

    def __init__(self, manager: pluggy.PluginManager, place: Callable[[str], str], gives: Callable[[], frozenset[str]]) -> None:
        """`place`: of a part in the recipe, by its label; `gives`: what the traits of the recipe's encoder promise."""
        self._place, self._gives = place, gives
        self._seen: set[tuple[Any, ...]] = set()
        manager.add_hookcall_monitoring(lambda *_: None, self._after)

    def _after(self, outcome: pluggy.Result[Any], hook: str, impls: Sequence[Any], asked: Mapping[str, Any]) -> None:
        if outcome.exception is not None:
            self._raised(outcome, hook, impls)
            return
        key = (hook, *(impl.plugin_name for impl in impls), asked.get("view"), asked.get("role"), asked.get("online"), asked.get("target"))
        if key in self._seen or hook not in CHECKS:
            return
        if hook not in EVERY_TIME:
            self._seen.add(key)
        try:
            self._check(hook, outcome.get_result(), asked)
        except ContractError as e:
            outcome.force_exception(self._placed(e, hook, [impl for impl in impls if not impl.wrapper] or impls))

    def _check(self, hook: str, result: Any, asked: Mapping[str, Any]) -> None:
        if hook == "loss" and not result:
            raise ContractError("gives None. Give {term: scalar tensor}.")
        if hook in SINGLE and (result is not None or hook not in OPTIONAL):
            CHECKS[hook](result, asked)
        elif hook not in SINGLE:
            for answer in result:
                CHECKS[hook](answer, asked)
        if hook == "encode" and asked["hidden"] is None:
            promised(result, self._gives(), asked["branch"].encoder.spec)

    def _raised(self, outcome: pluggy.Result[Any], hook: str, impls: Sequence[Any]) -> None:
        error = outcome.exception
        if not isinstance(error, Exception) or (not isinstance(error, TwinviewError) and _for_the_engine(error)):
            return
        guilty = _guilty(error, impls)
        if isinstance(error, ContractError):
            outcome.force_exception(self._placed(error, hook, guilty))
        elif isinstance(error, RecipeError) and not str(error).startswith("["):
            outcome.force_exception(RecipeError(f"{self._who(guilty)}: {error}"))
        elif not isinstance(error, TwinviewError):
            outcome.force_exception(hook_error(error, f"{self._who(guilty)}: {_asked(hook, guilty)}"))

    def _placed(self, error: ContractError, hook: str, impls: Sequence[Any]) -> ContractError:
        return error if error.placed else ContractError(f"{self._who(impls)}: {_asked(hook, impls)} {error}", placed=True)

    def _who(self, impls: Sequence[Any]) -> str:
        return " or ".join(dict.fromkeys(self._place(impl.plugin_name) for impl in impls))


def hook_error(error: Exception, what: str) -> HookError:
    """One line with the author's own file and line, and the traceback from there on."""
    frames, plugins = traceback.extract_tb(error.__traceback__), packages()
    own = [i for i, (frame, _) in enumerate(traceback.walk_tb(error.__traceback__)) if _package(frame.f_globals) in plugins]
    at = frames[own[-1] if own else -1]
    said = " ".join(str(error).split())[:300]
    details = "".join(["Traceback of the part's own code:\n", *traceback.format_list(frames[own[0] if own else 0 :])])
    return HookError(f"{what} raises {type(error).__name__}{f': {said}' if said else ''} ({at.filename}, line {at.lineno}).", details.rstrip())


def _asked(hook: str, impls: Sequence[Any]) -> str:
    """The core answers `encode` by the recipe's encoder, which is then meant."""
    return "its module" if [impl.plugin_name for impl in impls] == [CORE] else f"{hook}()"


def _guilty(error: BaseException, impls: Sequence[Any]) -> Sequence[Any]:
    """Of the implementations that were asked, the one whose code the error passed through; all where that cannot be told."""
    codes = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    found = [impl for impl in impls if getattr(impl.function, "__code__", None) in codes]
    return found[-1:] or impls


def _for_the_engine(error: Exception) -> bool:
    """A GPU or a machine whose memory is full, a disk, a rank that is gone: the engine says what they mean for the run."""
    return type(error).__name__ == "OutOfMemoryError" or explained(error) is not None


def _package(names: Mapping[str, Any]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]
