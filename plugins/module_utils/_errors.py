# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one family of errors. Utilities raise them; modules turn them into ``fail_json`` in one place."""

import errno
from typing import Any, Dict, Optional

from ._paths import show


class QcowError(Exception):
    """Something the operator has to know about.

    :param message: what was found and where.
    :param path: the file it was found in (bytes), if one.
    :param reason: a stable code for programs; each subclass has its own default.
    :param hint: what was left untouched and what to do next.
    :param details: further JSON-serialisable facts (offsets and lengths in bytes).
    """

    default_reason = "error"

    def __init__(
        self, message: str, path: Optional[bytes] = None, reason: Optional[str] = None, hint: Optional[str] = None, **details: Any
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.reason = reason or self.default_reason
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        text = self.message if self.path is None else "{0}: {1}".format(show(self.path), self.message)
        return text if self.hint is None else "{0}. {1}".format(text.rstrip("."), self.hint)

    def result(self) -> Dict[str, Any]:
        """The error as part of a module's result: ``reason``, ``msg``, ``path`` and ``details``."""
        return {"reason": self.reason, "msg": str(self), "path": None if self.path is None else show(self.path), "details": self.details}


class DamagedImage(QcowError):
    """The image contradicts itself or its file; nothing may be read past the damage without being told to."""

    default_reason = "damaged"


class UnsupportedImage(QcowError):
    """The image is sound as far as we can tell, but uses something we do not handle."""

    default_reason = "unsupported"


class UnsafeImage(QcowError):
    """Following what the image asks for could disclose or damage something else."""

    default_reason = "unsafe"


class ImageInUse(QcowError):
    """Somebody has the image open in a way that forbids what was asked."""

    default_reason = "in-use"


class ImageChanged(QcowError):
    """The file is not the one that was planned for, or was written meanwhile."""

    default_reason = "changed"


class NoSpace(QcowError):
    """The plan does not fit."""

    default_reason = "no-space"


class TargetExists(QcowError):
    """The name the result should take is taken."""

    default_reason = "exists"


class VerificationFailed(QcowError):
    """What was written is not what was read; nothing is published."""

    default_reason = "verification-failed"


class ToolMissing(QcowError):
    """A program or library that this job needs is not there."""

    default_reason = "tool-missing"


class ToolFailed(QcowError):
    """A program was run and failed."""

    default_reason = "tool-failed"


class PassphraseError(QcowError):
    """The passphrase is missing or does not fit."""

    default_reason = "passphrase"


class StateError(QcowError):
    """A record does not allow what was asked, or cannot be read or written."""

    default_reason = "state"


def reason_of(error: OSError) -> str:
    """The stable code of an error of the operating system."""
    reasons = {
        errno.ENOSPC: "no-space",
        errno.EDQUOT: "no-space",
        errno.EFBIG: "file-too-large",
        errno.EIO: "storage",
        errno.EROFS: "read-only",
        errno.EACCES: "unreadable",
        errno.EPERM: "unreadable",
        errno.ENOENT: "missing",
    }
    return reasons.get(error.errno or 0, "error")
