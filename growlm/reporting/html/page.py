"""Render the HTML file from the page data, the assets and plotly.js."""

from __future__ import annotations

import base64
import functools
import gzip
import html
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from growlm.runtime.escaping import escape_unprintable, escape_unprintable_data

ASSETS_DIR = Path(__file__).with_name("assets")
SCRIPTS = (
    "elements.js",
    "theme.js",
    "plotting.js",
    "ticks.js",
    "tables.js",
    "loss_plot.js",
    "boundaries.js",
    "measures.js",
    "routers.js",
    "run.js",
    "final_losses.js",
    "comparison.js",
    "main.js",
)
"""Scripts in the order in which they are run."""
PLACEHOLDER = re.compile(r"\{\{ (\w+) \}\}")


def render_page(data: dict[str, Any]) -> str:
    """Return the self-contained HTML page, in ASCII whatever the data contain."""
    parts: dict[str, Callable[[], str]] = {
        "title": lambda: html.escape(escape_unprintable(str(data["title"]))),
        "style": lambda: _read_asset("style.css"),
        "data": lambda: to_script_json(data),
        "plotly": compress_plotly,
        "script": lambda: "\n".join(_read_asset(name) for name in SCRIPTS),
    }
    # In one pass, so that text inside a part is never taken for a placeholder.
    page = PLACEHOLDER.sub(lambda match: parts[match[1]](), _read_asset("page.html"))
    return page.encode("ascii", "xmlcharrefreplace").decode()


def to_script_json(data: Any) -> str:
    """Return JSON that is safe inside a script element: markup and control characters are escaped."""
    text = json.dumps(escape_unprintable_data(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def compress_plotly() -> str:
    """Return plotly.js from the plotly package, compressed and base64-encoded."""
    spec = find_spec(
        "plotly"
    )  # locates the package without importing it, which would take a second
    assert spec is not None
    assert spec.submodule_search_locations
    library = Path(next(iter(spec.submodule_search_locations)), "package_data", "plotly.min.js")
    code = _strip_module_wrapper(library.read_text(encoding="utf-8"))
    # A few Chinese month names would make the browser store the whole script with two bytes per character.
    ascii_code = code.encode("ascii", "backslashreplace")
    return base64.b64encode(gzip.compress(ascii_code, 6, mtime=0)).decode()


def _strip_module_wrapper(code: str) -> str:
    """Remove the wrapper function for module loaders, which makes browsers parse the whole script twice.

    The second parse takes a third of the time to the first plot. Code of another form is returned unchanged.
    """
    header = re.match(r"/\*.*?\*/\n", code, re.DOTALL)
    start, end = code.find('"use strict";var Plotly='), code.rfind("window.Plotly = Plotly;")
    if header is None or start < 0 or end < start:
        return code
    return f"{header[0]}{code[start:end]}window.Plotly = Plotly;"


def _read_asset(name: str) -> str:
    return (ASSETS_DIR / name).read_text(encoding="utf-8")
