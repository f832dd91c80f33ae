"""How the code is laid out: files and lines of each room, the longest file, files that import each other in a circle.

    python benchmarks/rooms.py [--root core/twinview]

Imports under TYPE_CHECKING and within functions count.  Whether imports run one way between rooms is `tests/test_imports.py`.
"""
from __future__ import annotations

import argparse
import ast
from collections import Counter
from pathlib import Path


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{a.name}" for a in node.names}
            found |= full & known | ({node.module} & known if full - known else set())
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names} & known
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which reaches all others of its group."""
    def reached(start: str) -> set[str]:
        seen, todo = set[str](), [start]
        while todo:
            for other in graph[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen

    reach = {name: reached(name) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]}
    return sorted(sorted(group) for group in groups)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--root", type=Path, default=Path("core/twinview"))
    root = asked.parse_args().root
    found = modules(root)
    face = root.name
    lines = {name: len(path.read_text().splitlines()) for name, path in found.items()}
    for depth, title in ((1, "rooms of the core"), (2, "rooms of data")):
        rooms, files = Counter[str](), Counter[str]()
        for name, n in lines.items():
            parts = name.split(".")
            if len(parts) > depth and (depth == 1 or parts[1] == "data"):
                rooms[parts[depth]] += n
                files[parts[depth]] += 1
        print(f"{title}: {len(rooms)}")
        for room, n in sorted(rooms.items(), key=lambda item: -item[1]):
            print(f"  {room:<16} {files[room]:>3} files {n:>6} lines")
    longest = max(lines, key=lambda name: lines[name])
    print(f"{len(lines)} files, {sum(lines.values())} lines, the longest {longest}: {lines[longest]}")
    graph = {name: imports(path, set(found)) - {name} for name, path in found.items() if name != face}
    graph = {name: others & graph.keys() for name, others in graph.items()}
    there = circles(graph)
    print(f"circles: {len(there)}, of {sum(map(len, there))} files")
    for group in there:
        print(f"  {', '.join(group)}")


if __name__ == "__main__":
    main()
