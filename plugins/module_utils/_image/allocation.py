# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A ledger of file bytes: who owns what, where two own the same, and what nobody owns.

A range set takes the ranges of one class of owners in any order. Sorting where ranges begin and where they end, each by itself, is enough to
know how many owners any byte has; so a range costs 16 bytes, whatever it belongs to.
"""

import heapq
import re
from array import array
from itertools import islice
from operator import lt
from typing import Any, Iterable, Iterator, Optional, Tuple

MOST_RANGES = 1000000
"""Ranges in memory at a time: 16 MB, and twice as much while they are sorted."""

MOST_CLASHES = 1024
"""Ranges with two owners that are remembered; the others are only counted."""

MOST_MARKS = 4 << 20
"""Clusters of the file whose owners are counted one by one: 4 MiB, and eight times as much where every other one has none."""

_ANY = re.compile(b"[^\\0]+")
_TWICE = re.compile(b"\\x02+")
_SORTED_AT_ONCE = 600000
_END = 1 << 64

Ranges = Tuple[array, array]
"""``(starts, ends)`` in bytes, ascending and without overlaps; neighbours that touch are one."""


class RangeSet:
    """The ranges of one class of owners. ``starts`` and ``ends`` (exclusive), in bytes, may be appended to directly, always both."""

    def __init__(self) -> None:
        self.starts = array("Q")
        self.ends = array("Q")
        self._shared: Optional[RangeSet] = None

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, start: int, end: int) -> None:
        """Take in the range [start, end); an empty one is left out."""
        if start < end:
            self.starts.append(start)
            self.ends.append(end)

    def trim(self, first: int, low: int, high: int) -> None:
        """Of the ranges from number ``first`` on, keep what lies in [low, high)."""
        starts, ends = self.starts[first:], self.ends[first:]
        del self.starts[first:]
        del self.ends[first:]
        for start, end in zip(starts, ends):
            self.add(max(start, low), min(end, high))

    def compact(self) -> None:
        """Say the same in fewer ranges where possible."""
        owned, shared = self.resolve()
        self.starts, self.ends = owned
        if shared[0]:
            self._shared = RangeSet()
            self._shared.starts, self._shared.ends = shared

    @property
    def weight(self) -> int:
        """Ranges it holds in memory."""
        return len(self.starts) + (len(self._shared) if self._shared is not None else 0)

    def middle(self) -> int:
        """A byte before which about half of its ranges begin, once it is compact."""
        starts = self.starts if self._shared is None or len(self) > len(self._shared) else self._shared.starts
        return starts[len(starts) // 2]

    def narrow(self, high: int) -> None:
        """Forget everything at and after ``high``."""
        self.trim(0, 0, high)
        if self._shared is not None:
            self._shared.narrow(high)

    def resolve(self) -> Tuple[Ranges, Ranges]:
        """``(owned, shared)``: the bytes with an owner, and those with more than one. Empties it."""
        earlier, self._shared = self._shared, None
        owned, shared = self._resolve()
        if earlier is not None:
            earlier.starts.extend(shared[0])
            earlier.ends.extend(shared[1])
            shared = earlier._resolve()[0]
        return owned, shared

    def _resolve(self) -> Tuple[Ranges, Ranges]:
        self.starts = in_order(self.starts)
        self.ends = in_order(self.ends)
        starts, ends = self.starts, self.ends
        self.starts, self.ends = array("Q"), array("Q")
        if any(map(lt, islice(starts, 1, None), ends)):
            return _sweep(starts, ends)
        owned = array("Q"), array("Q")
        if starts:
            borders = array("Q", (index for index, (start, end) in enumerate(zip(islice(starts, 1, None), ends)) if start != end))
            owned[0].append(starts[0])
            owned[0].extend(starts[index + 1] for index in borders)
            owned[1].extend(ends[index] for index in borders)
            owned[1].append(ends[-1])
        return owned, (array("Q"), array("Q"))


def in_order(values: array) -> array:
    """The same numbers ascending; a long array is sorted in parts (and left in that state), so that the memory for it stays bounded."""
    if len(values) <= _SORTED_AT_ONCE:
        return array("Q", sorted(values))
    parts = []
    for first in range(0, len(values), _SORTED_AT_ONCE):
        values[first : first + _SORTED_AT_ONCE] = array("Q", sorted(values[first : first + _SORTED_AT_ONCE]))
        parts.append(islice(values, first, first + _SORTED_AT_ONCE))
    return array("Q", heapq.merge(*parts))


def _sweep(starts: array, ends: array) -> Tuple[Ranges, Ranges]:
    owned = array("Q"), array("Q")
    shared = array("Q"), array("Q")
    position = depth = 0
    count = len(starts)
    for end in ends:
        while position < count and starts[position] < end:
            depth += 1
            if depth <= 2:
                _open(owned if depth == 1 else shared, starts[position])
            position += 1
        depth -= 1
        if depth == 0:
            owned[1].append(end)
        elif depth == 1:
            shared[1].append(end)
    return owned, shared


def _open(ranges: Ranges, start: int) -> None:
    if ranges[1] and ranges[1][-1] == start:
        ranges[1].pop()
    else:
        ranges[0].append(start)


def pairs(ranges: Ranges) -> Iterator[Tuple[int, int]]:
    """The ranges one by one: ``(start, end)``."""
    return zip(*ranges)


def common(one: Ranges, other: Ranges) -> Ranges:
    """The bytes that both have."""
    starts, ends = array("Q"), array("Q")
    left = right = 0
    while left < len(one[0]) and right < len(other[0]):
        start = max(one[0][left], other[0][right])
        end = min(one[1][left], other[1][right])
        if start < end:
            starts.append(start)
            ends.append(end)
        if one[1][left] < other[1][right]:
            left += 1
        else:
            right += 1
    return starts, ends


def gaps(parts: Iterable[Ranges], low: int, high: int) -> Iterator[Tuple[int, int]]:
    """``(start, end)`` of the bytes in [low, high) that none of ``parts`` has."""
    position = low
    for start, end in heapq.merge(*map(pairs, parts)):
        if start > position:
            yield position, min(start, high)
        if end > position:
            position = end
        if position >= high:
            return
    if position < high:
        yield position, high


class Clashes:
    """Where two own the same bytes: ``total`` bytes, of which the first :data:`MOST_CLASHES` ranges are known."""

    def __init__(self) -> None:
        self.total = 0
        self._found = RangeSet()
        self._ranges: Optional[Ranges] = None

    def add(self, ranges: Ranges) -> None:
        """Take in more of them."""
        for start, end in pairs(ranges):
            self.total += end - start
            if len(self._found) < MOST_CLASHES:
                self._found.add(start, end)

    def ranges(self) -> Ranges:
        """The known ones; nothing can be added any more."""
        if self._ranges is None:
            self._ranges = self._found.resolve()[0]
        return self._ranges


def _weight(ranges: RangeSet) -> int:
    return ranges.weight


class Ledger:
    """Who owns which bytes of a file, in as many passes as memory asks for; each pass must enter everything again.

    Range sets: ``tables`` (and header, name), ``data`` (clusters), ``streams`` (compressed ones), ``padding`` (room that belongs to one of
    these, and may belong to another one too). Single clusters at their natural place need not go through a range set: ``marks`` counts the
    owners of each cluster of the file, up to two, one byte for each. To be marked in the first pass only.
    """

    def __init__(self, file_size: int, cluster_bits: int) -> None:
        self.tables, self.data, self.streams, self.padding = self._sets = [RangeSet() for _number in range(4)]
        self.marks = bytearray(min(file_size >> cluster_bits, MOST_MARKS))
        self.overlaps = Clashes()  # a table or the header, and something else
        self.links = Clashes()  # two clusters
        self._bits = cluster_bits
        self._file_size = file_size
        self._low = 0
        self._high = _END
        self._batch = [0] * 4
        self._gap = None  # type: Optional[Tuple[int, int]]

    @property
    def complete(self) -> bool:
        """Whether no other pass is needed."""
        return self._low >= max(1, self._file_size)

    def has_marks_for(self, offset: int) -> bool:
        """Whether the cluster at a byte of the file is among those that can be marked."""
        return offset >> self._bits < len(self.marks)

    def mark(self, entries: array) -> int:
        """Mark the clusters that a table names, each at a multiple of its size; 0 names none. Returns in how many runs they lie."""
        bits, cluster, marks = self._bits, 1 << self._bits, self.marks
        runs = 0
        expected = -1
        for entry in entries:
            if entry:
                place = entry >> bits
                if marks[place] < 2:
                    marks[place] += 1
                if entry != expected:
                    runs += 1
                expected = entry + cluster
            else:
                expected = -1
        return runs

    def end_batch(self) -> None:
        """To be called after every few thousand entries: makes room where there are too many."""
        if self._low or self._high < _END:
            for ranges, first in zip(self._sets, self._batch):
                ranges.trim(first, self._low, self._high)
        if sum(ranges.weight for ranges in self._sets) > MOST_RANGES:
            for ranges in self._sets:
                ranges.compact()
            if sum(ranges.weight for ranges in self._sets) > MOST_RANGES // 2:
                self._high = max(max(self._sets, key=_weight).middle(), self._low + 1)
                for ranges in self._sets:
                    ranges.narrow(self._high)
        self._batch = [len(ranges) for ranges in self._sets]

    def resolve(self) -> Iterator[Tuple[int, int]]:
        """End a pass. Yields ``(start, end)`` of the bytes that nobody owns."""
        self.end_batch()
        (tables, twice_tables), (data, twice_data), (streams, twice_streams), (padding, _any) = [ranges.resolve() for ranges in self._sets]
        self._batch = [0] * 4
        marked = self._marked(_ANY)
        for clash in (twice_tables, common(tables, data), common(tables, streams), common(tables, marked)):
            self.overlaps.add(clash)
        for clash in (twice_data, twice_streams, common(data, streams), common(data, marked), common(streams, marked)):
            self.links.add(clash)
        if not self._low:
            self.links.add(self._marked(_TWICE))
        low, high = self._low, min(self._high, self._file_size)
        self._low, self._high = self._high, _END
        for start, end in gaps([tables, data, streams, padding, marked], low, high):
            if self._gap is not None and self._gap[1] != start:
                yield self._gap
            elif self._gap is not None:
                start = self._gap[0]
            self._gap = start, end
        if self.complete and self._gap is not None:
            yield self._gap

    def _marked(self, pattern: Any) -> Ranges:
        """The ranges of the file in which ``pattern`` finds runs of marks."""
        starts, ends = array("Q"), array("Q")
        if self.marks.count(0) == len(self.marks):
            return starts, ends  # told in a hundredth of the time
        for run in pattern.finditer(self.marks):
            starts.append(run.start() << self._bits)
            ends.append(run.end() << self._bits)
        return starts, ends
