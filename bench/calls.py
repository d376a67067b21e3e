# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a user types: whole calls of ``ansible`` and ``ansible-playbook``, against the same with the usual programs."""

import json
import os
import shutil
import sys
from typing import Any, Iterator, List

from ansible_collections.vmimage.qcow.bench import images
from ansible_collections.vmimage.qcow.bench.cases import CONVERT, MIB, Bench, Row, amount, identical
from ansible_collections.vmimage.qcow.bench.measure import run

_HERE = os.path.dirname(os.path.abspath(__file__))


def _program(name: str) -> List[str]:
    return [os.path.join(os.path.dirname(sys.executable), name), "-e", "ansible_python_interpreter=" + sys.executable]


def _call(module: str, **arguments: Any) -> List[str]:
    """``ansible localhost -m module -a arguments``."""
    given = ["-a", json.dumps(arguments)] if arguments else []
    return [*_program("ansible"), "-i", "localhost,", "-c", "local", "localhost", "-m", module, *given]


def _shell(line: str) -> List[str]:
    return _call("ansible.builtin.shell", cmd=line)


def call(bench: Bench) -> Iterator[Row]:
    """One call of a module."""
    src, dest = bench.made("one.qcow", images.small, 1), bench.path("one.result")

    def convert(**more: Any) -> List[str]:
        return _call("vmimage.qcow.qcow_convert", state_dir=bench.state, dest=dest, **more)

    ping, unwatched = _call("ansible.builtin.ping"), convert(src=src, progress_interval=0)
    yield Row(
        "call",
        "ansible -m qcow_info of one image",
        "ansible -m ping",
        0,
        bench.contest(_call("vmimage.qcow.qcow_info", path=src), ping, []),
    )
    yield Row("call", "ansible -m qcow_convert of a small image, not watched", "ansible -m ping", 0, bench.contest(unwatched, ping, [dest]))
    yield Row(
        "call",
        "ansible -m qcow_convert of a small image, watched",
        "the same, not watched",
        0,
        bench.contest(convert(src=src), unwatched, [dest]),
    )
    for make, size, held, goal in (
        (images.dense, MIB, None, 0),
        (images.dense, bench.size(1024), None, 5),
        (images.sparse, bench.size(16 << 10), bench.size(512), 5),
        (images.sparse, bench.size(256 << 10), bench.size(64), 15),
    ):
        made = bench.made("call.qcow", make, size, *([] if held is None else [held]))
        what = "dense, {0}".format(amount(size)) if held is None else "{0} holding {1}".format(amount(size), amount(held))
        theirs = _shell("{0} && sync -f {1}".format(" ".join([*CONVERT, "qcow2", made, dest]), dest))
        result = bench.contest(convert(src=made), theirs, [dest], identical(dest, "qcow2", made) if held is None else None, most=3)
        yield Row("call", what + " -> qcow2, verified: ansible -m qcow_convert", "ansible -m shell: qemu-img convert, sync", goal, result)
        os.unlink(made)
    os.unlink(src)


def _playbook(name: str, inventory: str, **variables: Any) -> List[str]:
    return [*_program("ansible-playbook"), "-i", inventory, "-f", "4", os.path.join(_HERE, name), "-e", json.dumps(variables)]


def hosts(bench: Bench) -> Iterator[Row]:
    """Whole runs of the playbooks on hosts with a few images each; every host is this machine, with directories of its own."""
    most, images_each = max(2, int(50 * bench.scale)), max(3, int(25 * bench.scale))
    folders = [bench.path("host-{0:02}".format(number)) for number in range(most)]
    for folder in folders:
        _filled(os.path.join(folder, "images"), images_each)
    for count in (1, most):
        inventory = _inventory(bench, folders[:count])
        results = [os.path.join(folder, "out") for folder in folders[:count]]
        # The peer takes twenty seconds for a host: it gets two of them.
        few = min(count, 2)
        theirs = _inventory(bench, folders[:few])
        for what, ours, peer, more in (
            ("scan", _playbook("scan.yml", inventory), "find + loop of info", ["--tags", "scan"]),
            ("migrate", _playbook("migrate.yml", inventory), "find + loop of info, convert, compare", []),
        ):
            result = bench.contest(ours, _playbook("usual.yml", theirs) + more, results, most=3)
            work = "{0}: {1} images on each of {2} host{3}".format(what, images_each, count, "" if count == 1 else "s")
            yield Row("hosts", work, peer, 0, result, count / few)
    for folder in folders:
        shutil.rmtree(folder)


def _filled(folder: str, count: int) -> None:
    os.makedirs(folder)
    for number in range(count):
        images.small(os.path.join(folder, "image-%04d.qcow" % number), number)


def _inventory(bench: Bench, folders: List[str]) -> str:
    path = bench.path("hosts-{0}.json".format(len(folders)))
    given = {
        os.path.basename(folder): {
            "ansible_connection": "local",
            **{name: os.path.join(folder, where) for name, where in (("folder", "images"), ("out", "out"), ("state", "state"))},
        }
        for folder in folders
    }
    with open(path, "w", encoding="utf-8") as target:
        json.dump({"all": {"hosts": given}}, target)
    return path


def fleet(bench: Bench) -> Iterator[Row]:
    """Many small images by a playbook: everything from starting ansible-playbook to its end."""
    count = max(10, int(1000 * bench.scale))
    part = max(5, count // 20)  # for the peer, which takes about a second for each
    folder, few, few_out = bench.path("fleet"), bench.path("few"), bench.path("few.out")
    _filled(folder, count)
    _filled(few, part)
    playbook = [*_program("ansible-playbook"), "-i", "localhost,", "-c", "local"]
    ours = [
        *playbook,
        os.path.join(_HERE, "migrate.yml"),
        "-e",
        json.dumps({"folder": folder, "state": bench.state, "out": bench.path("fleet.out")}),
    ]
    theirs = [*playbook, os.path.join(_HERE, "usual.yml"), "-e", json.dumps({"folder": few, "out": few_out})]
    for path in (few_out, bench.path("fleet.out")):
        os.makedirs(path)
    idle = run([*playbook, os.path.join(_HERE, "usual.yml"), "-e", json.dumps({"folder": bench.state, "out": few_out})])
    results = [
        os.path.join(where, "image-%04d.%s" % (number, suffix))
        for where in (few_out, bench.path("fleet.out"))
        for number in range(count)
        for suffix in ("qcow2", "raw")
    ]
    result = bench.contest(ours, theirs, results, most=1)
    # What starting Ansible takes is not multiplied.
    grown = [their._replace(seconds=idle.seconds + (their.seconds - idle.seconds) * count / part) for their in result.theirs]
    yield Row(
        "fleet",
        "{0:,} small images migrated by the playbook, verified".format(count),
        "find + loop of info, convert, compare",
        30,
        result._replace(theirs=grown),
    )
    for path in (folder, few, few_out, bench.path("fleet.out")):
        shutil.rmtree(path)


CALLS = (call, hosts, fleet)
