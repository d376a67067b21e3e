# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The images that are measured: written as streams, the same every time."""

import os
import random
import struct
from typing import Any, List

from ansible_collections.vmimage.qcow.tests.support.big_image import write_dense
from ansible_collections.vmimage.qcow.tests.support.builder import compressed_entry, deflate, header

CLUSTER_BITS, L2_BITS = 12, 9
CLUSTER, TABLE = 1 << CLUSTER_BITS, 8 << L2_BITS
COVERAGE = CLUSTER << L2_BITS
PIECE = 64 << 10
_POOL = 1024  # clusters of text

dense = write_dense


def shuffled(path: str, size: int) -> None:
    """Every 4 KiB cluster allocated, in random order, as in a disk used for years."""
    write_dense(path, size, shuffled=True)


def compressed(path: str, size: int) -> None:
    """Every 4 KiB cluster a byte-packed stream of text with English word frequencies, about 2:1."""
    pool = text(_POOL * CLUSTER)
    streams = [deflate(pool[start : start + CLUSTER]) for start in range(0, len(pool), CLUSTER)]
    count = size // CLUSTER
    tables = -(-size // COVERAGE)
    offset = _up(48 + 8 * tables)
    offsets = []
    with open(path, "wb", buffering=8 << 20) as target:
        target.seek(offset)
        for first in range(0, count, TABLE // 8):
            chosen = [streams[number % _POOL] for number in range(first, min(first + TABLE // 8, count))]
            offsets.append(offset)
            offset += TABLE
            entries = []
            for stream in chosen:
                entries.append(compressed_entry(CLUSTER_BITS, offset, len(stream)))
                offset += len(stream)
            target.write(struct.pack(">%dQ" % (TABLE // 8), *entries, *[0] * (TABLE // 8 - len(entries))) + b"".join(chosen))
        _front(target, size, offsets)


def text(size: int) -> bytes:
    """Words of a small vocabulary, drawn as often as words are in a language."""
    source = random.Random(1)
    letters = "etaoinshrdlucmfw"
    words = ["".join(source.choices(letters, k=source.randint(2, 10))) for _number in range(4000)]
    chosen = source.choices(words, weights=[1 / rank for rank in range(1, 4001)], k=size // 4)
    return " ".join(chosen).encode()[:size]


def sparse(path: str, size: int, held: int) -> None:
    """A disk of ``size`` bytes that holds ``held`` bytes in pieces of 64 KiB spread over all of it."""
    noise = random.Random(2).randbytes(PIECE)
    tables = -(-size // COVERAGE)
    offset = _up(48 + 8 * tables)
    step = size // (held // PIECE) // COVERAGE
    with open(path, "wb") as target:
        for number in range(held // PIECE):
            target.seek(offset)
            entries = [offset + TABLE + CLUSTER * index for index in range(PIECE // CLUSTER)]
            target.write(struct.pack(">%dQ" % (TABLE // 8), *entries, *[0] * (TABLE // 8 - len(entries))) + noise)
            target.seek(48 + 8 * number * step)
            target.write(struct.pack(">Q", offset))
            offset += TABLE + PIECE
        _front(target, size, [])


def overlay(path: str, size: int) -> None:
    """An overlay with 512-byte clusters, as QEMU makes them, that holds nothing, over a sparse raw base beside it."""
    base = path + ".base"
    with open(base, "wb") as target:
        target.truncate(size)
    name = os.fsencode(os.path.basename(base))
    start = -(-(48 + len(name)) // 8) * 8
    with open(path, "wb") as target:
        target.write(header(size, cluster_bits=9, l2_bits=12, backing_offset=48, backing_length=len(name), l1_offset=start) + name)
        target.truncate(start + 8 * -(-size // (512 << 12)))


def small(path: str, seed: int) -> None:
    """A small image of its own: 64 MiB of disk, 256 KiB in it."""
    source = random.Random(seed)
    size, offset = 64 << 20, _up(48 + 8 * 32)
    offsets = []
    with open(path, "wb") as target:
        target.seek(offset)
        for _table in range(4):
            offsets.append(offset)
            entries = [offset + TABLE + CLUSTER * index for index in range(16)]
            target.write(struct.pack(">%dQ" % (TABLE // 8), *entries, *[0] * (TABLE // 8 - 16)) + source.randbytes(16 * CLUSTER))
            offset += TABLE + 16 * CLUSTER
        _front(target, size, offsets)


def tree(path: str, files: int, images: int) -> None:
    """A tree of small files, 100 to a directory, with images among them."""
    every = files // images
    for number in range(files):
        directory = os.path.join(path, "%02d" % (number // 10000), "%03d" % (number // 100))
        if number % 100 == 0:
            os.makedirs(directory)
        name = os.path.join(directory, "file-%06d" % number)
        if number % every == 0:
            small(name, number)
        else:
            with open(name, "wb") as target:
                target.write(b"file %d\n" % number * (number % 40 + 1))


def _up(size: int) -> int:
    return -(-size // CLUSTER) * CLUSTER


def _front(target: Any, size: int, offsets: List[int]) -> None:
    target.seek(0)
    target.write(header(size, cluster_bits=CLUSTER_BITS, l2_bits=L2_BITS) + struct.pack(">%dQ" % len(offsets), *offsets))
