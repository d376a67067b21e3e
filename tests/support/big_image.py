# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Large QCOW version 1 images for benchmarks, written as a stream: gigabytes in seconds, a few MiB of memory.

Every cluster of a plain image begins with its own number, so a cluster in the wrong place never compares equal.
"""

import os
import random
import struct
from typing import Iterator, Union

from ansible_collections.vmimage.qcow.tests.support.builder import compressed_entry, deflate, header

CLUSTER_BITS = 12
L2_BITS = 9
CLUSTER = 1 << CLUSTER_BITS
TABLE_CLUSTERS = 1 << L2_BITS
POOL_CLUSTERS = 2048
STAMP = struct.Struct("<QQ")
HEADER_SIZE = 48
Path = Union[str, bytes, os.PathLike]


def write_dense(path: Path, size: int, *, shuffled: bool = False, compressed: bool = False, seed: int = 0) -> None:
    """Write an image of ``size`` guest bytes (a multiple of 4096), every cluster of it allocated, 4 KiB clusters.

    ``shuffled``: the clusters lie in the file in an order drawn from ``seed``, as in a disk used for years; otherwise in guest order
    with each L2 table before its clusters, as ``qemu-img convert`` leaves it. ``compressed``: every cluster is a byte-packed stream.
    """
    if size % CLUSTER or size <= 0:
        raise ValueError("the size of a dense image must be a multiple of %d, not %d" % (CLUSTER, size))
    count = size // CLUSTER
    with open(path, "wb", buffering=8 << 20) as target:
        if compressed:
            _write_compressed(target, count, seed)
        elif shuffled:
            _write_shuffled(target, count, seed)
        else:
            _write_ordered(target, count, seed)


def dense_guest(size: int, *, compressed: bool = False, seed: int = 0) -> Iterator[bytes]:
    """The guest bytes of the image ``write_dense`` makes from the same arguments, in pieces of whole clusters, in order."""
    pool = _pool(seed, text=compressed)
    count = size // CLUSTER
    for first in range(0, count, POOL_CLUSTERS):
        clusters = range(first, min(first + POOL_CLUSTERS, count))
        if compressed:
            yield bytes(pool[: len(clusters) * CLUSTER])
        else:
            yield bytes(_stamped(pool, clusters))


def _pool(seed: int, *, text: bool) -> bytearray:
    source = random.Random(seed)
    if not text:
        return bytearray(source.randbytes(POOL_CLUSTERS * CLUSTER))
    # About 2:1 under DEFLATE, roughly what a filesystem full of programs gives.
    words = [source.randbytes(24) for _number in range(256)]
    pieces = source.choices([word[:length] for word in words for length in range(4, 25)], k=POOL_CLUSTERS * 340)
    return bytearray(b"".join(pieces)[: POOL_CLUSTERS * CLUSTER])


def _stamped(pool: bytearray, clusters: range) -> memoryview:
    for position, number in enumerate(clusters):
        STAMP.pack_into(pool, position * CLUSTER, number, ~number & 0xFFFFFFFFFFFFFFFF)
    return memoryview(pool)[: len(clusters) * CLUSTER]


def _front(count: int) -> tuple[bytes, int]:
    """The header, and the offset of the first table: behind the L1 table, which follows the header."""
    tables = -(-count // TABLE_CLUSTERS)
    start = -(-(HEADER_SIZE + 8 * tables) // CLUSTER) * CLUSTER
    return header(count * CLUSTER, cluster_bits=CLUSTER_BITS, l2_bits=L2_BITS), start


def _table(entries: list[int]) -> bytes:
    return struct.pack(">%dQ" % TABLE_CLUSTERS, *entries, *([0] * (TABLE_CLUSTERS - len(entries))))


def _write_l1(target, front: bytes, offsets: list[int]) -> None:
    target.seek(0)
    target.write(front + struct.pack(">%dQ" % len(offsets), *offsets))


def _write_ordered(target, count: int, seed: int) -> None:
    front, offset = _front(count)
    target.seek(offset)
    offsets = []
    for piece in dense_guest(count * CLUSTER, seed=seed):
        for start in range(0, len(piece), TABLE_CLUSTERS * CLUSTER):
            part = memoryview(piece)[start : start + TABLE_CLUSTERS * CLUSTER]
            offsets.append(offset)
            first = offset + CLUSTER
            offset = first + len(part)
            target.write(_table(list(range(first, offset, CLUSTER))))
            target.write(part)
    _write_l1(target, front, offsets)


def _write_shuffled(target, count: int, seed: int) -> None:
    front, start = _front(count)
    tables = -(-count // TABLE_CLUSTERS)
    data_at = start + tables * CLUSTER
    order = list(range(count))
    random.Random(seed + 1).shuffle(order)
    pool = _pool(seed, text=False)
    target.seek(data_at)
    entries = [0] * count
    for first in range(0, count, POOL_CLUSTERS):
        numbers = order[first : first + POOL_CLUSTERS]
        piece = bytearray(len(numbers) * CLUSTER)
        for position, number in enumerate(numbers):
            inside = number % POOL_CLUSTERS * CLUSTER
            piece[position * CLUSTER : (position + 1) * CLUSTER] = pool[inside : inside + CLUSTER]
            STAMP.pack_into(piece, position * CLUSTER, number, ~number & 0xFFFFFFFFFFFFFFFF)
            entries[number] = data_at + (first + position) * CLUSTER
        target.write(piece)
    target.seek(start)
    for first in range(0, count, TABLE_CLUSTERS):
        target.write(_table(entries[first : first + TABLE_CLUSTERS]))
    _write_l1(target, front, [start + number * CLUSTER for number in range(tables)])


def _write_compressed(target, count: int, seed: int) -> None:
    front, offset = _front(count)
    pool = _pool(seed, text=True)
    streams = [deflate(bytes(pool[start : start + CLUSTER])) for start in range(0, min(count, POOL_CLUSTERS) * CLUSTER, CLUSTER)]
    if max(map(len, streams)) >= CLUSTER:
        raise AssertionError("the pool of compressible clusters holds one that does not compress")
    target.seek(offset)
    offsets = []
    for first in range(0, count, TABLE_CLUSTERS):
        numbers = range(first, min(first + TABLE_CLUSTERS, count))
        chosen = [streams[number % POOL_CLUSTERS] for number in numbers]
        offsets.append(offset)
        offset += CLUSTER
        entries = []
        for stream in chosen:
            entries.append(compressed_entry(CLUSTER_BITS, offset, len(stream)))
            offset += len(stream)
        target.write(_table(entries))
        target.write(b"".join(chosen))
    _write_l1(target, front, offsets)
