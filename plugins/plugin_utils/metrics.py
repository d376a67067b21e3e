# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""The report of all hosts as Prometheus reads it, through the textfile collector of node_exporter."""

from __future__ import annotations

import calendar
import time
import typing as t

from ansible_collections.vmimage.qcow.plugins.plugin_utils.image_state import TO_MIGRATE

Facts = t.Dict[str, t.Any]

_PREFIX = "vmimage_qcow_fleet_"

_OF_HOST = {
    "left": "QCOW version 1 images still to migrate.",
    "left_bytes": "Bytes on disk of the images still to migrate.",
    "failed": "Images still to migrate whose last attempt failed or was refused, or that are damaged.",
    "migrated": "Images whose result is in place.",
    "problems": "Problems of the host itself.",
}
_HOSTS = {"missing": "Hosts of which nothing is known.", "unreached": "Hosts that were not reached the last time."}


def lines(summary: Facts) -> t.Iterator[str]:
    """The lines of the file.

    :param summary: see :meth:`.fleet.Fleet.summary`.
    """
    totals, hosts = summary["totals"], summary["hosts"]
    yield from _metric("hosts", "Hosts of the report.", [("", totals["hosts"])])
    for key, words in _HOSTS.items():
        yield from _metric(f"hosts_{key}", words, [("", totals[key])])
    states = [(f'{{state="{state}"}}', totals[state]) for state in (*TO_MIGRATE, "migrated", "other") if state != "left"]
    yield from _metric("images", "Images by state; those still to migrate in all are the sum of the metric left.", states)
    for key, words in _OF_HOST.items():
        yield from _metric(f"host_{key}", words, [(_label(host), _number(host[key])) for host in hosts])
    for key in ("left", "left_bytes", "failed", "migrated"):
        yield from _metric(key, f"The same over all hosts: {_OF_HOST[key]}", [("", totals[key])])
    known = [(_label(host), calendar.timegm(time.strptime(host["known_at"], "%Y-%m-%dT%H:%M:%SZ"))) for host in hosts if host["known_at"]]
    yield from _metric("host_known_timestamp_seconds", "When a host was last looked at.", known)


def _metric(name: str, words: str, samples: t.Sequence[tuple[str, float]]) -> t.Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {words}\n# TYPE {_PREFIX}{name} gauge\n"
    for label, value in samples:
        yield f"{_PREFIX}{name}{label} {value}\n"


def _number(value: t.Any) -> float:
    return len(value) if isinstance(value, list) else value


def _label(host: Facts) -> str:
    escaped = host["host"].replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{{host="{escaped}"}}'
