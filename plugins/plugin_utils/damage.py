# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""Damage of an image in two lines, with its ranges apart."""

from __future__ import annotations

import typing as t

Facts = t.Dict[str, t.Any]

_RANGES = 64
"""Ranges that are listed of one image; the others are counted."""


def of_check(check: Facts) -> Facts | None:
    """What a structure check has found: ``text`` and ``ranges``."""
    errors = [finding for finding in check.get("findings") or [] if finding.get("severity") == "error"]
    counts = [entry for kind, entry in (check.get("found") or {}).items() if kind in {finding["kind"] for finding in errors}]
    total = sum(entry["ranges"] for entry in counts) if counts else len(errors)
    return _told([(finding["start"], finding["length"], finding.get("offset"), str(finding["text"])) for finding in errors], total)


def of_result(result: Facts) -> Facts | None:
    """What made a conversion refuse an image, or what it has lost by ``salvage``; ``None`` where neither is the case."""
    listed = result.get("lost") or (result.get("details") or {}).get("ranges") or []
    ranges = [(one.get("start"), one.get("length") or 0, one.get("offset"), str(one.get("what") or "")) for one in listed]
    return _told(ranges, len(ranges))


_Range = t.Tuple[t.Optional[int], int, t.Optional[int], str]


def _told(ranges: list[_Range], total: int) -> Facts | None:
    if not ranges:
        return None
    texts = list(dict.fromkeys(text for _start, _length, _offset, text in ranges))
    first = texts[0] + (f", and {len(texts) - 1} more kinds of damage" if len(texts) > 2 else f"; {texts[1]}" if len(texts) == 2 else "")
    places = "1 place" if total == 1 else f"{total} places"
    lost = sum(length for start, length, _offset, _text in ranges if start is not None)
    second = f"{places}, {lost} bytes of the guest" if lost else places
    listed = [_range(*one) for one in ranges[:_RANGES]]
    if total > len(listed):
        listed.append(f"and {total - len(listed)} more")
    return {"text": f"{first}\n{second}", "ranges": listed}


def _range(start: int | None, length: int, offset: int | None, text: str) -> str:
    where = f"guest bytes {start} to {start + length - 1}: " if start is not None and length else ""
    return where + text + ("" if offset is None else f" (file offset {offset})")
