"""Links from a page to files of its runs, and data inside of it."""

import json
import os
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote


def link(path: Path, root: Path) -> str:
    """A file's address relative to the folder of the page, ready for an attribute."""
    return escape(quote(Path(os.path.relpath(path.resolve(), root.resolve())).as_posix()))


def json_in_script(value: Any) -> str:
    """JSON that ends no script element whatever its texts are."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
