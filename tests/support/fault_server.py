# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs jobs in fresh processes, under strace where asked: ``python -m ...fault_server``, one JSON question a line, one answer a line.

Everything is imported before the first job, and a job's process is forked from here and waits until strace is attached: the N-th call of
a kind is then the same call in every run. Started in a PID namespace of its own (see faults.py), also what a job sees in /proc is.

A question: ``{"job": name, "args": {...}, "strace": [arguments] or null}``. The answer: ``{"status": wait status, "result": ...}``;
``result`` is what the job returned or ``{"raised": class, "reason": ..., "msg": ...}``, null where its process was killed.
"""

import gc
import json
import mmap
import os
import subprocess
import sys
import traceback

from ansible_collections.vmimage.qcow.plugins.module_utils._errors import QcowError
from ansible_collections.vmimage.qcow.plugins.module_utils._host.qemu_img import QemuImg
from ansible_collections.vmimage.qcow.plugins.module_utils._image import crypt
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import (
    batch,
    domain_move,
    execute,
    foreign_base,
    info,
    reference_policy,
    search,
)
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.progress import Progress
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_batch import Choice, clean_all, roll_back_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.recover import recover_all
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.session import Session
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.stop_run import stop_run

ANSWER_SIZE = 1 << 20

IMPORTED = (crypt, execute, foreign_base, reference_policy)
"""What a run imports only where it needs it."""


def _use_qemu_img(wanted):
    if not wanted:
        QemuImg.find = classmethod(lambda cls: None)  # as on a host without it: saves its start at hundreds of points


def migrate(state, images, workers=1, qemu_img=False, reserve=0, wait=0, **options):
    _use_qemu_img(qemu_img)
    state_dir = os.fsencode(state)
    requests = []
    for image in images:
        dest = image.get("dest")
        requests.append(Request(os.fsencode(image["src"]), dest and os.fsencode(dest), state_dir=state_dir, **options))
    recovered = []
    results = batch.run(requests, batch.Settings(state_dir, workers=workers, reserve=reserve, wait=wait), recovered)
    return {"results": results, "recovered": recovered}


def migrate_stopped(state, images, at, when, **options):
    """It is stopped when it tells its progress for the ``at``-th time."""
    told, write = [0], Progress._write

    def counting(self, suffix, facts):
        write(self, suffix, facts)
        told[0] += 1
        if told[0] == at:
            ask_to_stop(state, when)

    Progress._write = counting
    return dict(migrate(state, images, **options), told=told[0])


def ask_to_stop(state, when):
    return stop_run(os.fsencode(state), when, wait=0, check_mode=False)._asdict()


def roll_back(state, paths, discard=False, qemu_img=False):
    _use_qemu_img(qemu_img)
    recovered = []
    choice = Choice(os.fsencode(state), paths=tuple(os.fsencode(path) for path in paths))
    return {"results": roll_back_all(choice, discard_changes=discard, recovered=recovered), "recovered": recovered}


def clean(state, min_age=0, qemu_img=False):
    _use_qemu_img(qemu_img)
    recovered = []
    return {"results": clean_all(Choice(os.fsencode(state)), min_age=min_age, recovered=recovered), "recovered": recovered}


def move(state, uri, src, dest, **options):
    recovered = []
    job = domain_move.Job(os.fsencode(src), os.fsencode(dest), "qcow2", os.fsencode(state), uri, refresh_pools=False, **options)
    done = domain_move.run(job, check_mode=False, recovered=recovered)
    return {"changed": done.changed, "recovered": recovered}


def recover(state, uri):
    session = Session(os.fsencode(state), libvirt_uri=uri)
    with session:
        return {"recovered": recover_all(session)}


def states(state):
    return [record.state for record in Records(os.fsencode(state)).all()]


def look(paths, state):
    answer = info.look(info.Question(tuple(os.fsencode(path) for path in paths)), Records(os.fsencode(state)))
    return {"images": len(answer.images)}


def migrate_below(paths, state):
    def found(around):
        where = search.Search(tuple(os.fsencode(path) for path in paths))
        seen = search.candidates(where, Records(os.fsencode(state)), around)
        return [Request(src=path, state_dir=os.fsencode(state), retire=True, backing_dirs=where.paths) for path in seen.paths]

    results = batch.run(found, batch.Settings(os.fsencode(state)))
    assert results and not any(result["failed"] for result in results), results
    return {"images": len(results)}


JOBS = {
    function.__name__: function
    for function in (look, migrate, migrate_stopped, ask_to_stop, migrate_below, roll_back, clean, move, recover, states)
}


def perform(question):
    try:
        return JOBS[question["job"]](**question["args"])
    except (QcowError, OSError) as error:
        return {"raised": type(error).__name__, "reason": getattr(error, "reason", None), "msg": str(error)}


def child(question, gate, answer):
    """Waits for the gate to open, does the job, and leaves the answer in memory that is shared: that takes no system call."""
    os.read(gate, 1)
    try:
        text = json.dumps(perform(question)).encode()
    except BaseException:
        text = json.dumps({"raised": "bug", "reason": None, "msg": traceback.format_exc()}).encode()
    answer[8 : 8 + len(text)] = text
    answer[:8] = len(text).to_bytes(8, "big")
    os._exit(0)


def serve(question):
    answer = mmap.mmap(-1, ANSWER_SIZE)
    gate, opener = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(opener)
        child(question, gate, answer)
    os.close(gate)
    tracer = None
    if question.get("strace") is not None:
        tracer = subprocess.Popen(["strace", "-p", str(pid), *question["strace"]], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        line = tracer.stderr.readline()
        if b"attached" not in line:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return {"status": None, "result": None, "error": line.decode(errors="replace") + tracer.stderr.read().decode(errors="replace")}
    os.write(opener, b"x")
    os.close(opener)
    status = os.waitpid(pid, 0)[1]
    if tracer is not None:
        tracer.stderr.read()
        tracer.wait()
        tracer.stderr.close()
    length = int.from_bytes(answer[:8], "big")
    result = json.loads(answer[8 : 8 + length]) if length else None
    answer.close()
    return {"status": status, "result": result}


def main():
    gc.freeze()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(serve(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
