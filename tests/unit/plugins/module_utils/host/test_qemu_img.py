# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import QcowError, ToolFailed, ToolMissing, UnsupportedImage
from ansible_collections.vmimage.qcow.plugins.module_utils._host import command
from ansible_collections.vmimage.qcow.plugins.module_utils._host.image_options import Node, image_options
from ansible_collections.vmimage.qcow.plugins.module_utils._host.qemu_img import QemuImg
from ansible_collections.vmimage.qcow.tests import support
from ansible_collections.vmimage.qcow.tests.support.require import require, require_tool

MIB = 1 << 20
ODD = [b"a,b,,c", b"we:ird", b"json:{}", b"nbd:x", b"new\nline", b"\xff\xfe\xff", b" ", b"-f", b"a=b", b"x" * 250]
FAKE = os.path.join(os.path.dirname(list(support.__path__)[0]), "support", "fake_qemu_img")


@pytest.fixture(scope="module")
def tool():
    require_tool("qemu-img")
    return QemuImg()


@pytest.fixture
def folder(tmp_path):
    return os.fsencode(tmp_path)


def make(*arguments):
    subprocess.run(["qemu-img", *arguments], check=True, stdout=subprocess.DEVNULL)


def raw(path, size=MIB):
    content = os.urandom(4096)
    with open(path, "wb") as stream:
        stream.write(content)
        stream.truncate(size)
    return content


def v1(folder, name=b"a.qcow", size=MIB):
    content = raw(folder + b"/plain.raw", size)
    make("convert", "-f", "raw", "-O", "qcow", folder + b"/plain.raw", b"file:" + folder + b"/" + name)
    return Node(folder + b"/" + name, "qcow"), content


def guest(path):
    with open(path, "rb") as stream:
        return stream.read()


# ---- what it is ----


def test_what_it_can(tool):
    assert tool.version >= (2, 6)
    assert {"raw", "qcow2"} <= tool.formats
    assert "formats" not in tool.formats
    assert tool.reads_v1() is ("qcow" in tool.formats)


def test_a_program_without_the_driver_does_not_read_v1(folder):
    require_tool("qemu-img")
    fake = QemuImg(os.fsencode(FAKE))
    assert "qcow" not in fake.formats and not fake.reads_v1()
    node, dummy = v1(folder)
    with pytest.raises(UnsupportedImage):
        fake.convert(node, folder + b"/out", "raw")
    assert not os.path.exists(folder + b"/out")


def test_a_program_that_lists_the_driver_and_does_not_have_it(folder):
    """A stand-in: says it has the driver, and wraps the container as a raw disk."""
    liar = folder + b"/qemu-img"
    with open(liar, "w") as stream:
        stream.write(
            '#!/bin/sh\ncase "$1" in --help) echo "qemu-img version 9.9.9"; echo; echo "Supported image formats:"; echo "  qcow qcow2 raw";;\n'
        )
        stream.write('*) for last; do :; done; echo "wrong" > "$last";; esac\n')
    os.chmod(liar, 0o755)
    program = QemuImg(liar)
    assert program.version == (9, 9, 9)
    assert program.formats == {"qcow", "qcow2", "raw"}
    assert not program.reads_v1()


def test_no_program(folder):
    assert QemuImg.find(folder + b"/qemu-img") is None
    with pytest.raises(ToolMissing):
        QemuImg(b"no-such-qemu-img")


# ---- what it does ----


@pytest.mark.parametrize("name", ODD)
def test_names_mean_nothing(tool, folder, name):
    node, content = v1(folder, name)
    tool.convert(node, folder + b"/out" + name[:200], "qcow2")
    assert tool.check(folder + b"/out" + name[:200], "qcow2").ok
    assert tool.info(folder + b"/out" + name[:200], "qcow2")["virtual-size"] == MIB
    tool.convert(Node(folder + b"/out" + name[:200], "qcow2"), folder + b"/raw", "raw")
    assert guest(folder + b"/raw") == content.ljust(MIB, b"\0")


def test_relative_names(tool, folder, monkeypatch):
    node, content = v1(folder, b"nbd:x")
    monkeypatch.chdir(os.fsdecode(folder))
    tool.convert(Node(b"nbd:x", "qcow"), b"json:out", "raw")
    assert guest(folder + b"/json:out")[:4096] == content


def test_a_chain_is_read_as_told(tool, folder):
    base, content = v1(folder, b"ba,se")
    make("create", "-q", "-f", "qcow", "-b", base.path, "-F", "qcow", folder + b"/top")
    make("create", "-q", "-f", "qcow2", "-b", folder + b"/top", "-F", "qcow", folder + b"/upper")
    os.rename(base.path, folder + b"/moved,base")
    chain = Node(folder + b"/upper", "qcow2", Node(folder + b"/top", "qcow", Node(folder + b"/moved,base", "qcow")))
    tool.convert(chain, folder + b"/out", "raw")
    assert guest(folder + b"/out")[:4096] == content


def test_a_header_cannot_pull_in_a_file(tool, folder):
    raw(folder + b"/host-file")
    for form in ("qcow", "qcow2"):
        make("create", "-q", "-f", form, "-b", folder + b"/host-file", "-F", "raw", folder + b"/overlay")
        tool.convert(Node(folder + b"/overlay", form), folder + b"/out", "raw")
        assert guest(folder + b"/out") == bytes(MIB)


def test_nothing_is_probed(tool, folder):
    make("create", "-q", "-f", "qcow2", folder + b"/inner", "8M")
    container = guest(folder + b"/inner")
    tool.convert(Node(folder + b"/inner", "raw"), folder + b"/out", "raw")
    assert guest(folder + b"/out")[: len(container)] == container
    with pytest.raises(ToolFailed):
        tool.check(folder + b"/plain.raw", "qcow2")


def test_check_looks_at_one_file(tool, folder):
    make("create", "-q", "-f", "raw", folder + b"/base", "1M")
    make("create", "-q", "-f", "qcow2", "-b", folder + b"/base", "-F", "raw", folder + b"/top")
    os.unlink(folder + b"/base")
    assert tool.check(folder + b"/top", "qcow2").ok


def test_check_counts_damage(tool, folder):
    node, dummy = v1(folder)
    out = folder + b"/out"
    tool.convert(node, out, "qcow2")
    size = os.path.getsize(out)
    with open(out, "r+b") as stream:
        stream.truncate(size + 65536)
        stream.seek(40)
        table = int.from_bytes(stream.read(8), "big")
        stream.seek(table)
        stream.write(bytes(8))  # the L1 entry is gone: what it owned has leaked
    result = tool.check(out, "qcow2")
    assert not result.ok and result.leaks > 0 and result.corruptions == 0
    for form in ("qcow", "raw"):
        with pytest.raises(UnsupportedImage):
            tool.check(node.path, form)
    with pytest.raises(UnsupportedImage):
        tool.info(node.path, "qcow")


def test_an_encrypted_chain_and_an_encrypted_result(tool, folder):
    content = raw(folder + b"/plain.raw")
    for number in (b"1", b"2"):
        with open(folder + b"/pass," + number, "wb") as stream:
            stream.write(b"secret" + number)
    one, two = ("secret,id=s0,file=" + os.fsdecode((folder + b"/pass," + number).replace(b",", b",,")) for number in (b"1", b"2"))
    creation = "encrypt.format=aes,encrypt.key-secret=s0"
    make("convert", "--object", one, "-f", "raw", "-O", "qcow", "-o", creation, folder + b"/plain.raw", folder + b"/base")
    make("create", "-q", "--object", two, "-u", "-f", "qcow", "-o", creation, "-b", folder + b"/base", "-F", "qcow", folder + b"/top", "1M")
    chain = Node(folder + b"/top", "qcow", Node(folder + b"/base", "qcow", None, folder + b"/pass,1"), folder + b"/pass,2")
    tool.convert(chain, folder + b"/out", "raw")
    assert guest(folder + b"/out")[:4096] == content
    require("luks" in tool.formats, "this qemu-img has no LUKS")
    quick = {"key-secret": "new", "iter-time": "10"}
    tool.convert(chain, folder + b"/luks", "luks", options=quick, secrets={"new": folder + b"/pass,1"})
    assert guest(folder + b"/luks")[:4] == b"LUKS"
    tool.convert(Node(folder + b"/luks", "luks", None, folder + b"/pass,1"), folder + b"/out", "raw")
    assert guest(folder + b"/out") == guest(folder + b"/plain.raw")
    with pytest.raises(ToolFailed) as caught:
        tool.convert(Node(folder + b"/luks", "luks", None, folder + b"/pass,2"), folder + b"/out", "raw")
    assert "secret2" not in str(caught.value) + str(caught.value.details)


def test_options_and_compression(tool, folder):
    node, dummy = v1(folder)
    options = {"cluster_size": "4096", "lazy_refcounts": "on"}
    tool.convert(node, folder + b"/out", "qcow2", options=options, compress=True, cache="none")
    answer = tool.info(folder + b"/out", "qcow2")
    assert answer["cluster-size"] == 4096 and answer["format-specific"]["data"]["lazy-refcounts"] is True
    with pytest.raises(ToolFailed):
        tool.convert(node, folder + b"/out", "qcow2", options={"cluster_size": "1,lazy_refcounts=on"})
    with pytest.raises(ValueError):
        tool.convert(node, folder + b"/out", "qcow2", cache="unsafe")


def test_an_existing_result_file_keeps_inode_and_mode(tool, folder):
    node, dummy = v1(folder)
    fd = os.open(folder + b"/out", os.O_CREAT | os.O_RDWR, 0o600)
    for form in ("qcow2", "raw"):
        tool.convert(node, folder + b"/out", form)
        status = os.stat(folder + b"/out")
        assert status.st_ino == os.fstat(fd).st_ino and stat.S_IMODE(status.st_mode) == 0o600
    os.close(fd)


def test_a_failure_says_what_was_run(tool, folder):
    with pytest.raises(ToolFailed) as caught:
        tool.convert(Node(folder + b"/none\xff", "qcow"), folder + b"/out", "raw")
    details = caught.value.details
    assert details["rc"] == 1 and details["cmd"][1] == "convert" and "No such file" in details["stderr"]
    assert "\\xff" in str(caught.value)


def test_a_locked_image_is_not_forced(tool, folder):
    node, dummy = v1(folder)
    require_tool("qemu-io")
    writer = subprocess.Popen(["qemu-io", "-f", "qcow", os.fsdecode(node.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    writer.stdout.read(1)
    with pytest.raises(ToolFailed) as caught:
        tool.convert(node, folder + b"/out", "raw")
    assert "lock" in str(caught.value)
    writer.communicate()


def test_nul_is_refused():
    with pytest.raises(QcowError):
        image_options(Node(b"/a\0b", "raw"), [])


# ---- how it is run ----


def slow(tool, folder):
    """What makes the conversion of 16 MiB take about 8 seconds."""
    if "rate_limit" not in tool.help:
        require(False, "this qemu-img has no rate limit")
    with open(folder + b"/plain.raw", "wb") as stream:
        stream.write(os.urandom(16 * MIB))
    return Node(folder + b"/plain.raw", "raw"), {"bandwidth": 2 * MIB}


def running(argument):
    """Process ids of qemu-img with ``argument`` in its command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/cmdline" % pid, "rb") as stream:
                words = stream.read().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"qemu-img") and any(argument in word for word in words):
            found.append(int(pid))
    return found


def test_progress_and_bandwidth(tool, folder):
    source, options = slow(tool, folder)
    seen = []
    before = time.monotonic()
    tool.convert(source, folder + b"/out", "qcow2", progress=seen.append, bandwidth=8 * MIB)
    assert time.monotonic() - before > 1.0
    assert seen == sorted(seen) and len(seen) >= 2 and seen[-1] == 100.0


def test_a_tick_that_raises_ends_the_conversion(tool, folder):
    source, options = slow(tool, folder)
    calls = []

    def tick():
        calls.append(running(folder))
        if len(calls) == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        tool.convert(source, folder + b"/out", "raw", tick=tick, **options)
    assert calls[-1] and not running(folder)


def test_it_does_not_outlive_a_killed_parent(tool, folder):
    source, options = slow(tool, folder)
    child = os.fork()
    if child == 0:
        try:
            tool.convert(source, folder + b"/out", "raw", **options)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 10
    while not running(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running(folder)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 5
    while running(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running(folder)


def test_a_time_limit():
    before = time.monotonic()
    with pytest.raises(ToolFailed) as caught:
        command.run([b"/bin/sh", b"-c", b"echo said >&2; sleep 60 & sleep 60"], timeout=0.5)
    assert time.monotonic() - before < 10
    assert caught.value.details["stderr"] == "said\n"


def test_much_output_on_both_streams_does_not_block():
    code = b"import sys\nfor n in range(3000):\n    print('o' * 1000)\n    print('e' * 1000, file=sys.stderr)"
    output = command.run([os.fsencode(sys.executable), b"-c", code])
    assert output.rc == 0 and len(output.stdout) == len(output.stderr) == 1 << 20


def test_the_environment_is_pinned_and_stdin_is_closed(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    output = command.run([b"/bin/sh", b"-c", b"echo $LC_ALL; cat; kill -9 $$"])
    assert output == (-9, b"C\n", b"")


def test_memory_is_limited():
    code = b"import sys; print(len(bytearray(int(sys.argv[1]))))"
    argv = [os.fsencode(sys.executable), b"-c", code]
    assert command.run([*argv, b"%d" % (2 << 20)], memory=1 << 30).stdout.split() == [b"2097152"]
    output = command.run([*argv, b"%d" % (2 << 30)], memory=1 << 30)
    assert output.rc != 0 and b"MemoryError" in output.stderr
    # Threads take less of it: qemu-img has failed to start one.
    assert command.run([b"/bin/sh", b"-c", b"echo $MALLOC_ARENA_MAX"], memory=1 << 30).stdout == b"1\n"


def test_a_busy_machine_gets_another_try(folder):
    """QEMU fails where its processor time stands still while it picks the iterations for LUKS: made to say so here, twice."""
    program = os.path.join(os.fsdecode(folder), "qemu-img-on-a-busy-machine")
    with open(program, "w", encoding="utf-8") as stream:
        stream.write('#!/bin/sh\necho try >>"$0.log"\n[ $(wc -l <"$0.log") -gt 2 ] && echo "qemu-img version 7.2.22" && exit 0\n')
        stream.write('echo "qemu-img: x: error while converting qcow2: Unable to get accurate CPU usage" >&2\nexit 1\n')
    os.chmod(program, 0o755)
    assert QemuImg(os.fsencode(program)).version == (7, 2, 22)
    with open(program + ".log", encoding="utf-8") as stream:
        assert len(stream.readlines()) == 3
