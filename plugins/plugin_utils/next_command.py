# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""Commands that people are told to run next, as they can paste them into a shell."""

from __future__ import annotations

import json
import shlex
import typing as t

from ansible import context
from ansible.parsing.splitter import parse_kv

OWN = ("scan_", "migrate_", "rollback_", "cleanup_", "status_", "stop_", "qcow_")
"""How the names of this collection's variables begin."""

LISTED = 20
"""Hosts that a command names; for more it is the command for all."""


def playbook(name: str, *options: str, hosts: t.Sequence[str] = ()) -> str:
    """The command that runs a playbook with the inventory of this run.

    :param hosts: only on these.
    """
    words = ["ansible-playbook"]
    for source in context.CLIARGS.get("inventory") or ():
        words += ["-i", str(source)]
    words += [name, *options]
    if 0 < len(hosts) <= LISTED:
        words += ["-l", ",".join(hosts)]
    return shlex.join(words)


def again(default: str, *, hosts: t.Sequence[str] = (), check: bool = False) -> str:
    """The command of this run once more.

    Of its extra variables it has those of this collection, which are no secrets, and those in files.

    :param default: name of the playbook, where Ansible does not tell it.
    """
    given = context.CLIARGS.get("args") or (default,)
    options = [part for text in context.CLIARGS.get("extra_vars") or () if _ours(str(text)) for part in ("-e", str(text))]
    return playbook(str(given[0]), *map(str, given[1:]), *options, *(["--check"] if check else []), hosts=hosts)


def rollback(host: str, record: str) -> str:
    """The command that undoes one migration."""
    return playbook("vmimage.qcow.rollback", "-e", json.dumps({"rollback_records": [record]}), hosts=[host])


def _ours(text: str) -> bool:
    """Whether extra variables hold nothing that must not be shown."""
    if text.startswith("@"):
        return True
    try:
        names = json.loads(text) if text.lstrip().startswith("{") else parse_kv(text)
    except ValueError:
        return False  # YAML
    return bool(names) and all(str(name).startswith(OWN) for name in names)
