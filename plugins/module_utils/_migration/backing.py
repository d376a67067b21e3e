# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Overlays that stay thin: what they will rest on, under which name, and with which clusters."""

import os
from typing import List, NamedTuple, Optional, Tuple

from .._copy.transcode import why_not
from .._copy.writers import RawWriter
from .._directories import real_path
from .._errors import UnsupportedImage
from .._image.chain import Member, Rules
from .._image.extent import SECTOR
from .._image.measure import Need, measure
from .._image.qcow1 import Qcow1
from .._image.qcow2_header import DEFAULT_CLUSTER_SIZE, Qcow2Options, require_possible
from .request import Request
from .source import Source


def rules_of(request: Request) -> Rules:
    """What may be followed for this request."""
    formats = {real_path(path): format_name for path, format_name in request.backing_formats}
    return Rules(request.backing_dirs, formats, request.raw_bases)


class Backing(NamedTuple):
    """What a thin overlay rests on."""

    name: bytes  # as it will be stored in the header
    format: str  # QEMU's driver name, stored too
    files: Tuple[Tuple[bytes, str], ...]  # results below it, nearest first, with their formats
    rest: Optional[int]  # place in the original's chain from which on files stay as they are; None: nothing of it stays


class Replacement(NamedTuple):
    """What a base is replaced by."""

    dest: bytes
    format: str
    backing: Optional[Backing]  # what that will rest on itself, where it is not there yet
    exists: bool


def rest_on(request: Request, dest: bytes, image: Member, base: Member, replacement: Optional[Replacement]) -> Backing:
    """What a new overlay will rest on.

    :param image: the old overlay. :param base: what it rests on. :param replacement: what that is replaced by; ``None``: it stays.
    """
    old_name = b"" if image.reference is None else image.reference.name
    if replacement is None:
        return Backing(new_name(request.src, dest, old_name, base.path, base.path), base.format, (), 1)
    name = new_name(request.src, dest, old_name, base.path, replacement.dest)
    if replacement.exists:
        with Source(replacement.dest) as there:
            files = there.follow(rules_of(request))
        return Backing(name, replacement.format, tuple((member.real, member.format) for member in files), None)
    results = ((replacement.dest, replacement.format),) + (replacement.backing.files if replacement.backing is not None else ())
    rest = None if replacement.backing is None or replacement.backing.rest is None else replacement.backing.rest + 1
    return Backing(name, replacement.format, results, rest)


def new_name(src: bytes, dest: bytes, old_name: bytes, old_base: bytes, new_base: bytes) -> bytes:
    """The backing name to store: as the old one was written where directories stay as they are, else beside, else absolute.

    :param old_base: the name the base was reached under. :param new_base: the name it has from now on.
    """
    here = real_path(os.path.dirname(dest))
    if real_path(os.path.dirname(new_base)) == here and not os.path.isabs(old_name):
        name = os.path.basename(new_base)
        if real_path(os.path.dirname(src)) == here and b"/" in old_name and old_base == new_base:
            name = old_name
    elif old_base == new_base or real_path(os.path.dirname(old_base)) == real_path(os.path.dirname(new_base)):
        # The base stays in its directory.
        if os.path.isabs(old_name) or real_path(os.path.dirname(src)) == here:
            name = os.path.join(os.path.dirname(old_name), os.path.basename(new_base))
        else:
            name = os.path.abspath(new_base)
    else:
        name = os.path.abspath(new_base)
    # A colon before the first slash would make it a protocol to QEMU.
    return b"./" + name if b":" in name.split(b"/")[0] else name


def needed(request: Request, source: Source, backing: Optional[Backing], size: int) -> Tuple[int, Need]:
    """Cluster size of the result and what it will need."""
    if request.format == "raw":
        return 0, measure(source.runs(), cluster_size=RawWriter.cluster_size, virtual_size=size, tables=False)
    entry_size = 16 if request.extended_l2 else 8
    if backing is None:
        cluster_size = request.cluster_size or DEFAULT_CLUSTER_SIZE
        need = measure(source.runs(), cluster_size=cluster_size, virtual_size=size, tables=True, entry_size=entry_size)
        if request.preallocation != "off":
            need = need._replace(file=max(need.file, size + size // 1000 + (2 << 20)) if request.preallocation != "metadata" else need.file)
        return cluster_size, need
    measured = {}
    for cluster_size in [request.cluster_size] if request.cluster_size else OVERLAY_CLUSTER_SIZES[request.extended_l2]:
        unit = cluster_size // 32 if request.extended_l2 and request.compression == "none" else cluster_size
        extents = source.thin_extents(unit)
        measured[cluster_size] = measure(
            extents, cluster_size=cluster_size, virtual_size=size, tables=True, entry_size=entry_size, backed=True
        )
    smallest = min(need.file for need in measured.values())
    best = max(cluster_size for cluster_size, need in measured.items() if need.file <= smallest * 5 // 4)
    return best, measured[best]


OVERLAY_CLUSTER_SIZES = {False: (4096, 16384, 65536), True: (16384, 65536)}
"""Bytes, tried for thin overlays where none is asked for: the largest that takes at most a quarter more than the best of them."""


def qcow2_options(request: Request, backing: Optional[Backing], cluster_size: int) -> Qcow2Options:
    """What our own writer is asked for.

    :raises UnsupportedImage: for what cannot go together.
    """
    return Qcow2Options(
        cluster_size or DEFAULT_CLUSTER_SIZE,
        lazy_refcounts=request.lazy_refcounts,
        extended_l2=request.extended_l2,
        compressed=request.compression != "none",
        backing_name=None if backing is None else backing.name,
        backing_format=None if backing is None else backing.format,
        preallocated=request.preallocation != "off",
        version=2 if request.compat == "0.10" else 3,
    )


def require_writable(request: Request, backing: Optional[Backing], cluster_size: int, size: int) -> None:
    """Refuse what no result of ``size`` bytes can be.

    :raises UnsupportedImage: naming what.
    """
    if request.format == "raw":
        if request.preallocation == "metadata":
            raise UnsupportedImage("a raw result has no metadata to preallocate", request.src, hint="Set preallocation=falloc or full.")
        return
    if request.compat == "0.10" and (request.compression == "zstd" or request.encryption == "luks"):
        raise UnsupportedImage("compat 0.10 knows neither zstd nor LUKS", request.src, hint="Set compat=1.1. Nothing was changed.")
    if request.encryption == "luks" and request.compression != "none":
        raise UnsupportedImage("an encrypted result cannot be compressed", request.src, hint="Leave one of them out. Nothing was changed.")
    require_possible(qcow2_options(request, backing, cluster_size), size)


def require_thin_possible(request: Request, *, native: bool) -> None:
    """Refuse what a thin overlay cannot have.

    :raises UnsupportedImage: with what to choose instead.
    """
    if not native:
        raise UnsupportedImage(
            "an overlay cannot be kept thin through qemu-img",
            request.src,
            hint="Set chains=flatten, or leave out what only qemu-img writes (zstd, LUKS). Nothing was changed.",
        )
    if request.preallocation != "off":
        raise UnsupportedImage("an overlay cannot be preallocated", request.src, hint="Set chains=flatten or preallocation=off.")
    if request.compat == "0.10":
        raise UnsupportedImage(
            "an overlay needs zero clusters, which compat 0.10 has not", request.src, hint="Set chains=flatten or compat=1.1."
        )


RECLUSTER = "recluster"
KEEP = "keep"


def kept_layout(
    request: Request, source: Source, backing: Optional[Backing], cluster_size: int, need: Need, reasons: List[str], *, native: bool
) -> Tuple[str, int, Need]:
    """Layout, cluster size and need of a result whose layout is to be kept; where that cannot be, those that were meant without it.

    :param cluster_size: in bytes, of a result with a new layout, and ``need`` what that takes.
    :param reasons: gets what was decided, in words.
    :param native: whether our own engine writes the result, and all of it.
    :raises UnsupportedImage: where options contradict it.
    """
    asked = [
        name
        for name, given in (
            ("cluster_size", request.cluster_size),
            ("extended_l2", request.extended_l2),
            ("compression", request.compression != "none"),
            ("encryption", request.encryption != "none"),
            ("preallocation", request.preallocation != "off"),
        )
        if given
    ]
    if asked:
        raise UnsupportedImage(
            "layout=keep leaves every cluster as it is, and {0} asks for something else".format(", ".join(asked)),
            request.src,
            hint="Nothing was changed. Leave one of them out.",
        )
    image = source.layers[0]
    if not isinstance(image, Qcow1):
        raise UnsupportedImage("only a QCOW v1 image can keep its layout", request.src)
    options = Qcow2Options(
        image.cluster_size,
        lazy_refcounts=request.lazy_refcounts,
        backing_name=None if backing is None else backing.name,
        backing_format=None if backing is None else backing.format,
        version=2 if request.compat == "0.10" else 3,
    )
    against = why_not(image, options)
    if not native:
        against = "our own engine does not write it all"
    elif source.members and backing is None:
        against = "it is flattened with the files below it"
    elif source.members and image.virtual_size % SECTOR and not any(run.start + run.length == image.virtual_size for run in image.runs()):
        against = "its virtual size is not a whole number of sectors, and the end of its disk lies in the backing file"
    if against is not None:
        reasons.append("the layout cannot be kept: " + against)
        return RECLUSTER, cluster_size, need
    reasons.append("the layout is kept, clusters of {0} bytes".format(image.cluster_size))
    # The copy of the file, and tables for it: two bytes of refcount and eight of L2 for a cluster, and what may have to move.
    tables = (image.file_size // image.cluster_size + 1) * 16 + 8 * (
        image.virtual_size // (image.cluster_size // 8 * image.cluster_size) + 64
    )
    return KEEP, image.cluster_size, Need(need.guest, image.file_size + tables + 16 * image.cluster_size)
