# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shut domains down gracefully and start them again. A guest that does not listen is never pulled the plug on."""

import time

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import ImageInUse, ToolFailed
from ansible_collections.vmimage.qcow.plugins.module_utils.host import libvirt

# A guest that is still booting misses the first press of the button.
_PRESS_AGAIN_SECONDS = 10.0
_LOOK_SECONDS = 0.2


def shutdown(connection: libvirt.Connection, uuid: str, timeout: float) -> bool:
    """Ask the guest to shut down and wait for it, ``timeout`` seconds at most. False where the domain was not running.

    :raises ImageInUse: it still runs then; it goes on running.
    :raises ToolFailed: libvirt cannot ask.
    """
    library = connection.library
    handle = libvirt.domain(connection, uuid)
    name = handle.name()
    if not handle.isActive():
        return False
    state = libvirt.state_name(connection, handle)
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
                    "Domain {0} cannot be asked to shut down: {1}.".format(name, libvirt.message(error)),
                    reason="libvirt",
                    hint="It goes on running.",
                ) from error
        if now >= end:
            raise ImageInUse(
                "Domain {0} did not shut down within {1:g} seconds.".format(name, timeout),
                reason="shutdown-timeout",
                hint="It goes on running and nothing was changed. Does the guest listen to the power button (acpid, qemu-guest-agent)? "
                "Shut it down by hand, or allow it more time.",
            )
        time.sleep(_LOOK_SECONDS)


def start(connection: libvirt.Connection, uuid: str, settle: float = 1.0) -> bool:
    """Start the domain and see that it is still there ``settle`` seconds later (or ended by its own will). False where it ran already.

    :raises ToolFailed: it does not start, or QEMU ended with an error.
    """
    library = connection.library
    handle = libvirt.domain(connection, uuid)
    name = handle.name()
    if handle.isActive():
        return False
    with libvirt.reported(connection, "Domain {0} does not start".format(name)):
        handle.create()
    time.sleep(settle)
    state, reason = handle.state()
    failed = (library.VIR_DOMAIN_SHUTOFF_CRASHED, library.VIR_DOMAIN_SHUTOFF_FAILED)
    if state == library.VIR_DOMAIN_CRASHED or (state == library.VIR_DOMAIN_SHUTOFF and reason in failed):
        raise ToolFailed(
            "Domain {0} started and ended at once with an error.".format(name),
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
