"""What is kept of requests, and where: as it is configured, and sent to workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from servestate.runtime.router.records.rotation import Rotation


@dataclass(frozen=True, slots=True)
class AccessLogConfig:
    """Where it is written, and when that file is full; `keep` older ones stay."""

    path: Path
    max_bytes: int = 64 << 20
    keep: int = 5


@dataclass(frozen=True, slots=True)
class BooksConfig:
    """What is kept beyond metrics. `access_log` None: none; `folder` is the site's, under which usage and
    inference tables get folders of their own, None: nowhere to put them; `otlp` is the URL of a collector of
    traces, "": none. `records` is how the files of usage and inference tables rotate."""

    access_log: AccessLogConfig | None = None
    folder: Path | None = None
    otlp: str = ""
    records: Rotation = field(default_factory=lambda: Rotation(64 << 20, keep=64, max_age_s=24 * 3600))
