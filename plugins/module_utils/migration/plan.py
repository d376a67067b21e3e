# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan for one image: a value that check mode prints, diff mode shows and normal mode executes. There is no other path."""

import os
from typing import Any, Dict, List, NamedTuple, Optional

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import DamagedImage, QcowError, UnsupportedImage
from ansible_collections.vmimage.qcow.plugins.module_utils.host.files import FileIdentity, check_name
from ansible_collections.vmimage.qcow.plugins.module_utils.host.in_use import WRITER, find_users
from ansible_collections.vmimage.qcow.plugins.module_utils.image.detect import UNKNOWN
from ansible_collections.vmimage.qcow.plugins.module_utils.image.extent import SECTOR
from ansible_collections.vmimage.qcow.plugins.module_utils.image.measure import measure
from ansible_collections.vmimage.qcow.plugins.module_utils.image.qcow1 import Damage, Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils.image.qcow2_writer import DEFAULT_CLUSTER_SIZE
from ansible_collections.vmimage.qcow.plugins.module_utils.image.raw import RawWriter
from ansible_collections.vmimage.qcow.plugins.module_utils.image.verify import rounded, verify
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.record import IN_PLACE, Record, Records
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.request import Request, result_path, retired_path
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.source import Source, open_plain
from ansible_collections.vmimage.qcow.plugins.module_utils.paths import show

NOOP = "noop"
CONVERT = "convert"
RETIRE = "retire"
REFUSE = "refuse"

MAX_RANGES = 100
"""Damaged ranges named one by one in a message or result; the rest is counted."""


class Plan(NamedTuple):
    """What will happen to one image, and why."""

    action: str  # NOOP, CONVERT, RETIRE (the result is there and proven, only the original is to be renamed) or REFUSE
    request: Request
    dest: bytes
    reasons: List[str]  # in words
    code: str  # of a refusal, see QcowError.reason
    retired: Optional[bytes] = None  # the name the original will get
    engine: str = "native"
    identity: Optional[FileIdentity] = None  # of the source
    before: Dict[str, Any] = {}
    virtual_size: int = 0  # of the result, bytes
    guest_bytes: int = 0  # that will be copied
    need: int = 0  # bytes the result will occupy at most
    details: Dict[str, Any] = {}  # of a refusal

    @property
    def in_place(self) -> bool:
        """Whether the result replaces the original under its own name."""
        return self.dest == self.request.src


def make_plan(request: Request, records: Records) -> Plan:
    """Look at an image and decide. Changes nothing and never raises for what it finds: that is a refusal.

    :param records: of earlier migrations on this host.
    """
    dest = result_path(request)
    try:
        return _decide(request, dest, records)
    except QcowError as error:
        return Plan(REFUSE, request, dest, [str(error)], error.reason, details=error.details)
    except OSError as error:
        return Plan(REFUSE, request, dest, ["{0}: {1}".format(show(request.src), error.strerror)], "error")


def _decide(request: Request, dest: bytes, records: Records) -> Plan:
    done = _last_done(records.of_source(request.src))
    if not os.path.lexists(request.src):
        if done is not None and os.path.lexists(done.file("dest") or b""):
            return Plan(NOOP, request, done.file("dest") or dest, ["migrated before (record {0})".format(done.id)], "")
        raise QcowError("there is no such file", request.src, reason="missing")
    with Source(request.src) as source:
        kind = source.identify()
        if kind.format != "qcow":
            if kind.format == request.format:
                return Plan(NOOP, request, request.src, ["the image is {0} already".format(kind.format)], "", identity=source.identity)
            raise UnsupportedImage(
                "not a QCOW v1 image but {0}".format("raw or unknown" if kind.format == UNKNOWN else kind.format),
                request.src,
                reason="not-v1",
                hint="It was left as it is.",
            )
        if done is not None and done.file("dest") == dest and _unchanged(done, source.identity) and os.path.lexists(dest):
            action, retired = (RETIRE, retired_path(request.src)) if request.retire else (NOOP, None)
            return Plan(action, request, dest, ["converted before (record {0})".format(done.id)], "", retired, identity=source.identity)
        return _plan_conversion(request, dest, source)


def _last_done(records: List[Record]) -> Optional[Record]:
    for record in reversed(records):
        if record.state in IN_PLACE:
            return record
    return None


def _unchanged(record: Record, identity: FileIdentity) -> bool:
    """Whether the original is still the file that was converted."""
    src = record.facts["src"]
    return (src.get("ino"), src.get("size"), src.get("mtime_ns")) == (identity.ino, identity.size, identity.mtime_ns)


def _plan_conversion(request: Request, dest: bytes, source: Source) -> Plan:
    image = _sound(source)
    retired = retired_path(request.src) if request.retire else None
    before = {
        "path": show(request.src),
        "format": "qcow",
        "virtual_size": image.virtual_size,
        "file_size": source.identity.size,
        "allocated_size": os.fstat(source.fd).st_blocks * SECTOR,
        "cluster_size": image.cluster_size,
    }
    common: Dict[str, Any] = {"retired": retired, "identity": source.identity, "before": before, "virtual_size": rounded(image.virtual_size)}
    _require_names(request, dest, retired)
    if dest != request.src and os.path.lexists(dest):
        return _adopt(request, dest, source, common)
    _require_free(source, replaced=retired is not None)
    need = measure(
        source.extents(),
        cluster_size=RawWriter.cluster_size if request.format == "raw" else request.cluster_size or DEFAULT_CLUSTER_SIZE,
        virtual_size=rounded(image.virtual_size),
        tables=request.format == "qcow2",
        entry_size=16 if request.extended_l2 else 8,
    )
    reasons = ["QCOW v1 image of {0} bytes".format(image.virtual_size)]
    if image.virtual_size % SECTOR:
        reasons.append("virtual size rounded up to {0} bytes, no guest byte is lost".format(rounded(image.virtual_size)))
    engine = "qemu-img" if request.engine == "qemu-img" or request.compression == "zstd" else "native"
    return Plan(CONVERT, request, dest, reasons, "", engine=engine, guest_bytes=need.guest, need=need.file, **common)


def _sound(source: Source) -> Qcow1:
    """The image, when nothing in its tables contradicts the file.

    :raises DamagedImage: naming every damaged range (up to ``MAX_RANGES``).
    """
    found = []  # type: List[Damage]
    image = source.open_qcow1(found.append)
    for _extent in image.extents():
        if len(found) > MAX_RANGES:
            break
    if found:
        raise damaged(source.path, found)
    return image


def damaged(path: bytes, found: List[Damage]) -> QcowError:
    """The refusal of an image with damaged ranges."""
    listed = found[:MAX_RANGES]
    words = ["guest bytes {0}..{1}: {2} (file offset {3})".format(d.start, d.start + d.length - 1, d.what, d.offset) for d in listed]
    return DamagedImage(
        "damaged in {0}{1} places: {2}".format(len(listed), " or more" if len(found) > MAX_RANGES else "", "; ".join(words)),
        path,
        hint="The image was not changed. Restore it from a backup.",
        ranges=[{"start": d.start, "length": d.length, "offset": d.offset, "what": d.what} for d in listed],
    )


def _require_names(request: Request, dest: bytes, retired: Optional[bytes]) -> None:
    check_name(dest)
    if dest == request.src and retired is None:
        raise QcowError(
            "the result would take the original's own name, and the original is to be kept",
            request.src,
            reason="exists",
            hint="Nothing was changed. Say original=retire, or give another dest.",
        )
    if retired is not None:
        check_name(retired)
        if os.path.lexists(retired):
            raise QcowError(
                "the name {0} that the original would get is taken".format(show(retired)),
                request.src,
                reason="exists",
                hint="Nothing was changed. Move that file away and run again.",
            )


def _require_free(source: Source, *, replaced: bool) -> None:
    users = find_users(source.fd)
    against = users if replaced else [use for use in users if use.kind == WRITER]
    if against:
        raise QcowError(
            "the image is in use: {0}".format("; ".join("{0} ({1}, {2})".format(use.who, use.kind, use.how) for use in against)),
            source.path,
            reason="in-use",
            hint="Nothing was changed. Stop what uses it and run again.",
            users=[use._asdict() for use in against],
        )


def _adopt(request: Request, dest: bytes, source: Source, common: Dict[str, Any]) -> Plan:
    """The result's name is taken: by what we would write (its record is lost), or by something else."""
    with Source(dest) as there:
        kind = there.identify().format
        if request.format in (kind, "raw" if kind == UNKNOWN else kind):
            try:
                verify(source.plain(), [open_plain(request.format, there.fd, dest)], dest)
                action = RETIRE if request.retire else NOOP
                return Plan(action, request, dest, ["an identical result exists already"], "", **common)
            except QcowError as error:
                if error.reason != "verification-failed":
                    raise
    raise QcowError(
        "the name {0} that the result would get is taken by something else".format(show(dest)),
        request.src,
        reason="exists",
        hint="Nothing was changed. Move that file away, or give another dest, and run again.",
    )
