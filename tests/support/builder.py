# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""QCOW version 1 images, sound and broken ones, made byte by byte from a description.

This is the tests' own idea of the format. It must never import anything from ``plugins/``: an error the reader and this builder
share would be an error no test can see. Source of every format fact: QEMU, block/qcow.c; the layouts of other writers are named in
``LAYOUTS``.

    image = build(ImageSpec(size=1 << 20, clusters={0: Plain(b"boot"), 7: Packed(b"text" * 1000)}))
    image.write(path)
    assert image.guest_bytes()[:4] == b"boot"
"""

import hashlib
import os
import random
import struct
import zlib
from typing import Optional, Union

from ansible_collections.vmimage.qcow.tests.support.aes import encrypt_sectors
from ansible_collections.vmimage.qcow.tests.support.image_spec import (
    HEADER_SIZE,
    LAYOUTS,
    SECTOR,
    Backing,
    Cluster,
    Entry,
    ImageSpec,
    Layout,
    Packed,
    Plain,
    Shared,
    Xen,
)

__all__ = [
    "Backing",
    "BuiltImage",
    "Cluster",
    "Entry",
    "ImageSpec",
    "Layout",
    "Packed",
    "Plain",
    "Shared",
    "Xen",
    "build",
    "compressed_entry",
    "deflate",
    "header",
    "smallest",
]

MAGIC = b"QFI\xfb"
COMPRESSED = 1 << 63
BIG_TABLE = 16 << 20


def header(
    size: int = 0,
    *,
    magic: bytes = MAGIC,
    version: int = 1,
    backing_offset: int = 0,
    backing_length: int = 0,
    mtime: int = 0,
    cluster_bits: int = 12,
    l2_bits: int = 9,
    padding: int = 0,
    crypt: int = 0,
    l1_offset: int = HEADER_SIZE,
) -> bytes:
    """The 48 header bytes with any values at all, for images made by hand."""
    return struct.pack(
        ">4sIQIIQBBHIQ", magic, version, backing_offset, backing_length, mtime, size, cluster_bits, l2_bits, padding, crypt, l1_offset
    )


def deflate(data: bytes, *, wbits: int = -12, level: int = -1) -> bytes:
    """``data`` as one DEFLATE stream, by default with the parameters of qemu-img (raw, window of 4 KiB, memory level 9)."""
    packer = zlib.compressobj(level, zlib.DEFLATED, wbits, 9)
    return packer.compress(data) + packer.flush()


def compressed_entry(cluster_bits: int, offset: int, size: int) -> int:
    """The L2 entry of a stream of ``size`` bytes (less than a cluster) at byte ``offset``."""
    if not 0 <= size < 1 << cluster_bits or offset >> (63 - cluster_bits):
        raise ValueError("no entry can say %d bytes at %d with clusters of %d bytes" % (size, offset, 1 << cluster_bits))
    return COMPRESSED | size << (63 - cluster_bits) | offset


def smallest(size: int, **fields: int) -> bytes:
    """An empty image of 48 + 8 x L1 entries bytes, as QEMU 0.6 to 0.9 and Mac-on-Linux write it."""
    return build(ImageSpec(size=size, layout="qemu-0.9", fields=fields)).data


class BuiltImage:
    """An image and what is true about it.

    ``length``: bytes of the file. ``clusters``: guest cluster -> its bytes as the guest reads them (only those stored in this file).
    ``entries``: guest cluster -> L2 entry; ``places``: guest cluster -> (file offset, stored bytes); ``l2_at``: L1 index -> file offset.
    """

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec
        self.length = 0
        self.l1_at = HEADER_SIZE
        self.l1: dict[int, int] = {}
        self.l2_at: dict[int, int] = {}
        self.entries: dict[int, int] = {}
        self.places: dict[int, tuple[int, int]] = {}
        self.clusters: dict[int, bytes] = {}
        self.pieces: list[tuple[int, bytes]] = []

    @property
    def disk_size(self) -> int:
        """Bytes of the guest's disk: the virtual size, rounded up to whole sectors."""
        return _up(self.spec.size, SECTOR)

    @property
    def data(self) -> bytes:
        """The whole file (for images that fit in memory)."""
        content = bytearray(self.length)
        for offset, piece in self.pieces:
            if offset < self.length:
                content[offset : offset + len(piece)] = piece[: self.length - offset]
        return bytes(content)

    def write(self, path: Union[str, bytes, os.PathLike], *, sparse: bool = False) -> None:
        """Write the file; ``sparse`` leaves everything that was never written a hole (needed for large ones)."""
        with open(path, "wb") as target:
            if not sparse:
                target.write(self.data)
                return
            for offset, piece in self.pieces:
                if offset < self.length and piece.strip(b"\0"):
                    target.seek(offset)
                    target.write(piece[: self.length - offset])
            target.truncate(self.length)

    def guest_bytes(self, backing: bytes = b"") -> bytes:
        """The disk as the guest reads it, over the guest bytes of its ``backing`` file (cut, or continued with zeros)."""
        size = self.spec.cluster_size
        disk = bytearray(backing[: self.spec.size].ljust(self.disk_size, b"\0"))
        for index, content in self.clusters.items():
            start = index * size
            disk[start : start + size] = content[: max(self.spec.size - start, 0)]
        return bytes(disk[: self.spec.size].ljust(self.disk_size, b"\0"))

    def guest_runs(self) -> list[tuple[int, bytes]]:
        """(guest offset, bytes) of every stored cluster in guest order, cut at the virtual size: for images too large for memory."""
        size = self.spec.cluster_size
        runs = ((index * size, content) for index, content in sorted(self.clusters.items()))
        return [(start, content[: self.spec.size - start]) for start, content in runs if start < self.spec.size]


def build(spec: ImageSpec) -> BuiltImage:
    """Lay the image out in the way of its writer. Raises ValueError for a description that contradicts itself."""
    return _Builder(spec).build()


class _Builder:
    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec
        self.layout = LAYOUTS["xen" if spec.xen and spec.layout == "qemu" else spec.layout]
        self.image = BuiltImage(spec)
        self.end = HEADER_SIZE
        self.name_at = 0
        self.name_length = 0

    def build(self) -> BuiltImage:
        self._place_front()
        self._place_clusters()
        if self.spec.backing and self.name_at == 0:
            self._place_name(_up(self.end, self.spec.cluster_size))
        self._finish_tables()
        self._finish_front()
        self.image.pieces.extend(self.spec.patches)
        self.image.pieces.append((self.end, self.spec.append))
        self.image.length = self.end + len(self.spec.append) if self.spec.cut_to is None else self.spec.cut_to
        return self.image

    def _place_front(self) -> None:
        spec, layout = self.spec, self.layout
        if spec.xen:
            self.end += spec.xen.size
        if spec.backing and (spec.backing.at is not None or not layout.name_last):
            self._place_name(self.end if spec.backing.at is None else spec.backing.at)
        self.image.l1_at = _up(self.end, layout.l1_align) if spec.l1_at is None else spec.l1_at
        length = _up(8 * spec.l1_entries, layout.fill_length)
        self.end = max(self.end, _up(self.image.l1_at + length, layout.fill_end))

    def _place_name(self, offset: int) -> None:
        backing = self.spec.backing
        stored = backing.name + backing.tail
        self.name_at = offset
        self.name_length = len(stored) if backing.length is None else backing.length
        self._write(offset, stored)

    def _place_clusters(self) -> None:
        order = sorted(self.spec.clusters)
        if self.spec.order == "reversed":
            order.reverse()
        elif self.spec.order == "shuffled":
            random.Random(self.spec.seed).shuffle(order)
        if self.layout.tables_first:
            for index in sorted(self.spec.clusters):
                self._table(index >> self.spec.l2_bits)
        later = []
        for index in order:
            self._table(index >> self.spec.l2_bits)
            if isinstance(self.spec.clusters[index], Shared):
                later.append(index)
            else:
                self._place(index, self.spec.clusters[index])
        for index in later:
            source = self.spec.clusters[index].of
            self._claim(index, self.image.entries[source], self.image.clusters.get(source), self.image.places.get(source))

    def _table(self, l1_index: int) -> None:
        if l1_index in self.image.l2_at or l1_index in self.spec.share_l2:
            return
        offset = _up(self.end, self.spec.cluster_size) + self.spec.l2_skew
        self.image.l2_at[l1_index] = offset
        self.end = offset + (8 << self.spec.l2_bits)
        if self.spec.preallocate:
            first = l1_index << self.spec.l2_bits
            for index in range(first, first + (1 << self.spec.l2_bits)):
                self._place(index, self.spec.clusters.get(index, Plain()))

    def _place(self, index: int, cluster: Cluster) -> None:
        if index in self.image.entries:
            return
        if isinstance(cluster, Entry):
            self._claim(index, cluster.value, cluster.data, None)
        elif isinstance(cluster, Packed):
            self._place_packed(index, cluster)
        else:
            self._place_plain(index, cluster)

    def _place_plain(self, index: int, cluster: Plain) -> None:
        size = self.spec.cluster_size
        content = cluster.data.ljust(size, b"\0")[:size]
        offset = _up(self.end, size) + cluster.skew if cluster.at is None else cluster.at
        self._claim(index, offset, content, (offset, size))
        if cluster.stored:
            stored = content
            if self.spec.password is not None:
                stored = encrypt_sectors(self.spec.password, index * size, content)
            self._write(offset, stored)

    def _place_packed(self, index: int, cluster: Packed) -> None:
        size = self.spec.cluster_size
        content = cluster.data.ljust(size, b"\0")[:size]
        stream = deflate(content, wbits=cluster.wbits, level=cluster.level) if cluster.stream is None else cluster.stream
        stream = stream[: len(stream) - cluster.short] + cluster.trailing
        declared = len(stream) if cluster.declared is None else cluster.declared
        if declared >= size:
            self._place_plain(index, Plain(content))
            return
        align = self.layout.stream_align if self.spec.stream_align is None else self.spec.stream_align
        offset = _up(self.end, align) if cluster.at is None else cluster.at
        self._claim(index, compressed_entry(self.spec.cluster_bits, offset, declared), content, (offset, declared))
        self._write(offset, stream)

    def _claim(self, index: int, entry: int, content: Optional[bytes], place: Optional[tuple[int, int]]) -> None:
        self.image.entries[index] = entry
        if content is not None:
            self.image.clusters[index] = content.ljust(self.spec.cluster_size, b"\0")
        if place is not None:
            self.image.places[index] = place

    def _finish_tables(self) -> None:
        image, bits = self.image, self.spec.l2_bits
        entries = {**image.entries, **self.spec.l2_patch}
        tables: dict[int, dict[int, int]] = {l1_index: {} for l1_index in image.l2_at}
        for index, entry in entries.items():
            tables.setdefault(index >> bits, {})[index & ((1 << bits) - 1)] = entry
        for l1_index, offset in image.l2_at.items():
            table = bytearray(8 << bits)
            for slot, entry in tables[l1_index].items():
                struct.pack_into(">Q", table, 8 * slot, entry)
            self._write(offset, bytes(table))
        image.entries = entries
        image.l1 = dict(image.l2_at)
        for l1_index, other in self.spec.share_l2.items():
            image.l1[l1_index] = image.l2_at[other]
            for slot in tables[other]:
                index, source = (l1_index << bits) + slot, (other << bits) + slot
                if source in image.clusters:
                    image.clusters[index] = image.clusters[source]
        image.l1.update(self.spec.l1_patch)
        self._write_l1(8 * self.spec.l1_entries)

    def _write_l1(self, length: int) -> None:
        code = "<Q" if self.spec.xen and self.spec.xen.little_endian else ">Q"
        if length > BIG_TABLE:
            for l1_index, offset in self.image.l1.items():
                self._write(self.image.l1_at + 8 * l1_index, struct.pack(code, offset))
            self.end = max(self.end, self.image.l1_at + length)
            return
        table = bytearray(length)
        for l1_index, offset in self.image.l1.items():
            struct.pack_into(code, table, 8 * l1_index, offset)
        self._write(self.image.l1_at, bytes(table))
        if self.spec.xen:
            self._write_extension(self.spec.xen, bytes(table))

    def _write_extension(self, xen: Xen, table: bytes) -> None:
        # tapdisk stores the first word of the MD5 of the on-disk table in host order: reversed bytes on every x86 host.
        checksum = hashlib.md5(table).digest()[3::-1] if xen.checksum is None else xen.checksum
        flags = (1 if xen.little_endian else 3) if xen.flags is None else xen.flags
        extension = struct.pack(">4s4sII", b"XEN\xfb", checksum, xen.min_cluster_alloc, flags)
        self._write(HEADER_SIZE, extension[: xen.size])

    def _finish_front(self) -> None:
        values = {
            "size": self.spec.size,
            "cluster_bits": self.spec.cluster_bits,
            "l2_bits": self.spec.l2_bits,
            "backing_offset": self.name_at,
            "backing_length": self.name_length,
            "crypt": int(self.spec.password is not None),
            "l1_offset": self.image.l1_at,
        }
        values.update(self.spec.fields)
        self._write(0, header(**values))

    def _write(self, offset: int, content: bytes) -> None:
        self.image.pieces.append((offset, content))
        self.end = max(self.end, offset + len(content))


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
