# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names of files as data: whatever a name holds, it does nothing on a terminal, in a table or on a page, and every step finds the file by it."""

import base64
import collections
import csv
import json
import os
import pathlib
import unicodedata
from typing import Any, Iterator, Optional

import pytest
import yaml

from ansible_collections.vmimage.qcow.plugins.action import qcow_convert
from ansible_collections.vmimage.qcow.plugins.module_utils._paths import encode_exact, show
from ansible_collections.vmimage.qcow.plugins.plugin_utils import host_merge, host_report, plan_files
from ansible_collections.vmimage.qcow.plugins.plugin_utils.fleet_files import make
from ansible_collections.vmimage.qcow.plugins.plugin_utils.told import Run
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import cell, visible
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, disk
from ansible_collections.vmimage.qcow.tests.support.playbook import Controller, Played, path_of
from ansible_collections.vmimage.qcow.tests.support.returned import converted, looked_at, recorded

EVIL = [
    "\x1b[2K\r\x1b[32mok: [hv1]",
    "\x9b31mred",
    "\x1b]0;title\x07",
    "line\nok: [hv1] => changed",
    "\u202egnp.wocq",
    "\u2066isolate\u2069",
    "zero\u200bwidth",
    "paragraph\u2029end",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "caf\u00e9 \u65e5\u672c",
    "next\x85line",
    "'single' \"double\" a,b: &c *d #e",
    "-rf",
    "~root",
    "$HOME",
    "${PATH}",
    "$VICTIM",
    "${VICTIM} {{ 7 * 7 }}",
    "$",
    "\\xff",
]

FILES = [name.replace("/", "|").encode() for name in EVIL] + [
    b"\xff",  # looks like the last one
    b"\xe9t\xe9 {{ 7 * 7 }}/$VICTIM",
    b"~/home",
    b"$UNSET/\xff\xfe",
]
"""The same on a filesystem, and what only a filesystem has: directories, and bytes that are not UTF-8."""

BASES = (b"$VICTIM", b"\\xff", b"\xff")
"""Those that have an overlay."""


def acts(text: str) -> list[str]:
    """The characters in a text that do something other than be seen."""
    return [character for character in text if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")]


@pytest.mark.parametrize("name", EVIL)
def test_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(qcow_convert.display, "display", lambda line, **_more: shown.append(line))
    action = qcow_convert.ActionModule.__new__(qcow_convert.ActionModule)
    action._host = "hv1"
    action._say("/srv/%s: copy 3 %%" % name)
    path = "/srv/" + name
    results = host_report.Results(done={"images": [converted(path)], "summary": {}})
    failed = host_report.Results(done={"images": [converted(path, failed=True, msg=path + ": damaged")], "summary": {}})
    shown += host_report.lines("migrate", results, check_mode=False) + host_report.lines("migrate", failed, check_mode=False)
    shown += host_report.problems("migrate", failed)
    assert len(shown) >= 4 and not [line for line in shown if acts(line)]
    assert visible(name) == name or acts(name)


@pytest.mark.parametrize("name", EVIL)
def test_table_and_page(name: str, tmp_path: pathlib.Path) -> None:
    path = "/srv/" + name
    results = host_report.Results(found={"images": [looked_at(path), looked_at(path + "2")], "errors": [{"path": path, "msg": path}]})
    host_merge.keep(os.fspath(tmp_path), "hv1", Run("scan", "2026-11-01T02:15:12Z", [path]), results)
    refused = host_report.Results(
        done={"images": [converted(path, failed=True, msg=path + ": damaged")], "records": [recorded(path + "2")]}
    )
    host_merge.keep(os.fspath(tmp_path), "hv1", Run("migrate", "2026-11-01T02:15:12Z", [path]), refused)
    make(os.fspath(tmp_path), ["hv1"], "title")
    with open(tmp_path / "images.csv", newline="") as stream:
        cells = [text for row in csv.reader(stream) for text in row]
    assert not [text for text in cells if acts(text)]
    page = (tmp_path / "index.html").read_text()
    assert not acts(page.replace("\n", "")) and "<script>alert" not in page and "/srv/49" not in page


@pytest.mark.parametrize("name", EVIL)
def test_cell_is_no_formula(name: str) -> None:
    assert cell(name)[:1] not in ("=", "+", "-", "@", "\t", "\r")


def content(path: bytes) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


class Place:
    """A tree with an image of every name, and images wherever such a name leads if something expands it."""

    def __init__(self, scratch: pathlib.Path) -> None:
        self.scratch, self.tree = scratch, os.fsencode(scratch / "images")
        self.environment = {"HOME": str(scratch / "home"), "VICTIM": "../victims/of"}
        os.mkdir(self.environment["HOME"])
        self.sources = [os.path.join(self.tree, name + b".qcow") for name in FILES]
        self.sources += [os.path.join(self.tree, name + b" over.qcow") for name in BASES]
        victims = {self.expanded(source) for source in self.sources} - set(self.sources)
        self.images = {path: self.make(path, number) for number, path in enumerate(self.sources + sorted(victims))}
        self.controller = Controller(scratch)
        self.variables: dict[str, Any] = {
            "%s_%s" % (play, name): value
            for play in ("scan", "migrate", "rollback", "cleanup")
            for name, value in (("state_dir", str(scratch / "state")), ("paths", os.fsdecode(self.tree)))
        }
        # Some victims are below the tree and not meant, such as that of $HOME, an absolute path.
        below = {os.fsdecode(path[len(self.tree) :].split(b"/")[1]) for path in victims if path.startswith(self.tree + b"/")}
        self.exclude = [os.path.join(os.fsdecode(self.tree), name) for name in sorted(below)]
        self.variables.update(scan_exclude=self.exclude, migrate_exclude=self.exclude)

    def expanded(self, path: bytes) -> bytes:
        """Where a name leads if variables in it are expanded."""
        for name, value in {**os.environ, **self.environment}.items():
            for written in ("${%s}" % name, "$" + name):
                path = path.replace(written.encode(), os.fsencode(value))
        return os.path.normpath(path)

    def make(self, path: bytes, number: int) -> bytes:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        base, over, _suffix = os.path.basename(path).partition(b" over")
        backing = Backing(base + b".qcow") if over and path in self.sources else None
        build(ImageSpec(size=1 << 20, clusters={number: Plain(b"%d" % number)}, backing=backing)).write(path)
        return content(path)

    def play(self, playbook: str, code: int = 0, **variables: Any) -> Played:
        played = self.controller.run(playbook, environment=self.environment, **dict(self.variables, **variables))
        assert played.returncode == code, played.output
        return played

    def play_tasks(self, *tasks: tuple[str, dict[str, Any]], **environment: str) -> list[dict[str, Any]]:
        """Results of tasks; each finds that of the one before in the variable ``done``."""
        listed = [{"name": module, "vmimage.qcow." + module: arguments, "register": "done"} for module, arguments in tasks]
        defaults = {"vmimage.qcow." + module: {"state_dir": str(self.scratch / "state")} for module, _arguments in tasks}
        play = {"name": "Try it", "hosts": "vm_hosts", "gather_facts": False, "module_defaults": defaults, "tasks": listed}
        (self.controller.work / "try.yml").write_text(yaml.safe_dump([dict(play, environment=environment)], sort_keys=False))
        return [line["result"] for line in self.play("try.yml").lines if "module" in line]

    def files(self) -> Iterator[bytes]:
        """Everything in the tree and where the victims are."""
        for top in (self.tree, os.fsencode(self.scratch / "victims")):
            for directory, _directories, names in os.walk(top):
                yield from (os.path.join(directory, name) for name in names)

    def require(self, *, results: bool, original: Optional[bytes]) -> None:
        """See that every image has a result of the right name, or none has, and that nothing else has changed.

        :param original: what is appended to the originals' names; ``None``: they are gone.
        """
        found = {path: content(path) for path in self.files()}
        made = [found.pop(path + b"2", b"") for path in self.sources]
        assert {result[:8] for result in made} == {b"QFI\xfb\0\0\0\3" if results else b""}, sorted(found)
        expected = {path: data for path, data in self.images.items() if path not in self.sources}
        if original is not None:
            expected.update({path + original: self.images[path] for path in self.sources})
        assert found == expected


@pytest.fixture(name="place")
def _place(tmp_path: pathlib.Path) -> Place:
    return Place(tmp_path)


def test_every_playbook_finds_the_file_and_no_other(place: Place) -> None:
    reports = place.controller.work / "qcow-reports"
    place.play("scan")
    place.require(results=False, original=b"")
    plan = (reports / "plan-localhost.yml").read_text()
    assert not acts(plan.replace("\n", ""))
    assert len(yaml.safe_load(plan)["images"]) == len(place.sources)
    place.play("migrate", migrate_plan=str(reports), migrate_paths="")
    place.require(results=True, original=b".qcow1.orig")
    rows = [json.loads(line) for line in (reports / "images.jsonl").read_text().split("\n") if line]
    assert collections.Counter(row["path"] for row in rows) == collections.Counter(show(path) for path in place.sources)
    assert {row["state"] for row in rows} == {"migrated"}
    place.play("rollback")
    place.require(results=False, original=b"")
    done = place.play("migrate").converted
    place.require(results=True, original=b".qcow1.orig")
    assert {path_of(image, "retired") for image in done} == {path + b".qcow1.orig" for path in place.sources}
    place.play("cleanup", cleanup_min_age_days=0)
    place.require(results=True, original=None)


def test_what_is_refused_is_told_by_its_name(place: Place) -> None:
    names = [os.path.join(place.tree, name) for name in (b"{{ 7 * 7 }} $VICTIM", b"\xff {% for %} $HOME")]
    for number, name in enumerate(names):
        place.make(name, 77 + number)
        os.truncate(name, 4200)
    problems = [problem for result in place.play("migrate", 2).results("qcow_report") for problem in result.get("problems", [])]
    for name in names:
        os.unlink(name)
        assert any(message.startswith(visible(show(name)) + ": ") for message in problems), problems
    place.require(results=True, original=b".qcow1.orig")


def test_results_are_handed_from_module_to_module(place: Place) -> None:
    info = {"paths": [os.fsdecode(place.tree)], "exclude": place.exclude}
    place.play_tasks(
        ("qcow_info", info),
        ("qcow_convert", {"images": "{{ done.candidates }}", "original": "retire", "mode": "0604", "domains": "ignore"}),
    )
    place.require(results=True, original=b".qcow1.orig")
    assert {path for path in place.files() if os.stat(path).st_mode & 0o777 == 0o604} == {path + b"2" for path in place.sources}
    place.play_tasks(
        ("qcow_info", dict(info, list_records="all")), ("qcow_rollback", {"records": "{{ done.records | map(attribute='record') }}"})
    )
    place.require(results=False, original=b"")


def test_dollar_sign_can_be_typed(place: Place) -> None:
    tree = os.fsdecode(place.tree)
    paths = [tree + "/${dollar}VICTIM.qcow", tree + "/$UNSET", tree + "/$VICTIM.qcow"]
    (found,) = place.play_tasks(("qcow_info", {"paths": paths}), dollar="$")
    assert [path_of(image, "path") for image in found["images"]] == [
        place.tree + b"/$VICTIM.qcow",
        place.tree + b"/$UNSET/\xff\xfe.qcow",
        os.fsencode(place.scratch / "victims/of.qcow"),
    ]


def test_domain_uses_the_file_and_no_other(place: Place) -> None:
    (place.scratch / "libvirt").mkdir()
    image = place.tree + b"/$VICTIM.qcow"
    place.play_tasks(("qcow_convert", {"images": [{"src": "/", "src_base64": encode_exact(image)}]}))
    daemon = Libvirtd(place.scratch / "libvirt")
    try:
        place.controller = Controller(place.scratch, hosts={"localhost": {"ansible_python_interpreter": "/usr/bin/python3"}})
        Guest(daemon, "shop", [disk(os.fsdecode(image), "qcow")])
        names = {"src": "/", "src_base64": encode_exact(image), "dest": "/", "dest_base64": encode_exact(image + b"2")}
        (moved,) = place.play_tasks(("qcow_domain", dict(names, libvirt_uri=daemon.uri)))
    finally:
        daemon.close()
    assert [domain["path"] for domain in moved["domains"]] == [show(image) + "2"] and moved["changed"]


def exact(path: bytes, role: str = "path") -> dict[str, Optional[str]]:
    return {role: show(path), role + "_base64": encode_exact(path)}


@pytest.mark.parametrize("name", EVIL)
def test_plan_has_the_name(name: str) -> None:
    image = converted("/srv/" + name)
    text = plan_files.text("hv1", "reports", "now", ["/srv/" + name], {"images": [image]}, 1e6)
    plan = yaml.safe_load(text)
    assert (plan["paths"], plan["images"][0]["src"]) == ([image["src"]], image["src"])
    assert not acts(text.replace("\n", ""))


@pytest.mark.parametrize("edit", [{"dest": "/srv/new.qcow2"}, {"dest": None}, {"dest_base64": "!"}, {"src": "/srv/other.qcow"}])
def test_edited_plan_that_gives_two_names_is_refused(edit: dict[str, Optional[str]], tmp_path: pathlib.Path) -> None:
    names = {**exact(b"/srv/\xff.qcow", "src"), **exact(b"/srv/\xff.qcow2", "dest")}
    text = plan_files.text("hv1", "reports", "now", [], {"images": [converted("", **names), converted("/srv/fine.qcow")]}, 1e6)
    plan = yaml.safe_load(text)
    path = tmp_path / "plan.yml"
    path.write_text(text)
    assert {image["action"] for image in plan_files.read(str(path), "hv1").images} == {"convert"}
    plan["images"][0].update(edit)
    path.write_text(yaml.safe_dump(plan))
    (edited, other) = plan_files.read(str(path), "hv1").images
    assert (edited["action"], other["action"]) == ("refuse", "convert")
    name = edited["why"][0].partition(" ")[0]
    assert "are not the same name" in edited["why"][0] and name + "_base64" not in edited
    plan["images"][0].update(dest="/srv/new.qcow2", src="/srv/\\xff.qcow", dest_base64=None)
    path.write_text(yaml.safe_dump(plan))
    (edited, other) = plan_files.read(str(path), "hv1").images
    assert (edited["action"], edited["dest"]) == ("convert", "/srv/new.qcow2")
    assert base64.b64decode(edited["src_base64"]) == b"/srv/\xff.qcow"
