# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""What comes from hosts as people see it: names of files are anybody's to choose, and must not do anything on a terminal, in a table or on a page."""

from __future__ import annotations

import typing as t
import unicodedata

# Control characters (C0, C1), marks that turn the direction of what follows or hide it, and breaks of lines and paragraphs.
_ACTING = ("Cc", "Cf", "Zl", "Zp")
# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@")


def visible(text: str) -> str:
    """A text in which nothing acts: each such character as ``\\xNN`` or ``\\uNNNN``, as an error message writes it."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) if unicodedata.category(character) in _ACTING else character for character in text)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def finalize(value: t.Any) -> t.Any:
    """The same for everything that a Jinja template prints, but for markup of its own."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def cell(value: t.Any) -> t.Any:
    """A value as a cell of a CSV table; a text that a spreadsheet would take for a formula has an apostrophe before it."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        value = "; ".join(str(item) for item in value)
    if isinstance(value, str):
        value = visible(value)
        return "'" + value if value.lstrip()[:1] in _FORMULA else value
    return value
