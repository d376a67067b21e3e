# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of an HTML page, as text: what a reader without scripts sees in them."""

import dataclasses
import html.parser
from typing import Optional


@dataclasses.dataclass
class Table:
    """``rows`` by the headings of the columns; under ``code`` the first piece of code of a row's first cell, where that has one."""

    caption: str = ""
    head: list[str] = dataclasses.field(default_factory=list)
    rows: list[dict[str, str]] = dataclasses.field(default_factory=list)


class _Reader(html.parser.HTMLParser):
    """End tags may be missing, as HTML allows: a cell ends where the next one, the next row or the end of the table begins."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self._inside = False
        self._text: Optional[list[str]] = None  # of the caption or cell that is being read
        self._cells: Optional[list[str]] = None
        self._in_head = False
        self._code: Optional[str] = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        if tag == "table":
            self.tables.append(Table())
            self._inside = True
        elif self._inside and tag in ("thead", "tbody", "tr"):
            self._end_row()
            self._in_head = tag == "thead" or (self._in_head and tag == "tr")
            self._cells = [] if tag == "tr" else None
        elif self._inside and tag in ("th", "td", "caption"):
            self._end_cell()
            self._text = []
        elif tag == "code" and self._cells == [] and self._code is None:
            self._code = ""

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)
            if self._code == "":
                self._code = data

    def handle_endtag(self, tag: str) -> None:
        if tag == "caption" and self._text is not None:
            self.tables[-1].caption, self._text = " ".join("".join(self._text).split()), None
        elif tag in ("tr", "thead", "tbody", "table"):
            self._end_row()
            self._inside = self._inside and tag != "table"

    def _end_cell(self) -> None:
        if self._text is not None and self._cells is not None:
            self._cells.append(" ".join("".join(self._text).split()))
        self._text = None

    def _end_row(self) -> None:
        self._end_cell()
        if self._cells:
            table = self.tables[-1]
            if self._in_head:
                table.head = self._cells
            else:
                table.rows.append(dict(zip(table.head, self._cells), code=self._code or ""))
        self._cells, self._code = None, None


def tables(page: str) -> list[Table]:
    """All tables of a page."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader.tables
