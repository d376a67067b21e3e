# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text files that name images."""

import os
import pathlib

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._migration.references import MAX_BYTES, mentions

IMAGE = "/srv/100/a.qcow"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("disk = ['tap:qcow:/srv/100/a.qcow,xvda,w']\n", [1]),
        ("[Service]\nExecStart=/usr/bin/qemu-system-x86_64 -hda /srv/100/a.qcow\n", [2]),
        ("scsi0: local:100/a.qcow,size=32G\n", [1]),
        ("a /srv/100/a.qcow\nb\nc '/srv/100/a.qcow'\n", [1, 3]),
        ("/srv/100/a.qcow2 /srv/100/a.qcow.bak /x/srv/100/a.qcow ../srv/100/a.qcow\n", []),
        ("a.qcow local:200/a.qcow x100/a.qcow\n", []),
        ("/srv/100/a.qcow\0", []),
        ("#" * MAX_BYTES + "/srv/100/a.qcow", []),
        ("no line end /srv/100/a.qcow", [1]),
    ],
)
def test_a_line_names_an_image(tmp_path: pathlib.Path, text: str, lines: list) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "guest.cfg"
    file.write_text(text)
    found = mentions([os.fsencode(tmp_path)], [os.fsencode(IMAGE), b"/srv/other.qcow"])
    assert [(hit.file, hit.line) for hit in found.get(os.fsencode(IMAGE), [])] == [(os.fsencode(file), line) for line in lines]
    assert set(found) <= {os.fsencode(IMAGE)}


def test_what_cannot_be_read_names_nothing(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert mentions([os.fsencode(tmp_path), b"/does/not/exist"], [os.fsencode(IMAGE)]) == {}


def test_links_lead_to_the_same_image(tmp_path: pathlib.Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.qcow").write_bytes(b"")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "unit").write_text("%s/real/a.qcow" % tmp_path)
    named = os.fsencode(tmp_path / "link" / "a.qcow")
    assert len(mentions([os.fsencode(tmp_path / "etc" / "unit")], [named])[named]) == 1
