# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Executes a plan: copy, verify, publish, retire, each step recorded before it happens."""

import os
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import ImageChanged, QcowError, ToolMissing, VerificationFailed
from ansible_collections.vmimage.qcow.plugins.module_utils.host.attributes import carry_over, prepare
from ansible_collections.vmimage.qcow.plugins.module_utils.host.files import create_temporary, identity, sync_directory
from ansible_collections.vmimage.qcow.plugins.module_utils.host.in_use import Guard
from ansible_collections.vmimage.qcow.plugins.module_utils.host.qemu_img import Node, QemuImg
from ansible_collections.vmimage.qcow.plugins.module_utils.image.copy import copy_extents
from ansible_collections.vmimage.qcow.plugins.module_utils.image.extent import SECTOR
from ansible_collections.vmimage.qcow.plugins.module_utils.image.qcow2_writer import DEFAULT_CLUSTER_SIZE, Qcow2Options, Qcow2Writer
from ansible_collections.vmimage.qcow.plugins.module_utils.image.raw import RawWriter
from ansible_collections.vmimage.qcow.plugins.module_utils.image.verify import verify
from ansible_collections.vmimage.qcow.plugins.module_utils.migration import record as states
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.finish import abandon, finish, published, temporary_path
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.plan import CONVERT, RETIRE, Plan
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.record import Record, Records, named
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.source import Source, open_plain

OnProgress = Callable[[str, int], None]
"""Told of a stage (``copy`` or ``verify``) and of the guest bytes it has dealt with since the last call."""


class Outcome(NamedTuple):
    """What happened to one image. Sizes in bytes, times in seconds."""

    changed: bool
    dest: bytes
    engine: Optional[str] = None
    verified: bool = False
    fingerprint: Optional[str] = None
    retired: Optional[bytes] = None
    record: Optional[str] = None
    after: Dict[str, Any] = {}
    warnings: List[str] = []
    copy_seconds: float = 0.0
    verify_seconds: float = 0.0


class _Tampering:
    """Where a test alters the result between copy and verification, to show that verification bites."""

    between = None  # type: Optional[Callable[[bytes], None]]


def execute(plan: Plan, records: Records, progress: Optional[OnProgress] = None) -> Outcome:
    """Carry out a plan that is not a refusal.

    :raises QcowError: after which the source and the old state are as they were, and nothing unfinished is left.
    :raises OSError: likewise.
    """
    if plan.action not in (CONVERT, RETIRE):
        return Outcome(False, plan.dest)
    with Source(plan.request.src, plan.identity) as source:
        with Guard(source.fd, source.path) as guard:
            source.open_qcow1()
            record = _begin(plan, source, records)
            try:
                outcome = _adopt(plan, record) if plan.action == RETIRE else _produce(plan, source, guard, record, progress)
                finish(record, source.fd, guard)
            except BaseException as error:
                if record.state in (states.PLANNED, states.COPYING, states.VERIFIED) and not published(record):
                    _give_up(record, error)
                raise
    return outcome._replace(retired=plan.retired)


def _begin(plan: Plan, source: Source, records: Records) -> Record:
    """The record, with everything that a later run needs to finish or clean up without asking anybody."""
    return records.begin(
        named(source.path, **source.identity._asdict()),
        named(plan.dest),
        format=plan.request.format,
        engine=plan.engine,
        before=plan.before,
        retire_to=None if plan.retired is None else named(plan.retired),
    )


def _give_up(record: Record, error: BaseException) -> None:
    """Leave the old state. What goes wrong here must not hide what went wrong first: the next run cleans up what is left."""
    try:
        abandon(record, str(error) or type(error).__name__)
    except (QcowError, OSError):
        pass


def _adopt(plan: Plan, record: Record) -> Outcome:
    """A result that was there already, and was proven when the plan was made."""
    with Source(plan.dest) as there:
        record.note(states.PUBLISHED, adopted=True, verified=True, result=there.identity._asdict())
    return Outcome(True, plan.dest, record=record.id)


def _produce(plan: Plan, source: Source, guard: Guard, record: Record, progress: Optional[OnProgress]) -> Outcome:
    """Write the result under its temporary name, prove it and make it durable."""
    temporary = temporary_path(record)
    fd = create_temporary(os.path.dirname(temporary), os.path.basename(temporary))
    try:
        inode = os.fstat(fd).st_ino
        record.note(states.COPYING, temporary=named(temporary, ino=inode))
        warnings = guard.warnings + prepare(fd, source.fd)
        started = time.monotonic()
        if plan.engine == "qemu-img":
            _convert_with_qemu_img(plan, source, temporary)
        else:
            copy_extents(source.extents(), _writer(fd, plan), _stage(progress, "copy", guard))
        copied = time.monotonic()
        if _Tampering.between is not None:
            _Tampering.between(temporary)
        proof = None
        if plan.request.verify:
            result = [open_plain(plan.request.format, fd, plan.dest)]
            proof = verify(source.plain(), result, plan.dest, _stage(progress, "verify", guard))
            _second_opinion(plan, temporary)
        guard.check()
        _require_still_named(source)
        warnings += carry_over(source.fd, fd, timestamps=plan.request.timestamps)
        os.fsync(fd)
        sync_directory(os.path.dirname(temporary))
        after = {
            "path": record.facts["dest"]["path"],
            "format": plan.request.format,
            "virtual_size": plan.virtual_size,
            "file_size": identity(fd).size,
            "allocated_size": os.fstat(fd).st_blocks * SECTOR,
            "cluster_size": None if plan.request.format == "raw" else plan.request.cluster_size or DEFAULT_CLUSTER_SIZE,
        }
        record.note(states.VERIFIED, fingerprint=proof, verified=plan.request.verify, after=after, result=identity(fd)._asdict())
        seconds = (copied - started, time.monotonic() - copied)
        return Outcome(True, plan.dest, plan.engine, plan.request.verify, proof, None, record.id, after, warnings, *seconds)
    finally:
        os.close(fd)


def _require_still_named(source: Source) -> None:
    """What was read must still be what the image's name means: the result is published, and the original retired, by name."""
    try:
        status = os.lstat(source.path)
    except OSError:
        status = None
    if status is None or (status.st_dev, status.st_ino) != (source.identity.dev, source.identity.ino):
        raise ImageChanged(
            "was replaced by another file, moved or removed while it was being read.", source.path, hint="Nothing was published. Run again."
        )


def _stage(progress: Optional[OnProgress], stage: str, guard: Guard) -> Callable[[int], None]:
    """The callback of one stage: counts bytes on, and looks after the guard every 64 MiB."""
    unseen = [0]

    def advance(count: int) -> None:
        unseen[0] += count
        if unseen[0] >= 64 << 20:
            unseen[0] = 0
            guard.check()
        if progress is not None:
            progress(stage, count)

    return advance


def _writer(fd: int, plan: Plan) -> Any:
    request = plan.request
    if request.format == "raw":
        return RawWriter(fd, plan.virtual_size)
    options = Qcow2Options(
        request.cluster_size or DEFAULT_CLUSTER_SIZE,
        lazy_refcounts=request.lazy_refcounts,
        extended_l2=request.extended_l2,
        compressed=request.compression == "zlib",
    )
    return Qcow2Writer(fd, plan.virtual_size, options)


def _convert_with_qemu_img(plan: Plan, source: Source, temporary: bytes) -> None:
    """The other engine, for a v1 driver that was proven to work."""
    tool = QemuImg.find()
    if tool is None:
        raise ToolMissing("qemu-img is not installed", hint="Nothing was changed. Install it, or use engine=native.")
    if not tool.reads_v1():
        raise ToolMissing(
            "this host's qemu-img was built without the QCOW v1 driver",
            hint="Nothing was changed. Use engine=native, which needs no qemu-img.",
        )
    request = plan.request
    tool.convert(
        Node(source.path, "qcow"), temporary, request.format, options=qemu_img_options(request), compress=request.compression != "none"
    )


def qemu_img_options(request: Request) -> Dict[str, str]:
    """The ``-o`` options that ask qemu-img for the same result."""
    if request.format == "raw":
        return {}
    options = {"compat": "1.1", "cluster_size": str(request.cluster_size or DEFAULT_CLUSTER_SIZE)}
    if request.lazy_refcounts:
        options["lazy_refcounts"] = "on"
    if request.extended_l2:
        options["extended_l2"] = "on"
    if request.compression == "zstd":
        options["compression_type"] = "zstd"
    return options


def _second_opinion(plan: Plan, temporary: bytes) -> None:
    """Where the host has a qemu-img, it must find our qcow2 clean too."""
    if plan.request.format != "qcow2":
        return
    tool = QemuImg.find()
    if tool is None:
        return
    answer = tool.check(temporary, "qcow2")
    if not answer.ok:
        raise VerificationFailed(
            "qemu-img check does not find the result clean: {0}".format(answer),
            plan.dest,
            hint="Nothing was published. Please report this.",
        )
