# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks of the operator before and after an image or a host."""

import http.server
import json
import os
import pathlib
import shlex
import socket
import threading
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.tests.docs import pages
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, disk
from ansible_collections.vmimage.qcow.tests.support.playbook import ROOT, Controller, Played

IMAGE = ImageSpec(size=1 << 20, clusters={1: Plain(b"data")})
PAGE = ROOT / "docs/docsite/rst/fleet.rst"
HOOKS = ("before_host", "before_image", "after_image", "after_host")

# Each task says that it was run in a file, and fails for the images that the variable names.
TASKS = """\
- name: Say {hook}
  ansible.builtin.shell: echo '{hook} {{{{ qcow_image.src | default("") | basename }}}} {{{{ qcow_image.action | default("") }}}}' >> {said}
  changed_when: false
- name: Check {hook}
  ansible.builtin.fail: {{msg: "{hook} is against it"}}
  when: "'{hook}' in against | default([]) and qcow_image.src | default('one.qcow') is search('one.qcow')"
"""


class Place:
    """A host with two images, and a file of tasks for each hook, which are given by relative paths."""

    def __init__(self, scratch: pathlib.Path, core: str = "2.19") -> None:
        self.images, self.said = scratch / "images", scratch / "said"
        self.images.mkdir()
        for name in ("one.qcow", "two.qcow"):
            build(IMAGE).write(self.images / name)
        paths = {
            "%s_%s" % (play, name): str(scratch / path)
            for play in ("migrate", "rollback")
            for name, path in (("paths", "images"), ("state_dir", "s"))
        }
        self.controller = Controller(scratch, core=core, hosts={"kvm1": paths})
        (self.controller.work / "hooks").mkdir()
        for hook in HOOKS:
            (self.controller.work / "hooks" / (hook + ".yml")).write_text(TASKS.format(hook=hook, said=self.said))

    def run(self, playbook: str, *arguments: str, hooks: tuple[str, ...] = HOOKS, **more: Any) -> Played:
        self.said.unlink(missing_ok=True)
        given = {"%s_%s_tasks" % ("rollback" if playbook == "rollback" else "migrate", hook): "hooks/%s.yml" % hook for hook in hooks}
        return self.controller.run(playbook, *arguments, **given, **more)

    def order(self) -> list[str]:
        return [line.strip() for line in self.said.read_text().splitlines()] if self.said.exists() else []

    def names(self) -> list[str]:
        return sorted(os.listdir(self.images))


@pytest.fixture(name="place")
def _place(tmp_path: pathlib.Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("core", ["2.16", "2.19", "2.21"])
def test_all_are_run_in_their_order(core: str, tmp_path: pathlib.Path) -> None:
    place = Place(tmp_path, core)
    checked = place.run("migrate", "--check")
    assert checked.returncode == 0 and place.order() == [], "in check mode a shell task is skipped: " + checked.output
    assert checked.output.count("TASK [vmimage.qcow.migrate : Say ") >= 4, checked.output
    played = place.run("migrate")
    assert played.returncode == 0 and "1 host: 1 done" in played.text, played.output
    before = ["before_host", "before_image one.qcow convert", "before_image two.qcow convert"]
    assert place.order() == before + ["after_image one.qcow convert", "after_image two.qcow convert", "after_host"]
    assert played.text.count("[kvm1] migrated ") == 2 and played.changed == 1, "the plan that was made for it is told: " + played.output
    again = place.run("migrate")
    assert again.returncode == 0 and place.order() == ["before_host", "after_host"], again.output
    back = place.run("rollback", hooks=("after_image",))
    assert back.returncode == 0 and sorted(place.order()) == ["after_image one.qcow roll-back", "after_image two.qcow roll-back"], (
        back.output
    )


@pytest.mark.parametrize("hook", ["before_host", "before_image"])
def test_a_failure_before_leaves_everything_as_it_is(hook: str, place: Place) -> None:
    played = place.run("migrate", against=[hook])
    assert (played.returncode, place.names(), played.changed) == (2, ["one.qcow", "two.qcow"], 0), played.output
    end = played.text[played.text.index("PLAY [List what is left]") :]
    assert "migrate_%s_tasks, task 'Check %s': %s is against it. Nothing was changed on this host." % (hook, hook, hook) in end, (
        played.output
    )
    assert not [line for line in place.order() if line.startswith("after")]
    assert any("is against it" in problem for problem in played.results("qcow_report", "kvm1")[0]["problems"])


def test_a_failure_after_names_the_way_back(place: Place) -> None:
    played = place.run("migrate", against=["after_image"])
    assert played.returncode == 2 and place.names() == ["one.qcow.qcow1.orig", "one.qcow2", "two.qcow.qcow1.orig", "two.qcow2"], (
        played.output
    )
    assert place.order()[-2:] == ["after_image two.qcow convert", "after_host"], "a failure has kept the others from being run"
    converted = [image for result in played.results("qcow_convert") for image in result["images"] if image["record"]]
    (record,) = [image["record"] for image in converted if image["src"].endswith("one.qcow")]
    # On a line of its own, not in JSON: people copy it.
    (told,) = [line for line in played.output.splitlines() if line.startswith("  [kvm1] ") and "To undo its migration: " in line]
    assert "%s/one.qcow: migrate_after_image_tasks, task 'Check after_image': after_image is against it." % place.images in told, told
    assert "1 problem, listed above." in played.text and "vmimage.qcow.migrate" not in played.text.partition("TASK [Show the total]")[2]
    words = shlex.split(told.partition("To undo its migration: ")[2])
    assert record in words[-1] and words[-4:-1] == ["-l", "kvm1", "-e"], told
    back = place.controller.run("rollback", *words[words.index("vmimage.qcow.rollback") + 1 :], rollback_paths=str(place.images))
    assert back.returncode == 0 and "one.qcow" in place.names() and "two.qcow2" in place.names(), back.output


def test_every_batch_has_its_turn(tmp_path: pathlib.Path) -> None:
    place = Place(tmp_path)
    inventory = json.loads((place.controller.work / "inventory.json").read_text())
    facts = inventory["vm_hosts"]["hosts"]["kvm1"]
    (tmp_path / "others").mkdir()
    build(IMAGE).write(tmp_path / "others" / "three.qcow")
    inventory["vm_hosts"]["hosts"]["kvm2"] = dict(facts, migrate_paths=str(tmp_path / "others"), migrate_state_dir=str(tmp_path / "s2"))
    (place.controller.work / "inventory.json").write_text(json.dumps(inventory))
    played = place.run("migrate", "-e", "qcow_serial=1", against=["before_image"])
    assert played.returncode == 2 and (tmp_path / "others" / "three.qcow2").exists(), played.output
    assert "2 hosts: 1 done, 1 failed" in played.text, played.output


def test_a_file_that_is_not_there_is_told_before_anything_is_changed(place: Place) -> None:
    played = place.controller.run("migrate", migrate_after_image_tasks="hooks/typo.yml")
    assert played.returncode == 2 and place.names() == ["one.qcow", "two.qcow"], played.output
    assert (
        "migrate_after_image_tasks: there is no file %s/hooks/typo.yml. Nothing was changed on this host." % place.controller.work
        in played.text
    )


def test_a_path_is_relative_to_the_playbook(place: Place) -> None:
    project = place.controller.work / "project"
    project.mkdir()
    (place.controller.work / "hooks" / "after_host.yml").rename(project / "mine.yml")
    (project / "own.yml").write_text("- hosts: vm_hosts\n  gather_facts: false\n  roles: [vmimage.qcow.migrate]\n")
    played = place.controller.run("project/own.yml", migrate_after_host_tasks="mine.yml")
    assert played.returncode == 0 and place.order() == ["after_host"], played.output
    (project / "site.yml").write_text("- name: Migrate\n  ansible.builtin.import_playbook: vmimage.qcow.migrate\n")
    imported = place.controller.run("project/site.yml", migrate_after_host_tasks="project/mine.yml")
    assert imported.returncode == 0 and place.order() == ["after_host", "after_host"], imported.output


def test_one_host_that_cannot_be_meant_leaves_later_batches_their_turn(tmp_path: pathlib.Path) -> None:
    place = Place(tmp_path)
    inventory = json.loads((place.controller.work / "inventory.json").read_text())
    hosts = inventory["vm_hosts"]["hosts"]
    base = hosts.pop("kvm1")
    hosts["kvm0"] = {**base, "migrate_after_image_tasks": "hooks/typo.yml", "migrate_state_dir": str(tmp_path / "s0")}
    hosts["kvm1"] = {**base, "migrate_state_dir": str(tmp_path / "s1"), "migrate_paths": []}
    hosts["kvm2"] = {**base, "migrate_state_dir": str(tmp_path / "s2")}
    (place.controller.work / "inventory.json").write_text(json.dumps(inventory))
    played = place.controller.run("migrate", "-e", "qcow_serial=1")
    assert played.returncode == 2 and "3 hosts: 1 done, 2 failed" in played.text, played.output
    assert "there is no file %s/hooks/typo.yml. Nothing was changed on this host." % place.controller.work in played.text, played.output
    assert "Set either migrate_paths or migrate_plan. Nothing was changed." in played.text, played.output


@pytest.mark.parametrize(
    ("core", "text"), [("2.16", "- name: Typo\n  no.such.module:\n"), ("2.19", "- name: {\n"), ("2.21", "- name: {\n")]
)
def test_a_file_that_cannot_be_loaded_is_told_before_anything_is_changed(core: str, text: str, tmp_path: pathlib.Path) -> None:
    place = Place(tmp_path, core)
    (place.controller.work / "hooks" / "after_host.yml").write_text(text)
    played = place.run("migrate", hooks=("after_host",))
    assert (played.returncode, place.names()) == (4, ["one.qcow", "two.qcow"]), played.output
    assert "hooks/after_host.yml" in played.text, played.output


def test_a_delegate_that_cannot_be_reached_does_not_hide_what_was_done(place: Place) -> None:
    inventory = json.loads((place.controller.work / "inventory.json").read_text())
    inventory["guests"] = {"hosts": {"shop": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}}}
    (place.said.parent / "empty").mkdir()
    hosts = inventory["vm_hosts"]["hosts"]
    hosts["kvm2"] = {**hosts["kvm1"], "migrate_paths": str(place.said.parent / "empty"), "migrate_state_dir": str(place.said.parent / "s2")}
    (place.controller.work / "inventory.json").write_text(json.dumps(inventory))
    hook = "- ansible.builtin.ping:\n  delegate_to: shop\n  when: inventory_hostname == 'kvm1'\n"
    (place.controller.work / "hooks" / "after_host.yml").write_text(hook)
    played = place.run("migrate", hooks=("after_host",))
    assert played.returncode != 0 and "ended early" not in played.text and "1 failed" in played.text, played.output
    assert "2 images migrated" in played.text, played.output


def test_an_image_that_was_not_planned_is_left(place: Place) -> None:
    """It is new when the tasks before the first image are run."""
    build(IMAGE).write(place.said.parent / "new")
    hook = "- ansible.builtin.copy: {src: %s, dest: %s, remote_src: true, mode: '0600'}\n"
    text = hook % (place.said.parent / "new", place.images / "three.qcow")
    (place.controller.work / "hooks" / "before_image.yml").write_text(text)
    played = place.run("migrate", hooks=("before_image",))
    assert played.returncode == 0, played.output
    assert place.names() == ["one.qcow.qcow1.orig", "one.qcow2", "three.qcow", "two.qcow.qcow1.orig", "two.qcow2"], played.output


def test_what_a_task_hides_is_not_told(tmp_path: pathlib.Path) -> None:
    place = Place(tmp_path, "2.16")  # since 2.19, Ansible itself shows the message of such a task
    (place.controller.work / "hooks" / "after_host.yml").write_text(
        "- name: Notify\n  ansible.builtin.fail: {msg: '{{ hidden }}'}\n  no_log: true\n"
    )
    played = place.run("migrate", hooks=("after_host",), hidden="GEHEIM")
    assert played.returncode == 2 and "GEHEIM" not in played.text and "its message is hidden (no_log)" in played.text, played.output


def test_a_rollback_whose_tasks_are_not_there_changes_nothing(place: Place) -> None:
    assert place.controller.run("migrate").returncode == 0
    played = place.controller.run("rollback", rollback_after_image_tasks="hooks/typo.yml")
    assert played.returncode == 2 and "one.qcow2" in place.names(), played.output
    assert "rollback_after_image_tasks: there is no file" in played.text, played.output
    (place.controller.work / "hooks" / "typo.yml").write_text("- name: {\n")
    played = place.controller.run("rollback", rollback_after_image_tasks="hooks/typo.yml")
    assert played.returncode == 4 and "one.qcow2" in place.names() and "hooks/typo.yml" in played.text, played.output


class Inbox(http.server.BaseHTTPRequestHandler):
    """Takes notifications."""

    received: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


def test_the_documented_example(place: Place, tmp_path: pathlib.Path) -> None:
    """The guest of a real domain answers on a port, and the notification arrives."""
    for example in pages.examples(PAGE):
        if example.marks.get("file") in ("office-hours.yml", "check-guest.yml"):
            (place.controller.work / example.marks["file"]).write_text(example.text)
    inbox = http.server.HTTPServer(("127.0.0.1", 0), Inbox)
    threading.Thread(target=inbox.serve_forever, daemon=True).start()
    guest = socket.create_server(("127.0.0.1", 0))
    (tmp_path / "libvirt").mkdir()
    daemon = Libvirtd(tmp_path / "libvirt")
    try:
        Guest(daemon, "shop", [disk(place.images / "one.qcow", "qcow")])
        given = {
            "migrate_before_host_tasks": "office-hours.yml",
            "migrate_after_image_tasks": "check-guest.yml",
            "migrate_libvirt_uri": daemon.uri,
            "ansible_python_interpreter": "/usr/bin/python3",  # it has libvirt-python
            "notify_url": "http://127.0.0.1:%d/" % inbox.server_port,
        }
        place.controller.work.joinpath("host_vars").mkdir()
        place.controller.work.joinpath("host_vars/kvm1.yml").write_text("guest_port: %d\n" % guest.getsockname()[1])
        inventory = json.loads((place.controller.work / "inventory.json").read_text())
        inventory["guests"] = {"hosts": {"shop": {"ansible_host": "127.0.0.1"}}}
        (place.controller.work / "inventory.json").write_text(json.dumps(inventory))
        refused = place.controller.run("migrate", **given, office_hours=list(range(24)))
        assert refused.returncode == 2 and "within office hours" in refused.text and place.names() == ["one.qcow", "two.qcow"], (
            refused.output
        )
        played = place.controller.run("migrate", "--diff", **given)
    finally:
        daemon.close()
        inbox.shutdown()
        inbox.server_close()
        guest.close()
    assert played.returncode == 0, played.output
    assert "=> (item=shop)" in played.output, "nobody has asked the guest: " + played.output
    assert sorted(message["text"].rpartition(" ")[2] for message in Inbox.received) == [
        str(place.images / name) for name in ("one.qcow2", "two.qcow2")
    ]
    for line in ("-domain shop, vda: %s/one.qcow (qcow)", "+domain shop, vda: %s/one.qcow2 (qcow2)"):
        assert line % place.images in played.output.splitlines(), played.output
