# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""What the controller keeps of each host, in one file a host: a line of facts about the host, and a line for each of its images.

A line of an image holds what was told of it, each with the number of the run that told it (``n``): the latest look at it (``seen``), the latest plan
(``plan``), the latest attempt at it (``tried``), and its records on the host (``record``, ``failed``; where there are several, ``order`` has the
number of the run that told of each first). :mod:`.image_row` makes a row of that.
"""

from __future__ import annotations

import json
import os
import typing as t
from urllib.parse import unquote

from ansible_collections.vmimage.qcow.plugins.module_utils._paths import decode_exact, to_path

Facts = t.Dict[str, t.Any]

SCHEMA = 1

_PREFIX, _SUFFIX = "host-", ".jsonl"


def name_of(host: str) -> str:
    """What the file of a host is called."""
    return _PREFIX + host.replace("%", "%25").replace("/", "%2F") + _SUFFIX


def hosts_in(directory: str) -> dict[str, str]:
    """The paths of the files in a directory, by their hosts."""
    names = [name for name in os.listdir(directory) if name.startswith(_PREFIX) and name.endswith(_SUFFIX)]
    return {unquote(name[len(_PREFIX) : -len(_SUFFIX)], errors="surrogateescape"): os.path.join(directory, name) for name in sorted(names)}


def name(facts: Facts, role: str = "path") -> bytes:
    """A name of a file as the host has it: names that are not the same can look alike."""
    shown = facts.get(role) or ""
    try:
        return decode_exact(shown, facts.get(role + "_base64"))
    except ValueError:  # not as a module writes it
        return to_path(shown)


class HostFile:
    """The file of one host. Images are read one at a time.

    :param path: of the file; it need not exist.
    :param ignored: why nothing is to be read of it.
    """

    def __init__(self, path: str, ignored: str | None = None) -> None:
        self._path = path
        self._ignored = ignored is not None
        self.unreadable: str | None = ignored
        """What cannot be read of it, in words; complete once all images have been read."""
        self.facts: Facts = next(self._lines(), {})

    def highest(self) -> int:
        """The number of the last run that has told of anything; :attr:`unreadable` is complete then."""
        numbers = [self.facts.get("runs", 0)]
        for _name, entry in self.images():
            numbers.append(max((part["n"] for part in entry.values() if isinstance(part, dict)), default=0))
        return max(numbers)

    def images(self) -> t.Iterator[tuple[bytes, Facts]]:
        """The images with their exact names, sorted by these."""
        lines = self._lines()
        next(lines, None)
        for entry in lines:
            try:
                image = name(entry)
            except (AttributeError, TypeError):
                self.unreadable = f"{self._path}: the name of an image cannot be read."
                continue
            yield image, entry

    def _lines(self) -> t.Iterator[Facts]:
        if self._ignored:
            return
        try:
            with open(self._path, encoding="utf-8", errors="surrogateescape") as stream:
                for number, line in enumerate(stream, 1):
                    try:
                        facts = json.loads(line, parse_constant=_no_number)
                    except ValueError:
                        facts = None
                    if not isinstance(facts, dict):
                        self.unreadable = f"{self._path}, line {number}, cannot be read."
                        if number > 1:
                            continue
                        facts = {}
                    yield facts
        except FileNotFoundError:
            return
        except OSError as error:
            self.unreadable = f"{self._path} cannot be read: {error.strerror}."


def _no_number(text: str) -> t.NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def dump(facts: Facts) -> str:
    """One line.

    :raises ValueError: JSON has no such number.
    """
    return json.dumps(facts, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"
