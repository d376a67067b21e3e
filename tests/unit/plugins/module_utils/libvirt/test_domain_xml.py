# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Domain XML edited as text: the disk changes, every other byte stays."""

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._libvirt import domain_xml, xml_text
from ansible_collections.vmimage.qcow.plugins.module_utils._libvirt.domain_xml import Change, DiskSource, read_disks, repoint

# A definition with everything that a careless rewrite loses: comments, foreign namespaces, quotes of both kinds, entities, passwords.
RICH = """\
<!-- made by hand: do not edit --><?keep this?>
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>shop &amp; till</name>
  <uuid>5b1cbb5c-6d4e-4a39-9b0a-0a2f4f8f6f01</uuid>
  <metadata>
    <ours:note xmlns:ours="https://example.com/ns" owner='Zoë'><devices><disk type='file'><source file='/vm/a.qcow'/></disk></devices></ours:note>
  </metadata>
  <cputune><vcpupin vcpu='0' cpuset='4'/></cputune>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/a_VARS.fd</nvram>
  </os>
  <devices>
    <!-- the system -->
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow' cache='none' discard='unmap'/>
      <source file='/vm/a.qcow'   startupPolicy="optional"/>
      <target dev='vda' bus='virtio'/>
      <serial>a>b</serial>
    </disk>
    <disk type="file" device="disk">
      <driver name="qemu" type="raw"/><source file="/vm/data &gt; &apos;1&apos;.img"/>
      <target dev="vdb" bus="virtio"/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <graphics type='vnc' port='-1' autoport='yes' passwd='s3cret&lt;' passwdValidTo='2030-01-01T00:00:00'><listen type='address'/></graphics>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-drive'/><qemu:arg value='file=/vm/extra.qcow,if=none'/>
  </qemu:commandline>
</domain>
"""

CHAIN = """\
<domain type='qemu'><name>c</name><uuid>u</uuid><devices>
  <disk type='file' device='disk'>
    <driver name='qemu' type='qcow'/>
    <source file='/vm/top.qcow'/>
    <backingStore type='file'>
      <format type='qcow'/>
      <source file='/vm/base.qcow'/>
      <backingStore/>
    </backingStore>
    <target dev='vda' bus='virtio'/>
  </disk></devices></domain>
"""


def one(disk: str) -> str:
    """A domain with this disk and nothing else."""
    return "<domain><name>d</name><uuid>u</uuid><devices>{0}</devices></domain>".format(disk)


def test_only_the_disk_changes() -> None:
    after = repoint(RICH, [Change("vda", 0, "/vm/a.qcow2", "qcow2")])
    assert after == RICH.replace("type='qcow' cache", "type='qcow2' cache").replace("file='/vm/a.qcow'   ", "file='/vm/a.qcow2'   ")
    assert after.count("/vm/a.qcow'") == 1  # the one in somebody's metadata


def test_back_again_is_byte_for_byte() -> None:
    there = repoint(RICH, [Change("vda", 0, "/vm/a.qcow2", "qcow2"), Change("vdb", 0, "/vm/b.qcow2", "qcow2")])
    back = repoint(there, [Change("vdb", 0, "/vm/data > '1'.img", "raw"), Change("vda", 0, "/vm/a.qcow", "qcow")])
    assert back == RICH


def test_agreeing_already_changes_nothing() -> None:
    assert repoint(RICH, [Change("vda", 0, "/vm/a.qcow", "qcow"), Change("vdb", 0, "/vm/data > '1'.img", "raw")]) == RICH


def test_double_quotes_and_entities_stay_in_their_style() -> None:
    after = repoint(RICH, [Change("vdb", 0, '/vm/"b" & <c>.qcow2', "qcow2")])
    assert '<driver name="qemu" type="qcow2"/><source file="/vm/&quot;b&quot; &amp; &lt;c&gt;.qcow2"/>' in after
    assert read_disks(after)[1].layers[0].path == '/vm/"b" & <c>.qcow2'


def test_white_space_in_a_name_survives() -> None:
    """A parser makes spaces of what is not written as a reference."""
    name = "/vm/two\nlines\tand a tab\r.qcow2"
    assert read_disks(repoint(RICH, [Change("vdb", 0, name, "qcow2")]))[1].layers[0].path == name


def test_what_is_declared() -> None:
    disks = read_disks(RICH)
    assert [(disk.target, disk.device) for disk in disks] == [("vda", "disk"), ("vdb", "disk")]  # no empty drive, no metadata
    assert disks[0].layers == (DiskSource("file", "/vm/a.qcow", "qcow", None, None),)
    assert disks[1].layers[0].format == "raw"
    assert domain_xml.identity(RICH) == ("shop & till", "5b1cbb5c-6d4e-4a39-9b0a-0a2f4f8f6f01")


def test_declared_backing_stores_are_layers() -> None:
    assert [(layer.path, layer.format) for layer in read_disks(CHAIN)[0].layers] == [("/vm/top.qcow", "qcow"), ("/vm/base.qcow", "qcow")]


def test_a_chain_follows() -> None:
    after = repoint(CHAIN, [Change("vda", 1, "/vm/base.qcow2", "qcow2"), Change("vda", 0, "/vm/top.qcow2", "qcow2")])
    assert after == CHAIN.replace(".qcow'", ".qcow2'").replace("type='qcow'", "type='qcow2'")


def test_a_chain_ends_where_the_result_stands_alone() -> None:
    after = repoint(CHAIN, [Change("vda", 0, "/vm/top.raw", "raw", backing=False), Change("vda", 1, "/vm/base.qcow2", "qcow2")])
    assert read_disks(after)[0].layers == (DiskSource("file", "/vm/top.raw", "raw", None, None),)
    assert "<source file='/vm/top.raw'/>\n    <backingStore/>\n    <target" in after


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        pytest.param(
            "<disk type='volume'><driver name='qemu' type='qcow'/><source pool='p' volume='a.qcow'/><target dev='vda'/></disk>",
            Change("vda", 0, "/p/a.qcow2", "qcow2", "p", "a.qcow2"),
            "<disk type='volume'><driver name='qemu' type='qcow2'/><source pool='p' volume='a.qcow2'/><target dev='vda'/></disk>",
            id="volume to volume",
        ),
        pytest.param(
            "<disk type='volume'><driver name='qemu' type='qcow'/><source pool='p' volume='a.qcow' mode='host'/><target dev='vda'/></disk>",
            Change("vda", 0, "/elsewhere/a.qcow2", "qcow2"),
            "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/elsewhere/a.qcow2'/><target dev='vda'/></disk>",
            id="volume to a file outside every pool",
        ),
        pytest.param(
            "<disk type='block'><driver name='qemu' type='qcow'/><source dev='/dev/vg/a'/><target dev='vda'/></disk>",
            Change("vda", 0, "/vm/a.qcow2", "qcow2"),
            "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/vm/a.qcow2'/><target dev='vda'/></disk>",
            id="block device to file",
        ),
        pytest.param(
            "<disk type='file'><source file='/vm/a.img'/><target dev='vda'/></disk>",
            Change("vda", 0, "/vm/a.qcow2", "qcow2"),
            "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/vm/a.qcow2'/><target dev='vda'/></disk>",
            id="no driver",
        ),
        pytest.param(
            "<disk><driver name='qemu'/><source file='/vm/a.img'/><target dev='vda'/></disk>",
            Change("vda", 0, "/vm/a.qcow2", "qcow2"),
            "<disk><driver name='qemu' type='qcow2'/><source file='/vm/a.qcow2'/><target dev='vda'/></disk>",
            id="no types",
        ),
        pytest.param(
            "<disk type='file'><driver type='qcow'/><source file='/vm/a'><seclabel model='dac' relabel='no'/></source><target dev='vda'/>"
            "<encryption format='qcow'><secret type='passphrase' uuid='x'/></encryption></disk>",
            Change("vda", 0, "/vm/a.qcow2", "qcow2"),
            "<disk type='file'><driver type='qcow2'/><source file='/vm/a.qcow2'><seclabel model='dac' relabel='no'/></source><target dev='vda'/></disk>",
            id="v1 encryption ends, labels stay",
        ),
        pytest.param(
            "<disk type='file'><driver type='qcow'/><source file='/vm/a.img'/><target dev='vda'/></disk>",
            Change("vda", 0, "/vm/a.img", "qcow2"),
            "<disk type='file'><driver type='qcow2'/><source file='/vm/a.img'/><target dev='vda'/></disk>",
            id="name kept, type only",
        ),
    ],
)
def test_sources(before: str, change: Change, after: str) -> None:
    result = repoint(one(before), [change])
    assert xml_text.canonical(result) == xml_text.canonical(one(after))
    assert repoint(result, [change]) == result


@pytest.mark.parametrize("change", [Change("vdz", 0, "/x", "raw"), Change("vda", 1, "/x", "raw")], ids=["no such disk", "no such layer"])
def test_a_change_of_what_is_not_there_is_an_error(change: Change) -> None:
    with pytest.raises(KeyError):
        repoint(RICH, [change])


@pytest.mark.parametrize("text", ["<domain>", "", "<a/><b/>", "<!DOCTYPE d [<!ENTITY e 'x'>]><domain>&e;</domain>"])
def test_what_is_not_plain_xml_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        xml_text.parse(text)


def test_meaning_not_layout() -> None:
    other = RICH.replace("<!-- the system -->", "").replace("type='vnc' port='-1'", 'port="-1"\n type="vnc"')
    assert xml_text.canonical(other) == xml_text.canonical(RICH)
    assert xml_text.canonical(RICH.replace("s3cret", "other")) != xml_text.canonical(RICH)
    assert xml_text.canonical(RICH.replace("cpuset='4'", "cpuset='5'")) != xml_text.canonical(RICH)


def test_passwords_are_never_shown() -> None:
    assert "s3cret" not in domain_xml.mask(RICH)
    assert "passwdValidTo='2030" in domain_xml.mask(RICH)
    cookie = one(
        "<disk type='network'><source protocol='https'><cookies><cookie name='k'>v4lue</cookie></cookies></source><target dev='vda'/></disk>"
    )
    assert "v4lue" not in domain_xml.mask(cookie)


def test_a_diff_shows_what_the_disk_names() -> None:
    change = domain_xml.Change("vda", 0, "/vm/a.qcow2", "qcow2")
    assert domain_xml.drawn("shop", change) == "domain shop, vda: /vm/a.qcow2 (qcow2)"
    below = change._replace(depth=1, pool="images", volume="a.qcow2")
    assert domain_xml.drawn("shop", below) == "domain shop, vda, backing file 1: volume a.qcow2 of pool images (qcow2)"


def test_mentions_outside_disks() -> None:
    values = [said.value for said in domain_xml.read_mentions(RICH)]
    assert "file=/vm/extra.qcow,if=none" in values
    assert not any("/vm/a.qcow" in value for value in values)  # disks are no mentions, nor is metadata
    assert domain_xml.Mention("arg", "file=/vm/extra.qcow,if=none", "").names("/vm/extra.qcow")
    assert not domain_xml.Mention("arg", "file=/vm/extra.qcow2", "").names("/vm/extra.qcow")
    assert not domain_xml.Mention("arg", "file=/srv/vm/extra.qcow", "").names("/vm/extra.qcow")


def test_snapshots_and_checkpoints_name_disks_too() -> None:
    snapshot = (
        "<domainsnapshot><name>s</name><disks><disk name='vda' snapshot='external' type='file'><driver type='qcow2'/><source file='/vm/s.qcow2'/></disk>"
        "<disk name='vdb' snapshot='no'/></disks><domain><devices><disk type='file'><driver type='qcow'/><source file='/vm/a.qcow'/>"
        "<target dev='vda'/></disk></devices></domain></domainsnapshot>"
    )
    assert [(disk.target, disk.layers[0].path) for disk in read_disks(snapshot)] == [("vda", "/vm/s.qcow2"), ("vda", "/vm/a.qcow")]


def test_the_mark_of_a_pivot_can_be_taken_off() -> None:
    pivoted = RICH.replace(
        """<source file='/vm/a.qcow'   startupPolicy="optional"/>""", "<source file='/vm/a.qcow'/>\n      <backingStore/>"
    )
    assert domain_xml.without_chain_end(pivoted, "vda") == pivoted.replace("\n      <backingStore/>", "")
    assert domain_xml.without_chain_end(pivoted, "vdb") == pivoted
