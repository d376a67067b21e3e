# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""The page that shows how a fleet stands: one file that needs no other, and no network."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import typing as t
from datetime import datetime

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ansible_collections.vmimage.qcow.plugins.plugin_utils import page_rows, page_words, standing
from ansible_collections.vmimage.qcow.plugins.plugin_utils.next_command import Hosts
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import finalize

Facts = t.Dict[str, t.Any]

HOSTS = 5000
"""Hosts that the page lists, those that need attention first."""

ROWS = 20000
"""Images that the page lists, those that need attention first."""

RUNS = 20
"""Runs that the page lists, the last ones."""

TEMPLATES = os.path.join(os.path.dirname(__file__), "templates")


def render(
    summary: Facts, rows: t.Iterable[Facts], tally: page_rows.Tally, title: str, moment: datetime, commands: Hosts
) -> t.Iterator[str]:
    """The page, piece by piece.

    :param summary: see :meth:`fleet.Fleet.summary`.
    :param rows: images to list; no more than :data:`ROWS` of them are kept in memory.
    :param tally: of all images.
    :param moment: when the report was made, with its time zone.
    :param commands: that the page offers.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    environment.filters.update(page_words.filters(moment), told=page_rows.told)
    listed = page_rows.Listed(rows, ROWS)
    hosts = sorted(
        summary["hosts"], key=lambda host: (page_words.HOST_ORDER.index(host["state"]), -(host["left_bytes"] or 0), host["host"])
    )
    style, script = _own("report.css"), _own("report.js")
    return environment.get_template("report.html.j2").generate(
        title=title,
        moment=moment,
        report=summary,
        totals=summary["totals"],
        stands=standing.Standing(summary, tally, commands),
        reasons=tally.reasons(hosts, summary["problems"]),
        listed=listed,
        tally=tally,
        groups=itertools.groupby(listed.rows, key=lambda row: row["host"]),
        hosts=hosts[:HOSTS],
        runs=sorted(summary["runs"], key=lambda run: str(run["started"]))[-RUNS:],
        host_words=page_words.HOSTS,
        words=page_words.IMAGES,
        pending=page_words.PENDING,
        newline=Markup("\n"),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _own(name: str) -> str:
    with open(os.path.join(TEMPLATES, name), encoding="utf-8") as stream:
        return stream.read()


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline style or script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
