"""An HTML page that opens offline, with its pictures inside."""

import base64
import html
from collections.abc import Iterable

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; padding: 1rem; max-width: 1160px; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ddd; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.2rem; }
figure { margin: 0; } figure img { width: 100%; max-width: 40rem; height: auto; display: block; }
figcaption { font-size: .9rem; color: #444; }
.table { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e5e5e5; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } th { background: #f6f6f6; }
.facts td { text-align: left; overflow-wrap: anywhere; } .facts td:first-child { overflow-wrap: normal; }
@media (max-width: 600px) { th, td { padding: .2rem .4rem; } table { font-size: .8rem; } }
"""


def picture(title: str, png: bytes, caption: str) -> str:
    """Return a picture with its title and caption."""
    data = base64.b64encode(png).decode()
    return (f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
            f"<figcaption><b>{html.escape(title)}.</b> {html.escape(caption)}</figcaption></figure>")


def pictures(figures: Iterable[str]) -> str:
    """Return figures side by side, as many as the screen has room for."""
    return f'<div class="pictures">{"".join(figures)}</div>'


def table(head: list[str], rows: list[list[object]], kind: str = "") -> str:
    """Return a table; floats must be text already."""
    def line(cells: Iterable[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="table {kind}"><table>{line(head, "th") if head else ""}{body}</table></div>'


def section(title: str, *parts: str) -> str:
    """Return a section."""
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def page(title: str, parts: list[str]) -> str:
    """Return the page."""
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
            f'initial-scale=1"><title>{html.escape(title)}</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>'
            f"{''.join(parts)}</body></html>\n")
