"""Rows to CSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allaprima.core.errors import SettingError
from allaprima.data.images import write_bytes_atomically


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """With a header, even without rows."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(columns or (rows[0] if rows else ())), lineterminator="\n")
    writer.writeheader()
    writer.writerows(dict(r) for r in rows)
    write_bytes_atomically(path, out.getvalue().encode("utf-8"))


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write Parquet. Raises `SettingError` where pyarrow isn't installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as e:
        raise SettingError("Parquet needs pyarrow: pip install 'allaprima[study]'.") from e
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(r) for r in rows]), sink)
    write_bytes_atomically(path, sink.getvalue())
