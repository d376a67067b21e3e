# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The space estimate: how large a result will be, told from the extents alone, before anything is written."""

from typing import Iterable, NamedTuple

from .extent import ZERO, Extent


class Need(NamedTuple):
    """Bytes, rounded up: clusters that turn out to be all zeros are not written after all, and streams may be shorter."""

    guest: int  # guest bytes that the extents hold
    file: int  # bytes the result's file will occupy at most


def measure(
    extents: Iterable[Extent], *, cluster_size: int, virtual_size: int, tables: bool, entry_size: int = 8, backed: bool = False
) -> Need:
    """What a result with clusters of ``cluster_size`` bytes will need.

    :param tables: whether the result has L1, L2 and refcount tables (qcow2), or none (raw).
    :param entry_size: bytes of an L2 entry: 8, or 16 with extended L2 entries.
    :param backed: whether the result has a backing file, so that zeros need table entries too.
    """
    coverage = cluster_size // entry_size * cluster_size
    guest = clusters = l2_tables = 0
    last_cluster = last_table = -1
    for extent in extents:
        start, length, kind = extent[:3]
        end = start + length - 1
        if kind != ZERO:
            guest += length
            last = end // cluster_size
            if last > last_cluster:
                first = start // cluster_size
                clusters += last - (first if first > last_cluster else last_cluster + 1) + 1
                last_cluster = last
        elif not backed:
            continue
        if tables:
            last = end // coverage
            if last > last_table:
                first = start // coverage
                l2_tables += last - (first if first > last_table else last_table + 1) + 1
                last_table = last
    if not tables:
        return Need(guest, clusters * cluster_size)
    l1 = -(-8 * -(-virtual_size // coverage) // cluster_size)
    counted = 2 + clusters + l2_tables + l1
    blocks = 1 + -(-counted // (cluster_size // 2 - 1))
    return Need(guest, (counted + blocks + -(-8 * blocks // cluster_size)) * cluster_size)
