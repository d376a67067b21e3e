# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules return is what RETURN documents: every key with a sample, and no other key. The modules are run for that."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any, Iterator

import pytest
import yaml

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import results
from ansible_collections.vmimage.qcow.tests.support.builder import Backing, ImageSpec, Packed, Plain, build
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, disk
from ansible_collections.vmimage.qcow.tests.support.playbook import COLLECTIONS, ROOT, Controller

MODULES = sorted(path.stem for path in ROOT.glob("plugins/modules/*.py"))
# Every module may return these: Ansible adds them, or documents them for all (common return values).
COMMON = {"changed", "failed", "msg", "diff", "warnings", "deprecations", "invocation", "exception", "_ansible_no_log", "ansible_facts"}
FILE_FACTS = {"uid", "gid", "owner", "group", "mode", "size", "state", "secontext"}  # of add_file_common_args, from set_fs_attributes
TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}


def documented() -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "ansible-doc"), "-j", *("vmimage.qcow." + name for name in MODULES)],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": COLLECTIONS},
        stdout=subprocess.PIPE,
        check=True,
    )
    return {name.rpartition(".")[2]: entry["return"] for name, entry in json.loads(done.stdout).items()}


@pytest.fixture(name="promised", scope="module")
def _promised() -> dict[str, dict[str, Any]]:
    return documented()


def entries(promise: dict[str, Any], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every documented key, those inside others too."""
    for key, entry in promise.items():
        yield where + key, entry
        yield from entries(entry.get("contains") or {}, where + key + ".")


def undocumented(value: Any, entry: dict[str, Any], where: str) -> Iterator[str]:
    """What is wrong with a returned value, by its documentation."""
    if value is None:
        return
    if not isinstance(value, TYPES[entry["type"]]) or isinstance(value, bool) != (entry["type"] == "bool"):
        yield "%s is %r, not %s" % (where, value, entry["type"])
        return
    for item in value if isinstance(value, list) else [value]:
        if entry["type"] == "list" and not isinstance(item, TYPES[entry["elements"]]):
            yield "%s has %r, not %s" % (where, item, entry["elements"])
        elif isinstance(item, dict) and entry.get("contains"):
            for key in set(item) - set(entry["contains"]):
                yield "%s.%s is not documented" % (where, key)
            for key in set(item) & set(entry["contains"]):
                yield from undocumented(item[key], entry["contains"][key], where + "." + key)
        elif isinstance(item, dict) and entry["sample"]:  # the sample says which keys there are
            sample = entry["sample"][0] if isinstance(entry["sample"], list) else entry["sample"]
            for key in set(item) - set(sample):
                yield "%s.%s is in no sample" % (where, key)


def wrong(returned: dict[str, Any], promise: dict[str, Any], also: set[str]) -> list[str]:
    found = ["%s is not documented" % key for key in set(returned) - set(promise) - COMMON - also]
    for key in set(returned) & set(promise):
        found += undocumented(returned[key], promise[key], key)
    return sorted(found)


class Place:
    """Images of all kinds: one that is sound, one that is encrypted by nothing, a damaged one, a chain, and a configuration that names one."""

    def __init__(self, scratch: pathlib.Path) -> None:
        self.scratch, self.images = scratch, scratch / "images"
        self.images.mkdir()
        (scratch / "texts").mkdir()
        write = self.write
        write("one.qcow", ImageSpec(size=1 << 20, clusters={1: Plain(b"data"), 2: Packed(b"packed" * 99)}))
        write("base.qcow", ImageSpec(size=1 << 20, clusters={3: Plain(b"base")}))
        write("over.qcow", ImageSpec(size=1 << 20, clusters={4: Plain(b"over")}, backing=Backing(b"base.qcow")))
        write("lost.qcow", ImageSpec(size=1 << 20, clusters={number: Plain(b"lost %d" % number) for number in range(1, 90)}))
        os.truncate(self.images / "lost.qcow", 200 << 10)
        write("remote.qcow", ImageSpec(size=1 << 20, clusters={1: Plain(b"data")}, backing=Backing(b"nbd:host:10809")))
        (scratch / "texts" / "web.cfg").write_text("disk = ['tap:qcow:%s,xvda,w']\n" % (self.images / "one.qcow"))

    def write(self, name: str, spec: ImageSpec) -> None:
        build(spec).write(self.images / name)

    def play(self, *tasks: tuple[str, dict[str, Any]], check: tuple[int, ...] = (), hosts: Any = None) -> list[tuple[str, dict[str, Any]]]:
        """The tasks, whatever becomes of them.

        :param check: numbers of those that run in check mode.
        :return: module and result of each.
        """
        controller = Controller(self.scratch, hosts=hosts or {"localhost": {}})
        listed = []
        for number, (module, arguments) in enumerate(tasks):
            if module not in ("qcow_report", "qcow_total"):
                arguments = dict(arguments, state_dir=str(self.scratch / "state"))
            task = {"name": "Task %d" % number, "vmimage.qcow." + module: arguments, "register": "done%d" % number, "ignore_errors": True}
            listed.append(dict(task, check_mode=True) if number in check else task)
        play = {"name": "Try it", "hosts": "vm_hosts", "gather_facts": False, "tasks": listed}
        (controller.work / "try.yml").write_text(yaml.safe_dump([play], sort_keys=False))
        played = controller.run("try.yml", "--diff")
        found = [(line["module"].rpartition(".")[2], line["result"]) for line in played.lines if "module" in line]
        assert len(found) == len(tasks), played.output
        return found


def test_every_key_has_type_and_sample(promised: dict[str, dict[str, Any]]) -> None:
    for module in MODULES:
        for name, entry in entries(promised[module]):
            assert entry.get("description") and entry.get("type") in TYPES, (module, name)
            assert "sample" in entry or "contains" in entry, "%s: %s has no sample" % (module, name)
            assert entry["type"] != "list" or entry.get("elements"), (module, name)


def test_files(tmp_path: pathlib.Path, promised: dict[str, dict[str, Any]]) -> None:
    place = Place(tmp_path)
    images, texts = str(place.images), str(tmp_path / "texts")
    one = images + "/one.qcow"
    info = {"paths": [images], "check": "content", "fingerprint": True, "reference_dirs": [texts], "list_records": "all"}
    convert = {"paths": [images], "original": "retire"}
    tasks: list[tuple[str, dict[str, Any]]] = [
        ("qcow_info", info),
        ("qcow_info", {"paths": [images + "/none", images]}),
        ("qcow_info", {"paths": ["relative"]}),
        ("qcow_convert", convert),
        ("qcow_convert", {"src": one, "owner": "root"}),
        ("qcow_convert", {"src": images + "/none"}),
        ("qcow_convert", dict(convert, cluster_size="5000")),
        ("qcow_convert", dict(convert, reserve="8191P")),
        ("qcow_convert", dict(convert, max_minutes=0)),
        ("qcow_convert", dict(convert, salvage=True)),
        ("qcow_convert", dict(convert, paths=[images, images + "/none"])),
        ("qcow_info", info),
        ("qcow_rollback", {"paths": [images]}),
        ("qcow_rollback", {"paths": [images, images + "/typo"]}),
        ("qcow_rollback", {"records": ["none"], "lock_timeout": "x"}),
        ("qcow_convert", dict(convert, salvage=True)),
        ("qcow_cleanup", {"min_age_days": 14}),
        ("qcow_cleanup", {"min_age_days": 0}),
        ("qcow_cleanup", {"min_age_days": 0, "paths": [images + "/typo"]}),
        ("qcow_cleanup", {"min_age_days": -1}),
        ("qcow_status", {"list_records": "all"}),
        ("qcow_stop", {}),
        ("qcow_stop", {"wait": "soon"}),
    ]
    seen = place.play(*tasks, check=(3,))
    found = {
        "%d %s: %s" % (number, module, problem)
        for number, (module, result) in enumerate(seen)
        for problem in wrong(result, promised[module], FILE_FACTS)
    }
    assert not found, "\n".join(sorted(found))
    # That this has been a look at something.
    lists = [[image["action"] for image in result.get("images", [])] for module, result in seen if module != "qcow_info"]
    assert {action for actions in lists for action in actions} >= {"convert", "refuse", "noop", "defer", "roll-back", "delete"}
    assert any(image.get("lost") for _module, result in seen for image in result.get("images", []))


def test_report(tmp_path: pathlib.Path, promised: dict[str, dict[str, Any]]) -> None:
    place = Place(tmp_path)
    reports = str(tmp_path / "reports")
    (_info, found), (_convert, planned) = place.play(
        ("qcow_info", {"paths": [str(place.images)]}), ("qcow_convert", {"paths": [str(place.images)]}), check=(1,)
    )
    seen = place.play(
        (
            "qcow_report",
            {"path": reports, "play": "scan", "results": {"found": found, "planned": planned}, "requested_paths": [str(place.images)]},
        ),
        ("qcow_report", {"path": reports, "hosts": ["localhost", "another"]}),
    )
    for module, result in seen:
        assert wrong(result, promised[module], set()) == []
    assert seen[0][1]["lines"] and seen[1][1]["totals"]["missing"] == 1, seen
    page = pathlib.Path(reports, "index.html").read_text()
    assert "lies outside the file" in page or "cut off" in page
    assert "{&#39;" not in page and "{'" not in page and '{"kind"' not in page, "a dictionary is printed"


def test_domains(tmp_path: pathlib.Path, promised: dict[str, dict[str, Any]]) -> None:
    place = Place(tmp_path)
    (tmp_path / "libvirt").mkdir()
    daemon = Libvirtd(tmp_path / "libvirt")
    try:
        Guest(daemon, "shop", [disk(place.images / "one.qcow", "qcow")])
        one = str(place.images / "one.qcow")
        python = {"localhost": {"ansible_python_interpreter": "/usr/bin/python3"}}  # it has libvirt-python
        seen = place.play(
            ("qcow_info", {"paths": [one], "libvirt_uri": daemon.uri}),
            ("qcow_convert", {"src": one, "domains": "ignore"}),
            ("qcow_domain", {"src": one, "dest": one + "2", "libvirt_uri": daemon.uri}),
            ("qcow_domain", {"src": one, "dest": one + "3", "libvirt_uri": daemon.uri}),
            ("qcow_domain", {"src": one, "dest": one + "2", "libvirt_uri": daemon.uri}),
            hosts=python,
        )
    finally:
        daemon.close()
    for module, result in seen:
        assert wrong(result, promised[module], FILE_FACTS) == []
    assert seen[0][1]["images"][0]["users"] and seen[0][1]["images"][0]["domains"]
    assert seen[2][1]["domains"][0]["changed"]


@pytest.mark.parametrize(
    ("module", "key", "kind"),
    [
        ("qcow_convert", "images", results.ImageResult),
        ("qcow_convert", "recovered", results.Recovered),
        ("qcow_info", "images", results.InfoImage),
        ("qcow_info", "records", results.RecordEntry),
        ("qcow_domain", "domains", results.MovedDomain),
        ("qcow_status", "running", results.Running),
        ("qcow_status", "last_run", results.LastRun),
        ("qcow_stop", "running", results.Running),
    ],
)
def test_types_are_the_documented_ones(module: str, key: str, kind: Any, promised: dict[str, dict[str, Any]]) -> None:
    assert set(kind._fields) == set(promised[module][key]["contains"])


@pytest.mark.parametrize(
    ("module", "more"), [("qcow_rollback", {"discarded", "kept", "kept_base64"}), ("qcow_cleanup", {"returns", "retired_time"})]
)
def test_what_undoes_has_keys_of_its_own(module: str, more: set[str], promised: dict[str, dict[str, Any]]) -> None:
    assert set(promised[module]["images"]["contains"]) == set(results.Undone._fields) | more
