# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action plugin in real plays: what is printed while a conversion runs, and what happens when the job is killed or has to wait."""

import glob
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.make_samples import MIB, disk

pytestmark = pytest.mark.slow
COLLECTIONS = next(entry for entry in sys.path if os.path.isdir(os.path.join(entry, "ansible_collections", "vmimage", "qcow")))
# Another ansible-core to try: the directory of its programs.
BIN = os.environ.get("ANSIBLE_BIN", os.path.dirname(sys.executable))


class Play:
    """A play on hosts of this machine, each with its own folder and state."""

    def __init__(self, scratch, hosts=("h1",)):
        self.scratch = scratch
        self.hosts = {host: scratch / host for host in hosts}
        for number, folder in enumerate(self.hosts.values()):
            folder.mkdir()
            build(disk(number, size=16 * MIB, filled=2048)).write(str(folder / "disk.qcow"))
        inventory = {
            "all": {
                "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
                "hosts": {host: {"folder": str(folder)} for host, folder in self.hosts.items()},
            }
        }
        (scratch / "ansible.cfg").write_text("")
        (scratch / "inventory.json").write_text(json.dumps(inventory))

    def start(self, *arguments, keywords=None, **options):
        task = {
            "vmimage.qcow.qcow_convert": {
                "src": "{{ folder }}/disk.qcow",
                "bandwidth": "4M",
                "progress_interval": 1,
                "state_dir": "{{ folder }}-state",
                **options,
            },
            "register": "done",
            **(keywords or {}),
        }
        tasks = [
            task,
            {"ansible.builtin.debug": {"msg": "KEYS {{ done.keys() | sort | join(' ') }} DEST {{ done.dest | default('none') }}"}},
        ]
        (self.scratch / "play.json").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": COLLECTIONS,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCAL_TEMP": str(self.scratch / "local"),
            "ANSIBLE_REMOTE_TEMP": str(self.scratch / "remote-tmp-x"),
            "ANSIBLE_ASYNC_DIR": str(self.scratch / "async"),
            "ANSIBLE_CONFIG": str(self.scratch / "ansible.cfg"),
        }
        environment.pop("PYTHONPATH", None)
        command = [
            os.path.join(BIN, "ansible-playbook"),
            "-i",
            str(self.scratch / "inventory.json"),
            str(self.scratch / "play.json"),
            *arguments,
        ]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def run(self, *arguments, **more):
        process = self.start(*arguments, **more)
        output = process.communicate(timeout=180)[0]
        return process.returncode, output

    def status(self, host="h1", seconds=60):
        """The status of the call that is at work, once there is one."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for path in glob.glob(f"{self.hosts[host]}-state/progress/*.json"):
                try:
                    facts = json.loads(pathlib.Path(path).read_text())
                except (OSError, ValueError):
                    continue
                if facts.get("stage") == "copy":
                    return facts
            time.sleep(0.05)
        raise AssertionError("nothing has begun to copy")


@pytest.fixture(name="play")
def make_play(tmp_path):
    return Play(tmp_path)


def test_two_hosts_tell_how_far_they_are_at_the_same_time(tmp_path):
    play = Play(tmp_path, ("h1", "h2"))
    code, output = play.run(bandwidth="2M")
    assert code == 0, output
    lines = [line.strip() for line in output.splitlines() if line.strip().startswith("[h")]
    for host, folder in play.hosts.items():
        assert any(line.startswith(f"[{host}] {folder}/disk.qcow: copy ") for line in lines), output
        assert any(line.startswith(f"[{host}] {folder}/disk.qcow: ") and line.endswith(" left") for line in lines), output
        assert any(line.startswith(f"[{host}] {folder}/disk.qcow: verify ") for line in lines), output
        assert f"DEST {folder}/disk.qcow2" in output
    first = [line[:4] for line in lines]
    assert first != sorted(first), "one host after the other"
    # The answer is the module's, as if it had been run the plain way, and nothing of the job is left.
    assert "ansible_job_id" not in output and "finished" not in output
    assert os.listdir(tmp_path / "async") == []
    assert all(os.listdir(f"{folder}-state/progress") == [] for folder in play.hosts.values())


def test_the_window_is_one_for_all_hosts(tmp_path):
    """Each takes 16 seconds at least, one after the other: the second cannot be ready within 30 of the beginning, whatever the machine does."""
    play = Play(tmp_path, ("h1", "h2", "h3"))
    code, output = play.run("--forks", "1", bandwidth="1M", max_minutes=0.5)
    assert code == 0, output
    assert [(folder / "disk.qcow2").exists() for folder in play.hosts.values()] == [True, False, False], output
    code, output = play.run("--forks", "3", until="{{ '%Y-%m-%d %H:%M UTC' | strftime(now().timestamp() | int + 600, utc=true) }}")
    assert code == 0 and all((folder / "disk.qcow2").exists() for folder in play.hosts.values()), output


@pytest.mark.parametrize("until", ["05:30", "2001-01-01 05:30 UTC"])
def test_a_window_that_cannot_be_meant(play, until):
    code, output = play.run(until=until)
    assert code == 2 and "until: " in output and "Nothing was changed." in output and os.listdir(play.hosts["h1"]) == ["disk.qcow"], output


def test_a_killed_job_is_told_of_and_the_next_run_migrates(play):
    process = play.start()
    os.kill(play.status()["pid"], signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert "ended by SIGKILL" in output or "without a result" in output or "Killed" in output or "killed" in output, output
    code, output = play.run(bandwidth="1G")
    assert code == 0 and "DEST" in output
    assert not glob.glob(str(play.hosts["h1"] / ".vmimage*"))


def test_the_job_outlives_its_controller_and_the_next_run_waits_for_it(play):
    process = play.start(bandwidth="512K")
    play.status()
    os.killpg(process.pid, signal.SIGKILL)  # with the process that watches the job; the job is in a session of its own
    process.communicate()
    code, output = play.run(lock_timeout=120)
    assert code == 0, output
    assert "[h1] waits for another migration on this host:" in output
    assert "disk.qcow: verify" in output
    assert "changed=0" in output  # the first job has done it all


def test_the_tasks_own_async_is_respected(play):
    code, output = play.run(keywords={"async": 100, "poll": 1})
    assert code == 0 and "[h1] /" not in output and "ansible_job_id" in output


def test_to_be_watched_takes_one_start_and_looks(tmp_path):
    """Beside its looks, a job sends as many commands as the plain way, one of which starts it, and no other module runs."""
    sent = {}
    for name, options in {"plain": {"progress_interval": 0}, "watched": {"progress_interval": 15}}.items():
        (tmp_path / name).mkdir()
        code, output = Play(tmp_path / name).run("-vvv", bandwidth="1G", **options)
        assert code == 0 and "DEST " in output, output
        lines = [line for line in output.splitlines() if line.startswith("<h1> ")]
        sent[name] = [line for line in lines if " EXEC " in line and "until ended" not in line]
        assert {line.split("/")[-1] for line in output.splitlines() if line.startswith("Using module file ")} == {"qcow_convert.py"}
        assert sum(" PUT " in line for line in lines) == (1 if name == "plain" else 2), output
    assert len(sent["watched"]) == len(sent["plain"]) > 0, sent


@pytest.mark.parametrize(("arguments", "options"), [(("--check",), {}), ((), {"progress_interval": 0, "bandwidth": "1G"})])
def test_the_plain_way(play, arguments, options):
    code, output = play.run(*arguments, **options)
    assert code == 0 and "[h1] /" not in output
    assert not os.path.exists(play.scratch / "async")


def test_where_no_job_can_be_started_the_plain_way_is_taken(play):
    (play.scratch / "async").write_text("a file is in the way")
    code, output = play.run(bandwidth="1G")
    assert code == 0 and f"DEST {play.hosts['h1']}/disk.qcow2" in output


def test_a_failure_is_the_modules(play):
    code, output = play.run(src="/nowhere/at/all.qcow")
    assert code == 2 and "there is no such file" in output


def test_a_time_limit_that_was_asked_for_is_kept(play):
    code, output = play.run(time_limit=2)
    assert code == 2, output
    code, output = play.run(bandwidth="1G", lock_timeout=30)
    assert code == 0 and "DEST" in output
