# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt on this host: the connection, its errors as ours, its directory pools and the exact text of a definition.

libvirt-python is imported only when asked for: hosts without libvirt work without it.
"""

import os
from contextlib import contextmanager
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

from .._directories import real_path
from .._errors import QcowError, ToolFailed, ToolMissing
from .._paths import show, to_path
from . import xml_text
from .inventory import DEFAULT_URI

# Pools in which a volume is a file of that name in the pool's target directory (libvirt's src/storage/storage_backend_fs.c).
_DIRECTORY_POOLS = ("dir", "fs", "netfs")


class Connection(NamedTuple):
    """An open connection: ``library`` is the module libvirt, ``handle`` its virConnect."""

    library: Any
    handle: Any
    uri: str


class Pool(NamedTuple):
    """A storage pool whose volumes are files in ``path`` (absolute, as declared)."""

    name: str
    path: bytes
    active: bool


class Refreshed(NamedTuple):
    """What became of a pool: ``refreshed``, or why not (``inactive``, or libvirt's message)."""

    name: str
    path: bytes
    refreshed: bool
    reason: Optional[str]


def load() -> Optional[Any]:
    """The module libvirt of libvirt-python, or ``None`` where the running Python has none."""
    try:
        import libvirt  # pylint: disable=import-outside-toplevel
    except ImportError:
        return None
    # By default the library also prints every error to stderr, where it would end up in the module's output.
    libvirt.registerErrorHandler(lambda context, error: None, None)
    return libvirt


def connect(uri: str = DEFAULT_URI, *, readonly: bool) -> Connection:
    """Open a connection. Read-only ones see no passwords and change nothing.

    :raises ToolMissing: this Python has no libvirt-python.
    :raises ToolFailed: libvirt does not answer at that URI.
    """
    library = load()
    if library is None:
        raise ToolMissing(
            "The Python that runs this module has no libvirt-python.",
            hint="Nothing was changed. Install python3-libvirt, or let ansible_python_interpreter name a Python that has it.",
        )
    try:
        handle = library.openReadOnly(uri) if readonly else library.open(uri)
    except library.libvirtError as error:
        raise ToolFailed(
            "libvirt does not answer at {0}: {1}.".format(uri, message(error)),
            reason="libvirt",
            hint="Nothing was changed. Is the daemon running?",
        ) from error
    return Connection(library, handle, uri)


def close(connection: Connection) -> None:
    """Close it; a connection that broke meanwhile is closed too."""
    try:
        connection.handle.close()
    except connection.library.libvirtError:
        pass


def message(error: Exception) -> str:
    """libvirt's message without its final full stop."""
    return str(error).strip().rstrip(".")


@contextmanager
def reported(connection: Connection, what: str, hint: Optional[str] = None) -> Iterator[None]:
    """Turn libvirt's errors into ours: ``what`` failed, ``hint`` says what is left as it was."""
    try:
        yield
    except connection.library.libvirtError as error:
        raise ToolFailed("{0}: {1}.".format(what, message(error)), reason="libvirt", hint=hint, code=error.get_error_code()) from error


def domain(connection: Connection, name_or_uuid: str) -> Any:
    """The virDomain of that UUID or name.

    :raises ToolFailed: libvirt knows no such domain.
    """
    try:
        return connection.handle.lookupByUUIDString(name_or_uuid)
    except connection.library.libvirtError:
        pass
    with reported(connection, "There is no domain {0}".format(name_or_uuid)):
        return connection.handle.lookupByName(name_or_uuid)


def definition(connection: Connection, handle: Any) -> str:
    """The domain's persistent definition, exactly: inactive (no live state in it) and with its passwords, as ``virsh edit`` reads it.

    :raises QcowError: the domain has none (transient), or libvirt refuses.
    """
    if not handle.isPersistent():
        raise QcowError(
            "Domain {0} is transient: it has no definition that could be changed.".format(handle.name()),
            reason="transient",
            hint="It was not changed. Change what creates it, or make it persistent (virsh define).",
        )
    library = connection.library
    with reported(connection, "The definition of {0} cannot be read".format(handle.name())):
        return handle.XMLDesc(library.VIR_DOMAIN_XML_INACTIVE | library.VIR_DOMAIN_XML_SECURE)


def find_definition(connection: Connection, uuid: str) -> Optional[Tuple[str, bool]]:
    """The definition of a domain and whether it runs; ``None`` where there is no such domain any more.

    :raises ToolFailed: libvirt fails.
    """
    with reported(connection, "Domain {0} cannot be looked up".format(uuid)):
        try:
            handle = connection.handle.lookupByUUIDString(uuid)
        except connection.library.libvirtError as error:
            if error.get_error_code() == connection.library.VIR_ERR_NO_DOMAIN:
                return None
            raise
        return definition(connection, handle), bool(handle.isActive())


def state_name(connection: Connection, handle: Any) -> str:
    """The state as ``virsh`` calls it."""
    library = connection.library
    names = {
        library.VIR_DOMAIN_NOSTATE: "no state",
        library.VIR_DOMAIN_RUNNING: "running",
        library.VIR_DOMAIN_BLOCKED: "idle",
        library.VIR_DOMAIN_PAUSED: "paused",
        library.VIR_DOMAIN_SHUTDOWN: "in shutdown",
        library.VIR_DOMAIN_SHUTOFF: "shut off",
        library.VIR_DOMAIN_CRASHED: "crashed",
        library.VIR_DOMAIN_PMSUSPENDED: "pmsuspended",
    }
    return names.get(handle.state()[0], "unknown")


def pools(connection: Connection) -> List[Pool]:
    """The pools that keep their volumes as files in a directory, in the order of their names.

    :raises ToolFailed: libvirt refuses to list them.
    """
    found = []
    try:
        handles = connection.handle.listAllStoragePools()
    except connection.library.libvirtError as error:
        if error.get_error_code() == connection.library.VIR_ERR_NO_SUPPORT:
            return []
        raise ToolFailed("The storage pools cannot be listed: {0}.".format(message(error)), reason="libvirt") from error
    for handle in handles:
        try:
            pool = pool_of_xml(handle.XMLDesc(), active=bool(handle.isActive()))
        except connection.library.libvirtError:
            continue  # undefined between the list and now
        if pool is not None:
            found.append(pool)
    return sorted(found)


def pool_of_xml(xml: str, *, active: bool) -> Optional[Pool]:
    """The pool that a pool definition describes, if its volumes are files in a directory."""
    root = xml_text.parse(xml)
    name, target = root.child("name"), root.child("target")
    path = target.child("path") if target is not None else None
    if root.attributes.get("type") not in _DIRECTORY_POOLS or name is None or path is None:
        return None
    return Pool(name.text.strip(), to_path(path.text.strip()), active)


def pool_for(known: List[Pool], path: bytes, preferred: Optional[str] = None) -> Optional[Pool]:
    """The pool in whose directory the file lies; ``preferred`` wins where several share it."""
    directory = real_path(os.path.dirname(path))
    matching = [pool for pool in known if real_path(pool.path) == directory]
    return next((pool for pool in matching if pool.name == preferred), matching[0] if matching else None)


def refresh_pools(connection: Connection, paths: List[bytes]) -> List[Refreshed]:
    """Make every active pool whose directory holds one of the files look again; inactive pools stay as they are.

    A pool that cannot be refreshed now (a job of its own is running) is part of the answer, not an error: the definitions of the
    domains do not depend on it.
    """
    directories = {real_path(os.path.dirname(path)) for path in paths}
    results = []
    for pool in pools(connection):
        if real_path(pool.path) not in directories:
            continue
        if not pool.active:
            results.append(Refreshed(pool.name, pool.path, False, "inactive"))
            continue
        try:
            connection.handle.storagePoolLookupByName(pool.name).refresh()
            results.append(Refreshed(pool.name, pool.path, True, None))
        except connection.library.libvirtError as error:
            results.append(Refreshed(pool.name, pool.path, False, message(error)))
    return results


def versions(connection: Connection) -> Tuple[Tuple[int, int, int], Tuple[int, int, int]]:
    """Versions of the libvirt daemon and of the hypervisor, each as (major, minor, release)."""
    with reported(connection, "libvirt does not report its version"):
        numbers = connection.handle.getLibVersion(), connection.handle.getVersion()
    return tuple((number // 1000000, number // 1000 % 1000, number % 1000) for number in numbers)  # type: ignore[return-value]


def volume_path(known: List[Pool], pool: str, volume: str) -> Optional[bytes]:
    """The file that a source ``<source pool= volume=>`` means, as far as directory pools go."""
    return next((os.path.join(entry.path, to_path(volume)) for entry in known if entry.name == pool), None)


def describe(path: bytes) -> str:
    """The name as libvirt's XML can carry it.

    :raises QcowError: the name is not UTF-8, so no domain definition can name it.
    """
    try:
        return path.decode("utf-8")
    except UnicodeDecodeError as error:
        raise QcowError(
            "Its name is not valid UTF-8, and a libvirt definition cannot name such a file.",
            path=path,
            reason="unsupported",
            hint="No definition was changed. Choose a destination name in UTF-8 instead of {0}.".format(show(os.path.basename(path))),
        ) from error
