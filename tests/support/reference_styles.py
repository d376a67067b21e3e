# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How text files name images: one row for each style, tested one by one, and shown as a table in docs/docsite/rst/references.rst.

The images are ``/srv/vms/100/a.qcow`` and ``/srv/vms/My VM/b,1.qcow``; ``/links`` leads to ``/srv/vms``, and ``/links/c.img``, ``/My Links/c.img`` to
the first image. ``ROOT`` stands for where the tests have put all that; the file lies in ``/etc/some``.
"""

from typing import List, NamedTuple, Optional


class Style(NamedTuple):
    """A style: its name and an example line as the documentation shows them, and the line (from 1) that is found; ``None``: it is not."""

    name: str
    text: str
    line: Optional[int] = 1
    image: str = "a"


STYLES: List[Style] = [
    Style("in full", "hda=/srv/vms/100/a.qcow"),
    Style("Xen's prefixes", "disk = ['tap:qcow:/srv/vms/100/a.qcow,xvda,w']"),
    Style("Proxmox's volumes", "scsi0: local:100/a.qcow,size=32G"),
    Style("in a comment", "# was /srv/vms/100/a.qcow."),
    Style("a linked directory", "hda=/links/100/a.qcow"),
    Style("a link to the image", "hda=/links/c.img"),
    Style("dots and slashes", "hda=/srv/vms/./x/..//100/a.qcow"),
    Style("a variable for the directory", "DIR=/srv/vms/100\nqemu -hda $DIR/a.qcow", 2),
    Style("the same in braces", "DIR='/srv/vms'\nqemu -hda \"${DIR}/100/a.qcow\"", 2),
    Style("a variable in quotes of its own", 'DIR=/srv/vms\nqemu -hda "$DIR"/100/a.qcow', 2),
    Style("a variable that is made of another", "TOP=/srv\nDIR=$TOP/vms\nqemu -hda $DIR/100/a.qcow", 3),
    Style("a variable for the image", "A=/srv/vms/100/a.qcow\nqemu -hda $A", 2),
    Style("a default of a variable", "A=${A:-/srv/vms/100/a.qcow}"),
    Style("a variable that is set from another", "A=/srv/vms/100/a.qcow\nB=$A\nqemu -hda ${B:?}", 3),
    Style("several variables for the directory", "D=/srv; E=vms/100\nqemu -hda $D/$E/a.qcow", 2),
    Style("a variable of make", "A := /srv/vms/100/a.qcow\nrun: ; qemu -hda $(A)", 2),
    Style("a variable of Jinja", "disk: /srv/vms/100/a.qcow\ncommand: qemu -hda {{ disk }}", 2),
    Style("behind the letter of an option", "prog -f/srv/vms/100/a.qcow"),
    Style("after a change of directory", "cd /srv/vms/100 && qemu -hda a.qcow"),
    Style("a unit's working directory", "WorkingDirectory=/srv/vms\nExecStart=/usr/bin/qemu -hda 100/a.qcow", 2),
    Style("keys of YAML", "pool: /srv/vms/100\nimage: a.qcow", 2),
    Style("keys of JSON", '{"dir": "/srv/vms/100", "image": "a.qcow"}'),
    Style("relative to the file", '<HardDisk location="../../srv/vms/100/a.qcow" format="QCOW"/>'),
    Style("quotes of the shell", "qemu -hda '/srv/vms/My VM/b,1.qcow'", 1, "b"),
    Style("a backslash and a space", "qemu -hda /srv/vms/My\\ VM/b,1.qcow", 1, "b"),
    Style("a linked directory with a space", "qemu -hda /links/My\\ VM/b,1.qcow", 1, "b"),
    Style("a link with a space in quotes", 'qemu -hda "/My Links/c.img"'),
    Style("entities of XML", "<source file='/srv/vms/My&#32;VM/b,1.qcow'/>", 1, "b"),
    Style("text of XML", "<path>/My Links/c.img</path>"),
    Style("escapes of JSON", '{"file": "\\/srv\\/vms\\/My\\u0020VM\\/b,1.qcow"}', 1, "b"),
    Style("a URL", "file:///srv/vms/My%20VM/b,1.qcow", 1, "b"),
    Style("a URL with its host", "file://localhost/links/100/a%2Eqcow"),
    Style("escapes of systemd", "ExecStart=/usr/bin/qemu -hda /srv/vms/My\\x20VM/b,1.qcow", 1, "b"),
    Style("doubled commas of QEMU", "-drive 'file=/srv/vms/My VM/b,,1.qcow,if=none'", 1, "b"),
    Style("doubled commas in XML", "<qemu:arg value='file=/srv/vms/My VM/b,,1.qcow'/>", 1, "b"),
    Style("another name that begins alike", "/srv/vms/100/a.qcow2 /srv/vms/100/a.qcow.bak", None),
    Style("another name that ends alike", "/mnt/srv/vms/100/a.qcow x100/a.qcow local:200/a.qcow", None),
    Style("a bare name, of unknown directory", "hda=a.qcow", None),
    Style("a variable that another file sets", "qemu -hda $ELSEWHERE/a.qcow", None),
    Style("a name made of variables", "DIR=/srv/vms/100\nNAME=a\nqemu -hda $DIR/$NAME.qcow", None),
    Style("patterns", "for f in /srv/vms/100/*.qcow; do qemu -hda $f; done", None),
    Style("braces of the shell", "ls /srv/vms/100/{a,b}.qcow", None),
    Style("a home directory", "qemu -hda ~/100/a.qcow", None),
    Style("specifiers of systemd", "ExecStart=/usr/bin/qemu -hda /srv/vms/%i/a.qcow", None),
    Style("Base64", "L3Nydi92bXMvMTAwL2EucWNvdw==", None),
]


def table() -> str:
    """The rows of the table in the documentation."""
    rows = []
    for style in STYLES:
        lines = ["``{0}``".format(line) for line in style.text.split("\n")]
        example = lines[0] if len(lines) == 1 else "| " + "\n       | ".join(lines)
        rows.append("   * - {0}\n     - {1}\n     - {2}\n".format(style.name, example, "no" if style.line is None else "yes"))
    return "".join(rows)
