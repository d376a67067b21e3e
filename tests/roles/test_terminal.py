# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person sees of a run on a terminal, and what a program reads of it."""

import json
import os
import pathlib
import shlex
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.playbook import COLLECTIONS, CORES, ROOT, Controller, Played
from ansible_collections.vmimage.qcow.tests.support.require import require

IMAGE = ImageSpec(size=1 << 20, clusters={1: Plain(b"data")})
AWAY = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
PLAYBOOKS = ("scan", "migrate", "rollback", "cleanup")


class Fleet:
    """Hosts with a tree and a state of their own: ``sound``, ``damaged``, ``typo`` (one of its paths does not exist) and ``away``."""

    def __init__(self, scratch: pathlib.Path, core: str = "2.19", names: tuple[str, ...] = ("sound", "damaged", "typo", "away")) -> None:
        self.trees = {name: scratch / "srv" / name for name in names}
        hosts: dict[str, dict[str, Any]] = {}
        for name, tree in self.trees.items():
            tree.mkdir(parents=True)
            build(IMAGE).write(tree / "one.qcow")
            paths = [str(tree)] + ([str(tree / "typo")] if name == "typo" else [])
            hosts[name] = dict(AWAY) if name == "away" else {}
            for playbook in PLAYBOOKS:
                hosts[name].update({playbook + "_paths": paths, playbook + "_state_dir": str(scratch / ("state-" + name))})
        if "damaged" in names:
            build(IMAGE).write(self.trees["damaged"] / "bad.qcow")
            os.truncate(self.trees["damaged"] / "bad.qcow", 4200)
        self.controller = Controller(scratch, core=core, hosts=hosts)

    def run(self, playbook: str, *arguments: str, **more: Any) -> Played:
        return self.controller.run(playbook, *arguments, **more)


def assert_once(played: Played, *texts: str) -> None:
    for text in texts:
        assert played.text.count(text) == 1, "%d times: %s\n%s" % (played.text.count(text), text, played.output)


@pytest.mark.parametrize("core", CORES)
def test_each_failure_is_told_once_and_the_total_at_the_end(core: str, tmp_path: pathlib.Path) -> None:
    fleet = Fleet(tmp_path, core)
    bad, typo = fleet.trees["damaged"] / "bad.qcow", fleet.trees["typo"] / "typo"
    checked = fleet.run("migrate", "--check", "-e", "qcow_serial=2")
    assert checked.returncode == 4
    assert_once(checked, "[damaged] would refuse %s: damaged in" % bad, "%s: No such file or directory" % typo)
    assert "4 hosts: 1 without problems, 2 with problems, 1 not reached" in checked.text
    assert "3 images would be migrated, 36.0 KiB; 1 would be refused" in checked.text, checked.output
    for line in checked.output.splitlines():
        assert "FAILED" not in line or line.startswith(("fatal: [damaged]", "fatal: [typo]")) and "would end with 1 problem" in line, line

    done = fleet.run("migrate", "-e", "qcow_serial=2")
    assert done.returncode == 4
    assert_once(done, "[damaged] FAILED %s: damaged in" % bad, "%s: No such file or directory" % typo)
    assert_once(done, "4 hosts: 1 done, 2 failed, 1 not reached", "3 images migrated, 36.0 KiB -> ", "; 1 failed")
    assert "report: %s" % (fleet.controller.work / "qcow-reports" / "index.html") in done.text
    assert "next: ansible-playbook -i " in done.text and "vmimage.qcow.migrate " in done.text and "-l damaged,typo,away" in done.text
    for host in ("damaged", "typo"):
        assert done.counts[host]["failures"] == 1
    assert done.counts["away"]["unreachable"] == 1 and done.counts["sound"]["failures"] == 0


@pytest.mark.parametrize("names", [("damaged",), ("away",), ("sound", "away")])
def test_the_total_is_told_whatever_has_failed(names: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    fleet = Fleet(tmp_path, names=names)
    for playbook in PLAYBOOKS:
        played = fleet.run(playbook)
        assert_once(played, "%d host%s: " % (len(names), "s" if len(names) > 1 else ""))


def test_a_role_alone_fails_with_its_message(tmp_path: pathlib.Path) -> None:
    fleet = Fleet(tmp_path, names=("damaged",))
    play = "- hosts: vm_hosts\n  gather_facts: false\n  roles: [vmimage.qcow.migrate]\n"
    (fleet.controller.work / "own.yml").write_text(play)
    played = fleet.run("own.yml")
    (failed,) = [line["result"] for line in played.lines if line["event"] == "failed"]
    assert played.returncode == 2 and "bad.qcow: damaged in" in str(failed["msg"]), played.output


def test_the_first_host_is_told_of_before_the_last_has_ended(tmp_path: pathlib.Path) -> None:
    """The last one cannot end before the first was told of: with one fork it has not begun."""
    fleet = Fleet(tmp_path, names=("first", "last"))
    for playbook in ("scan", "migrate", "rollback", "cleanup"):
        played = fleet.run(playbook, "--forks", "1")
        task = [line for line in played.output.splitlines() if line.startswith("  [first] ") or line in ("ok: [last]", "changed: [last]")]
        told = next(number for number, line in enumerate(task) if line.startswith("  [first]"))
        lines = played.output.splitlines()
        begin = lines.index(task[told])
        end = next(number for number, line in enumerate(lines) if number > begin and line.endswith(": [last]"))
        assert not any(line.startswith("TASK [") for line in lines[begin:end]), played.output


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("callback", ["json", "jsonl"])
def test_standard_output_is_json_for_programs(callback: str, core: str, tmp_path: pathlib.Path) -> None:
    posix = ROOT / "build" / "posix"
    require((posix / "ansible_collections/ansible/posix").exists(), "needs %s (make environments)" % posix)
    fleet = Fleet(tmp_path, core, names=("sound", "damaged"))
    environment = {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix." + callback, "ANSIBLE_COLLECTIONS_PATH": "%s:%s" % (COLLECTIONS, posix)}
    slow = {"migrate_bandwidth": "100K", "migrate_progress_interval": "1s"}
    build(ImageSpec(size=4 << 20, clusters={number: Plain(os.urandom(4096)) for number in range(80)})).write(
        fleet.trees["sound"] / "slow.qcow"
    )
    played = fleet.run("migrate", environment=environment, apart=True, **slow)
    assert played.returncode == 2, played.output + played.errors
    lines = [played.output] if callback == "json" else played.output.splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert "slow.qcow: " in played.errors and " %" in played.errors, "no progress was told: " + played.errors
    assert "[damaged] FAILED" in played.errors and "2 hosts: 1 done, 1 failed" in played.errors
    assert "bad.qcow: damaged in" in played.output, "the results have what people are told"


def test_progress_is_no_part_of_the_output_for_people(tmp_path: pathlib.Path) -> None:
    fleet = Fleet(tmp_path, names=("sound",))
    build(ImageSpec(size=4 << 20, clusters={number: Plain(os.urandom(4096)) for number in range(80)})).write(
        fleet.trees["sound"] / "slow.qcow"
    )
    played = fleet.run("migrate", apart=True, migrate_bandwidth="100K", migrate_progress_interval="1s")
    assert "slow.qcow: copy " in played.errors or "slow.qcow: verify " in played.errors, played.errors
    assert "[sound] migrated" in played.output and "images done" not in played.output


def test_a_diff_is_drawn(tmp_path: pathlib.Path) -> None:
    fleet = Fleet(tmp_path, names=("sound",))
    tree = fleet.trees["sound"]
    build(ImageSpec(size=1 << 20, clusters={5: Plain(b"over")}, backing=Backing(b"one.qcow"))).write(tree / "over.qcow")
    (tree / "link.img").symlink_to("one.qcow")
    one = ["-{0}/one.qcow: qcow version 1", "-link {0}/link.img -> {0}/one.qcow"]
    one += ["+{0}/one.qcow2: qcow2", "+{0}/one.qcow.qcow1.orig: qcow version 1", "+link {0}/link.img -> {0}/one.qcow2"]
    over = ["-{0}/over.qcow: qcow version 1, backing file {0}/one.qcow (qcow)", "+{0}/over.qcow2: qcow2, backing file one.qcow2 (qcow2)"]
    for arguments in (["--check"], []):
        lines = fleet.run("migrate", "--diff", *arguments).output.splitlines()
        assert {line.format(tree) for line in one + over} <= set(lines), "\n".join(lines)
        assert not [line for line in lines if line in ("{", "}")]
    back = [
        "+{0}/one.qcow: qcow version 1",
        "-link {0}/link.img -> {0}/one.qcow2",
        "+link {0}/link.img -> {0}/one.qcow",
        "-{0}/one.qcow2: qcow2",
    ]
    gone = ["--- before: {0}/one.qcow.qcow1.orig", "+++ after: deleted", "-{0}/one.qcow.qcow1.orig: qcow version 1, 12288 bytes"]
    for playbook, expected in (("cleanup", gone), ("rollback", back)):
        for arguments in (["--check"], []) if playbook == "rollback" else (["--check"],):
            lines = fleet.run(playbook, "--diff", *arguments, cleanup_min_age_days=0).output.splitlines()
            assert {line.format(tree) for line in expected} <= set(lines), "\n".join(lines)


SITE = """\
- name: Ours
  ansible.builtin.import_playbook: vmimage.qcow.migrate
  tags: [qcow]
- name: Something else
  hosts: vm_hosts
  gather_facts: false
  tasks:
    - name: Web
      ansible.builtin.debug: {msg: the web was here}
      tags: [web]
"""
IDLE = "No task of vmimage.qcow.migrate was run: --tags or --skip-tags left none. Nothing was done."


@pytest.mark.parametrize("core", ["2.16", "2.19", "2.21"])
def test_tags_that_leave_nothing_are_no_success(core: str, tmp_path: pathlib.Path) -> None:
    fleet = Fleet(tmp_path, core, names=("sound",))
    (fleet.controller.work / "site.yml").write_text(SITE)
    for arguments in (["migrate", "--tags", "typo"], ["migrate", "--skip-tags", "untagged"], ["site.yml", "--tags", "typo"]):
        played = fleet.run(*arguments)
        assert (played.returncode, IDLE in played.text) == (2, True), played.output
    nothing = fleet.run("migrate", "--tags", "typo", "--skip-tags", "always")
    assert nothing.returncode != 0 and IDLE in nothing.text, nothing.output
    web = fleet.run("site.yml", "--tags", "web", "--skip-tags", "qcow_require_tasks")
    assert (web.returncode, "the web was here" in web.text) == (0, True), web.output
    assert (fleet.trees["sound"] / "one.qcow").exists()
    ours = fleet.run("site.yml", "--tags", "qcow")
    assert (ours.returncode, "the web was here" in ours.text, "1 host: 1 done" in ours.text) == (0, False, True), ours.output
    assert (fleet.trees["sound"] / "one.qcow2").exists()


def test_deferred_images_are_counted_by_reason(tmp_path: pathlib.Path) -> None:
    fleet = Fleet(tmp_path, names=("sound",))
    played = fleet.run("migrate", migrate_max_minutes=0)
    assert played.returncode == 0 and "1 host: 1 with images left" in played.text, played.output
    assert "0 images migrated; 1 deferred: " in played.text and "[sound] 1 deferred: " in played.text


def test_secrets_of_the_command_line_are_not_told_again(tmp_path: pathlib.Path) -> None:
    fleet = Fleet(tmp_path, names=("damaged",))
    played = fleet.run("migrate", "-e", "db_password=geheim", "-e", "migrate_workers=2")
    command = next(line for line in played.output.splitlines() if line.startswith("  next: "))
    assert '{"migrate_workers": "2"}' in command and "geheim" not in played.output, played.output
    assert "(other options of your run are left out)" in played.text, played.output


def test_the_next_command_goes_no_further_than_the_run(tmp_path: pathlib.Path) -> None:
    fleet = Fleet(tmp_path, names=("canary", "prod"))

    def pasted(played: Played) -> Played:
        words = shlex.split(next(line for line in played.output.splitlines() if line.startswith("  next: ")))
        playbook = next(word for word in words if word.startswith("vmimage.qcow."))
        return fleet.run(playbook.rpartition(".")[2], *words[words.index(playbook) + 1 :])

    scanned = fleet.run("scan", "--limit", "canary", "-e", json.dumps({"scan_report_dir": str(tmp_path / "my reports")}))
    checked = pasted(scanned)  # of the plan, although the inventory has paths
    assert checked.returncode == 0 and "1 image would be migrated" in checked.text, checked.output
    done = pasted(checked)
    assert done.returncode == 0 and "1 image migrated" in done.text, done.output
    assert [sorted(os.listdir(fleet.trees[host])) for host in ("canary", "prod")] == [["one.qcow.qcow1.orig", "one.qcow2"], ["one.qcow"]]
    assert "1 host: " in pasted(done).text
