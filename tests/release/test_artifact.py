# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as it is published: built, installed where there is nothing but ansible-core, and used."""

import json
import os
import pathlib
import subprocess
import tarfile
from typing import NamedTuple

import pytest

from ansible_collections.vmimage.qcow.tests.support import make_samples
from ansible_collections.vmimage.qcow.tests.support.require import require

ROOT = pathlib.Path(__file__).resolve().parents[2]
ANSIBLE = ROOT / ".venv-run" / "bin"  # requirements/run.txt: ansible-core and what it needs
LARGEST = 600_000  # bytes

TOP = {"MANIFEST.json", "FILES.json", "README.md", "LICENSE", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "CHANGELOG.rst"}
TOP |= {"changelogs", "docs", "meta", "playbooks", "plugins", "roles"}
KINDS = {".py", ".yml", ".yaml", ".j2", ".rst", ".md", ".json", ".png", ".svg", ".txt", ".html", ".css", ".js"}


class Place(NamedTuple):
    """A machine with nothing of ours but the installed collection."""

    artifact: pathlib.Path
    home: pathlib.Path

    def run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        """Start one of Ansible's programs."""
        environment = {
            "HOME": str(self.home),
            "PWD": str(self.home),
            "PATH": "%s:/usr/bin:/bin" % ANSIBLE,
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_COLLECTIONS_PATH": str(self.home / "collections"),
        }
        command = [str(ANSIBLE / program), *arguments]
        done = subprocess.run(
            command, cwd=self.home, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


@pytest.fixture(name="place", scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    require((ANSIBLE / "ansible-galaxy").exists(), "needs the environment that `make artifact` builds")
    home = tmp_path_factory.mktemp("empty")
    command = [str(ANSIBLE / "ansible-galaxy"), "collection", "build", "--output-path", str(home), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, env={"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8"})
    (artifact,) = home.glob("vmimage-qcow-*.tar.gz")
    place = Place(artifact, home)
    place.run("ansible-galaxy", "collection", "install", "--offline", "-p", "collections", str(artifact))
    return place


def test_only_what_users_need_is_in_it(place: Place) -> None:
    with tarfile.open(place.artifact) as archive:
        files = [pathlib.PurePosixPath(member.name) for member in archive.getmembers() if not member.isdir()]
    assert {path.parts[0] for path in files} <= TOP
    assert [str(path) for path in files if len(path.parts) > 1 and path.suffix not in KINDS] == []
    assert [str(path) for path in files if path.name.startswith(".") or "fragments" in path.parts[:2]] == []
    assert place.artifact.stat().st_size <= LARGEST


def test_everything_is_documented(place: Place) -> None:
    installed = place.home / "collections/ansible_collections/vmimage/qcow"
    modules = sorted("vmimage.qcow." + path.stem for path in (installed / "plugins/modules").glob("*.py"))
    roles = sorted("vmimage.qcow." + path.name for path in (installed / "roles").iterdir())
    assert modules and roles
    told = json.loads(place.run("ansible-doc", "--json", "-t", "module", *modules).stdout)
    assert sorted(told) == modules
    for name, module in told.items():
        assert module["doc"]["short_description"] and module["examples"] and module["return"], name
    told = json.loads(place.run("ansible-doc", "--json", "-t", "role", *roles).stdout)
    assert sorted(told) == roles
    for name, role in told.items():
        main = role["entry_points"]["main"]
        assert main["short_description"] and all(option.get("description") for option in main["options"].values()), name
    page = place.run("ansible-doc", *modules)  # as a person reads it
    assert "vmimage.qcow.qcow_convert" in page.stdout.replace("\x1b[1m", "")


def test_playbooks_work(place: Place) -> None:
    make_samples.main(str(place.home / "images"))
    settings = {
        "qcow_hosts": "localhost",
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        "scan_paths": str(place.home / "images"),
        "migrate_paths": str(place.home / "images"),
        "rollback_paths": str(place.home / "images/web01.qcow"),
    }
    settings.update({role + "_state_dir": str(place.home / "state") for role in ("migrate", "rollback", "cleanup")})

    def play(name: str, *more: str) -> str:
        return place.run(
            "ansible-playbook", "-i", "localhost,", "-c", "local", "-e", json.dumps(settings), "vmimage.qcow." + name, *more
        ).stdout

    play("scan")

    def totals() -> dict[str, int]:
        return json.loads((place.home / "qcow-reports/report.json").read_text(encoding="utf-8"))["totals"]

    assert totals()["left"] == len(make_samples.SAMPLES)
    assert "changed=1 " in play("migrate")
    assert (totals()["left"], totals()["verified"]) == (0, len(make_samples.SAMPLES))
    assert "changed=0 " in play("migrate")
    assert "changed=1 " in play("rollback")
    assert (place.home / "images/web01.qcow").exists() and not (place.home / "images/web01.qcow2").exists()
    play("cleanup", "-e", "cleanup_min_age_days=0")
    assert not list((place.home / "images").rglob("*.orig"))
