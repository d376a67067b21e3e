# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

import os
import stat
import struct

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._host import attributes, linux
from ansible_collections.vmimage.qcow.tests.support.filesystems import NOBODY, in_child, let_in, mounted
from ansible_collections.vmimage.qcow.tests.support.require import require_root

ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
OWNER, FRIEND, MEMBER, STRANGER = 2001, 2002, 2003, 2004
GROUP, FRIENDS_GROUP, OTHER_GROUP = 3001, 3002, 3003
_opened = []
# (uid, gid) of people who might read a file.
PEOPLE = ((OWNER, OTHER_GROUP), (FRIEND, OTHER_GROUP), (MEMBER, GROUP), (STRANGER, OTHER_GROUP), (STRANGER, FRIENDS_GROUP))


def acl(group_permission, *users, mask=7):
    """An access list as the kernel stores it: owner rw, the named users read, the owning group as given, others nothing."""
    everybody = 0xFFFFFFFF
    entries = (
        [(1, 6, everybody)]
        + [(2, 4, user) for user in users]
        + [(4, group_permission, everybody), (16, mask, everybody), (32, 0, everybody)]
    )
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def can_read(path, uid, gid):
    def attempt():
        try:
            os.close(os.open(path, os.O_RDONLY))
        except PermissionError:
            os._exit(7)

    return in_child(attempt, uid=uid, gid=gid) == 0


@pytest.fixture(params=["tmpfs", "ext4", "xfs", "btrfs"])
def folder(request, tmp_path):
    let_in(str(tmp_path))
    with mounted(request.param, str(tmp_path)) as point:
        os.chmod(point, 0o755)
        yield point
        _close()


@pytest.fixture(autouse=True)
def _close_all():
    yield
    _close()


def _close():
    while _opened:
        os.close(_opened.pop())


def make(folder, name, mode=0o600):
    fd = os.open(os.path.join(folder, name), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    os.fchmod(fd, mode)
    _opened.append(fd)
    return fd


def described(fd):
    status = os.fstat(fd)
    return (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), {name: os.getxattr(fd, name) for name in os.listxattr(fd)})


def test_everything_is_carried_over(folder):
    source, dest = make(folder, "source"), make(folder, "dest")
    os.fchown(source, OWNER, GROUP)
    os.setxattr(source, "user.note", b"\0binary\xff")
    os.setxattr(source, "trusted.note", b"t")
    os.setxattr(source, "security.selinux", b"system_u:object_r:virt_image_t:s0\0")
    os.setxattr(source, ACL, acl(4, FRIEND))
    os.fchmod(source, 0o640)
    os.utime(source, ns=(10**18 + 1, 10**18 + 2))
    assert attributes.carry_over(source, dest, timestamps=True) == []
    assert described(dest) == described(source)
    assert (os.fstat(dest).st_atime_ns, os.fstat(dest).st_mtime_ns) == (10**18 + 1, 10**18 + 2)
    assert attributes.carry_over(source, dest, timestamps=True) == []
    assert described(dest) == described(source)


def test_timestamps_stay_where_not_asked_for(folder):
    source, dest = make(folder, "source"), make(folder, "dest")
    os.utime(source, ns=(1, 1))
    assert attributes.carry_over(source, dest, timestamps=False) == []
    assert os.fstat(dest).st_mtime_ns > 1


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o400, 0o440, 0o604, 0o660, 0o666, 0o000])
@pytest.mark.parametrize(
    "listed", [None, acl(0, FRIEND), acl(4, FRIEND), acl(4, FRIEND, mask=0)], ids=["plain", "friend", "both", "masked"]
)
def test_nobody_reads_the_result_who_could_not_read_the_source(tmp_path, monkeypatch, mode, listed):
    require_root()
    let_in(str(tmp_path))
    # The directory's default list would let FRIEND into every new file in it.
    os.setxattr(str(tmp_path), DEFAULT_ACL, acl(7, FRIEND, STRANGER))
    source, dest = make(str(tmp_path), "source"), make(str(tmp_path), "dest")
    os.fchown(source, OWNER, GROUP)
    if listed:
        os.setxattr(source, ACL, listed)
    else:
        os.removexattr(source, ACL)
        os.fchmod(source, mode)
    allowed = {person for person in PEOPLE if can_read(str(tmp_path / "source"), *person)}
    steps = []

    def watched(name):
        call = getattr(os, name)

        def wrapper(*arguments, **more):
            result = call(*arguments, **more)
            steps.append(name)
            readers = {person for person in PEOPLE if can_read(str(tmp_path / "dest"), *person)}
            assert readers <= allowed, (steps, readers - allowed)
            return result

        return wrapper

    for name in ("fchmod", "fchown", "setxattr", "removexattr"):
        monkeypatch.setattr(os, name, watched(name))
    attributes.carry_over(source, dest, timestamps=False)
    assert {person for person in PEOPLE if can_read(str(tmp_path / "dest"), *person)} == allowed
    assert len(steps) >= 3


def test_without_rights_the_group_gets_no_more_than_everybody(tmp_path):
    require_root()
    let_in(str(tmp_path))
    source = make(str(tmp_path), "source", 0o6664)
    os.fchown(source, OWNER, GROUP)
    os.fchmod(source, 0o664)
    os.chmod(str(tmp_path), 0o777)

    def as_nobody():
        reader = os.open(str(tmp_path / "source"), os.O_RDONLY)
        dest = make(str(tmp_path), "dest")
        warnings = attributes.carry_over(reader, dest, timestamps=True)
        assert len(warnings) == 1 and "Owner 2001 and group 3001" in warnings[0], warnings
        assert stat.S_IMODE(os.fstat(dest).st_mode) == 0o644

    assert in_child(as_nobody, uid=NOBODY) == 0


def test_a_list_is_not_carried_to_another_group(tmp_path):
    require_root()
    let_in(str(tmp_path))
    source = make(str(tmp_path), "source")
    os.fchown(source, OWNER, GROUP)
    os.setxattr(source, ACL, acl(4, NOBODY))
    os.chmod(str(tmp_path), 0o777)

    def as_nobody():
        reader = os.open(str(tmp_path / "source"), os.O_RDONLY)
        dest = make(str(tmp_path), "dest")
        warnings = attributes.carry_over(reader, dest, timestamps=False)
        assert len(warnings) == 2 and ACL in warnings[1], warnings
        assert ACL not in os.listxattr(dest)
        assert stat.S_IMODE(os.fstat(dest).st_mode) & 0o077 == 0

    assert in_child(as_nobody, uid=NOBODY) == 0


def test_what_belongs_to_the_old_content_or_inode_is_left_behind(tmp_path):
    require_root()
    source, dest = make(str(tmp_path), "source"), make(str(tmp_path), "dest")
    os.setxattr(source, "trusted.libvirt.security.ref_dac", b"1")
    os.setxattr(source, "trusted.libvirt.security.dac", b"+0:+0")
    assert attributes.carry_over(source, dest, timestamps=False) == []
    assert os.listxattr(dest) == []


def test_what_a_filesystem_cannot_store_is_said(tmp_path):
    with mounted("btrfs", str(tmp_path)) as large, mounted("ext4", str(tmp_path)) as small:
        source, dest = make(large, "source"), make(small, "dest")
        os.setxattr(source, "user.big", b"x" * 8000)
        os.setxattr(source, "user.small", b"x")
        (warning,) = attributes.carry_over(source, dest, timestamps=False)
        assert "user.big" in warning and "user.small" not in warning
        assert os.listxattr(dest) == ["user.small"]
        _close()


def test_no_copy_on_write_is_set_before_data(tmp_path):
    with mounted("btrfs", str(tmp_path)) as point:
        source, dest, late = make(point, "source"), make(point, "dest"), make(point, "late")
        linux.set_flags(source, linux.FLAG_NOCOW)
        os.write(late, b"data")
        assert attributes.prepare(dest, source) == []
        assert linux.get_flags(dest) & linux.FLAG_NOCOW
        assert attributes.prepare(late, source) != []
        elsewhere = make(str(tmp_path), "elsewhere")
        assert attributes.prepare(elsewhere, source) == []
        _close()


def test_inode_flags(tmp_path):
    with mounted("ext4", str(tmp_path)) as point:
        source, dest = make(point, "source"), make(point, "dest")
        linux.set_flags(source, linux.get_flags(source) | linux.FLAG_NODUMP | linux.FLAG_NOATIME)
        before = linux.get_flags(dest)
        assert attributes.carry_over(source, dest, timestamps=False) == []
        assert linux.get_flags(dest) == before | linux.FLAG_NODUMP | linux.FLAG_NOATIME
        linux.set_flags(source, linux.get_flags(source) | linux.FLAG_IMMUTABLE)
        assert attributes.protection(source) == ["immutable"]
        assert attributes.protection(dest) == []
        attributes.carry_over(source, dest, timestamps=False)
        assert attributes.protection(dest) == []
        linux.set_flags(source, 0)
        _close()
