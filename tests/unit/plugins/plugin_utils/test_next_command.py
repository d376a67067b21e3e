# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that people are told to run: never about more than the run that they come from, and nothing in them that is not for everybody's eyes."""

import json
import pathlib
import shlex
from typing import Any, Callable, Optional

import pytest
import yaml
from ansible import context
from ansible.module_utils.common.collections import ImmutableDict

from ansible_collections.vmimage.qcow.plugins.plugin_utils import host_file, host_merge, next_command
from ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet import Fleet
from ansible_collections.vmimage.qcow.plugins.plugin_utils.host_report import Results
from ansible_collections.vmimage.qcow.plugins.plugin_utils.next_command import Hosts, after_this_run
from ansible_collections.vmimage.qcow.plugins.plugin_utils.run_total import Run
from ansible_collections.vmimage.qcow.plugins.plugin_utils.told import Run as RunOnHost
from ansible_collections.vmimage.qcow.tests.support.returned import looked_at, recorded

Started = Callable[..., None]
ROLES = pathlib.Path(next_command.__file__).parents[2] / "roles"


@pytest.fixture(name="start")
def make_start(monkeypatch: pytest.MonkeyPatch) -> Started:
    def start(*extra: str, **options: Any) -> None:
        monkeypatch.setattr(context, "CLIARGS", ImmutableDict(extra_vars=extra, **options))

    return start


def variables(command: str) -> dict[str, Any]:
    words = shlex.split(command)
    given = [words[number + 1] for number, word in enumerate(words) if word == "-e"]
    merged: dict[str, Any] = {}
    for text in given:
        if not text.startswith("@"):
            merged.update(json.loads(text))
    return merged


def counted(host: str, **more: Any) -> dict[str, Any]:
    names = ("problems", "changed", "failed", "bytes_before", "bytes_after", "to_migrate", "to_migrate_bytes", "to_refuse", "checks_failed")
    return {"host": host, "state": "done", "deferred": {}, **dict.fromkeys(names, 0), **more}


@pytest.mark.parametrize("play", ["scan", "migrate", "rollback", "cleanup", "status", "stop"])
def test_its_options_are_those_of_the_role(play: str) -> None:
    specs = yaml.safe_load((ROLES / play / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    assert next_command.options_of(play) == {*specs["argument_specs"]["main"]["options"], "qcow_hosts", "qcow_serial"}


@pytest.mark.parametrize(
    "play, counts",
    [
        ("scan", [counted("canary", to_migrate=1)]),
        ("migrate", [counted("canary", changed=1)]),
        ("migrate", [counted("canary", state="left", deferred={"window": 1})]),
    ],
)
def test_a_limit_stays(play: str, counts: list[dict[str, Any]], start: Started) -> None:
    start("qcow_hosts=lab", subset="canary")
    for check in (False, True):
        command = Run(play, ["canary"], counts, check, "/my reports", planned=True).command()
        if command is not None:
            assert " -l canary " in command and variables(command)["qcow_hosts"] == "lab", command


def test_a_limit_in_a_file_stays(start: Started, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start("@own.yml", subset="@hosts")
    assert (
        after_this_run("migrate", "migrate").command == f"ansible-playbook vmimage.qcow.migrate -l @{tmp_path}/hosts -e @{tmp_path}/own.yml"
    )


def test_many_hosts_are_in_a_file_that_stays_what_it_is(start: Started, tmp_path: pathlib.Path) -> None:
    start(subset="bad*")
    hosts = ["bad%02d" % number for number in range(21)]
    names = set()
    for some in (hosts, hosts[:-1] + ["worse"]):
        counts = [counted(host, state="failed", problems=1, failed=1) for host in some]
        command = Run("migrate", some, counts, False, str(tmp_path)).command()
        assert command is not None
        names.add(shlex.split(command)[-1])
        assert pathlib.Path(shlex.split(command)[-1][1:]).read_text().split() == some
    assert len(names) == 2
    command = Run("migrate", hosts, [counted(host, state="failed", problems=1) for host in hosts], True, None).command()
    assert command is not None and command.endswith(" -l " + ",".join(hosts))


def test_the_plan_of_a_scan_is_taken_whatever_paths_there_are(start: Started) -> None:
    start('{"scan_paths": ["/a b"], "scan_state_dir": "/s"}', "scan_check=true")
    command = Run("scan", ["h"], [counted("h", to_migrate=1)], False, "/my reports", planned=True).command()
    assert command is not None
    assert variables(command) == {"migrate_plan": "/my reports", "migrate_paths": [], "migrate_state_dir": "/s"}


@pytest.mark.parametrize(
    "text, shown",
    [
        ("migrate_original=keep migrate_exclude='*.old'", {"migrate_original": "keep", "migrate_exclude": "*.old"}),
        ('{"migrate_keep_name": true, "migrate_exclude": ["a"]}', {"migrate_keep_name": True, "migrate_exclude": ["a"]}),
        ("{migrate_original: keep, db_password: geheim}", {"migrate_original": "keep"}),
        ("status_api_token=geheim migrate_workers=2 stop_password=geheim", {"migrate_workers": "2"}),
        ("migrate_luks_passphrase_file=/root/p", {"migrate_luks_passphrase_file": "/root/p"}),
        ("{migrate_original: !vault geheim}", {}),
        ("[geheim", {}),
    ],
)
def test_options_of_the_collection_are_repeated_and_no_others(text: str, shown: dict[str, Any], start: Started) -> None:
    start(text)
    told = after_this_run("migrate", "migrate")
    assert variables(told.command) == shown and "geheim" not in told.command
    assert ("other options of your run are left out" in told.note) == ("geheim" in text)


def test_options_of_ansible_are_repeated(start: Started) -> None:
    start(become=True, become_ask_pass=True, forks=40, remote_user="ops", private_key_file="/k", vault_ids=["a@/v"], args=["own.yml"])
    assert after_this_run("scan", "scan").command == ("ansible-playbook own.yml -b -K -u ops --private-key /k -f 40 --vault-id a@/v")


@pytest.mark.parametrize("text", ['{"migrate_until": "2020-01-01 03:00+01:00"}', "migrate_max_minutes=0"])
def test_a_window_that_is_over_is_not_repeated(text: str, start: Started) -> None:
    start(text)
    told = after_this_run("migrate", "migrate")
    assert variables(told.command) == {} and told.note == "(the window of your run is over: give another)"
    start('{"migrate_until": "2099-01-01 03:00+01:00"}', "migrate_max_minutes=9")
    assert len(variables(after_this_run("migrate", "migrate").command)) == 2


def test_after_a_failed_check_nobody_is_told_to_migrate_again(start: Started) -> None:
    start()
    counts = [counted("h", state="failed", problems=1, changed=1, checks_failed=1)]
    run = Run("migrate", ["h"], counts, False, None)
    assert run.command() is None and run.lines()[-1].startswith("next: look into what your own tasks found")
    run = Run("migrate", ["h", "other"], counts + [counted("other", state="failed", problems=1)], False, None)
    assert run.command() == "ansible-playbook vmimage.qcow.migrate -l other"


def kept_of(directory: pathlib.Path, play: str, given: dict[str, Any], done: Optional[dict[str, Any]] = None) -> None:
    found = {"images": [looked_at("/i/a"), looked_at("/i/b")], "summary": {"files": 2}, "errors": []}
    run = RunOnHost(play, "2026-11-01T02:00:00Z", ("/i",), given=given)
    host_merge.keep(str(directory), "h", run, Results(**({"found": found} if done is None else {"done": done})))


def fleet_of(directory: pathlib.Path, commands: Hosts) -> tuple[dict[str, Any], dict[str, Any]]:
    fleet = Fleet(commands)
    rows = {row["path"]: row for row in fleet.add("h", host_file.HostFile(str(directory / host_file.name_of("h"))))}
    return fleet.summary(), rows


def test_what_is_kept_of_a_host_repeats_the_options_of_its_run(start: Started, tmp_path: pathlib.Path) -> None:
    start("migrate_exclude=keep-out.qcow", "migrate_state_dir=/mine", "qcow_hosts=lab", "token=geheim", subset="h")
    kept_of(tmp_path, "scan", {})
    kept_of(tmp_path, "migrate", next_command.given(), {"images": [], "records": [recorded("/i/a")]})
    start()  # the page is made by another controller
    summary, rows = fleet_of(tmp_path, Hosts())
    (retry,) = [one["command"] for one in summary["retry"]]
    assert variables(retry) == {
        "migrate_exclude": "keep-out.qcow",
        "migrate_state_dir": "/mine",
        "qcow_hosts": "lab",
        "migrate_paths": ["/i"],
    }
    undo = rows["/i/a"]["rollback"]
    record = rows["/i/a"]["record"]
    assert variables(undo) == {"rollback_records": [record], "rollback_paths": [], "rollback_state_dir": "/mine", "qcow_hosts": "lab"}
    assert " -l h " in retry and " -l h " in undo and "geheim" not in (tmp_path / host_file.name_of("h")).read_text()


def test_a_scan_hands_on_what_it_left_out(start: Started, tmp_path: pathlib.Path) -> None:
    start("scan_exclude=keep-out.qcow", "scan_check=true", "migrate_format=raw")
    kept_of(tmp_path, "scan", next_command.given())
    summary, _rows = fleet_of(tmp_path, Hosts())
    assert variables(summary["retry"][0]["command"]) == {
        "migrate_exclude": "keep-out.qcow",
        "migrate_format": "raw",
        "migrate_paths": ["/i"],
    }


def test_a_host_that_was_not_reached_is_in_the_group_of_the_run(start: Started, tmp_path: pathlib.Path) -> None:
    start("qcow_hosts=lab")
    summary, _rows = fleet_of(tmp_path, Hosts())
    assert summary["retry"][0]["command"] == 'ansible-playbook vmimage.qcow.scan -l h -e \'{"qcow_hosts": "lab"}\''
