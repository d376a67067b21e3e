# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every attribute that a module claims in its documentation is tried."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any, Optional

import pytest
import yaml

from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.libvirtd import Guest, Libvirtd, disk
from ansible_collections.vmimage.qcow.tests.support.playbook import COLLECTIONS, ROOT, Controller, Played

MODULES = sorted(path.stem for path in ROOT.glob("plugins/modules/*.py"))
SYSTEM_PYTHON = {"ansible_python_interpreter": "/usr/bin/python3"}  # it has libvirt-python
GROUP = "group/vmimage.qcow.qcow"
AT_WORK = """
import os, sys, time
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.session import Session

with Session(os.fsencode(sys.argv[1])) as session:
    print("at work", flush=True)
    while session.stop.request() is None:
        time.sleep(0.1)
"""


def documented() -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "ansible-doc"), "-j", *("vmimage.qcow." + name for name in MODULES)],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": COLLECTIONS},
        stdout=subprocess.PIPE,
        check=True,
    )
    return {name.rpartition(".")[2]: entry["doc"]["attributes"] for name, entry in json.loads(done.stdout).items()}


@pytest.fixture(name="attributes", scope="module")
def _attributes() -> dict[str, dict[str, Any]]:
    return documented()


class Bench:
    """An image with a domain that uses it, and a call of each module that has something to do."""

    def __init__(self, scratch: pathlib.Path, module: str) -> None:
        self.controller = Controller(scratch, hosts={"localhost": SYSTEM_PYTHON if module == "qcow_domain" else {}})
        self.scratch = scratch
        self.module = module
        self.image = scratch / "images" / "one.qcow"
        self.image.parent.mkdir()
        self.daemon: Optional[Libvirtd] = None
        self.at_work: Optional[subprocess.Popen[bytes]] = None
        build(ImageSpec(size=1 << 20, clusters={1: Plain(b"data")})).write(self.image)
        self.arguments: dict[str, Any] = {
            "qcow_info": {"paths": str(self.image.parent)},
            "qcow_convert": {"paths": [str(self.image.parent)], "original": "retire"},
            "qcow_rollback": {"paths": [str(self.image.parent)]},
            "qcow_cleanup": {"min_age_days": 0},
            "qcow_report": {"path": str(scratch / "reports")},
            "qcow_status": {"list_records": "all"},
            "qcow_stop": {},
            "qcow_total": {"play": "scan", "hosts": ["localhost"], "counts": []},
            "qcow_domain": {"src": str(self.image), "dest": str(self.image) + "2"},
        }[module]
        if module in ("qcow_rollback", "qcow_cleanup"):
            assert self._play("qcow_convert", {"paths": [str(self.image.parent)], "original": "retire"}).returncode == 0
        if module == "qcow_domain":
            (scratch / "libvirt").mkdir()
            self.daemon = Libvirtd(scratch / "libvirt")
            Guest(self.daemon, "shop", [disk(self.image, "qcow")])
            assert self._play("qcow_convert", {"src": str(self.image)}).returncode == 0
            self.arguments["libvirt_uri"] = self.daemon.uri
        if module == "qcow_stop":
            run = [sys.executable, "-c", AT_WORK, str(scratch / "state")]
            self.at_work = subprocess.Popen(run, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": COLLECTIONS})
            assert self.at_work.stdout is not None and self.at_work.stdout.readline()

    def close(self) -> None:
        if self.at_work is not None:
            self.at_work.kill()
            self.at_work.communicate()
        if self.daemon is not None:
            self.daemon.close()

    def _play(self, module: str, arguments: dict[str, Any], *options: str, **keywords: Any) -> Played:
        task = {"name": "Try it", "vmimage.qcow." + module: arguments, **keywords}
        defaults = (
            {}
            if module in ("qcow_report", "qcow_total") and "module_defaults" not in keywords
            else {GROUP: {"state_dir": str(self.scratch / "state")}}
        )
        play = {"name": "Try it", "hosts": "vm_hosts", "gather_facts": False, "module_defaults": defaults, "tasks": [task]}
        (self.controller.work / "try.yml").write_text(yaml.safe_dump([play], sort_keys=False))
        return self.controller.run("try.yml", *options)

    def run(self, *options: str, **keywords: Any) -> Played:
        return self._play(self.module, self.arguments, *options, **keywords)

    def state(self) -> dict[str, Any]:
        """Names, sizes and times of all that the modules may change."""
        found = {}
        for top in ("images", "state", "reports", "libvirt/etc/qemu"):
            for folder, _folders, names in os.walk(self.scratch / top):
                for name in names:
                    status = os.stat(os.path.join(folder, name))
                    found[os.path.join(folder, name)] = (status.st_size, status.st_mtime_ns, status.st_ino)
        return found


@pytest.fixture(name="bench", params=MODULES)
def _bench(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Any:
    bench = Bench(tmp_path, request.param)
    yield bench
    bench.close()


def test_what_is_claimed_is_true(bench: Bench, attributes: dict[str, dict[str, Any]]) -> None:
    claims = {name: claim.get("support") for name, claim in attributes[bench.module].items()}
    assert claims.pop("platform") == "full" and attributes[bench.module]["platform"]["platforms"] == "posix"
    changes = bench.module not in ("qcow_info", "qcow_status", "qcow_total")
    before = bench.state()

    diff = "--diff"
    assert claims.pop("check_mode") == "full"
    checked = bench.run("--check", diff)
    assert (checked.returncode, checked.changed, bench.state()) == (0, int(changes), before), checked.output
    assert ("--- before" in checked.output) == (claims["diff_mode"] == "full"), checked.output

    asynchronous = {"async": 60, "poll": 1}
    done = bench.run(diff, **(asynchronous if claims["async"] == "full" else {}))
    assert (done.returncode, done.changed) == (0, int(changes)), done.output
    assert claims.pop("async") in ("full", "none")
    assert ("--- before" in done.output) == (claims.pop("diff_mode") == "full"), done.output
    if bench.module in ("qcow_report", "qcow_total"):
        assert bench.run(**asynchronous).returncode != 0

    assert claims.pop("idempotent") == "full"
    after = bench.state()
    again = bench.run()
    assert (again.returncode, again.changed) == (0, 0), again.output
    noted = ("/lock", "/stop.json")  # who had the lock last, and when a stop was asked for last
    assert {path: facts for path, facts in bench.state().items() if not path.endswith(noted)} == {
        path: facts for path, facts in after.items() if not path.endswith(noted)
    }

    member = claims.pop("action_group", None) == "full"
    assert member == (bench.module in yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["action_groups"]["qcow"])
    assert (claims.pop("action", None) == "full") == (ROOT / "plugins" / "action" / (bench.module + ".py")).exists()
    assert not claims, "claimed, but not tried"


def test_group_defaults_fit_every_module(bench: Bench) -> None:
    defaults = {GROUP: {"state_dir": str(bench.scratch / "state of the group")}}
    played = bench.run(module_defaults=defaults)
    assert played.returncode == 0, played.output
    if bench.module == "qcow_convert":
        assert (bench.scratch / "state of the group" / "records").exists()
