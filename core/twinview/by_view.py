"""Values of views that are made when they are asked for."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any


class ByView(Sequence[Any]):
    """One value per view, each made when first asked for."""

    def __init__(self, n: int, make: Callable[[int], Any]) -> None:
        self._n, self._make, self._made = n, make, dict[int, Any]()

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, view: Any) -> Any:
        if not -self._n <= view < self._n:
            raise IndexError(f"there is no view {view}; there are {self._n}")
        view %= self._n
        if view not in self._made:
            self.put(view, self._make(view))
        return self._made[view]

    def __contains__(self, view: object) -> bool:
        """Whether it has been made."""
        return view in self._made

    def put(self, view: int, value: Any) -> None:
        """What has been made with another."""
        self._made[view] = value

    def made(self) -> Iterator[Any]:
        """What has been made so far, by view."""
        return iter([self._made[v] for v in sorted(self._made)])

    def replace(self, change: Callable[[Any], Any]) -> None:
        """Change what has been made."""
        self._made = {view: change(value) for view, value in self._made.items()}
