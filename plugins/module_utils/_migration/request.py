# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a migration is asked to do, and the names it gives to things."""

import os
from typing import Any, NamedTuple, Optional, Tuple

from .._errors import ImageChanged

RETIRED_SUFFIX = b".qcow1.orig"
"""What a retired original's name ends with, so that nothing goes on writing to it unnoticed."""

SUFFIXES = {"qcow2": b".qcow2", "raw": b".raw"}

DEFAULT_STATE_DIR = b"/var/lib/vmimage-qcow"


WRITTEN = "written"
READ = "read"


class Request(NamedTuple):
    """One image to migrate, and how. Sizes in bytes."""

    src: bytes
    dest: Optional[bytes] = None  # the result's name; beside the source if not given
    dest_dir: Optional[bytes] = None  # a directory the result goes into, made where it does not exist; instead of ``dest``
    format: str = "qcow2"  # qcow2 or raw
    keep_name: bool = False  # the result takes the source's name
    engine: str = "auto"  # auto, native or qemu-img
    verify: bool = True
    retire: bool = False  # rename the original when the result is in place
    cluster_size: Optional[int] = None
    compression: str = "none"  # none, zlib or zstd
    lazy_refcounts: bool = False
    extended_l2: bool = False
    bandwidth: Optional[int] = None  # bytes a second
    timestamps: bool = True
    state_dir: bytes = DEFAULT_STATE_DIR
    chains: str = "preserve"  # overlays thin over the migrated base; or flatten: each result stands alone
    links: str = "follow"  # symbolic links to an image that loses its name: follow to the result, refuse or ignore
    backing_dirs: Tuple[bytes, ...] = ()  # where backing files may lie, besides the directory of the image itself
    backing_formats: Tuple[Tuple[bytes, str], ...] = ()  # what the operator, a domain or a pool has declared files to be
    raw_bases: bool = True  # take a base without any magic for raw
    passphrase_files: Tuple[Tuple[bytes, bytes], ...] = ()  # (image, file with its passphrase); image b"" means every one without its own
    force_passphrase: bool = False  # take passphrases that look wrong
    encryption: str = "none"  # of the result: none or luks
    luks_passphrase_file: Optional[bytes] = None
    salvage: bool = False  # zeros for what cannot be read
    allow_declared_raw: bool = False  # it is an image although a domain declares it raw, or other formats have left their marks
    preallocation: str = "off"  # off, metadata, falloc or full
    compat: str = "1.1"  # of a qcow2 result: 1.1 or 0.10
    overwrite_device: bool = False  # a block device may hold something that will be lost
    layout: str = "recluster"  # of a qcow2 result: recluster, or keep: clusters stay where they are, only the tables are new
    page_cache: str = "use"  # or spare: leave neither source nor result in it
    domain_access: str = ""  # of running domains: WRITTEN until room is made for the migration, or only READ by now
    refused: str = ""  # why a reviewed plan refuses it
    expect: Tuple[Tuple[str, int], ...] = ()  # what a reviewed plan says of the source: size, mtime_ns and ino, those that it names


def require_expected(request: Request, identity: Any) -> None:
    """See that the source is what a reviewed plan was made for.

    :param identity: of the file as it is now.
    :raises ImageChanged: where it is another file, or was changed.
    """
    differing = [(key, value, getattr(identity, key)) for key, value in request.expect if getattr(identity, key) != value]
    if differing:
        raise ImageChanged(
            "is not what the plan was made for: {0}".format("; ".join("{0} was {1}, is {2}".format(*item) for item in differing)),
            request.src,
            hint="It was left as it is. Scan again, and review the new plan.",
        )


def result_path(request: Request) -> bytes:
    """Where the result goes.

    ``x.qcow`` becomes ``x.qcow2`` (or ``x.raw``); any other name gets the suffix appended; a name that carries it already is kept, as
    is every name on request. An explicit ``dest`` is taken as it is.
    """
    if request.dest_dir is None and request.dest is not None:
        return request.dest
    directory, name = os.path.split(request.src)
    return os.path.join(request.dest_dir or directory, _result_name(name, request))


def _result_name(name: bytes, request: Request) -> bytes:
    suffix = SUFFIXES[request.format]
    lowered = name.lower()
    if request.keep_name or lowered.endswith(suffix):
        return name
    if lowered.endswith(b".qcow") and len(name) > len(b".qcow"):
        return name[: -len(b".qcow")] + suffix
    return name + suffix


def retired_path(src: bytes) -> bytes:
    """The name an original gets when it is retired."""
    return src + RETIRED_SUFFIX


def is_retired(path: bytes) -> bool:
    """Whether a name says that the file is a retired original."""
    return path.endswith(RETIRED_SUFFIX)


def is_overlay(path: bytes) -> bool:
    """Whether a name says that a running domain writes there while the image below is converted."""
    name = os.path.basename(path)
    return name.startswith(b".vmimage-qcow.") and name.endswith(b".overlay")


def temporary_name(record_id: str) -> bytes:
    """The name of an unfinished result; short, so that it fits wherever the result's own name fits."""
    return b".vmimage-qcow." + record_id.encode("ascii") + b".tmp"
