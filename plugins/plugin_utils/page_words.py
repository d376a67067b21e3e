# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""The words, sizes and times of the page of a fleet."""

from __future__ import annotations

import typing as t
from datetime import datetime, timezone

from markupsafe import Markup

from ansible_collections.vmimage.qcow.plugins.plugin_utils.job_progress import duration, size
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import visible

PENDING = ("failed", "interrupted", "running", "left", "deferred")
"""States of an image that is still to migrate, the most pressing first."""

IMAGES = {
    "failed": "failed",
    "interrupted": "interrupted",
    "running": "running",
    "left": "to migrate",
    "deferred": "deferred",
    "migrated": "migrated",
    "other": "nothing to do",
}
"""States of an image."""

HOSTS = {
    "unreached": "not reached",
    "missing": "never reached",
    "failed": "failed",
    "running": "running",
    "left": "to migrate",
    "deferred": "deferred",
    "done": "done",
}
"""States of a host."""

HOST_ORDER = ("failed", "unreached", "missing", "running", "left", "deferred", "done")
"""The same, those that need attention first."""

_FORMATS = {"qcow": "QCOW v1", "unknown": "raw or unknown"}


def filters(moment: datetime) -> dict[str, t.Callable[..., t.Any]]:
    """What the template prints values with.

    :param moment: when the page is made.
    """
    return {
        "size": size_text,
        "duration": duration_text,
        "number": number,
        "time": time_text,
        "age": lambda value: age(value, moment),
        "format_name": lambda name: _FORMATS.get(name, name) or "–",
        "beside": beside,
        "plain": plain,
        "visible": visible,
    }


def size_text(value: float | None) -> str:
    """Bytes; a dash where they are not known."""
    return "–" if value is None else size(value)


def duration_text(value: float | None) -> str:
    """Seconds; a dash where they are not known."""
    return "–" if not value else duration(value) if value >= 10 else f"{value:.1f} s"


def number(value: float | None) -> str:
    """A number, its thousands apart."""
    return "–" if value is None else f"{int(value):,}".replace(",", "\u202f")


def count(value: float, what: str) -> str:
    """A number of things."""
    return f"{number(value)} {what}" if value == 1 else f"{number(value)} {what}s"


def moment_of(value: t.Any) -> datetime | None:
    """A time as hosts and reports write it; ``None`` where it is none."""
    try:
        found = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def time_text(value: t.Any) -> str:
    """A time with its zone, as people read it."""
    found = value if isinstance(value, datetime) else moment_of(value)
    return "–" if found is None else found.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def age(value: t.Any, moment: datetime) -> str:
    """How long a time was before the page, where that is an hour or more."""
    found = moment_of(value)
    hours = int((moment - found).total_seconds() // 3600) if found else 0
    return "" if hours < 1 else f"{count(hours, 'hour') if hours < 48 else count(hours // 24, 'day')} before this report"


def plain(text: str) -> Markup:
    """A text between tags, its quotes as they are: a command is half as long again with them escaped."""
    return Markup(visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def beside(path: str | None, image: str) -> str | None:
    """A path, short where it is in the directory of the image."""
    folder = image.rpartition("/")[0] + "/"
    return path[len(folder) :] if path and path.startswith(folder) and "/" not in path[len(folder) :] else path
