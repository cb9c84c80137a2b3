"""Where a monitor's rows go: a CSV file, a TensorBoard writer."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

_TAIL_BYTES = 1 << 16  # more than the longest row


class CsvFile:
    """A CSV file that gets whole rows under a fixed header; an existing one is continued.

    Args:
        path: the file; its folder is made.
        columns: the header. Of a row, other entries are not written.

    Raises:
        TypeError: `path` is no path.
        ValueError: the file has another header, and is left as it is.
        OSError: it cannot be written.
    """

    def __init__(self, path: str | Path, columns: Sequence[str]) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"csv must be a path, got {type(path).__name__}")
        self.path, self._columns = Path(path), list(columns)
        self._header = self._line(self._columns)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as file:
            self._check_header(file)
            self._mend(file)

    def __str__(self) -> str:
        return f"csv file {self.path}"

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row, with a header where the file is empty or gone."""
        with self._open() as file:
            self._mend(file)
            file.write(self._line([row.get(name, "") for name in self._columns]))

    def _open(self) -> BinaryIO:
        return self.path.open("a+b")

    def _line(self, values: Sequence[object]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        return text.getvalue().encode()

    def _check_header(self, file: BinaryIO) -> None:
        file.seek(0)
        first = file.readline()
        if not first.endswith(b"\n") and self._header.startswith(first):
            file.truncate(0)  # empty, or cut off while the header was written
            return
        found = _fields(first)
        if found != self._columns:
            raise ValueError(
                f"csv file {self.path} begins with {', '.join(found)!r:.200}, not with the columns "
                f"{', '.join(self._columns)!r}: it is left as it is; name another file"
            )

    def _mend(self, file: BinaryIO) -> None:
        """Ends the file with a newline: a row that was cut off is dropped, and a header is put in
        where nothing is left."""
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
        if not size:
            file.write(self._header)
        elif not tail.endswith(b"\n"):
            begin = tail.rfind(b"\n") + 1
            if len(_fields(tail[begin:])) == len(self._columns):
                file.write(b"\n")
            else:
                file.truncate(start + begin)


class ScalarWriter:
    """Anything with ``add_scalar(tag, value, step)``, as TensorBoard's SummaryWriter.

    Raises:
        TypeError: it has no such method.
    """

    def __init__(self, writer: Any) -> None:
        if isinstance(writer, type) or not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(
                "writer must have add_scalar(tag, value, step), as SummaryWriter(folder) has, got "
                f"{writer!r:.100}"
            )
        self._writer = writer

    def __str__(self) -> str:
        return f"writer {type(self._writer).__name__}"

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a scalar for each number of the row, under its name after ``norms/``."""
        for tag, value in scalars(row).items():
            self._writer.add_scalar(tag, value, row["step"])


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's numbers under ``norms/``, but for its step and a clip frequency that nobody knows."""
    return {
        f"norms/{name}": value
        for name, value in row.items()
        if name not in ("step", "worst_parameter")
        and not (name == "clip_frequency" and math.isnan(value))
    }


def _fields(line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8-sig", "replace").rstrip("\r\n")]), [])
    except csv.Error:
        return []
