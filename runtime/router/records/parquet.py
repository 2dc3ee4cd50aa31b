"""Rows of an inference table as Parquet files, by pyarrow, which is an extra and imported here alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_MISSING = (
    "an inference table in the format parquet needs pyarrow, which is not installed\n"
    "  fix: pip install 'servestate[parquet]', or set inference_table.format: jsonl"
)


def check() -> None:
    """Raises ValueError, saying what to do, where such files cannot be written."""
    if find_spec("pyarrow") is None:
        raise ValueError(_MISSING)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a file of rows as `payloads.row` makes them. Raises OSError."""
    import pyarrow  # type: ignore[import-untyped]  # it ships no types
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    schema = pyarrow.schema(
        [
            ("request_date", pyarrow.date32()),
            ("databricks_request_id", pyarrow.string()),
            ("client_request_id", pyarrow.string()),
            ("request_time", pyarrow.timestamp("ms", tz="UTC")),
            ("status_code", pyarrow.int32()),
            ("sampling_fraction", pyarrow.float64()),
            ("execution_duration_ms", pyarrow.int64()),
            ("request", pyarrow.string()),
            ("response", pyarrow.string()),
            ("served_entity_id", pyarrow.string()),
            ("logging_error_codes", pyarrow.list_(pyarrow.string())),
            ("requester", pyarrow.string()),
            ("request_metadata", pyarrow.map_(pyarrow.string(), pyarrow.string())),
        ]
    )
    # What people said is for nobody else to read, whatever the umask.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), file, compression="zstd")
