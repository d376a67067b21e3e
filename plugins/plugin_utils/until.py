# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""The end of a maintenance window, as people write it."""

from __future__ import annotations

import datetime as dt
import re

import zoneinfo

from ansible_collections.vmimage.qcow.plugins.module_utils._options import OptionError

_FORM = re.compile(r"(?:(\d{4}-\d{2}-\d{2})[T ]\s*)?(\d{1,2}:\d{2}(?::\d{2})?)\s*(.*)")
_OFFSET = re.compile(r"([+-])(\d{2}):?(\d{2})")

AHEAD = dt.timedelta(hours=12)
"""How far ahead a time without a date may be. What has just passed would otherwise mean tomorrow."""


def seconds_until(text: str, started: float) -> float:
    """The end of a window, in seconds after the run was started.

    :param text: ``05:30 Europe/Berlin``, ``2026-12-06 05:30+01:00``: a time with its zone, with or without a date.
    :param started: when the run was started, in seconds since 1970.
    :raises OptionError: it is no such time, has no zone, is over, or is so far ahead that another day may have been meant.
    """
    start = dt.datetime.fromtimestamp(started, dt.timezone.utc)
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise OptionError(f"until: {text} is not a time. Give it as 05:30 Europe/Berlin or 2026-12-06 05:30+01:00")
    day, clock, where = found.groups()
    zone = _zone(text, where)
    try:
        moment = dt.time.fromisoformat(clock.rjust(5, "0") if clock.count(":") == 1 else clock.rjust(8, "0"))
        date = dt.date.fromisoformat(day) if day else start.astimezone(zone).date()
    except ValueError as error:
        raise OptionError(f"until: {text} is not a time: {error}") from error
    end = dt.datetime.combine(date, moment, zone)
    if not day:
        if end < start:
            end = dt.datetime.combine(date + dt.timedelta(days=1), moment, zone)
        if end - start > AHEAD:
            raise OptionError(
                f"until: {text} is {_span(end - start)} ahead. If that is what you mean, give the date, too: {end.date()} {clock} {where}"
            )
    if end < start:
        raise OptionError(f"until: {text} was {_span(start - end)} before this run was started")
    return (end - start).total_seconds()


def _zone(text: str, where: str) -> dt.tzinfo:
    if where in ("Z", "UTC"):
        return dt.timezone.utc
    offset = _OFFSET.fullmatch(where)
    if offset is not None:
        sign, hours, minutes = offset.groups()
        shift = dt.timedelta(hours=int(hours), minutes=int(minutes))
        if shift < dt.timedelta(days=1):
            return dt.timezone(-shift if sign == "-" else shift)
    if not where:
        raise OptionError(
            f"until: {text} has no time zone. Add one: {text} UTC, {text} Europe/Berlin or {text}+01:00. "
            f'-e takes a space for the end of the value: there, write -e \'{{"migrate_until": "{text} Europe/Berlin"}}\''
        )
    try:
        return zoneinfo.ZoneInfo(where)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise OptionError(
            f"until: {where} is not a time zone that the controller knows. Give one such as Europe/Berlin, UTC or +01:00"
        ) from error


def _span(span: dt.timedelta) -> str:
    minutes = int(span.total_seconds()) // 60
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
