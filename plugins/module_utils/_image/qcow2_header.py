# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Headers of qcow2 images: reading, writing, and the one thing ever edited in place, the backing file of somebody else's overlay. Bytes in, bytes out.

By the specification (QEMU's ``docs/interop/qcow2.txt``) everything concerned lies in the first cluster: header, extensions, and the name behind them.
"""

import struct
from typing import Dict, List, NamedTuple, Optional, Tuple

from .._errors import DamagedImage, UnsupportedImage
from .detect import QCOW_MAGIC

DEFAULT_CLUSTER_SIZE = 1 << 16
MIN_CLUSTER_SIZE = 1 << 9
MAX_CLUSTER_SIZE = 1 << 21
MAX_L1_SIZE = 32 << 20
"""Bytes; QEMU refuses a larger L1 table (``QCOW_MAX_L1_SIZE``)."""

MAX_BACKING_NAME = 1023

DIRTY = 1 << 0
CORRUPT = 1 << 1
EXTERNAL_DATA = 1 << 2
COMPRESSION_TYPE = 1 << 3
EXTENDED_L2 = 1 << 4
LAZY_REFCOUNTS = 1 << 0

_EXTENSION_BACKING_FORMAT = 0xE2792ACA
_EXTENSION_FEATURE_NAMES = 0x6803F857
_FEATURE_NAMES = ((0, 0, b"dirty bit"), (0, 1, b"corrupt bit"), (0, 4, b"extended L2 entries"), (1, 0, b"lazy refcounts"))

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_LENGTH = 112
_V2_HEADER_LENGTH = 72


class Qcow2Header(NamedTuple):
    """The fields of a qcow2 header that a reader needs; offsets, lengths and sizes in bytes."""

    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_entries: int
    l1_offset: int
    snapshots: int
    incompatible: int
    compatible: int
    compression_type: int
    header_length: int
    extensions: Dict[int, bytes]

    @property
    def backing_format(self) -> Optional[str]:
        """QEMU's driver name of the backing file, where the header states it."""
        name = self.extensions.get(_EXTENSION_BACKING_FORMAT)
        return None if name is None else name.decode("ascii", "replace")


def parse_header(head: bytes, path: Optional[bytes] = None) -> Qcow2Header:
    """The header of a qcow2 image.

    :param head: the first cluster, or as much of it as holds the extensions (4096 bytes do in practice).
    :raises DamagedImage: where a field is outside the format's limits.
    :raises UnsupportedImage: where the image is not qcow2 version 2 or 3.
    """
    if len(head) < 72:
        raise DamagedImage("the qcow2 header is cut off: {0} of 72 bytes".format(len(head)), path)
    magic, version, backing_offset, backing_length, cluster_bits, size, crypt, l1_entries, l1_offset, _rt, _rc, snapshots, _so = (
        _HEADER.unpack_from(head)
    )
    if magic != QCOW_MAGIC or version not in (2, 3):
        raise UnsupportedImage("not a qcow2 image", path)
    incompatible = compatible = compression_type = 0
    header_length = 72
    if version == 3:
        if len(head) < 104:
            raise DamagedImage("the qcow2 header is cut off: {0} of 104 bytes".format(len(head)), path)
        incompatible, compatible = struct.unpack_from(">QQ", head, 72)
        (header_length,) = struct.unpack_from(">I", head, 100)
        if header_length > 104 and len(head) > 104:
            compression_type = head[104]
    if not 9 <= cluster_bits <= 21:
        raise DamagedImage("cluster_bits is {0}, must be 9..21 (byte 20)".format(cluster_bits), path)
    if 8 * l1_entries > MAX_L1_SIZE:
        raise DamagedImage("the L1 table has {0} entries, more than qcow2 allows".format(l1_entries), path)
    if backing_length > 1023:
        raise DamagedImage("the backing file name is {0} bytes long, at most 1023 are allowed (byte 16)".format(backing_length), path)
    return Qcow2Header(
        version,
        backing_offset,
        backing_length,
        cluster_bits,
        size,
        crypt,
        l1_entries,
        l1_offset,
        snapshots,
        incompatible,
        compatible,
        compression_type,
        header_length,
        _extensions_of(head, header_length),
    )


def _extensions_of(head: bytes, position: int) -> Dict[int, bytes]:
    found = {}  # type: Dict[int, bytes]
    while position + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, position)
        if kind == 0 or position + 8 + length > len(head):
            break
        found[kind] = head[position + 8 : position + 8 + length]
        position += 8 + -(-length // 8) * 8
    return found


class Qcow2Options:
    """What the new image should be like.

    :param cluster_size: bytes, a power of two from 512 to 2 MiB.
    :param lazy_refcounts: sets the compatible feature bit, so that QEMU may write refcounts late.
    :param extended_l2: 32 subclusters a cluster; needs clusters of at least 16 KiB.
    :param compressed: clusters are stored as DEFLATE streams where that is shorter.
    :param backing_name: name of the backing file as it is to be stored.
    :param backing_format: QEMU's driver name of the backing file; always stored with the name.
    :param preallocated: every cluster gets its place, whatever it holds.
    :param version: 3 (compat 1.1) or 2 (compat 0.10).
    """

    def __init__(
        self,
        cluster_size: int = DEFAULT_CLUSTER_SIZE,
        *,
        lazy_refcounts: bool = False,
        extended_l2: bool = False,
        compressed: bool = False,
        backing_name: Optional[bytes] = None,
        backing_format: Optional[str] = None,
        preallocated: bool = False,
        version: int = 3,
    ) -> None:
        if cluster_size & (cluster_size - 1) or not MIN_CLUSTER_SIZE <= cluster_size <= MAX_CLUSTER_SIZE:
            raise UnsupportedImage("cluster size {0} is not a power of two from 512 bytes to 2 MiB".format(cluster_size))
        if extended_l2 and cluster_size < 1 << 14:
            raise UnsupportedImage("extended L2 entries need clusters of at least 16 KiB, not {0} bytes".format(cluster_size))
        if backing_name is not None and not backing_format:
            raise UnsupportedImage("a backing file name is never stored without its format")
        if version == 2 and (lazy_refcounts or extended_l2 or backing_name is not None):
            raise UnsupportedImage("compat 0.10 supports neither lazy refcounts, nor extended L2 entries, nor zeros over a backing file")
        if preallocated and (compressed or backing_name is not None):
            raise UnsupportedImage("neither a compressed image nor an overlay can be preallocated")
        self.cluster_size = cluster_size
        self.lazy_refcounts = lazy_refcounts
        self.extended_l2 = extended_l2
        self.compressed = compressed
        self.backing_name = backing_name
        self.backing_format = backing_format
        self.preallocated = preallocated
        self.version = version

    @property
    def by_subcluster(self) -> bool:
        """Whether subclusters are placed by themselves: over a backing file, so that nothing has to be copied up from below."""
        return self.extended_l2 and self.backing_name is not None and not self.compressed


def require_possible(options: Qcow2Options, virtual_size: int) -> Tuple[bytearray, int]:
    """The header cluster, and the number of L1 entries, of an image with a disk of ``virtual_size`` bytes.

    :raises UnsupportedImage: where the format cannot hold the image with these options.
    """
    coverage = options.cluster_size // (16 if options.extended_l2 else 8) * options.cluster_size
    l1_entries = -(-virtual_size // coverage)
    if 8 * l1_entries > MAX_L1_SIZE:
        raise UnsupportedImage(
            "a disk of {0} bytes needs a larger L1 table than qcow2 allows with clusters of {1} bytes".format(
                virtual_size, options.cluster_size
            ),
            hint="Choose larger clusters.",
        )
    return header_cluster(options), l1_entries


def header_cluster(options: Qcow2Options) -> bytearray:
    """The first cluster, complete but for size, L1 and refcount table.

    :raises UnsupportedImage: where the backing file name does not fit into one cluster.
    """
    extensions = b""
    if options.backing_name is not None:
        extensions += _extension(_EXTENSION_BACKING_FORMAT, str(options.backing_format).encode("ascii"))
    names = _extension(_EXTENSION_FEATURE_NAMES, b"".join(struct.pack(">BB46s", kind, bit, name) for kind, bit, name in _FEATURE_NAMES))
    name = options.backing_name or b""
    if len(name) > MAX_BACKING_NAME:
        raise UnsupportedImage("the backing file name is {0} bytes long, at most 1023 are allowed".format(len(name)))
    end = struct.pack(">II", 0, 0)
    length = _HEADER_LENGTH if options.version == 3 else _V2_HEADER_LENGTH
    if options.version == 3 and length + len(extensions) + len(names) + len(end) + len(name) <= options.cluster_size:
        extensions += names
    name_offset = length + len(extensions) + len(end)
    if name_offset + len(name) > options.cluster_size:
        raise UnsupportedImage(
            "a backing file name of {0} bytes does not fit into the first cluster of {1} bytes".format(len(name), options.cluster_size),
            hint="Choose larger clusters.",
        )
    header = bytearray(options.cluster_size)
    struct.pack_into(
        ">4sIQII", header, 0, QCOW_MAGIC, options.version, name_offset if name else 0, len(name), options.cluster_size.bit_length() - 1
    )
    if options.version == 3:
        struct.pack_into(
            ">QQQII",
            header,
            72,
            EXTENDED_L2 if options.extended_l2 else 0,
            LAZY_REFCOUNTS if options.lazy_refcounts else 0,
            0,
            4,  # refcount_order: 1 << 4 bits
            length,
        )
    body = extensions + end + name
    header[length : length + len(body)] = body
    return header


def complete_header(header: bytearray, size: int, l1_offset: int, l1_entries: int, table_offset: int, table_clusters: int) -> None:
    """Put in what is known last: virtual size in bytes, and where L1 table and refcount table (in clusters) lie."""
    struct.pack_into(">QII", header, 24, size, 0, l1_entries)
    struct.pack_into(">QQI", header, 40, l1_offset, table_offset, table_clusters)


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


class BackingEntry(NamedTuple):
    """What a header says about the backing file."""

    name: bytes
    format: Optional[str]


def backing_of(cluster: bytes, path: Optional[bytes] = None) -> BackingEntry:
    """The backing file stated in an image's first cluster.

    :raises UnsupportedImage: where there is none, or its name lies elsewhere.
    """
    header = parse_header(cluster, path)
    end = header.backing_offset + header.backing_length
    if not header.backing_offset or not header.backing_length:
        raise UnsupportedImage("the image has no backing file", path)
    if end > 1 << header.cluster_bits or end > len(cluster):
        raise UnsupportedImage("the backing file name lies outside the first cluster", path, hint="It was left as it is.")
    return BackingEntry(cluster[header.backing_offset : end], header.backing_format)


def rebased(cluster: bytes, backing: BackingEntry, path: Optional[bytes] = None) -> bytes:
    """An image's first cluster with another backing file in it, and nothing else changed that means anything.

    :param cluster: the whole first cluster.
    :raises UnsupportedImage: where it does not fit, or where something lies in the cluster that we do not know.
    :raises DamagedImage: where the extensions cannot be true.
    """
    header = parse_header(cluster, path)
    size = 1 << header.cluster_bits
    if len(cluster) != size:
        raise DamagedImage("the first cluster is cut off", path)
    old = backing_of(cluster, path)
    extensions, end = _extensions(cluster, header.header_length, path)
    used = [(0, end), (header.backing_offset, header.backing_offset + len(old.name))]
    rest = bytearray(cluster)
    for start, stop in used:
        rest[start:stop] = bytes(stop - start)
    if any(rest):
        raise UnsupportedImage(
            "there is data in the header cluster after the header's extensions (byte {0})".format(
                next(place for place, byte in enumerate(rest) if byte)
            ),
            path,
            hint="It was left as it is. Change its backing file with qemu-img rebase -u.",
        )
    kept = [(kind, data) for kind, data in extensions if kind != _EXTENSION_BACKING_FORMAT]
    if backing.format is not None:
        kept.insert(0, (_EXTENSION_BACKING_FORMAT, backing.format.encode("ascii")))
    body = b"".join(struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in kept) + bytes(8)
    name_at = header.header_length + len(body)
    if len(backing.name) > MAX_BACKING_NAME or name_at + len(backing.name) > size:
        raise UnsupportedImage(
            "the new backing file name ({0} bytes) does not fit into the header cluster of {1} bytes".format(len(backing.name), size),
            path,
            hint="It was left as it is. Give the base a shorter name.",
        )
    result = bytearray(cluster[: header.header_length]) + body + backing.name
    result += bytes(size - len(result))
    struct.pack_into(">QI", result, 8, name_at, len(backing.name))
    return bytes(result)


def _extensions(cluster: bytes, position: int, path: Optional[bytes]) -> Tuple[List[Tuple[int, bytes]], int]:
    found: List[Tuple[int, bytes]] = []
    while position + 8 <= len(cluster):
        kind, length = struct.unpack_from(">II", cluster, position)
        position += 8
        if kind == 0:
            return found, position
        if position + length > len(cluster):
            break
        found.append((kind, cluster[position : position + length]))
        position += -(-length // 8) * 8
    raise DamagedImage("the header's extensions have no end", path, hint="It was left as it is.")
