# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of modules as values of our own. What cannot be meant is refused before anything else happens, and the message names the option."""

import os
import re
from typing import Any, Mapping, Optional, Tuple

from ._errors import QcowError
from ._paths import decode_exact, show, to_path

Params = Mapping[str, Any]


_UNITS = " KMGTP"
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(?:i?b)?\s*$", re.IGNORECASE)


_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_TIME = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)\s*$", re.IGNORECASE)


class OptionError(QcowError):
    """An option has a value that cannot be meant; nothing was done."""

    default_reason = "option"


def path_of(params: Params, name: str) -> Optional[bytes]:
    """A path on this host, or ``None`` where it is not given.

    :raises OptionError: the path is relative. A module has no working directory that a person could know of.
    """
    return None if params[name] is None else absolute(params[name], name)


def paths_of(params: Params, name: str) -> Tuple[bytes, ...]:
    """A list of paths on this host.

    :raises OptionError: one of them is relative.
    """
    return tuple(absolute(text, name) for text in params[name] or ())


def absolute(text: str, name: str) -> bytes:
    """A path without trailing slashes and detours, for the option ``name``; a leading ``~`` becomes the home directory.

    :raises OptionError: the path is relative.
    """
    return _absolute(os.path.expanduser(to_path(text)), name)


def exact_path(params: Params, name: str) -> bytes:
    """As :func:`absolute`, for an option that may be accompanied by its Base64: that counts, and is taken as it is.

    :raises OptionError: the path is relative, or its Base64 is none.
    """
    encoded = params.get(name + "_base64")
    if not encoded:
        return absolute(params[name], name)
    name += "_base64"
    try:
        return _absolute(decode_exact("", encoded), name)
    except ValueError as error:
        raise OptionError("{0}: {1}".format(name, error)) from error


def _absolute(path: bytes, name: str) -> bytes:
    if not os.path.isabs(path):
        raise OptionError("{0}: {1} is a relative path. Give an absolute path".format(name, show(path) or "an empty name"))
    return os.path.abspath(path)


def require_at_least(params: Params, **least: float) -> None:
    """See that numbers are not less than what makes sense; options that are not given are left alone.

    :raises OptionError: one of them is.
    """
    for name, bound in least.items():
        value = params[name]
        if value is not None and not abs(value) < float("inf"):
            raise OptionError("{0}: {1} is not a number. Give one of at least {2:g}".format(name, value, bound))
        if value is not None and value < bound:
            raise OptionError("{0}: {1:g} is less than the minimum of {2:g}".format(name, value, bound))


def bytes_of(params: Params, name: str, least: int = 1) -> Optional[int]:
    """Bytes from an option that takes a unit (``64K``, ``10G``), or ``None`` where it is not given.

    :raises OptionError: it is no size, or less than ``least`` bytes.
    """
    if params[name] is None:
        return None
    found = _SIZE.match(params[name])
    if found is None:
        raise OptionError("{0}: {1} is not a size. Give bytes, or a number with K, M, G, T or P (64K, 1.5G)".format(name, params[name]))
    value = int(float(found.group(1)) * (1 << 10 * _UNITS.index(found.group(2).upper() or " ")))
    if value < least:
        raise OptionError("{0}: {1} is less than the minimum of {2} bytes".format(name, params[name], least))
    return value


def seconds_of(params: Params, name: str, least: float = 0) -> float:
    """Seconds from an option that takes a unit (``90``, ``90s``, ``5m``, ``2h``, ``1d``).

    :raises OptionError: it is no length of time, or less than ``least`` seconds.
    """
    found = _TIME.match(str(params[name]))
    if found is None:
        raise OptionError(
            "{0}: {1} is not a duration. Give seconds, or a number with s, m, h or d (90s, 5m, 2h)".format(name, params[name])
        )
    value = float(found.group(1)) * _SECONDS[found.group(2).lower()]
    if value < least:
        raise OptionError("{0}: {1} is less than the minimum of {2:g} s".format(name, params[name], least))
    return value


def cluster_size_of(params: Params, name: str) -> Optional[int]:
    """The cluster size of a qcow2 result in bytes, or ``None`` where it is not given.

    :raises OptionError: it is no power of two from 512 bytes to 2 MiB (QEMU's limits).
    """
    size = bytes_of(params, name, 512)
    if size is not None and (size > 2 << 20 or size & (size - 1)):
        raise OptionError("{0}: {1} is not a power of two from 512 bytes to 2 MiB".format(name, params[name]))
    return size


def reserve_of(params: Params, name: str = "reserve") -> Tuple[int, float]:
    """What has to stay free: bytes, and percent of a filesystem; one of them is 0.

    :raises OptionError: it is neither a size nor a percentage from 0 to 100.
    """
    text = params[name].strip()
    if not text.endswith("%"):
        return bytes_of(params, name, 0) or 0, 0.0
    try:
        percent = float(text[:-1])
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise OptionError("{0}: {1} is not a percentage from 0% to 100%".format(name, text))
    return 0, percent
