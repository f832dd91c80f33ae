"""What mkdocs asks while it builds the site: two pages that are written from the code, and links that lead out of docs/."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import pages
from mkdocs.structure.files import File, Files

WRITTEN = {"reference/recipe.md": pages.recipe_page, "reference/parts.md": pages.parts_page}
OUTSIDE = {"../README.md": "index.md"}  # links that hold in the repository, and what they are here


def on_config(config: Any) -> Any:
    """Pages that the navigation does not name stand at its end: nothing is left out."""
    named = set(_paths(config.nav))
    docs = Path(config.docs_dir)
    left = [path.relative_to(docs).as_posix() for path in sorted(docs.rglob("*.md")) if path.relative_to(docs).as_posix() not in named]
    if left:
        config.nav.append({"More": left})
    return config


def _paths(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from _paths(inner)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are written from the code."""
    for path, write in WRITTEN.items():
        files.append(File.generated(config, path, content=write()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links out of docs/ to where the site has the same; those of test files and benchmarks are code, not links."""
    for link, here in OUTSIDE.items():
        markdown = markdown.replace(f"]({link})", f"]({here})")
    return markdown
