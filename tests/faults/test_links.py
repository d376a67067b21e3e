# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Symbolic links to an image follow it to its result and back, whatever kills the run in between."""

import os
import pathlib
import random
import subprocess
from typing import Any

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._host import symbolic_links
from ansible_collections.vmimage.qcow.plugins.module_utils._host import tree as tree_module
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, execute, info, link_references, seen_images
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.search import Search, candidates
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.seen_images import SeenImages
from ansible_collections.vmimage.qcow.tests.support import oracle
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.require import require_root

MIB = 1 << 20


class Tree:
    """A directory with images and links, and runs over it."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root / "srv"
        self.root.mkdir()
        self.state = os.fsencode(root / "state")
        self.limits: dict[str, Any] = {}

    def image(self, name: str, seed: int = 1) -> pathlib.Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        source = random.Random(seed)
        build(ImageSpec(size=MIB, clusters={index: Plain(source.randbytes(4096)) for index in source.sample(range(256), 9)})).write(path)
        return path

    def link(self, name: str, target: Any) -> pathlib.Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
        return path

    def migrate(
        self, *paths: pathlib.Path, check: bool = False, searched: Any = None, more: tuple[bytes, ...] = (), **options: Any
    ) -> list[dict[str, Any]]:
        search = Search(tuple(map(os.fsencode, paths)) or (os.fsencode(self.root),), **self.limits)

        def asked(around: SeenImages) -> list[Request]:
            found = candidates(search, Records(self.state), around)
            assert found.errors == [], found.errors
            common: dict[str, Any] = {"retire": True, "state_dir": self.state, "backing_dirs": search.paths + more, **options}
            return [Request(path, **common) for path in found.paths]

        settings = batch.Settings(self.state, reserve=0, check_mode=check, domains="ignore")
        return batch.run(asked, settings, searched=searched)

    def roll_back(self, *paths: pathlib.Path, check: bool = False) -> list[dict[str, Any]]:
        choice = Choice(self.state, tuple(map(os.fsencode, paths)) or (os.fsencode(self.root),), check_mode=check, domains="ignore")
        return roll_back_all(choice, discard_changes=False)

    def links(self) -> dict[str, str]:
        """What every link says."""
        return {str(path.relative_to(self.root)): os.readlink(path) for path in sorted(self.root.rglob("*")) if path.is_symlink()}


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> Tree:
    return Tree(tmp_path)


def everything(tree: Tree) -> tuple[pathlib.Path, dict[str, str]]:
    """One image and links of every kind to it, and one to something else."""
    image = tree.image("store/7f3a.qcow")
    tree.image("store/other.qcow", seed=2)
    tree.link("vm/disk.2", "../store/7f3a.qcow")
    tree.link("vm/absolute", image)
    tree.link("vm/by-another", "disk.2")
    tree.link("store/beside", "7f3a.qcow")
    tree.link("store/dotted", "./../store/7f3a.qcow")
    tree.link("alias", "store")
    tree.link("vm/through", "../alias/7f3a.qcow")
    tree.link("vm/elsewhere", "/etc/hostname")
    tree.link("vm/nowhere", "gone.qcow")
    return image, tree.links()


def test_links_follow_and_come_back(tree: Tree) -> None:
    image, before = everything(tree)
    shown = {name: oracle.guest_bytes(oracle.Node(tree.root / name, "qcow")) for name in ("vm/disk.2", "vm/by-another", "vm/through")}
    assert all(not result["failed"] for result in tree.migrate(check=True)) and tree.links() == before
    results = {result["src"]: result for result in tree.migrate()}
    result = results[str(image)]
    assert not result["failed"], result["msg"]
    moved = {os.path.relpath(entry["path"], tree.root) for entry in result["links"]}
    assert moved == {"vm/disk.2", "vm/absolute", "store/beside", "store/dotted", "vm/through"}
    now = tree.links()
    assert now["vm/disk.2"] == "../store/7f3a.qcow2" and now["vm/absolute"] == str(image.with_suffix(".qcow2"))
    assert now["vm/through"] == "../alias/7f3a.qcow2" and now["store/beside"] == "7f3a.qcow2"
    assert {name: now[name] for name in before if name not in moved} == {name: before[name] for name in before if name not in moved}
    for name, data in shown.items():
        assert oracle.guest_bytes(oracle.Node(tree.root / name, "qcow2")) == data, name
    assert [again["action"] for again in tree.migrate()] == [] and tree.links() == now
    assert all(not undone["failed"] for undone in tree.roll_back(check=True)) and tree.links() == now
    assert all(undone["changed"] for undone in tree.roll_back())
    assert tree.links() == before
    assert not [name for name in os.listdir(tree.root / "vm") if name.startswith(".vmimage")]


def test_a_link_that_is_named_belongs_to_its_image(tree: Tree) -> None:
    image = tree.image("store/7f3a.qcow")
    link = tree.link("vm/disk.2", "../store/7f3a.qcow")
    (result,) = tree.migrate(link)
    assert (result["src"], result["failed"]) == (str(image), False)
    assert os.readlink(link) == "../store/7f3a.qcow2"
    assert tree.migrate(link) == []
    (undone,) = tree.roll_back(link)
    assert undone["changed"], undone
    assert os.readlink(link) == "../store/7f3a.qcow" and image.exists()


def test_rolling_back_a_directory_of_links(tree: Tree) -> None:
    """What a virtual machine's directory leads to is rolled back with it."""
    image = tree.image("store/7f3a.qcow")
    tree.link("vm/disk.2", "../store/7f3a.qcow")
    tree.migrate()
    (undone,) = tree.roll_back(tree.root / "vm")
    assert undone["changed"] and image.exists()


def test_refused_or_ignored(tree: Tree) -> None:
    image, before = everything(tree)
    refused = next(result for result in tree.migrate(links="refuse") if result["src"] == str(image))
    assert refused["failed"] and refused["reason"] == "linked" and image.exists()
    assert str(tree.root / "vm/disk.2") in refused["msg"] and "links=follow" in refused["msg"]
    ignored = next(result for result in tree.migrate(links="ignore") if result["src"] == str(image))
    assert not ignored["failed"] and tree.links() == before
    assert any(str(tree.root / "vm/disk.2") in words and "lead nowhere" in words for words in ignored["warnings"])


@pytest.mark.parametrize("options", [{"retire": False}, {"keep_name": True}])
def test_links_stay_where_the_name_stays(tree: Tree, options: dict[str, Any]) -> None:
    image, before = everything(tree)
    result = next(result for result in tree.migrate(**options) if result["src"] == str(image))
    assert not result["failed"], result["msg"]
    assert result["links"] == [] and tree.links() == before and (tree.root / "vm/disk.2").exists()


def test_a_link_outside_the_searched_trees_that_one_inside_leads_to(tree: Tree, tmp_path: pathlib.Path) -> None:
    image = tree.image("store/7f3a.qcow")
    (tmp_path / "outside").symlink_to(image)
    tree.link("vm/disk", tmp_path / "outside")
    tree.migrate()
    assert os.readlink(tmp_path / "outside") == str(image) + "2" and (tree.root / "vm/disk").exists()


def test_links_in_directories_that_are_searched_for_names(tree: Tree, tmp_path: pathlib.Path) -> None:
    image = tree.image("store/7f3a.qcow")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/disk").symlink_to(image)
    request = Request(os.fsencode(image), retire=True, state_dir=tree.state)
    settings = batch.Settings(tree.state, reserve=0, domains="ignore", reference_dirs=(os.fsencode(tmp_path / "etc"),))
    (result,) = batch.run([request], settings)
    assert [entry["path"] for entry in result["links"]] == [str(tmp_path / "etc/disk")], result
    assert (tmp_path / "etc/disk").exists()


def test_somebody_else_has_pointed_a_link_elsewhere_meanwhile(tree: Tree) -> None:
    image = tree.image("store/7f3a.qcow")
    link = tree.link("vm/disk.2", "../store/7f3a.qcow")
    tree.migrate()
    link.unlink()
    link.symlink_to("/etc/hostname")
    (undone,) = tree.roll_back()
    assert undone["changed"] and image.exists() and os.readlink(link) == "/etc/hostname"


def test_a_scan_lists_them(tree: Tree) -> None:
    image, _before = everything(tree)
    answer = info.look(info.Question((os.fsencode(tree.root),), report="v1"), Records(tree.state))
    entry = next(entry for entry in answer.images if entry["path"] == str(image))
    assert [os.path.relpath(link["path"], tree.root) for link in entry["links"]] == [
        "store/beside",
        "store/dotted",
        "vm/absolute",
        "vm/disk.2",
        "vm/through",
    ]
    named = info.look(info.Question((os.fsencode(tree.root / "vm/by-another"),), report="v1"), Records(tree.state))
    assert [entry["path"] for entry in named.images] == [str(image)]
    assert str(tree.root / "vm/disk.2") in [link["path"] for link in named.images[0]["links"]]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", ["symlink", "renameat2", "unlink"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("back", [False, True])
def test_killed_while_a_link_is_replaced(tree: Tree, monkeypatch: pytest.MonkeyPatch, call: str, after: bool, back: bool) -> None:
    """At each call that replaces it, before and after: the link leads to a file that is there, and the next run brings it to its end."""
    image = tree.image("store/7f3a.qcow")
    link = tree.link("vm/disk.2", "../store/7f3a.qcow")
    if back:
        tree.migrate()
    owner: Any = symbolic_links.linux if call == "renameat2" else symbolic_links.os
    whole, died = getattr(owner, call), []

    def dying(*given: Any, **named: Any) -> Any:
        concerns = any(isinstance(name, bytes) and name.endswith(b".link") for name in given)
        if not concerns or died:
            return whole(*given, **named)
        died.append(call)
        if after:
            whole(*given, **named)
        raise Killed

    monkeypatch.setattr(owner, call, dying)
    with pytest.raises(Killed):
        tree.roll_back() if back else tree.migrate()
    assert died == [call]
    assert link.exists(), "the link leads nowhere"
    if back:
        assert all(not undone["failed"] for undone in tree.roll_back())
        assert image.exists()
    else:
        tree.migrate()
        assert not image.exists()
    assert os.readlink(link) == "../store/7f3a.qcow" + ("" if back else "2")
    assert sorted(os.listdir(tree.root / "vm")) == ["disk.2"]
    assert [record.state for record in Records(tree.state).all()] == ["rolled-back" if back else "done"]


def test_a_filesystem_that_cannot_exchange_names(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_given: Any, **_named: Any) -> None:
        raise OSError(22, "Invalid argument")

    tree.image("store/7f3a.qcow")
    link = tree.link("vm/disk.2", "../store/7f3a.qcow")
    monkeypatch.setattr(symbolic_links.linux, "renameat2", cannot)
    tree.migrate()
    assert os.readlink(link) == "../store/7f3a.qcow2"
    tree.roll_back()
    assert os.readlink(link) == "../store/7f3a.qcow" and os.listdir(tree.root / "vm") == ["disk.2"]


@pytest.mark.parametrize("readable", [False, True])
@pytest.mark.parametrize("sticky", [False, True])
def test_a_strangers_link_belongs_to_an_image_that_he_can_read(tree: Tree, readable: bool, sticky: bool) -> None:
    """As with overlays: whoever cannot read the image cannot keep it from being migrated, and nothing of his is touched."""
    require_root()
    for directory in [*tree.root.parents, tree.root]:
        if directory.stat().st_mode & 0o1 == 0:
            os.chmod(directory, directory.stat().st_mode | 0o11)
    image = tree.image("store/7f3a.qcow")
    os.chmod(image, 0o644 if readable else 0o600)
    link = tree.link("tenant/mine", "../store/7f3a.qcow")
    os.chown(link, 12345, 12345, follow_symlinks=False)
    os.chown(link.parent, 0 if sticky else 12345, 12345)
    os.chmod(link.parent, 0o1777 if sticky else 0o755)
    (result,) = tree.migrate()
    assert not result["failed"], result["msg"]
    followed = readable and not sticky
    assert os.readlink(link) == "../store/7f3a.qcow" + ("2" if followed else "")
    assert link.lstat().st_uid == 12345
    assert len(result["links"]) == followed and len([words for words in result["warnings"] if str(link) in words]) == (not followed)


def test_a_file_put_in_the_place_of_a_link_stays(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the exchange somebody puts another file there: it is not lost."""
    place = tree.root / "vm"
    place.mkdir()
    link = tree.link("vm/disk", "old")
    exchange = symbolic_links.linux.renameat2

    def swapped(*names: Any, **directories: Any) -> None:
        monkeypatch.setattr(symbolic_links.linux, "renameat2", exchange)
        link.unlink()
        link.write_text("precious")
        exchange(*names, **directories)

    monkeypatch.setattr(symbolic_links.linux, "renameat2", swapped)
    assert not symbolic_links.replace_link(os.fsencode(link), b"old", b"new", b".tmp")
    assert link.read_text() == "precious" and os.listdir(place) == ["disk"]


def test_a_link_in_a_place_that_cannot_be_written(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.image("store/7f3a.qcow")
    link = tree.link("vm/disk.2", "../store/7f3a.qcow")

    monkeypatch.setattr(link_references, "_obstacle", lambda _path, _target: "its directory cannot be written")
    (result,) = tree.migrate()
    assert result["failed"] and result["reason"] == "not-writable" and str(link) in result["msg"]


def test_a_link_that_cannot_be_pointed_back_keeps_a_rollback_from_beginning(tree: Tree) -> None:
    require_root()
    image = tree.image("store/7f3a.qcow")
    (tree.root / "vm").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tree.root / "vm"], check=True)
    try:
        link = tree.link("vm/disk.2", image)
        tree.migrate()
        subprocess.run(["mount", "-o", "remount,ro", tree.root / "vm"], check=True)
        for check in (True, False):
            (undone,) = tree.roll_back(check=check)
            assert undone["failed"] and str(link) in undone["msg"] and not image.exists(), undone
        assert [record.state for record in Records(tree.state).all()] == ["done"]
        subprocess.run(["mount", "-o", "remount,rw", tree.root / "vm"], check=True)
        (undone,) = tree.roll_back()
        assert undone["changed"] and os.readlink(link) == str(image)
    finally:
        subprocess.run(["umount", tree.root / "vm"], check=True)


def tenants(tree: Tree, image: pathlib.Path, *names: str) -> list[pathlib.Path]:
    """Links of a tenant's, in a directory of theirs, to an image that they can read."""
    require_root()
    for directory in [*tree.root.parents, tree.root]:
        if directory.stat().st_mode & 0o1 == 0:
            os.chmod(directory, directory.stat().st_mode | 0o11)
    os.chmod(image, 0o644)
    links = [tree.link(name, os.path.relpath(image, (tree.root / name).parent)) for name in names]
    for link in links:
        os.chown(link, 12345, 12345, follow_symlinks=False)
        os.chown(link.parent, 12345, 12345)
    return links


def test_a_strangers_link_that_cannot_be_replaced_stops_nobody(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory became a link, say: that is told, and the migration and its rollback come to their end."""
    image = tree.image("store/7f3a.qcow")
    ours = tree.link("vm/disk", image)
    (link,) = tenants(tree, image, "tenant/d/mine")
    whole = link_references.replace_link

    def swapped(path: bytes, *given: bytes) -> bool:
        if path == os.fsencode(link) and not link.parent.is_symlink():
            link.parent.rename(link.parent.with_name("e"))
            link.parent.symlink_to("e")
            os.chown(link.parent, 12345, 12345, follow_symlinks=False)
            os.chown(link.parent.parent, 12345, 12345)
        return whole(path, *given)

    monkeypatch.setattr(link_references, "replace_link", swapped)
    (result,) = tree.migrate()
    assert not result["failed"], result["msg"]
    assert any(str(link) in words for words in result["warnings"]) and os.readlink(ours) == str(image) + "2"
    (undone,) = tree.roll_back()
    assert undone["changed"] and image.exists() and os.readlink(ours) == str(image)
    assert any(str(link) in words for words in undone["reasons"]), undone


def test_a_stranger_cannot_get_a_link_of_roots(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new link is theirs from its first moment: in a directory that everybody may write to, one of root's would be trusted."""
    image = tree.image("store/7f3a.qcow")
    (link,) = tenants(tree, image, "tenant/mine")
    seen: list[tuple[str, int]] = []
    exchange = symbolic_links.linux.renameat2

    def watched(*names: Any, **directories: Any) -> None:
        if names[1] == b"mine":
            seen.extend((path.name, path.lstat().st_uid) for path in link.parent.iterdir())
        exchange(*names, **directories)

    monkeypatch.setattr(symbolic_links.linux, "renameat2", watched)
    tree.migrate()
    assert len(seen) == 2 and {uid for _name, uid in seen} == {12345}
    assert os.readlink(link).endswith("7f3a.qcow2") and link.lstat().st_uid == 12345 and os.geteuid() == 0


def test_links_without_number_are_told_in_few_words(tree: Tree) -> None:
    image = tree.image("store/7f3a.qcow")
    tenants(tree, image, *("tenant/%d" % number for number in range(50)))
    os.chmod(image, 0o600)
    (result,) = tree.migrate(check=True)
    assert result["links"] == [] and len(result["warnings"]) == 11 and "40 more symbolic links" in result["warnings"][-1]


def test_a_link_that_would_be_too_long(tree: Tree) -> None:
    image = tree.image("store/7f3a.qcow")
    rest = 4095 - len(str(image))
    tree.link("vm/long", str(tree.root) + "/." * (rest // 2) + "/" * (rest % 2) + "/store/7f3a.qcow")
    (result,) = tree.migrate()
    assert result["failed"] and result["reason"] == "not-writable" and image.exists(), result


def test_a_link_that_only_an_overlay_names(tree: Tree, tmp_path: pathlib.Path) -> None:
    image = tree.image("store/7f3a.qcow")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/base").symlink_to(image)
    oracle.run("create", "-f", "qcow2", "-b", tmp_path / "outside/base", "-F", "qcow", tree.root / "store/clone.qcow2")
    (result,) = tree.migrate()
    assert not result["failed"] and (tmp_path / "outside/base").exists(), result
    assert oracle.guest_bytes(oracle.Node(tmp_path / "outside/base", "qcow2"))


@pytest.mark.parametrize("limit", ["exclude", "one_filesystem"])
def test_what_is_left_out_is_not_opened_for_overlays_either(tree: Tree, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead mount that was left out must not hang the run; a directory that is named all the same is searched."""
    require_root()
    tree.image("store/7f3a.qcow")
    (tree.root / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tree.root / "mnt"], check=True)
    try:
        oracle.run("create", "-f", "qcow2", "-b", tree.root / "store/7f3a.qcow", "-F", "qcow", tree.root / "mnt/clone.qcow2")
        tree.limits = {"exclude": (os.fsencode(tree.root / "mnt"),)} if limit == "exclude" else {"one_filesystem": True}
        opened: list[bytes] = []
        whole = tree_module._Walker._open_directory

        def watched(path: bytes) -> int:
            opened.append(path)
            return whole(path)

        monkeypatch.setattr(tree_module._Walker, "_open_directory", staticmethod(watched))
        searched: list[Any] = []
        (result,) = tree.migrate(check=True, searched=searched)
        assert result["repointed"] == [] and os.fsencode(tree.root / "mnt") not in opened
        assert [(place.path, place.limited) for place in searched][0] == (os.fsencode(tree.root), True)
        (result,) = tree.migrate(check=True, more=(os.fsencode(tree.root / "mnt"),))
        assert result["repointed"] == [str(tree.root / "mnt/clone.qcow2")]
    finally:
        subprocess.run(["umount", tree.root / "mnt"], check=True)


@pytest.mark.parametrize("kind", ["overlay", "link"])
def test_made_while_the_batch_runs(tree: Tree, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A batch may take hours: what lies beside an image is looked at again before it loses its name, and the next run takes it along."""
    image = tree.image("store/7f3a.qcow")
    tree.link("store/known", image)
    made = tree.root / "store/new"
    whole = execute._produce

    def slow(*given: Any, **named: Any) -> Any:
        if not made.is_symlink() and not made.exists():
            if kind == "link":
                made.symlink_to("7f3a.qcow")
            else:
                oracle.run("create", "-f", "qcow2", "-b", image, "-F", "qcow", made)
        return whole(*given, **named)

    monkeypatch.setattr(execute, "_produce", slow)
    monkeypatch.setattr(seen_images, "_RECENT_SECONDS", 0.0)
    (result,) = tree.migrate()
    assert result["failed"] and result["reason"] == "needed" and str(made) in result["msg"], result
    assert image.exists() and sorted(os.listdir(image.parent)) == ["7f3a.qcow", "known", "new"]
    (result,) = tree.migrate()
    assert not result["failed"] and not image.exists() and made.exists(), result
    if kind == "overlay":
        assert oracle.info(made, "qcow2")["full-backing-filename"] == str(image) + "2"


def test_a_backing_name_with_a_zero_byte_stops_nobody(tree: Tree) -> None:
    """Anybody can write one into the header of an overlay of theirs."""
    image = tree.image("store/7f3a.qcow")
    crafted = tree.root / "store/crafted.qcow2"
    oracle.run("create", "-u", "-f", "qcow2", "-b", "abcdef", "-F", "raw", crafted, "1M")
    crafted.write_bytes(crafted.read_bytes().replace(b"abcdef", b"ab\0def"))
    info.look(info.Question((os.fsencode(tree.root),), report="v1"), Records(tree.state))
    (result,) = tree.migrate()
    assert not result["failed"] and not image.exists(), result


def test_many_links_are_named_in_few_words(tree: Tree) -> None:
    image = tree.image("store/7f3a.qcow")
    for number in range(30):
        tree.link("vm/%02d" % number, image)
    (result,) = tree.migrate(links="refuse")
    assert result["reason"] == "linked" and "vm/09 and 20 more" in result["msg"] and "vm/10" not in result["msg"]


def test_a_directory_beside_a_searched_one_is_told(tree: Tree) -> None:
    """Its name begins like that of a searched one, and it is not there."""
    tree.image("store/7f3a.qcow")
    missing = os.fsencode(str(tree.root) + "-clones")
    searched: list[Any] = []
    tree.migrate(check=True, searched=searched, more=(missing,))
    assert [place.path for place in searched if place.error] == [missing]
