"""Rows of results, a JSON line a run, with the commit and the code that made it: rows of other code are never passed off as of this one."""
from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import machine

ROOT = Path(__file__).resolve().parents[2]
CODE = ("core", "plugins")  # what a score depends on, beside the recipe; docs, tests and benchmarks may change

Row = dict[str, Any]


def code_hash(root: Path = ROOT, methods: Iterable[str] | None = None, also: Iterable[Path] = ()) -> str:
    """12 hex digits of the names and contents of all Python files that train: the same in every clone, whatever the commit is called.

    `methods`: only the plugins of these count (those that a recipe names), so that a new method changes nothing for the others.
    `also`: further files that count, those of the probes.
    """
    digest = hashlib.sha256()
    for file in [*(f for folder in _folders(methods) for f in sorted((root / folder).rglob("*.py"))), *also]:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def methods_of(recipe: Mapping[str, Any]) -> set[str]:
    """The methods (plugins) that a recipe's tables name in `use`; words without a dot are the core's."""
    found = set()
    for value in recipe.values():
        for table in value if isinstance(value, list) else [value]:
            if isinstance(table, Mapping):
                found |= methods_of(table)
    if "." in str(recipe.get("use", "")):
        found.add(str(recipe["use"]).partition(".")[0])
    return found


def table_hash(table: Mapping[str, Any]) -> str:
    """12 hex digits of a recipe's tables, or of whatever else a run was given."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:12]


def commit(root: Path = ROOT, methods: Iterable[str] | None = None) -> str:
    """The commit's short name, with a `+` where code that trains (`methods`: these) was changed since; `unknown` outside a git clone."""
    return machine.commit(root, _folders(methods))


def _folders(methods: Iterable[str] | None) -> list[str]:
    return list(CODE) if methods is None else [CODE[0], *(f"{CODE[1]}/twinview_{name}" for name in sorted(set(methods)))]


class Rows:
    """The rows of one file.  Only those of the code that is here count as made; the others stay in the file."""

    def __init__(self, path: Path, keys: Sequence[str], *, code: str | None = None, at: str | None = None) -> None:
        """`keys`: what tells runs apart (method, seed, ...), beside the hash of the recipe where a row has one."""
        self.path, self.keys = path, (*keys, "recipe_hash")
        self.code, self.commit = code or code_hash(), at or commit()
        self.rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def find(self, *, code: str | None = None, **key: Any) -> Row | None:
        """The row of this code (`code`, or the whole of it) for a run, if it was made.  Says loudly on stderr where only other code made one."""
        made = [row for row in self.rows if all(row.get(k) == key.get(k) for k in self.keys)]
        mine = [row for row in made if row.get("code") == (code or self.code)]
        if made and not mine:
            named = " ".join(str(key[k]) for k in self.keys if k in key and k != "recipe_hash")
            commits = ", ".join(dict.fromkeys(str(row.get("commit", "unknown")) for row in made))
            text = f"{named} is there, made with OTHER CODE (commit {commits}; here {self.commit}). It is made anew."
            print(f"!!! {self.path.name}: {text}", file=sys.stderr)
        return mine[-1] if mine else None

    def of_this_code(self) -> list[Row]:
        """The rows that the whole of this code made."""
        return [row for row in self.rows if row.get("code") == self.code]

    def by_commit(self) -> dict[str, list[Row]]:
        """All rows, by the commit that made them; those of before commits were written down under `unknown`."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.get("commit", "unknown"), []).append(row)
        return found

    def add(self, row: Row) -> Row:
        """Append a row to the file, with commit and code where it has none of its own, and give it back so."""
        full = {"code": self.code, **row, "commit": row.get("commit", self.commit)}
        self.rows.append(full)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(full) + "\n")
        return full
