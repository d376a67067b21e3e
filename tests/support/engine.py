# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection's engine as tests call it: in this process, one image a call, the same way the modules go."""

import functools
import os
import tempfile
from typing import Any, Callable, Mapping, Optional, Union

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, execute, info
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request

Path = Union[str, bytes, os.PathLike]


class Refused(Exception):
    """The engine refused an image or failed on it; ``result`` is what a module would return for it."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result["msg"])
        self.result = result


@functools.lru_cache(maxsize=None)
def scratch_directory() -> Optional[str]:
    """A memory-backed directory for many small files, where there is one; None for the usual place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@functools.lru_cache(maxsize=None)
def _state_directory(_process: int) -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="vmimage-qcow-state-", dir=scratch_directory())


def inspect(path: Path, **question: Any) -> dict[str, Any]:
    """What ``qcow_info`` says about one file; ``question``: other fields of the engine's question."""
    images = info.look(info.Question(paths=(os.fsencode(path),), in_use=False, **question), Records(b"/nonexistent")).images
    return images[0]


def convert(
    src: Path,
    dest: Path,
    *,
    format: str = "qcow2",
    state_dir: Optional[Path] = None,
    passwords: Optional[Mapping[Path, Path]] = None,
    **options: Any,
) -> dict[str, Any]:
    """Convert one image; return the module's result for it.

    ``passwords``: image -> file with its password. ``options``: other fields of the engine's request. Raises Refused.
    """
    if passwords:
        options["passphrase_files"] = tuple(
            (os.path.realpath(os.fsencode(image)), os.fsencode(secret)) for image, secret in passwords.items()
        )
    directory = os.fsencode(_state_directory(os.getpid()).name if state_dir is None else state_dir)
    request = Request(src=os.fsencode(src), dest=os.fsencode(dest), format=format, state_dir=directory, **options)
    result = batch.run([request], batch.Settings(state_dir=directory))[0]
    if result["failed"]:
        raise Refused(result)
    return result


def after_the_copy(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[bytes], None]) -> None:
    """Have ``meddle`` called with the temporary result's path between copy and verification."""
    original = execute.write

    def write(plan: Any, source: Any, fd: int, *more: Any) -> Any:
        written = original(plan, source, fd, *more)
        meddle(os.readlink(b"/proc/self/fd/%d" % fd))
        return written

    monkeypatch.setattr(execute, "write", write)
