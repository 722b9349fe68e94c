"""What the files of a run are called, and how they get there whole. Nothing heavy is imported."""

import os
import re
import uuid
from pathlib import Path


def file_name(object_id: str) -> str:
    """An object's name as part of a file name on any system: letters, digits, ``.``, ``_`` and ``-``."""
    # 150: most file systems end at 255 bytes, and a stage, a suffix and an extension join it
    return re.sub(r"[^A-Za-z0-9._-]+", "_", object_id).lstrip(".")[:150] or "object"


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that at any moment it is the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
