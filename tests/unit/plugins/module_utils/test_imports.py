# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a call imports, and when: modules are run from an archive without byte code, as Ansible runs them, where imports are most of a short call."""

import json
import os
import pathlib
import subprocess
import sys
import zipfile
from typing import Any, NamedTuple

import pytest

from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build

PLUGINS = pathlib.Path(__file__).resolve().parents[4] / "plugins"
COLLECTIONS = next(entry for entry in sys.path if os.path.isdir(os.path.join(entry, "ansible_collections", "vmimage", "qcow")))
COLLECTION = "ansible_collections.vmimage.qcow.plugins."
UTILITIES = COLLECTION + "module_utils."

# What AnsiballZ does on the host, with a witness to imports and compilations.
CALL = """
import atexit, glob, json, os, runpy, sys
archive, name, arguments, records, seen = sys.argv[1:]
compiled, late = [], []

class Witness:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith("ansible_collections") and os.path.isdir(records) and os.listdir(records):
            late.append(name)

def witness(event, given):
    if event == "compile" and isinstance(given[1], str) and given[1].startswith(archive):
        compiled.append(given[1])

def write():
    with open(seen, "w") as stream:
        json.dump({"imported": sorted(sys.modules), "compiled": compiled, "late": late}, stream)

sys.addaudithook(witness)
sys.meta_path.insert(0, Witness)
atexit.register(write)
sys.path.insert(0, archive)
from ansible.module_utils import basic
basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": json.loads(arguments)}).encode()
basic._ANSIBLE_PROFILE = "legacy"
runpy.run_module(name, init_globals={"_module_fqn": name, "_modlib_path": archive}, run_name="__main__", alter_sys=True)
"""


class Seen(NamedTuple):
    """What a call has answered, and which modules of ours it has imported."""

    answer: dict[str, Any]
    imported: set[str]  # below module_utils
    compiled: list[str]  # files, each as often as it was
    late: list[str]  # imported when a record had been begun


@pytest.fixture(name="archive", scope="module")
def _archive(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("payload") / "payload.zip"
    root = pathlib.PurePosixPath("ansible_collections/vmimage/qcow/plugins")
    folders = {root, *root.parents} - {pathlib.PurePosixPath(".")}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted([*PLUGINS.glob("modules/*.py"), *PLUGINS.glob("module_utils/**/*.py")]):
            name = root / file.relative_to(PLUGINS).as_posix()
            folders.add(name.parent)
            archive.write(file, str(name))
        for folder in folders:
            archive.writestr(str(folder / "__init__.py"), "")
    return path


def called(archive: pathlib.Path, module: str, **arguments: Any) -> Seen:
    seen = archive.with_name("seen.json")
    state = pathlib.Path(arguments["state_dir"])
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            CALL,
            str(archive),
            COLLECTION + "modules." + module,
            json.dumps(arguments),
            str(state / "records"),
            str(seen),
        ],
        stdout=subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        check=False,
    )
    facts = json.loads(seen.read_text())
    ours = {name[len(UTILITIES) :] for name in facts["imported"] if name.startswith(UTILITIES)}
    modules = {name for name in ours if "." in name or (PLUGINS / "module_utils" / (name + ".py")).exists()}
    return Seen(json.loads(done.stdout), modules, facts["compiled"], facts["late"])


@pytest.fixture(name="image")
def _image(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "a.qcow"
    path.write_bytes(build(ImageSpec(size=1 << 20, clusters={1: Plain(b"data")})).data)
    return path


def wings(seen: Seen) -> set[str]:
    return {name.partition(".")[0] for name in seen.imported}


# What is only for domains, damaged runs, text files, chains of other formats, encryption.
SELDOM = {
    "_image.crypt",
    "_libvirt.api",
    "_libvirt.control",
    "_libvirt.domain_xml",
    "_libvirt.option_text",
    "_libvirt.redefine",
    "_libvirt.survey",
    "_libvirt.xml_text",
    "_migration.domain_definitions",
    "_migration.foreign_base",
    "_migration.recover",
    "_migration.reference_policy",
    "_migration.rollback",
    "_migration.running_domains",
    "_migration.text_references",
}


@pytest.fixture(name="_no_libvirt")
def _without_libvirt() -> None:
    """Asked in a process of its own, as the calls are: other tests have imported libvirt from elsewhere."""
    asked = "from {0}_libvirt.inventory import is_installed; print(is_installed())".format(UTILITIES)
    environment = dict(os.environ, PYTHONPATH=COLLECTIONS)
    if subprocess.run([sys.executable, "-c", asked], env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout == "True\n":
        pytest.skip("this Python has libvirt, or the host has domains")


def test_a_look_imports_what_looks(archive: pathlib.Path, image: pathlib.Path, tmp_path: pathlib.Path, _no_libvirt: None) -> None:
    seen = called(archive, "qcow_info", paths=[str(image)], state_dir=str(tmp_path / "state"))
    assert [found["format"] for found in seen.answer["images"]] == ["qcow"]
    assert not seen.imported & SELDOM and not wings(seen) & {"_copy", "_verify"}
    assert len(seen.imported) <= 50


def test_a_look_imports_what_is_asked_for(archive: pathlib.Path, image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "fstab").write_text(f"{image} /mnt\n")
    given = {"fingerprint": True, "reference_dirs": [str(tmp_path / "texts")], "state_dir": str(tmp_path / "state")}
    seen = called(archive, "qcow_info", paths=[str(image)], **given)
    (found,) = seen.answer["images"]
    assert found["fingerprint"] and [one["line"] for one in found["references"]] == [1]
    assert {"_verify.compare", "_migration.text_references"} <= seen.imported


def test_a_migration_imports_what_migrates(archive: pathlib.Path, image: pathlib.Path, tmp_path: pathlib.Path, _no_libvirt: None) -> None:
    seen = called(archive, "qcow_convert", src=str(image), state_dir=str(tmp_path / "state"))
    assert seen.answer["changed"] and seen.answer["verified"]
    assert not seen.imported & SELDOM
    assert len(seen.imported) <= 92


def test_nothing_is_imported_once_a_migration_has_begun(archive: pathlib.Path, image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """An import that fails, because descriptors have run out or the archive has gone, must not leave a half-done migration."""
    state = tmp_path / "state"
    seen = called(archive, "qcow_convert", src=str(image), state_dir=str(state))
    assert seen.answer["changed"] and list((state / "records").iterdir())
    assert seen.late == []


def test_a_host_without_images_imports_nothing_that_migrates(archive: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "images").mkdir()
    seen = called(archive, "qcow_convert", paths=[str(tmp_path / "images")], state_dir=str(tmp_path / "state"))
    assert seen.answer["images"] == []
    assert not seen.imported & {"_migration.execute", "_migration.output", "_host.qemu_img", *SELDOM}


def test_each_module_is_compiled_once(archive: pathlib.Path, image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """But for the one that is called and the one that sees to it: these are imported before."""
    seen = called(archive, "qcow_info", paths=[str(image)], state_dir=str(tmp_path / "state"))
    ours = [file for file in seen.compiled if not file.endswith(("__init__.py", "/_imports.py", "/qcow_info.py"))]
    assert len(ours) > 40
    assert sorted(ours) == sorted(set(ours))
