# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every example in the documentation is run as it stands.

Each page has a machine to itself: a mount namespace with a /srv, a /var/lib and a /run of its own, filled with sample images. The hosts
of the examples' inventories are this machine.
"""

import datetime
import os
import pathlib
import re
import subprocess
import sys
import textwrap
from typing import NamedTuple

import pytest
import yaml

from ansible_collections.vmimage.qcow.tests.docs import pages
from ansible_collections.vmimage.qcow.tests.support import make_samples
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCSITE = ROOT / "docs" / "docsite" / "rst"
PAGES = [ROOT / "README.md", *sorted(DOCSITE.glob("*.rst"))]
OWN = ("srv", "var/lib", "run")
EVERYWHERE = """\
ansible_connection: local
ansible_python_interpreter: "{{ ansible_playbook_python }}"
ansible_become: false
"""
PLAY = """\
- name: The example
  hosts: vm_hosts
  gather_facts: false
  tasks:
"""


class Machine(NamedTuple):
    """What stands for the reader's controller and for the hosts."""

    root: pathlib.Path
    work: pathlib.Path

    def run(self, script: str) -> subprocess.CompletedProcess:
        """Run a script in the page's directory."""
        binds = " && ".join("mount --bind %s/%s /%s" % (self.root, name, name) for name in OWN)
        command = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
        command += ["bash", "-c", binds + ' && exec bash -eu -o pipefail -c "$1"', "bash", script]
        environment = {
            "HOME": str(self.root),
            "PWD": str(self.work),
            "PATH": "%s:%s" % (os.path.dirname(sys.executable), os.environ["PATH"]),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build"),
            "ANSIBLE_INVENTORY": "inventory",
            "ANSIBLE_NOCOWS": "1",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            # The repository that the README clones is this one.
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "url.%s.insteadOf" % ROOT,
            "GIT_CONFIG_VALUE_0": "https://github.com/vmimage/vmimage.qcow",
            "GIT_CONFIG_KEY_1": "safe.directory",
            "GIT_CONFIG_VALUE_1": "*",
        }
        for name in ("PYENV_ROOT", "PIP_CONFIG_FILE", "PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE"):
            if name in os.environ:
                environment[name] = os.environ[name]
        return subprocess.run(
            command, cwd=self.work, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )


def small(path: pathlib.Path, seed: int, password: bytes = b"") -> None:
    """A v1 image of 4 MiB with half a megabyte in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clusters = {index * 7: Plain(b"%d %d " % (seed, index) * 300) for index in range(128)}
    if password:
        clusters[0] = Plain(bytes(510) + b"\x55\xaa")  # what a right passphrase is told by
    build(ImageSpec(size=4 << 20, clusters=clusters, password=password or None)).write(path)


@pytest.fixture(name="machine")
def _machine(tmp_path: pathlib.Path) -> Machine:
    probe = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    require(subprocess.run([*probe, "true"], check=False, capture_output=True).returncode == 0, "needs the right to make a mount namespace")
    for name in OWN:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "srv/raw").mkdir()
    make_samples.main(str(tmp_path / "srv/images"))
    for seed, name in enumerate(
        ["archive/old.qcow", "archive/broken/lost.qcow", "lab/test01.qcow", "raw-me/data.qcow", "window/first.qcow", "own/mine.img"]
    ):
        small(tmp_path / "srv" / name, seed)
    small(tmp_path / "srv/encrypted/secret.qcow", 9, b"geheim")
    small(tmp_path / "var/lib/libvirt/images/guest.qcow", 10)
    work = tmp_path / "controller"
    (work / "group_vars").mkdir(parents=True)
    (work / "group_vars/all.yml").write_text(EVERYWHERE, encoding="utf-8")
    # The inventory's first host is this machine as it is; others have directories of their own.
    (work / "host_vars").mkdir()
    for number, host in enumerate(("kvm2.example.org", "kvm3.example.org")):
        small(tmp_path / "srv" / host / "disk.qcow", 20 + number)
        own = {"%s_state_dir" % role: "/var/lib/" + host for role in ("scan", "migrate", "rollback", "cleanup", "status", "stop")}
        own["scan_paths"] = "/srv/" + host
        (work / "host_vars" / (host + ".yml")).write_text(yaml.safe_dump(own), encoding="utf-8")
    (work / "inventory").write_text("[vm_hosts]\nkvm1.example.org\n", encoding="utf-8")  # where a page does not make its own
    return Machine(tmp_path, work)


def assert_printed(said: str, printed: str) -> None:
    """``printed`` has what ``said`` says, in its order, with anything at all where that has ``...``. All white space is alike."""
    said, printed = (" ".join(text.split()) for text in (said, printed))
    pieces = [piece.strip() for piece in said.split("...")]
    position = 0
    for number, piece in enumerate(pieces):
        found = printed.find(piece, position) if number < len(pieces) - 1 or not piece else printed.rfind(piece, position)
        assert found >= 0, "not printed (from there on): %r\n\n%s" % (piece, printed)
        assert number or found == position, "printed before %r: %r" % (piece, printed[:found])
        position = found + len(piece)
    assert not pieces[-1] or position == len(printed), "printed after the last line: %r" % printed[position:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_examples_do_what_they_say(page: pathlib.Path, machine: Machine) -> None:
    for example in pages.examples(page):
        where = "%s, line %d" % (page.name, example.line)
        if "not run" in example.marks:
            continue
        if example.language in pages.DATA:
            if "tasks" in example.marks:
                (machine.work / example.marks["tasks"]).write_text(PLAY + textwrap.indent(example.text, " " * 4), encoding="utf-8")
                done = machine.run("ansible-playbook %s" % example.marks["tasks"])
                assert done.returncode == 0, "%s\n%s" % (where, done.stdout.decode("utf-8", "replace"))
                continue
            assert "file" in example.marks, "%s: a file without a name, and not marked as not run" % where
            (machine.work / example.marks["file"]).write_text(example.text, encoding="utf-8")
            continue
        tomorrow = str(datetime.date.today() + datetime.timedelta(days=1))
        for number, (command, said) in enumerate(example.commands, 1):
            done = machine.run(command.replace(example.marks.get("tomorrow", tomorrow), tomorrow))
            printed = done.stdout.decode("utf-8", "replace")
            expected = int(example.marks.get("exit", 0)) if number == len(example.commands) else 0
            assert done.returncode == expected, "%s: %s ended with %d\n%s" % (where, command, done.returncode, printed)
            try:
                assert_printed(said, printed)
            except AssertionError as wrong:
                pytest.fail("%s: %s%s\n\n%s" % (where, command, wrong, printed), pytrace=False)


def test_links_between_pages_lead_somewhere() -> None:
    """Sphinx is told to bear with links to other projects, and then bears with our own too."""
    pages_text = {path.name: path.read_text(encoding="utf-8") for path in DOCSITE.glob("*.rst")}
    labels = {label for text in pages_text.values() for label in re.findall(r"^\.\. _(ansible_collections\.\S+):$", text, re.MULTILINE)}
    wanted = {(name, label) for name, text in pages_text.items() for label in re.findall(r"(ansible_collections\.vmimage\.\S+?)>`", text)}
    assert sorted(entry for entry in wanted if ".docsite." in entry[1] and entry[1] not in labels) == []


def test_options_that_pages_name_exist() -> None:
    roles = {path.parts[-3]: path for path in ROOT.glob("roles/*/meta/argument_specs.yml")}
    assert roles
    known = set()
    for path in roles.values():
        known |= set(yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]["main"]["options"])
    named = re.compile(r"(?<![\w#:./-])(?:%s)_[a-z0-9_]*[a-z0-9](?![\w*(.])" % "|".join(roles))
    wanted = {(page.name, name) for page in PAGES for name in named.findall(page.read_text(encoding="utf-8"))}
    assert len(wanted) > 50
    assert sorted(entry for entry in wanted if entry[1] not in known) == []
