# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words in which a test describes a QCOW version 1 image to the builder. Values only."""

import dataclasses
from typing import Mapping, Optional, Union

SECTOR = 512
HEADER_SIZE = 48


@dataclasses.dataclass(frozen=True)
class Plain:
    """A cluster stored as it is. ``data`` is padded with zero bytes to a cluster.

    ``skew``: bytes the stored cluster lies behind a cluster border (512: only sector-aligned, 1: broken).
    ``at``: the exact file offset instead of the next free place; ``stored=False`` then leaves the file's bytes there alone.
    """

    data: bytes = b""
    skew: int = 0
    at: Optional[int] = None
    stored: bool = True


@dataclasses.dataclass(frozen=True)
class Packed:
    """A compressed cluster. Falls back to ``Plain`` when the stream does not fit in the entry's size field, as QEMU does.

    ``trailing``: bytes behind the stream that the entry's size counts. ``short``: bytes missing at its end. ``stream``: these stored
    bytes instead of deflated ``data``. ``declared``: this size in the entry, whatever is stored. ``at``: exact file offset.
    """

    data: bytes = b""
    wbits: int = -12
    level: int = -1
    trailing: bytes = b""
    short: int = 0
    stream: Optional[bytes] = None
    declared: Optional[int] = None
    at: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class Shared:
    """A cluster whose entry repeats the one of guest cluster ``of``."""

    of: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """A literal L2 entry. ``data``: what the guest reads there, None when that is not part of the expectation."""

    value: int
    data: Optional[bytes] = None


Cluster = Union[Plain, Packed, Shared, Entry]


@dataclasses.dataclass(frozen=True)
class Backing:
    """A backing file name: raw bytes ``name``, followed in the file by ``tail`` (what is left of an older, longer name).

    ``at``: its exact file offset; ``length``: the header's length field when it is not ``len(name + tail)``.
    """

    name: bytes
    tail: bytes = b""
    at: Optional[int] = None
    length: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class Xen:
    """blktap's header extension. ``size`` 16 (or 12: before 2006-12, without flags); ``flags`` 1 sparse, 2 L1 is big-endian."""

    size: int = 16
    little_endian: bool = False
    flags: Optional[int] = None
    min_cluster_alloc: int = 1
    checksum: Optional[bytes] = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a writer puts things: alignment of the L1 table, what the area behind it is filled up to, and the order of the rest."""

    l1_align: int = 8
    fill_length: int = 1
    fill_end: int = 1
    tables_first: bool = False
    name_last: bool = False
    stream_align: int = SECTOR


LAYOUTS = {
    "qemu": Layout(fill_length=SECTOR),
    "qemu-0.9": Layout(stream_align=1),
    "mkimg": Layout(l1_align=4096, fill_end=4096, tables_first=True),
    "virtualbox": Layout(fill_end=4096, name_last=True),
    "xen": Layout(l1_align=4096, fill_end=4096),
}


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """A whole image. Sizes and offsets in bytes; ``clusters`` by guest cluster number; tables by L1 index.

    ``order``: guest, reversed or shuffled (by ``seed``), the order in which clusters get their place in the file. ``l2_skew``: bytes
    every L2 table lies behind a cluster border. ``share_l2``: L1 index -> L1 index whose table it uses. ``l1_patch``, ``l2_patch``:
    entries to overwrite when everything has its place (by L1 index, by guest cluster). ``fields``: header fields to overwrite.
    ``patches``: (offset, bytes) written last; then the file is cut to ``cut_to`` bytes, or ``append`` is added.
    ``preallocate``: each L2 table is followed by all its clusters (Xen's non-sparse files).
    """

    size: int
    cluster_bits: int = 12
    l2_bits: int = 9
    clusters: Mapping[int, Cluster] = dataclasses.field(default_factory=dict)
    layout: str = "qemu"
    backing: Optional[Backing] = None
    password: Optional[bytes] = None
    xen: Optional[Xen] = None
    order: str = "guest"
    seed: int = 0
    stream_align: Optional[int] = None
    l1_at: Optional[int] = None
    l2_skew: int = 0
    share_l2: Mapping[int, int] = dataclasses.field(default_factory=dict)
    l1_patch: Mapping[int, int] = dataclasses.field(default_factory=dict)
    l2_patch: Mapping[int, int] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, int] = dataclasses.field(default_factory=dict)
    patches: tuple = ()
    cut_to: Optional[int] = None
    append: bytes = b""
    preallocate: bool = False

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def l1_entries(self) -> int:
        """Entries of the L1 table, derived from the size as every reader does."""
        span = 1 << (self.cluster_bits + self.l2_bits)
        return -(-self.size // span)

    @property
    def cluster_count(self) -> int:
        """Guest clusters, the last one possibly cut by the end of the disk."""
        return -(-self.size // self.cluster_size)
