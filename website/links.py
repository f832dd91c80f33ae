"""Every link of the built site leads somewhere: `python website/links.py build/site`.  Links to other sites are counted, and not asked for."""
from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect `href`, `src`, `id` and `name`."""
        for name, value in attrs:
            if value and name in ("href", "src") and tag in ("a", "img", "script", "link"):
                self.links.append(value)
            if value and name in ("id", "name"):
                self.anchors.add(value)


def broken(root: Path) -> tuple[list[str], int]:
    """Links that lead nowhere, and how many lead to other sites."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.html"))}
    wrong, outside = [], 0
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                outside += 1
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                wrong.append(f"{path.relative_to(root)}: {link}: there is no such file")
            elif parts.fragment and target in pages and not parts.fragment.startswith("__") and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f"{path.relative_to(root)}: {link}: there is no such place in that page")
    return wrong, outside


def main(folder: str) -> None:
    """Print what is broken; exit code 1 where anything is."""
    root = Path(folder).resolve()
    wrong, outside = broken(root)
    print("\n".join(wrong) or f"{folder}: all links within the site lead somewhere; {outside} lead to other sites")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(*sys.argv[1:])
