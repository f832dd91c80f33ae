"""One self-contained HTML page: no network, no library; what is written into it is escaped here and nowhere else."""
from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from twinview.analysis.report.curves import Chart
from twinview.terminal import printable
from twinview.version import __version__

if TYPE_CHECKING:
    from PIL import Image

QUALITY, WIDEST = 86, 1800  # of pictures, as JPEG: percent, pixels
BUDGET = 7_000_000  # bytes of all pictures; beyond it they are written smaller
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


class Picture(NamedTuple):
    """A figure of a page."""

    title: str
    picture: Image.Image
    caption: str = ""


class Section(NamedTuple):
    """A heading and what stands below it, HTML already."""

    title: str
    html: str


def text(value: object) -> str:
    """Any value, as HTML shows it plainly."""
    return escape(printable(value))


def page(title: str, head: str, sections: Sequence[Section], charts: Sequence[Chart] = (), *, live: bool = False) -> str:
    """The whole page.  `head`: HTML below the title, which a live page renews; `charts`: their section stands where a section is titled Curves."""
    here = files(__package__)
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    links = "".join(f'<a href="#s{n}">{text(section.title)}</a>' for n, section in enumerate(sections))
    body = "".join(f'<section id="s{n}"><h2>{text(section.title)}</h2>{section.html}</section>' for n, section in enumerate(sections))
    data = json.dumps({"charts": charts}, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><meta name="generator" content="twinview {text(__version__)}">'
        f'<title>{text(title)}</title><style>{style}</style></head><body{" data-live=1" if live else ""}><main>'
        f'<header><h1>{text(title)}</h1><button type="button" id="theme" title="light or dark">◐</button></header>'
        f'<div id="live">{head}</div><nav>{links}</nav>{body}</main>'
        f'<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>'
    )


CURVES = (
    '<div class="controls"><label>smooth <input type="range" id="smooth" min="0" max="100" value="0"></label>'
    '<button type="button" id="reset" hidden>whole run</button>'
    '<span class="faint">Drag over a curve to zoom, double-click for the whole run; click a name to hide its curve.</span></div>'
    '<div class="charts" id="charts"></div><noscript><p>The curves are drawn by a script in this page, which this reader does not run.</p></noscript>'
)


def figures(pictures: Sequence[Picture], quality: int = QUALITY, widest: int = WIDEST) -> str:
    """Pictures below one another."""
    made = []
    for one in pictures:
        heading = f"<h3>{text(one.title)}</h3>" if one.title else ""
        caption = f"<figcaption>{text(one.caption)}</figcaption>" if one.caption else ""
        made.append(f'<figure>{heading}<div class="wide">{image(one.picture, one.title, quality, widest)}</div>{caption}</figure>')
    return "".join(made)


def image(picture: Image.Image, alternative: str, quality: int = QUALITY, widest: int = WIDEST) -> str:
    """A picture within the page."""
    from PIL import Image as Pillow

    if picture.width > widest:
        picture = picture.resize((widest, round(picture.height * widest / picture.width)), Pillow.Resampling.LANCZOS)
    file = BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=quality, optimize=True)
    code = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{text(alternative)}" width="{picture.width}" height="{picture.height}" loading="lazy" src="data:image/jpeg;base64,{code}">'


def figure_sections(sections: Mapping[str, Sequence[Picture]]) -> list[Section]:
    """Pictures by section, smaller and rougher where they would be more than BUDGET together."""
    quality, widest = QUALITY, WIDEST
    while True:
        found = [Section(title, figures(pictures, quality, widest)) for title, pictures in sections.items() if pictures]
        if sum(len(section.html) for section in found) <= BUDGET or widest < 500:
            return found
        quality, widest = max(60, quality - 8), round(widest * 0.8)


def tiles(values: Mapping[str, object]) -> str:
    """Numbers to be seen at once."""
    return '<div class="tiles">' + "".join(f'<div class="tile"><b>{text(v)}</b><span>{text(k)}</span></div>' for k, v in values.items()) + "</div>"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = ()) -> str:
    """A table; `numbers`: columns whose values stand on the right."""
    def line(cells: Sequence[Any], tag: str) -> str:
        return "<tr>" + "".join(f'<{tag}{" class=n" if c in numbers else ""}>{text(v)}</{tag}>' for c, v in enumerate(cells)) + "</tr>"

    return f'<div class="scroll"><table><thead>{line(head, "th")}</thead><tbody>{"".join(line(row, "td") for row in rows)}</tbody></table></div>'
