# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""Commands that people are told to run next, as they can paste them into a shell.

A command is never about more than the run that it comes from: it has the hosts, and of the options of the run those that people may see.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
import time
import typing as t

from ansible import constants, context
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.splitter import parse_kv

from ansible_collections.vmimage.qcow.plugins.module_utils._options import OptionError
from ansible_collections.vmimage.qcow.plugins.plugin_utils.report_files import Replacing
from ansible_collections.vmimage.qcow.plugins.plugin_utils.until import seconds_until

Facts = t.Dict[str, t.Any]

LISTED = 20
"""Hosts that a command names; more are in a file."""

ACROSS = ("paths", "exclude", "one_filesystem", "missing_ok", "backing_dirs", "reference_dirs", "libvirt_uri", "state_dir", "report_dir")
"""Options that mean the same in each role that has them: what one role was given the next one needs, too."""

LEFT_OUT = "other options of your run are left out"
OVER = "the window of your run is over: give another"

_ROLES = os.path.join(os.path.dirname(__file__), "..", "..", "roles")
_SWITCHES = (("become", "-b"), ("become_ask_pass", "-K"), ("ask_pass", "-k"), ("ask_vault_pass", "-J"))
_VALUES = (
    ("become_method", "--become-method", "DEFAULT_BECOME_METHOD"),
    ("become_user", "--become-user", "DEFAULT_BECOME_USER"),
    ("remote_user", "-u", "DEFAULT_REMOTE_USER"),
    ("private_key_file", "--private-key", "DEFAULT_PRIVATE_KEY_FILE"),
    ("forks", "-f", "DEFAULT_FORKS"),
)


class Next(t.NamedTuple):
    """A command, and what to know of it."""

    command: str
    notes: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """In brackets; empty where there is none."""
        return f"({'; '.join(self.notes)})" if self.notes else ""


@functools.lru_cache(maxsize=None)
def options_of(play: str) -> frozenset[str]:
    """The variables of a role, as its argument specification names them, and those of all playbooks."""
    with open(os.path.join(_ROLES, play, "meta", "argument_specs.yml"), encoding="utf-8") as stream:
        return frozenset(re.findall(rf"^      ({play}_\w+):$", stream.read(), re.MULTILINE)) | {"qcow_hosts", "qcow_serial"}


def given() -> Facts:
    """What this run of Ansible was given and a later command repeats: no value but of an option of the collection.

    :return: ``words`` (options of Ansible), ``extra`` (files of variables, and variables), ``left_out`` (whether there was more).
    """
    words = [word for name, word in _SWITCHES if context.CLIARGS.get(name) and not (name == "become" and constants.DEFAULT_BECOME)]
    for name, word, default in _VALUES:
        value = context.CLIARGS.get(name)
        if value and value != getattr(constants, default):
            words += [word, str(value)]
    for name, word in (("vault_ids", "--vault-id"), ("vault_password_files", "--vault-password-file")):
        words += [part for value in context.CLIARGS.get(name) or () for part in (word, str(value))]
    ours = frozenset().union(*map(options_of, sorted(os.listdir(_ROLES))))
    extra: list[t.Any] = []
    left_out = False
    for text in map(str, context.CLIARGS.get("extra_vars") or ()):
        if text.startswith("@"):
            extra.append("@" + os.path.abspath(os.path.expanduser(text[1:])))
            continue
        found = _parsed(text)
        shown = {str(name): value for name, value in (found or {}).items() if name in ours}
        left_out = left_out or found is None or len(shown) < len(found)
        if shown:
            extra.append(shown)
    return {"words": words, "extra": extra, "left_out": left_out} if words or extra or left_out else {}


def _parsed(text: str) -> Facts | None:
    """Extra variables in any of their forms; ``None`` where they are not to be understood, or encrypted."""
    try:
        found = DataLoader().load(text) if text.lstrip()[:1] in ("{", "[") else parse_kv(text)
        return dict(json.loads(json.dumps(found)))
    except (AnsibleError, TypeError, ValueError):
        return None


def next_command(
    play: str,
    run: Facts,
    source: str,
    *,
    inventory: t.Sequence[str] = (),
    variables: Facts | None = None,
    limit: str | None = None,
    more: t.Sequence[str] = (),
    playbooks: t.Sequence[str] = (),
) -> Next:
    """The command that runs a playbook after another one, with what that was given.

    :param run: what the other was given, see :func:`given`.
    :param source: play of the other.
    :param variables: that the command has in any case.
    :param more: further options of Ansible.
    :param playbooks: instead of the collection's own.
    """
    fixed = variables or {}
    parts: list[t.Any] = []
    notes = [LEFT_OUT] if run.get("left_out") else []
    for part in run.get("extra") or ():
        if not isinstance(part, str):
            passed, over = _passed(part, play, source, set(fixed))
            notes += [OVER] if over and OVER not in notes else []
            part = passed
        _append(parts, part)
    _append(parts, fixed)
    words = ["ansible-playbook", *(word for one in inventory for word in ("-i", str(one)))]
    words += [*(playbooks or [f"vmimage.qcow.{play}"]), *(run.get("words") or ()), *more, *(["-l", limit] if limit else [])]
    words += [word for part in parts for word in ("-e", part if isinstance(part, str) else json.dumps(part))]
    return Next(shlex.join(words), tuple(notes))


def _passed(part: Facts, play: str, source: str, fixed: set[str]) -> tuple[Facts, bool]:
    """The variables that the play takes, and whether a window is over that there was."""
    takes = options_of(play)
    found = {}
    if source != play:
        renamed = {f"{play}_{name}": part[f"{source}_{name}"] for name in ACROSS if f"{source}_{name}" in part}
        found = {name: value for name, value in renamed.items() if name in takes}
    found.update((name, value) for name, value in part.items() if name in takes)
    over = {name for name, value in found.items() if _is_over(name, value)}
    return {name: value for name, value in found.items() if name not in over | fixed}, bool(over)


def _is_over(name: str, value: t.Any) -> bool:
    """Whether a window would only let the next run do nothing."""
    try:
        if name == "migrate_max_minutes":
            return float(value) <= 0
        if name == "migrate_until" and value and "{{" not in str(value):
            seconds_until(str(value), time.time())
    except (OptionError, TypeError, ValueError):
        return name == "migrate_until"
    return False


def _append(parts: list[t.Any], part: str | Facts) -> None:
    """Later ones come before earlier ones, as on the command line; variables that follow each other are one."""
    if isinstance(part, str):
        parts.append(part)
    elif part and parts and not isinstance(parts[-1], str):
        parts[-1] = {**parts[-1], **part}
    elif part:
        parts.append(part)


def limit_of(hosts: t.Sequence[str], directory: str | None) -> str:
    """What ``--limit`` needs to name these hosts.

    :param directory: for a file with their names, where they are many; a file there never changes, so that a command stays what it was.
    :raises OSError: the file cannot be written.
    """
    if len(hosts) <= LISTED or directory is None:
        return ",".join(hosts)
    text = "".join(f"{host}\n" for host in hosts)
    name = f"hosts-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}.txt"
    with Replacing(directory, name) as replaced:
        replaced.stream.write(text)
    return "@" + os.path.join(directory, name)


def after_this_run(
    play: str,
    source: str,
    *,
    hosts: t.Sequence[str] = (),
    directory: str | None = None,
    variables: Facts | None = None,
    check: bool = False,
) -> Next:
    """What comes after this run: on the hosts that are named, otherwise on those that it was limited to.

    :param source: the play of this run; where it is to come again, that is the playbook that was given.
    :param directory: of the reports, for files.
    """
    subset = context.CLIARGS.get("subset")
    limit = limit_of(hosts, directory) if hosts else str(subset) if subset else None
    if not hosts and limit is not None and limit.startswith("@"):
        limit = "@" + os.path.abspath(os.path.expanduser(limit[1:]))
    return next_command(
        play,
        given(),
        source,
        inventory=[str(one) for one in context.CLIARGS.get("inventory") or ()],
        variables=variables,
        limit=limit,
        more=["--check"] if check else [],
        playbooks=[str(one) for one in context.CLIARGS.get("args") or ()] if play == source else [],
    )


def rollback(host: str, record: str) -> str:
    """The command that undoes one migration of this run."""
    return after_this_run("rollback", "migrate", hosts=[host], variables=only(record)).command


def only(record: str) -> Facts:
    """Variables of a rollback of one record, whatever paths the inventory has."""
    return {"rollback_records": [record], "rollback_paths": []}


def play_of(host: Facts) -> str:
    """What to run for a host where something is left to do.

    :param host: its row, see :data:`.fleet.HOST_COLUMNS`.
    """
    return "migrate" if host["left"] and not host["unreached_since"] else str(host["last_play"] or "scan")


class Hosts:
    """Commands for the hosts of a report, with what the last runs on each of them were given.

    :param inventory: of the controller.
    :param directory: of the report, for files.
    """

    def __init__(self, inventory: t.Sequence[str] = (), directory: str | None = None) -> None:
        self._inventory = inventory
        self._directory = directory
        self._kept: dict[str, Facts] = {}
        self._this = given()

    def keep(self, host: str, facts: Facts) -> None:
        """Take in what is kept of a host."""
        self._kept[host] = {key: facts.get(key) or {} for key in ("paths", "given", "last_play")}

    def undo(self, host: str, record: str) -> str:
        """The command that undoes one migration."""
        return self._command("rollback", host, host, only(record), again=False).command

    def one(self, play: str, host: str) -> Next:
        """The command for one host."""
        return self._command(play, host, host, self._paths(play, host))

    def together(self, play: str, hosts: t.Sequence[str], *, again: bool = True) -> list[Next]:
        """The commands for some hosts, those that differ in nothing but the host as one.

        :param again: whether to go on with what the last run of the play was given.
        """
        alike: dict[Next, list[str]] = {}
        for host in hosts:
            alike.setdefault(self._command(play, host, None, self._paths(play, host) if again else {}, again=again), []).append(host)
        return [
            self._command(play, named[0], limit_of(named, self._directory), self._paths(play, named[0]) if again else {}, again=again)
            for named in alike.values()
        ]

    def _command(self, play: str, host: str, limit: str | None, variables: Facts, *, again: bool = True) -> Next:
        source, run = self._run(play, host, again)
        return next_command(play, run, source, inventory=self._inventory, variables=variables, limit=limit)

    def _run(self, play: str, host: str, again: bool = True) -> tuple[str, Facts]:
        """The run whose options hold: the last one of the play, or else of those before it.

        :param again: whether it may be one of the play itself; a rollback of one image has nothing of another rollback.
        """
        kept = self._kept.get(host, {})
        runs = kept.get("given") or {}
        for source in (play, "migrate", "scan", str(kept.get("last_play") or "")):
            if source in runs and (again or source != play):
                return source, runs[source]
        return play, {} if kept.get("last_play") else self._this

    def _paths(self, play: str, host: str) -> Facts:
        known = self._kept.get(host, {}).get("paths") or {}
        source, run = self._run(play, host)
        planned = any(not isinstance(part, str) and part.get("migrate_plan") for part in run.get("extra") or ())
        paths = known.get(play) or (known.get("scan") if play == "migrate" else None)
        return {f"{play}_paths": paths} if paths and not (planned and play == "migrate" == source) else {}
