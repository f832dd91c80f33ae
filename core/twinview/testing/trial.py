"""What the checks of one part share: the model that was rehearsed with it, and the run that was made with it."""
from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from twinview.testing.rehearsal import Rehearsal, Still, new_folder, whole_run
from twinview.testing.subject import Setting, Subject, subject


class Trial:
    """A part, and what has been made with it so far; everything is made when it is first asked for."""

    def __init__(self, name: str, options: Mapping[str, Any], setting: Setting) -> None:
        """Raises RecipeError, PluginError where there is no such part."""
        self.subject: Subject = subject(name, options, setting)

    @cached_property
    def rehearsal(self) -> Rehearsal:
        """A run of the small recipe, all its steps taken one at a time."""
        made = Rehearsal(self.subject)
        for _ in made.steps():
            pass
        return made

    @cached_property
    def still(self) -> Still:
        """The model before its first step."""
        return Still(self.subject)

    @cached_property
    def run(self) -> tuple[Path, list[dict[str, float]]]:
        """A run's folder, and its rows."""
        folder = new_folder("run")
        return folder, whole_run(self.subject.recipe(), folder)
