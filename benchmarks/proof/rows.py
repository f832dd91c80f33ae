"""Rows of results, a JSON line a run, with the commit and the code that made it: rows of other code are never passed off as of this one."""
from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CODE = ("core", "plugins")  # what a score depends on, beside the recipe; docs, tests and benchmarks may change

Row = dict[str, Any]


def code_hash(root: Path = ROOT) -> str:
    """12 hex digits of the names and contents of all Python files that train: the same in every clone, whatever the commit is called."""
    digest = hashlib.sha256()
    for file in sorted(f for folder in CODE for f in (root / folder).rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def table_hash(table: Mapping[str, Any]) -> str:
    """12 hex digits of a recipe's tables, or of whatever else a run was given."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:12]


def commit(root: Path = ROOT) -> str:
    """The commit's short name, with a `+` where code that trains was changed since; `unknown` outside a git clone."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "--short=7", "HEAD") + ("+" if git("status", "--porcelain", "--", *CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Rows:
    """The rows of one file.  `mine` are those of this code; the others stay in the file and are left out of every table."""

    def __init__(self, path: Path, keys: Sequence[str], *, code: str | None = None, at: str | None = None) -> None:
        """`keys`: what tells runs apart (method, seed, ...), with the hash of the recipe where a row has one."""
        self.path, self.keys = path, (*keys, "recipe_hash")
        self.code, self.commit = code or code_hash(), at or commit()
        self.mine: list[Row] = []
        self.others: list[Row] = []
        lines = path.read_text().splitlines() if path.is_file() else []
        for row in map(json.loads, lines):
            (self.mine if row.get("code") == self.code else self.others).append(row)

    def warn(self) -> None:
        """Say loudly, on stderr, that rows of other code are there."""
        if self.others:
            made = ", ".join(sorted({str(row.get("commit", "unknown")) for row in self.others}))
            text = f"{self.path.name}: {len(self.others)} rows were made with other code (commit {made}); this is {self.commit}, code {self.code}."
            print(f"!!! {text}\n!!! They are NOT used: what is missing is trained anew.", file=sys.stderr)

    def find(self, **key: Any) -> Row | None:
        """The row of this code for this run, if it was made."""
        return next((row for row in self.mine if all(row.get(k) == key.get(k) for k in self.keys)), None)

    def add(self, row: Row) -> Row:
        """Append a row to the file, with commit and code, and give it back so."""
        full = {**row, "commit": self.commit, "code": self.code}
        self.mine.append(full)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(full) + "\n")
        return full
