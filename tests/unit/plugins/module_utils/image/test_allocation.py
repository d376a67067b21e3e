# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger against counting owners byte by byte."""

import hypothesis.strategies as st
from hypothesis import given

from ansible_collections.vmimage.qcow.plugins.module_utils._image import allocation

SIZE = 200
RANGES = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 40)).map(lambda pair: (pair[0], min(sum(pair), SIZE))), max_size=30)


def counted(ranges):
    owners = [0] * SIZE
    for start, end in ranges:
        for place in range(start, end):
            owners[place] += 1
    return owners


def where(flags):
    """``(start, end)`` of the runs of true values."""
    edges = [place for place in range(len(flags) + 1) if (place < len(flags) and flags[place]) != (place > 0 and flags[place - 1])]
    return list(zip(edges[::2], edges[1::2]))


def range_set_of(ranges):
    range_set = allocation.RangeSet()
    for start, end in ranges:
        range_set.add(start, end)
    return range_set


@given(RANGES)
def test_owned_and_shared(ranges):
    owned, shared = range_set_of(ranges).resolve()
    owners = counted(ranges)
    assert list(allocation.pairs(owned)) == where([count > 0 for count in owners])
    assert list(allocation.pairs(shared)) == where([count > 1 for count in owners])


@given(RANGES, RANGES)
def test_said_shorter_it_says_the_same(first, second):
    range_set = range_set_of(first)
    range_set.compact()
    for start, end in second:
        range_set.add(start, end)
    range_set.compact()
    assert range_set.resolve() == range_set_of(first + second).resolve()


@given(RANGES, RANGES)
def test_common_and_gaps(first, second):
    one, other = range_set_of(first).resolve()[0], range_set_of(second).resolve()[0]
    left, right = counted(first), counted(second)
    both = {place for start, end in allocation.pairs(allocation.common(one, other)) for place in range(start, end)}
    assert both == {place for place in range(SIZE) if left[place] and right[place]}
    assert list(allocation.gaps([one, other], 0, SIZE)) == where([not (left[place] or right[place]) for place in range(SIZE)])
    assert list(allocation.gaps([one, other], 50, 90)) == [
        (max(start, 50), min(end, 90))
        for start, end in where([not (left[place] or right[place]) for place in range(SIZE)])
        if start < 90 and end > 50
    ]


@given(RANGES, RANGES, RANGES, st.integers(2, 30))
def test_passes_find_what_one_look_finds(tables, data, streams, room):
    def run(most):
        earlier, allocation.MOST_RANGES = allocation.MOST_RANGES, most
        try:
            book = allocation.Ledger(SIZE, 3)
            gaps = []
            passes = 0
            while not book.complete:
                passes += 1
                assert passes <= SIZE, "no progress"
                for range_set, ranges in ((book.tables, tables), (book.data, data), (book.streams, streams)):
                    for start, end in ranges:
                        range_set.add(start, end)
                        book.end_batch()
                gaps.extend(book.resolve())
            return gaps, book.overlaps.total, book.links.total, book.overlaps.ranges(), book.links.ranges()
        finally:
            allocation.MOST_RANGES = earlier

    assert run(room) == run(10**6)


def test_long_arrays_are_sorted_in_parts(monkeypatch):
    monkeypatch.setattr(allocation, "_SORTED_AT_ONCE", 7)
    values = [number * 7919 % 1000 for number in range(100)]
    assert list(allocation.in_order(allocation.array("Q", values))) == sorted(values)
