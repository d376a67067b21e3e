# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Running domains: shut down gracefully and started again, or moved to another image without a stop.

A guest that does not listen is never pulled the plug on."""

import os
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from .._directories import exists, remove
from .._errors import ImageInUse, TargetExists, ToolFailed, UnsupportedImage
from .._paths import show, to_path
from . import api, domain_xml, xml_text

# A guest that is still booting misses the first press of the button.
_PRESS_AGAIN_SECONDS = 10.0
_LOOK_SECONDS = 0.2


def shutdown(connection: api.Connection, uuid: str, timeout: float) -> bool:
    """Ask the guest to shut down and wait for it, ``timeout`` seconds at most. False where the domain was not running.

    :raises ImageInUse: it still runs then; it goes on running.
    :raises ToolFailed: libvirt cannot ask.
    """
    library = connection.library
    handle = api.domain(connection, uuid)
    name = handle.name()
    if not handle.isActive():
        return False
    state = api.state_name(connection, handle)
    if state in ("paused", "pmsuspended", "crashed"):
        raise ImageInUse(
            "Domain {0} is {1} and cannot shut itself down.".format(name, state),
            hint="It was left as it is. Resume it (virsh resume {0}) or end it (virsh destroy {0}).".format(name),
        )
    end = time.monotonic() + timeout
    pressed = None
    while True:
        now = time.monotonic()
        try:
            if not handle.isActive():
                return True
            if pressed is None or now - pressed >= _PRESS_AGAIN_SECONDS:
                pressed = now
                handle.shutdown()
        except library.libvirtError as error:
            # It may have ended between the two calls; a transient one is gone then.
            if error.get_error_code() == library.VIR_ERR_NO_DOMAIN:
                return True
            if error.get_error_code() != library.VIR_ERR_OPERATION_INVALID:
                raise ToolFailed(
                    "Domain {0} cannot be asked to shut down: {1}.".format(name, api.message(error)),
                    reason="libvirt",
                    hint="It keeps running.",
                ) from error
        if now >= end:
            raise ImageInUse(
                "Domain {0} did not shut down within {1:g} seconds.".format(name, timeout),
                reason="shutdown-timeout",
                hint="It keeps running and nothing was changed. Does the guest listen to the power button (acpid, qemu-guest-agent)? "
                "Shut it down by hand, or allow it more time (shutdown_timeout).",
            )
        time.sleep(_LOOK_SECONDS)


def start(connection: api.Connection, uuid: str, settle: float = 1.0) -> bool:
    """Start the domain and see that it is still there ``settle`` seconds later (or ended by its own will). False where it ran already.

    :raises ToolFailed: it does not start, or QEMU ended with an error.
    """
    library = connection.library
    handle = api.domain(connection, uuid)
    name = handle.name()
    if handle.isActive():
        return False
    with api.reported(connection, "Domain {0} does not start".format(name)):
        handle.create()
    time.sleep(settle)
    state, reason = handle.state()
    failed = (library.VIR_DOMAIN_SHUTOFF_CRASHED, library.VIR_DOMAIN_SHUTOFF_FAILED)
    if state == library.VIR_DOMAIN_CRASHED or (state == library.VIR_DOMAIN_SHUTOFF and reason in failed):
        raise ToolFailed(
            "Domain {0} started and stopped at once with an error.".format(name),
            reason="libvirt",
            hint="See its log: virsh domstate --reason {0}.".format(name),
        )
    if state == library.VIR_DOMAIN_PAUSED and reason == library.VIR_DOMAIN_PAUSED_IOERROR:
        handle.destroy()  # its definition could not be put back under it
        raise ToolFailed(
            "Domain {0} started and was paused by an I/O error of its disk; it was ended.".format(name),
            reason="libvirt",
            hint="See its log in /var/log/libvirt/qemu/{0}.log.".format(name),
        )
    return True


# Block jobs on named nodes (blockdev): the copy then takes the target as we prepared it. QEMU 4.2 and libvirt 6.0.
_LIBVIRT = (6, 0, 0)
_QEMU = (4, 2, 0)
_LOOK_SECONDS = 0.2

Progress = Callable[[int, int], None]


class Overlay(NamedTuple):
    """Disk ``target`` writes to ``overlay``; nobody writes to ``image`` below it."""

    target: str
    image: bytes
    overlay: bytes


class Snapshot(NamedTuple):
    """A running domain on the overlays of an external snapshot. ``before``: its exact definition before, with its passwords; ``None`` where it has none."""

    domain: str
    uuid: str
    overlays: Tuple[Overlay, ...]
    before: Optional[str]


def capable(connection: api.Connection, uuid: str, targets: List[str], format_name: str) -> None:
    """Say whether this host can move these disks of this running domain, before anything is touched.

    :raises UnsupportedImage: libvirt, QEMU, the disk or the format asked for does not allow it, and why.
    :raises ImageInUse: a block job is at work on the disk.
    """
    handle = api.domain(connection, uuid)
    name = handle.name()
    daemon, hypervisor = api.versions(connection)
    way_out = "Nothing was touched. Shut the domain down for the migration instead."
    if connection.handle.getType() != "QEMU" or daemon < _LIBVIRT or hypervisor < _QEMU:
        raise UnsupportedImage(
            "Moving the disks of a running domain needs QEMU {0} and libvirt {1}; here are {2} {3} and libvirt {4}.".format(
                _dotted(_QEMU), _dotted(_LIBVIRT), connection.handle.getType(), _dotted(hypervisor), _dotted(daemon)
            ),
            hint=way_out,
        )
    if format_name != "qcow2":
        raise UnsupportedImage("A running domain can be moved to qcow2 only: libvirt copies an overlay onto nothing else.", hint=way_out)
    state = api.state_name(connection, handle)
    if state not in ("running", "idle", "paused"):
        raise UnsupportedImage("Domain {0} is {1}.".format(name, state), hint=way_out)
    found = {disk.target: disk for disk in domain_xml.read_disks(_live(connection, handle))}
    for target in targets:
        if target not in found:
            raise UnsupportedImage("Running domain {0} has no disk {1}.".format(name, target), hint=way_out)
        if found[target].device not in ("disk", "lun"):
            raise UnsupportedImage("{1} of domain {0} is a {2}.".format(name, target, found[target].device), hint=way_out)
        if handle.blockJobInfo(target):
            raise ImageInUse(
                "A block job is running on {1} of domain {0}.".format(name, target),
                hint="Wait for it (virsh blockjob {0} {1}).".format(name, target),
            )


def _dotted(version: Tuple[int, int, int]) -> str:
    return ".".join(str(number) for number in version)


def _live(connection: api.Connection, handle: Any) -> str:
    with api.reported(connection, "The state of {0} cannot be read".format(handle.name())):
        return handle.XMLDesc()


def take_snapshot(connection: api.Connection, uuid: str, overlays: Dict[str, bytes]) -> Snapshot:
    """Put the disks on new overlays, all at one instant: from then on nobody writes to the images below.

    ``overlays``: target to the name of its overlay, which must not exist; it grows by what the guest writes.

    :raises TargetExists: an overlay is there already.
    :raises ToolFailed: libvirt refuses; the domain runs on as before.
    """
    for overlay in overlays.values():
        if exists(overlay):
            raise TargetExists(
                "It is in the way of an overlay of a running domain.",
                path=overlay,
                hint="Nothing was touched. See whether a domain uses it.",
            )
    library = connection.library
    handle = api.domain(connection, uuid)
    name = handle.name()
    before = api.definition(connection, handle) if handle.isPersistent() else None
    pieces, images = [], {}
    for disk in domain_xml.read_disks(_live(connection, handle)):
        if disk.target not in overlays:
            pieces.append("<disk name={0} snapshot='no'/>".format(xml_text.quote(disk.target)))
            continue
        images[disk.target] = to_path(disk.layers[0].path or "")
        pieces.append(
            "<disk name={0} snapshot='external'><driver type='qcow2'/><source file={1}/></disk>".format(
                xml_text.quote(disk.target), xml_text.quote(api.describe(overlays[disk.target]))
            )
        )
    flags = (
        library.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | library.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        | library.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    )
    with api.reported(connection, "Domain {0} cannot be put on an overlay".format(name), hint="It keeps running as before."):
        handle.snapshotCreateXML("<domainsnapshot><disks>{0}</disks></domainsnapshot>".format("".join(pieces)), flags)
    return Snapshot(name, uuid, tuple(Overlay(target, images[target], overlays[target]) for target in sorted(overlays)), before)


def pivot(
    connection: api.Connection,
    snapshot: Snapshot,
    moved: Dict[str, bytes],
    *,
    bandwidth: Optional[int] = None,
    progress: Optional[Progress] = None,
    timeout: Optional[float] = None,
) -> None:
    """Bring the converted images (target to qcow2 file, each holding what the image below the overlay holds) up to date and pivot.

    ``bandwidth`` in bytes per second; ``progress`` is called with bytes done and to do; ``timeout`` in seconds for one disk. The
    definition is not dealt with here. The overlays are deleted once nothing uses them.

    :raises ToolFailed: a copy failed or took too long. Disks that have not pivoted are on their overlays still: commit back, or pivot again.
    """
    library = connection.library
    handle = api.domain(connection, snapshot.uuid)
    flags = library.VIR_DOMAIN_BLOCK_COPY_SHALLOW | library.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | library.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    parameters = {library.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH: int(bandwidth)} if bandwidth else {}
    for target, _image, overlay in snapshot.overlays:
        if _image_of(connection, handle, target) != overlay:
            continue  # pivoted by an earlier attempt
        destination = "<disk type='file'><driver type='qcow2'/><source file={0}/></disk>".format(
            xml_text.quote(api.describe(moved[target]))
        )
        with api.reported(
            connection, "{0} of domain {1} cannot be copied".format(target, snapshot.domain), hint="It keeps running on its overlay."
        ):
            handle.blockCopy(target, destination, parameters, flags)
        _finish(connection, handle, target, progress, timeout)
        remove(os.fsencode(overlay))


def commit_back(
    connection: api.Connection, snapshot: Snapshot, *, progress: Optional[Progress] = None, timeout: Optional[float] = None
) -> None:
    """Undo :func:`take_snapshot`: commit what the guest wrote to the images below and pivot back; the definition is as it was before.

    :raises ToolFailed: libvirt fails; the disks concerned stay on their overlays, which hold what the guest wrote.
    """
    library = connection.library
    handle = api.domain(connection, snapshot.uuid)
    flags = library.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | library.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
    for target, _image, overlay in snapshot.overlays:
        if _image_of(connection, handle, target) != overlay:
            continue
        if handle.blockJobInfo(target):
            with api.reported(connection, "The block job on {0} of domain {1} cannot be ended".format(target, snapshot.domain)):
                handle.blockJobAbort(target)
        with api.reported(
            connection, "{0} of domain {1} cannot be committed".format(target, snapshot.domain), hint="It keeps running on its overlay."
        ):
            handle.blockCommit(target, None, None, 0, flags)
        _finish(connection, handle, target, progress, timeout)
        remove(os.fsencode(overlay))


def on_overlay(connection: api.Connection, snapshot: Snapshot) -> bool:
    """Is any of the disks on its overlay still?

    :raises ToolFailed: libvirt does not say.
    """
    handle = api.domain(connection, snapshot.uuid)
    return any(_image_of(connection, handle, layer.target) == layer.overlay for layer in snapshot.overlays)


def _image_of(connection: api.Connection, handle: Any, target: str) -> Optional[bytes]:
    for disk in domain_xml.read_disks(_live(connection, handle)):
        if disk.target == target and disk.layers[0].path is not None:
            return to_path(disk.layers[0].path)
    return None


def _finish(connection: api.Connection, handle: Any, target: str, progress: Optional[Progress], timeout: Optional[float]) -> None:
    """Wait until the job has caught up with the guest, then pivot; a job that fails or takes too long is ended without pivot."""
    library = connection.library
    end = None if timeout is None else time.monotonic() + timeout
    name = handle.name()
    stays = "The domain keeps running on its overlay {0}.".format(show(_image_of(connection, handle, target) or b"?"))
    try:
        while True:
            ready = _ready(_live(connection, handle), target)
            job = handle.blockJobInfo(target) or {}
            if progress is not None and job:
                progress(int(job.get("cur", 0)), int(job.get("end", 0)))
            if ready is None:
                raise ToolFailed("The block job on {0} of domain {1} failed.".format(target, name), reason="block-job", hint=stays)
            if ready:
                handle.blockJobAbort(target, library.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
                return
            if end is not None and time.monotonic() >= end:
                raise ToolFailed(
                    "The block job on {0} of domain {1} did not catch up within {2:g} seconds.".format(target, name, timeout or 0),
                    reason="block-job",
                    hint=stays,
                )
            time.sleep(_LOOK_SECONDS)
    except BaseException as error:
        # Also when the operator interrupts: a job left alone would go on, and nobody would pivot.
        try:
            if handle.blockJobInfo(target):
                handle.blockJobAbort(target)
        except library.libvirtError:
            pass
        if isinstance(error, library.libvirtError):
            raise ToolFailed(
                "The block job on {0} of domain {1}: {2}.".format(target, name, api.message(error)), reason="block-job", hint=stays
            ) from error
        raise


def _ready(xml: str, target: str) -> Optional[bool]:
    """Has the disk's job caught up? ``None`` where there is no job (any more)."""
    for element in xml_text.parse(xml).walk():
        mirror = element.child("mirror") if element.name == "disk" else None
        named = element.child("target")
        if mirror is not None and named is not None and named.attributes.get("dev") == target:
            return mirror.attributes.get("ready") == "yes"
    return None


def definition_after(snapshot: Snapshot, now: str) -> str:
    """What the definition has become by the block jobs, without the end-of-chain mark that libvirt leaves and that was not there before."""
    ended = set()
    for element in xml_text.parse(snapshot.before or now).walk():
        named = element.child("target")
        if element.name == "disk" and named is not None and element.child("backingStore") is not None:
            ended.add(named.attributes.get("dev"))
    for layer in snapshot.overlays:
        if layer.target not in ended:
            now = domain_xml.without_chain_end(now, layer.target)
    return now
