"""A pytest plugin, there wherever twinview is installed: one test for each check of each part of a method.

    @pytest.mark.twinview("acme", options={"contrast": {"queue": 64}})
    def test_conforms(conform):
        conform()

Names of parts are without the method's.  `recipes` and `skip` of the mark are for the parts that need them: {part: tables} and {part: {check: why}}.
Checks that take a minute are made where pytest is called with `--conformance whole`.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from twinview.testing.trial import Trial


class _Case(NamedTuple):
    """A check of a part."""

    trial: Trial
    check: Any


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--conformance`."""
    group = parser.getgroup("twinview")
    group.addoption("--conformance", choices=("quick", "whole"), default="quick", help="checks of twinview's parts: quick ones, or all of them")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    config.addinivalue_line("markers", "twinview(method, options=, recipes=, skip=): the fixture `conform` checks every part of this method")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each check of each part of the method that the mark names."""
    if "conform" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("twinview")
    if mark is None or len(mark.args) != 1:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: the fixture `conform` wants a mark: @pytest.mark.twinview('METHOD').")
    cases, ids = _cases(mark.args[0], dict(mark.kwargs), metafunc.config.getoption("--conformance"), metafunc.definition.nodeid)
    metafunc.parametrize("conform", cases, ids=ids, indirect=True)


def _cases(method: str, given: dict[str, Any], extent: Any, where: str) -> tuple[list[_Case], list[str]]:
    from twinview.errors import TwinviewError
    from twinview.testing.conform import checks_of
    from twinview.testing.subject import Setting, parts_of
    from twinview.testing.trial import Trial

    tables = {name: given.pop(name, {}) for name in ("options", "recipes", "skip")}
    if given:
        raise pytest.UsageError(f"{where}: the mark `twinview` takes options, recipes and skip, not {sorted(given)[0]}.")
    try:
        names = [part.partition(".")[2] for part in parts_of(method)]
        unknown = sorted({part for table in tables.values() for part in table} - set(names))
        if unknown:
            raise pytest.UsageError(f"{where}: {method} has no part {unknown[0]!r}. There is: {', '.join(names)}.")
        cases = []
        for name in names:
            setting = Setting(extent=extent, recipe=tables["recipes"].get(name, {}), skip=tables["skip"].get(name, {}))
            trial = Trial(f"{method}.{name}", tables["options"].get(name, {}), setting)
            cases += [_Case(trial, check) for check in checks_of(trial.subject)]
    except (TwinviewError, ValueError) as e:
        raise pytest.UsageError(f"{where}: {e}") from None
    return cases, [f"{case.trial.subject.name}-{case.check.name.replace(' ', '_')}" for case in cases]


@pytest.fixture
def conform(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Make the check; a failure names part, hook, what was got and what was wanted."""
    from twinview.testing.conform import failures_of

    case: _Case = request.param

    def check() -> None:
        __tracebackhide__ = True
        found = failures_of(case.trial, case.check)
        if found:
            pytest.fail("\n".join(map(str, found)), pytrace=False)

    return check
