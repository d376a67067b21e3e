# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which formats a text states for an image that one of its lines names. Who states a format is not always to be known: in doubt it counts. Pure."""

import bisect
import re
from typing import Dict, List, NamedTuple, Tuple

from .._libvirt.option_text import MOST_OCCURRENCES, Span, may_state, neighbouring, stated, stated_anywhere, uncommented


class Stated(NamedTuple):
    """A format that is stated."""

    format: str  # in small letters: qcow, qcow2 or raw
    line: int  # counted from 1
    text: bytes  # that line as it is
    span: Span  # where in it


_AROUND = 10  # lines before, and after
_MOST_CONTINUED = 40  # lines of a command
_MOST_LOOKED_AT = 2048  # bytes of a line
_MOST_STATED = 8

_SECTION = re.compile(rb"\[+[\w\"'. :-]+\]+\s*\Z")
_PATH = re.compile(rb"(?<!<)/[\w.]")


class Formats:
    """The formats that the lines of a text state, each line looked at once."""

    def __init__(self, lines: List[bytes]) -> None:
        self._lines = lines
        self._bearing = [number for number, line in enumerate(lines) if may_state(line)]
        self._cached: Dict[int, Tuple[Span, ...]] = {}

    def of(self, number: int, names: List[Span]) -> Tuple[Stated, ...]:
        """What is stated for an image: in the line that names it, else in those around it; qcow first.

        :param number: of the line, from 0.
        :param names: where it stands there.
        """
        line = self._lines[number]
        found = {self._stated(number, span) for span in (stated(line, name) for name in names) if span is not None}
        if len(names) >= MOST_OCCURRENCES:
            found |= {self._stated(number, span) for span in stated_anywhere(line)}
        if not found:
            found = {self._stated(place, span) for place in self._places(number) for span in self._in(place)}
        return tuple(sorted(found, key=lambda one: (one.format != "qcow", abs(one.line - 1 - number), one))[:_MOST_STATED])

    def _stated(self, place: int, span: Span) -> Stated:
        text = self._lines[place]
        return Stated(text[slice(*span)].decode("ascii").lower(), place + 1, text, span)

    def _in(self, place: int) -> Tuple[Span, ...]:
        if place not in self._cached:
            line = self._lines[place]
            self._cached[place] = tuple(neighbouring(line[: _depth(line) + _MOST_LOOKED_AT]))
        return self._cached[place]

    def _places(self, number: int) -> List[int]:
        """The lines of the same command, and those of the same group within some lines, that state any format."""
        near = bisect.bisect_left(self._bearing, number - _MOST_CONTINUED)
        if near == len(self._bearing) or self._bearing[near] > number + _MOST_CONTINUED:
            return []
        depth = _depth(self._lines[number])
        return [place for step in (1, -1) for place in self._walk(number, depth, step)]

    def _walk(self, number: int, depth: int, step: int) -> List[int]:
        found: List[int] = []
        place, command, group = number, True, 0
        while 0 <= place + step < len(self._lines) and abs(place - number) < _MOST_CONTINUED:
            if step < 0 and not command and _begins(self._lines[place], depth):
                break
            place += step
            command = command and self._lines[place if step < 0 else place - 1].endswith((b"\\", b"\\\r"))
            if not command:
                group += 1
                if group > _AROUND or (step > 0 and _begins(self._lines[place], depth)):
                    break
            if self._in(place) and (command or not _is_whole(self._lines[place])):
                found.append(place)
        return found


def _begins(line: bytes, depth: int) -> bool:
    """Whether another group begins, or this one ends, with this line."""
    bare = line[: depth + _MOST_LOOKED_AT].strip()
    if bare.startswith((b"[", b"- ", b"<", b"{", b"}")):
        if _SECTION.match(bare):
            return True
        if len(line) - len(line.lstrip()) < depth:
            return bare.startswith((b"- ", b"<")) or bare in (b"{", b"}, {", b"},{")
    return False


def _is_whole(line: bytes) -> bool:
    """Whether a line names another file and is complete in itself: an item of a list, an element, an object."""
    bare = uncommented(line[: _depth(line) + _MOST_LOOKED_AT]).strip()
    return bare.startswith((b"{", b"<")) and _PATH.search(bare) is not None


def _depth(line: bytes) -> int:
    """How far a line is indented; the dash of a list's item counts as space."""
    bare = line.lstrip()
    return len(line) - len(bare[2:].lstrip() if bare.startswith(b"- ") else bare)
