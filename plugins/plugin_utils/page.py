# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""The page that shows how a fleet stands: one file that needs no other, and no network."""

from __future__ import annotations

import os
import typing as t
from itertools import islice

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet import HOST_STATES
from ansible_collections.vmimage.qcow.plugins.plugin_utils.job_progress import duration, size
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import finalize

Facts = t.Dict[str, t.Any]

FORMAT_NAMES = {"qcow": "QCOW v1", "unknown": "raw or unknown"}

HOSTS = 1000
"""Hosts that the page lists, those that need attention first."""

ROWS = 2000
"""Images that the page lists."""


def render(summary: Facts, rows: t.Iterable[Facts], title: str, moment: str) -> t.Iterator[str]:
    """The page, piece by piece.

    :param summary: see :meth:`fleet.Fleet.summary`.
    :param rows: the images to list, the most pressing first, see :meth:`fleet.Fleet.rows`.
    :param moment: when the report was made, in words.
    """
    environment = Environment(
        loader=FileSystemLoader(os.path.join(os.path.dirname(__file__), "templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    environment.filters.update(size=_size, duration=_duration, number=_number, format_name=lambda name: FORMAT_NAMES.get(name, name))
    hosts = sorted(summary["hosts"], key=lambda host: (HOST_STATES.index(host["state"]), -(host["left_bytes"] or 0), host["host"]))
    return environment.get_template("report.html.j2").generate(
        title=title,
        moment=moment,
        report=summary,
        totals=summary["totals"],
        rows=islice(rows, ROWS),
        rows_most=ROWS,
        hosts=hosts[:HOSTS],
        hosts_total=len(hosts),
    )


def _size(value: float | None) -> str:
    return "–" if value is None else size(value)


def _duration(value: float | None) -> str:
    return "–" if not value else duration(value) if value >= 10 else f"{value:.1f} s"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{int(value):,}".replace(",", "\u202f")
