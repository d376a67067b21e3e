# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text files that name images."""

import os
import pathlib
import subprocess
import time
from typing import Dict, List, Optional, Tuple

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._libvirt.option_text import masked
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.text_files import MAX_BYTES
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.text_references import Mention, mentions
from ansible_collections.vmimage.qcow.tests.support.filesystems import mounted
from ansible_collections.vmimage.qcow.tests.support.reference_styles import STYLES, Style
from ansible_collections.vmimage.qcow.tests.support.require import require_root

IMAGE = "/srv/100/a.qcow"


def search(directory: pathlib.Path, *images: object) -> Dict[bytes, List[Mention]]:
    found = mentions([os.fsencode(directory)], {os.fsencode(str(image)): () for image in images})
    assert found.unread == []
    return found.mentions


@pytest.fixture
def host(tmp_path: pathlib.Path) -> pathlib.Path:
    """The directories and links of tests/support/reference_styles.py."""
    for directory in ("srv/vms/100", "srv/vms/My VM", "srv/vms/x", "etc/some", "My Links"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "srv/vms/100/a.qcow").touch()
    (tmp_path / "srv/vms/My VM/b,1.qcow").touch()
    (tmp_path / "links").symlink_to("srv/vms")
    (tmp_path / "srv/vms/c.img").symlink_to(tmp_path / "links/100/a.qcow")
    (tmp_path / "My Links/c.img").symlink_to("../srv/vms/c.img")
    return tmp_path


def placed(style: Style, root: pathlib.Path) -> str:
    """The example with the directories where the tests have put them."""
    text, escaped = style.text, str(root).replace("/", "\\/")
    for top in ("/srv", "/links", "/My Links"):
        text = text.replace(top.replace("/", "\\/") + "\\/", escaped + top.replace("/", "\\/") + "\\/")
        for before in (" ", "'", '"', ":", "=", ">", "//", "localhost", "-", "-f", "\u201c"):
            text = text.replace(before + top, before + str(root) + top) if "\\/" not in text else text
    return text


@pytest.mark.parametrize("style", STYLES, ids=[style.name for style in STYLES])
def test_styles(host: pathlib.Path, style: Style) -> None:
    images = {"a": host / "srv/vms/100/a.qcow", "b": host / "srv/vms/My VM/b,1.qcow"}
    text = placed(style, host) + "\n"
    assert style.line is None or str(host) in text.replace("\\/", "/") or not style.text.startswith("/")
    (host / "etc/some/file").write_text(text)
    found = search(host / "etc", *images.values())
    lines = {os.fsdecode(path): [hit.line for hit in hits] for path, hits in found.items()}
    if style.line is None:
        assert lines == {}
    else:
        assert list(lines) == [str(images[style.image])] and style.line in lines[str(images[style.image])]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a /srv/100/a.qcow\nb\nc '/srv/100/a.qcow'\n", [1, 3]),
        ("/srv/100/a.qcow2 /srv/100/a.qcow.bak /x/srv/100/a.qcow ../srv/100/a.qcow\n", []),
        ("a.qcow local:200/a.qcow x100/a.qcow\n", []),
        ("/srv/100/a.qcow\0", []),
        ("no line end /srv/100/a.qcow", [1]),
    ],
)
def test_an_image_that_cannot_be_looked_at_is_found_as_it_is_spelled(tmp_path: pathlib.Path, text: str, lines: list) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "guest.cfg"
    file.write_text(text)
    found = search(tmp_path, IMAGE, "/srv/other.qcow")
    assert [(hit.file, hit.line) for hit in found.get(os.fsencode(IMAGE), [])] == [(os.fsencode(file), line) for line in lines]
    assert set(found) <= {os.fsencode(IMAGE)}


def test_the_links_on_the_way_are_told(host: pathlib.Path) -> None:
    (host / "etc/some/file").write_text("'%s/My Links/c.img'\n%s/links/100/a.qcow" % (host, host))
    (hits,) = search(host / "etc", host / "srv/vms/100/a.qcow").values()
    assert [hit.links for hit in hits] == [(os.fsencode(host / "My Links/c.img"), os.fsencode(host / "srv/vms/c.img")), ()]
    (host / "etc/some/file").write_text("DIR='%s'\nqemu $DIR/c.img" % (host / "My Links"))
    image, link = os.fsencode(host / "srv/vms/100/a.qcow"), os.fsencode(host / "My Links/c.img")
    assert mentions([os.fsencode(host / "etc")], {image: ()}).mentions == {}  # nothing says that c.img is of interest
    (hit,) = mentions([os.fsencode(host / "etc")], {image: (link,)}).mentions[image]
    assert (hit.line, hit.links[0]) == (2, link)


def test_a_directory_that_is_mounted_twice(tmp_path: pathlib.Path) -> None:
    require_root()
    with mounted("tmpfs", str(tmp_path / "one"), size_mib=4) as one:
        (pathlib.Path(one) / "a.qcow").touch()
        (tmp_path / "two").mkdir()
        subprocess.run(["mount", "--bind", one, str(tmp_path / "two")], check=True)
        try:
            (tmp_path / "etc").mkdir()
            (tmp_path / "etc/file").write_text("%s/two/a.qcow" % tmp_path)
            assert len(search(tmp_path / "etc", one + "/a.qcow")) == 1
        finally:
            subprocess.run(["umount", str(tmp_path / "two")], check=True)


def test_what_holds_no_text_names_nothing(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "large").write_bytes(b"\0" * (MAX_BYTES + 1))
    found = mentions([os.fsencode(tmp_path), b"/does/not/exist"], {os.fsencode(IMAGE): ()})
    assert (found.mentions, found.unread) == ({}, [])


def test_what_could_not_be_searched_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "large").write_text("#" * MAX_BYTES + IMAGE)
    (tmp_path / "closed").write_text(IMAGE)
    (tmp_path / "private").mkdir()
    (tmp_path / "closed").chmod(0)
    (tmp_path / "private").chmod(0)
    expected = {"large": "larger than %d bytes" % MAX_BYTES, "closed": "Permission denied", "private": "Permission denied"}
    if os.geteuid() == 0:
        for parent in (tmp_path, *tmp_path.parents):
            if parent.stat().st_mode & 0o777 == 0o700:
                parent.chmod(0o755)
        os.seteuid(65534)
    try:
        unread = mentions([os.fsencode(tmp_path)], {}).unread
    finally:
        os.seteuid(os.getuid())
    (tmp_path / "private").chmod(0o700)
    assert {os.path.basename(path).decode(): why for path, why in unread} == expected


def test_links_of_strangers_are_not_followed(tmp_path: pathlib.Path) -> None:
    require_root()
    (tmp_path / "secret").write_text("password %s" % IMAGE)
    for name in ("ours", "theirs"):
        (tmp_path / "etc" / name).mkdir(parents=True)
        (tmp_path / "etc" / name / "link").symlink_to(tmp_path / "secret")
    os.chown(tmp_path / "etc/theirs", 65534, 65534)
    found = mentions([os.fsencode(tmp_path / "etc")], {os.fsencode(IMAGE): ()})
    assert [hit.file for hit in found.mentions[os.fsencode(IMAGE)]] == [os.fsencode(tmp_path / "etc/ours/link")]
    assert found.unread == [(os.fsencode(tmp_path / "etc/theirs/link"), "a symbolic link that users other than root can change")]


QEMU = "qemu -m 512 "


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        (QEMU + "-drive file=IMAGE,format=qcow,if=virtio", ("qcow", 1)),
        (QEMU + "-drive file=IMAGE,if=virtio", None),
        (QEMU + "-drive file=IMAGE,if=virtio -drive file=/srv/b,format=qcow", None),
        (QEMU + "-drive format=raw,file=/srv/b -drive format=qcow,file=IMAGE", ("qcow", 1)),
        (QEMU + "-drive file=IMAGE,format=raw -drive format=qcow,file=/srv/b", ("raw", 1)),
        (QEMU + "-blockdev driver=file,node-name=f,filename=IMAGE -blockdev driver=qcow,file=f,node-name=d", ("qcow", 1)),
        (QEMU + '-blockdev \'{"driver": "qcow", "file": {"driver": "file", "filename": "IMAGE"}}\'', ("qcow", 1)),
        (QEMU + "\\\n  -blockdev driver=qcow,file=f \\\n  -blockdev driver=file,node-name=f,filename=IMAGE \\\n", ("qcow", 2)),
        (QEMU + "\\\n  -drive file=IMAGE \\\n  -drive file=/srv/b,format=qcow\n", None),
        ("qemu-img convert -f qcow -O qcow2 IMAGE /srv/b", ("qcow", 1)),
        ("qemu-img create -f qcow2 -b IMAGE -F qcow /srv/b", ("qcow", 1)),
        ("qemu-nbd --format=qcow IMAGE", ("qcow", 1)),
        ("disk = ['tap:qcow:IMAGE,xvda,w']", ("qcow", 1)),
        ("disk = ['tap2:qcow:IMAGE,xvda,w', 'phy:/dev/x,xvdb,w']", ("qcow", 1)),
        ("disk = ['tap:aio:/srv/b,xvdb,w', 'IMAGE,qcow,xvda,rw']", ("qcow", 1)),
        ("disk = ['format=qcow, vdev=xvda, access=rw, target=IMAGE', 'format=raw, vdev=xvdb, target=/srv/b']", ("qcow", 1)),
        ("disk = ['format=qcow, vdev=xvda, target=/srv/b', 'IMAGE,,xvdb']", None),
        ("<HardDisk uuid='{1}' location='IMAGE' format='QCOW' type='Normal'/>", ("qcow", 1)),
        ("<disk>\n  <driver name='qemu' type='qcow'/>\n  <source file='IMAGE'/>\n</disk>", ("qcow", 2)),
        ("<disk>\n  <source file='IMAGE'/>\n</disk>\n<disk>\n  <driver type='qcow'/>\n</disk>", None),
        ("<qemu:arg value='file=IMAGE,format=qcow'/>", ("qcow", 1)),
        ("<qemu:arg value='file=&quot;IMAGE&quot;,format=qcow'/>", ("qcow", 1)),
        ("disks:\n  - path: IMAGE\n    format: qcow\n  - path: /srv/b\n    format: raw", ("qcow", 3)),
        ("disks:\n  - path: IMAGE\n  - path: /srv/b\n    format: qcow", None),
        ('[drive "a"]\n  file = "IMAGE"\n  format = "qcow"\n[drive "b"]\n  format = "raw"', ("qcow", 3)),
        ("ide0: local:100/a.qcow,format=qcow,size=2G", ("qcow", 1)),
        ("DISK=IMAGE\nqemu -drive file=$DISK,format=qcow", ("qcow", 2)),
        ("-drive file=IMAGE,format=qcow2", ("qcow2", 1)),
        ("-drive file=IMAGE.old,format=raw -drive file=IMAGE,format=qcow", ("qcow", 1)),
        ("qemu-img check -f qcow2 IMAGE || qemu -drive file=IMAGE,format=qcow", ("qcow", 1)),
        ("disk: IMAGE\nbackup_format: qcow2\ndisk_format: qcow", ("qcow", 3)),
        ("[Service]\nEnvironment=IMG=IMAGE\nExecStart=/usr/bin/qemu -drive file=${IMG},format=qcow", ("qcow", 3)),
        ("A=IMAGE\n%sB=$A\n%sqemu -drive file=${B:?},format=qcow" % ("#\n" * 50, "#\n" * 50), ("qcow", 103)),
        ("IMG := IMAGE\n%srun:\n\tqemu -drive file=$(IMG),format=qcow" % ("#\n" * 50), ("qcow", 53)),
        ("img: IMAGE\n%scmd: qemu -drive file={{ img }},format=qcow" % ("#\n" * 50), ("qcow", 52)),
        ('{\n  "file": {\n    "filename": "IMAGE"\n  },\n  "driver": "qcow"\n}', ("qcow", 5)),
        ('{"path": "IMAGE",\n "fmt": "qcow"}', ("qcow", 2)),
        ("disk:\n  path: IMAGE\n  driver:\n    type: qcow", ("qcow", 4)),
        ("<disk>\n  <driver\n    name='qemu'\n    type='qcow'/>\n\n  <source file='IMAGE'/>\n</disk>", ("qcow", 4)),
        ("<source file='IMAGE'/><title>shop # 1</title><driver type='qcow'/>", ("qcow", 1)),
        ("ls " + "IMAGE " * 30 + "-drive file=IMAGE,format=qcow", ("qcow", 1)),
        ("IMAGE\n" + "format: qcow2\n" * 9 + "format: qcow", ("qcow", 11)),
        ("hda=IMAGE # qcow image of shop", None),
        ("# our old QCOW disk\nhda=IMAGE", None),
        ('{"name": "shop #1", "file": "IMAGE", "format": "qcow"}', ("qcow", 1)),
        ("disk: IMAGE\nswap_format: raw", None),
        ("copy IMAGE somewhere, raw and uncut", None),
    ],
)
def test_the_format_that_is_stated(host: pathlib.Path, text: str, stated: Optional[Tuple[str, int]]) -> None:
    image = host / "srv/vms/100/a.qcow"
    (host / "etc/some/file").write_text(text.replace("IMAGE", str(image)))
    (hits,) = search(host / "etc", image).values()
    assert {(hit.format, hit.stated[0].line) for hit in hits if hit.format} == ({stated} if stated else set())


def test_many_files_and_images_take_seconds(tmp_path: pathlib.Path) -> None:
    (tmp_path / "vms").mkdir()
    images = [tmp_path / "vms" / ("guest %d.qcow" % number) for number in range(1000)]
    for image in images:
        image.touch()
    (tmp_path / "link").symlink_to("vms")
    lines = "".join("option%d = 'value %d' # /usr/share/thing%d/file, see \"%%h\" & more\n" % (n, n, n % 50) for n in range(100))
    for number in range(3000):
        directory = tmp_path / "etc" / str(number % 50)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / str(number)).write_text(lines + ("disk=%s/link/guest %d.qcow\n" % (tmp_path, number) if number < 1000 else ""))
    before = time.process_time()
    found = search(tmp_path / "etc", *images)
    assert len(found) == 1000
    assert time.process_time() - before < 15


@pytest.mark.parametrize(
    "pattern",
    [
        b"/,",
        b"> a ",
        b"'",
        b'"a\\',
        b"format",
        b"/+",
        b"/srv/100/a.qcow ",
        b"$D/a.qcow ",
        b"a.qcow,,",
        b"&amp;%%25'x' ,,\\/",
        b"${",
        b"- ",
        b"password=",
    ],
)
def test_lines_without_end_take_seconds(tmp_path: pathlib.Path, pattern: bytes) -> None:
    (tmp_path / "data").write_bytes((b"/srv/100/a.qcow " + pattern * MAX_BYTES)[:MAX_BYTES])
    before = time.process_time()
    (hits,) = search(tmp_path, IMAGE).values()
    assert [len(hit.shown) < 400 for hit in hits] == [True]
    assert time.process_time() - before < 20


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vm/a.qcow", "A=${A:-ROOT/vm/a.qcow}"),
        ("vm/a.qcow", "A=${A-ROOT/vm/a.qcow}"),
        ("vm/a.qcow", "prog -fROOT/vm/a.qcow"),
        ("vm/a.qcow", "D=ROOT/vm\nqemu ${A:-$D/a.qcow}"),
        ("vm/a.qcow", "D=ROOT/vm\nqemu ${A-$D/a.qcow}"),
        ("vm/a.qcow", "A=ROOT; B=vm\nqemu $A/$B/a.qcow"),
        ("vm/a.qcow", "cd ROOT\nD=vm\nqemu $D/a.qcow"),
        ("vm/a.qcow", "\ufeffROOT/vm/a.qcow"),
        ("vm/a.qcow", "\u201cROOT/vm/a.qcow\u201d"),
        ("vm/bob's.qcow", "'ROOT/vm/bob'\\''s.qcow'"),
        ("vm/bob's.qcow", "'ROOT/vm/bob''s.qcow'"),
        ("my vm/a.qcow", "dir: ROOT/my vm\nimg: a.qcow"),
        ("vm (old)/a.qcow", "cd 'ROOT/vm (old)'\nqemu a.qcow"),
        ("100/base-100-disk-0.qcow", "scsi0: local:100/base-100-disk-0.qcow/101/vm-101-disk-0.qcow,size=1G"),
        ("101/vm-101-disk-0.qcow", "scsi0: local:100/base-100-disk-0.qcow/101/vm-101-disk-0.qcow,size=1G"),
        ("vm/shop", "cd ROOT/vm && qemu -hda shop"),
        ("vm/shop", "dir: ROOT/vm\nimage: shop"),
    ],
)
def test_more_ways_to_name_an_image(tmp_path: pathlib.Path, name: str, text: str) -> None:
    image = tmp_path / name
    image.parent.mkdir()
    image.touch()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/file").write_text(text.replace("ROOT", str(tmp_path)))
    (hits,) = search(tmp_path / "etc", image).values()
    assert text.count("\n") + 1 in [hit.line for hit in hits]


def test_a_volume_of_proxmox_among_many_of_the_same_name(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("scsi0: local:199/disk.qcow")
    assert list(search(tmp_path, *("/im/%d/disk.qcow" % number for number in range(100, 200)))) == [b"/im/199/disk.qcow"]


def test_names_without_suffix_are_no_words(tmp_path: pathlib.Path) -> None:
    (tmp_path / "shop").touch()
    (tmp_path / "file").write_text('name = "shop"\nhostname shop is open\n<disk device="shop">\ndisk = "file:%s/shop,xvda,w"\n' % tmp_path)
    (hits,) = search(tmp_path, tmp_path / "shop").values()
    assert [hit.line for hit in hits] == [4]


def test_devices_are_not_opened(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_root()
    os.mknod(tmp_path / "watchdog", 0o20600, os.makedev(1, 3))
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *more, **how: opened.append(path) or real(path, *more, **how))
    assert search(tmp_path, IMAGE) == {}
    assert os.fsencode(tmp_path / "watchdog") not in opened


@pytest.mark.parametrize(
    "secret",
    [
        'password: "correct hunter, hunter"',
        "passwd: $6$hunter$hunter",
        "pass=hunter",
        "--password hunter",
        "http://u:hunter@h/",
        "psk=hunter",
        "secret=/hunter",
        "token: 'hun hunter'",
    ],
)
def test_passwords_are_masked(secret: str) -> None:
    assert b"hunter" not in masked(b"disk=/srv/a.qcow " + secret.encode()) and b"/srv/a.qcow" in masked(
        b"disk=/srv/a.qcow " + secret.encode()
    )
    assert masked(b"file=a.qcow,encrypt.key-secret=sec0") == b"file=a.qcow,encrypt.key-secret=sec0"
    assert masked(b"data: a.qcow") == b"data: a.qcow"


HOSTILE = {
    "a key without end beside": b"/srv/100/a.qcow\n" + b"format" * (MAX_BYTES // 6 - 4),
    "spaces without end beside": b"/srv/100/a.qcow\n" + b" " * (MAX_BYTES - 100) + b"format",
    "keys in each line": (b"/srv/100/a.qcow\n" + b"format" * 340 + b"\n") * 500,
    "set in each line": b"disk=/srv/100/a.qcow\n" * (MAX_BYTES // 21),
    "set and used in each line": b"x=/srv/100/a.qcow $x ${x}\n" * (MAX_BYTES // 26),
    "set from each other": b"".join(b"x%d=$x%d\n" % (n + 1, n) for n in range(60000)) + b"x0=/srv/100/a.qcow",
    "continued": b"/srv/100/a.qcow \\\n" * (MAX_BYTES // 18),
    "continued with formats": b"format=qcow /srv/100/a.qcow \\\n -f raw\\\n" * (MAX_BYTES // 40),
    "deeper lines": (b"/srv/100/a.qcow\n" + b"  x: y\n" * 1000) * 149,
    "plain lines": b"/srv/100/a.qcow\n" * (MAX_BYTES // 16),
    "formats around": b"/srv/100/a.qcow\nqcow\nformat: raw\n" * (MAX_BYTES // 33),
    "directories": b"".join(b"/%s%04d\n" % (b"srv/" * 5, n) for n in range(1000))
    + b"".join(b"x: d%d/a.qcow\n" % n for n in range(60000))
    + b"/srv/100/a.qcow",
    "directories of variables": b"".join(b"$D/%d/a.qcow /srv/d%d\n" % (n, n) for n in range(37000)) + b"/srv/100/a.qcow",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_many_lines_take_seconds(tmp_path: pathlib.Path, text: bytes) -> None:
    assert len(text) <= MAX_BYTES
    (tmp_path / "data").write_bytes(text)
    before = time.process_time()
    found = mentions([os.fsencode(tmp_path)], {os.fsencode(IMAGE): ()})
    assert time.process_time() - before < 30
    assert 1 <= len(found.mentions[os.fsencode(IMAGE)]) <= 800


def test_images_of_the_same_name_are_told_apart_by_the_next_directory(tmp_path: pathlib.Path) -> None:
    images = [tmp_path / ("%04d" % number) / "disk.img" for number in range(1000)]
    for image in images:
        image.parent.mkdir()
        image.touch()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/vms").write_text("".join("- dir: %s\n  image: disk.img\n" % image.parent for image in images))
    before = time.process_time()
    found = search(tmp_path / "etc", *images)
    assert time.process_time() - before < 10
    for number, image in enumerate(images):
        lines = [hit.line for hit in found[os.fsencode(image)]]
        assert 2 * number + 2 in lines and len(lines) <= 2
    (tmp_path / "etc/vms").write_text(
        "".join("D%d=%s\n" % (number, image.parent) for number, image in enumerate(images)) + "qemu $D7/disk.img"
    )
    found = search(tmp_path / "etc", *images)
    assert all([hit.line for hit in found[os.fsencode(image)]] == [1001] for image in images)
