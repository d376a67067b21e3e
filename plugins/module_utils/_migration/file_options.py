# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Owner, group, mode and SELinux context of a result, where a task names them; the original's have been carried over already."""

import grp
import os
import pwd
import stat
from typing import Any, Callable, Dict, Optional

from .._directories import access_on, behind_links
from .._errors import ImageChanged, QcowError, UnsafeImage
from .._host.attributes import set_access
from .._host.files import identity_at, open_source
from .._options import OptionError, absolute
from .._paths import decode_exact
from .moved_files import MovedFiles
from .record import Records, State
from .source import Source

_BY_DESCRIPTOR = ("owner", "group", "mode")
_BY_NAME = ("seuser", "serole", "setype", "selevel", "attributes")


def set_file_options(module: Any, result: Dict[str, Any]) -> None:
    """Set what the task asks for on the result, and on nothing that a link under its name leads to.

    :param module: the AnsibleModule. :param result: of one image; it says so where that cannot be done.
    """
    params = module.params
    if result["failed"] or module.check_mode or not any(params[name] is not None for name in _BY_DESCRIPTOR + _BY_NAME):
        return
    path = decode_exact(result["dest"], result["dest_base64"])
    try:
        path = behind_links(path)
        fd = open_source(path, block_devices=True)
        try:
            status = os.fstat(fd)
            _require_published(result, path, status, Records(absolute(params["state_dir"], "state_dir")), MovedFiles(params["moved_files"]))
            mode = _mode_of(module, status)
            owner, group = _number_of(params, "owner", pwd.getpwnam), _number_of(params, "group", grp.getgrnam)
            result["changed"] = set_access(fd, owner, group, mode) or result["changed"]
        finally:
            os.close(fd)
        if any(params[name] is not None for name in _BY_NAME):
            _set_by_name(module, result, path)
    except (QcowError, OSError, ValueError) as error:
        message = "{0}: not all of owner, group, mode and the like could be set: {1}".format(result["dest"], error)
        result.update(
            failed=True, reason="attributes", msg=message + " The image itself is in place and was left as it is. Mend that and run again."
        )


def _require_published(result: Dict[str, Any], path: bytes, status: os.stat_result, records: Records, moved: MovedFiles) -> None:
    """The result is the file of an earlier or of this migration, or the image itself if it needed none.

    :raises QcowError: it is another file, or that takes an option to find out.
    """
    if result["src"] == result["dest"] and result["source"] is not None and status.st_ino == result["source"]["ino"]:
        return
    made = [
        record
        for record in records.of_source(decode_exact(result["src"], result["src_base64"]))
        if record.state in State.IN_PLACE and record.facts.get("result")
    ]
    if any(status.st_ino == record.facts["result"]["ino"] for record in made):
        return
    with Source(path, identity_at(path)) as source:
        if source.identity.ino != status.st_ino or not any(moved.is_result(record, source) for record in reversed(made)):
            raise ImageChanged(
                "it is not the file that was published, or was moved and has been written since",
                path,
                hint="Set moved_files=accept if it is.",
            )


def _number_of(params: Dict[str, Any], option: str, find: Callable[[str], Any]) -> Optional[int]:
    value = params[option]
    if value is None or str(value).isdigit():
        return None if value is None else int(value)
    try:
        return int(find(value)[2])
    except KeyError as error:
        raise OptionError("{0}: {1} does not exist on this host".format(option, value)) from error


def _mode_of(module: Any, status: os.stat_result) -> Optional[int]:
    """The permissions that are asked for: as a number, in octal, or as ``chmod`` has them in letters."""
    mode = module.params["mode"]
    if not isinstance(mode, str):
        return mode
    try:
        return int(mode, 8)
    except ValueError:
        return module._symbolic_mode_to_octal(status, mode)


def _set_by_name(module: Any, result: Dict[str, Any], path: bytes) -> None:
    """What Ansible sets by name: only where nobody else can exchange names."""
    directories = [access for _place, access in access_on(os.path.dirname(path))]
    if directories[-1].writers() or any(above.writers() for above in directories if not above.mode & stat.S_ISVTX):
        raise UnsafeImage("others can write in its directory or above it", path)
    name = os.fsdecode(path)
    # The one expands variables in the name that it is given, for the default SELinux context; the other does not.
    arguments = dict(module.load_file_common_arguments(module.params, path=name.replace("$", "_")), path=name)
    arguments.update(owner=None, group=None, mode=None)
    result["changed"] = module.set_fs_attributes_if_different(arguments, result["changed"], expand=False)
