# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is true of each image on a host, found out without any code of the collection, and where a report says something else.

A host is a directory of images and a state directory. Files are told by their first bytes, records by their JSON lines. What only the run knows, why an
image was refused, is not to be seen there: such an image is one that is still to migrate, whatever the report calls it.
"""

import csv
import fcntl
import json
import os
import pathlib
from typing import Any, Iterator, NamedTuple, Optional

from ansible_collections.vmimage.qcow.tests.support.page_tables import tables

FINISHED = {"done", "failed", "rolled-back", "cleaned"}
IN_PLACE = {"done", "cleaned"}
LEFT = {"failed", "interrupted", "running", "left", "deferred"}
"""What a report calls an image that is still to migrate."""


class Image(NamedTuple):
    """One image that is, or was, QCOW version 1. Sizes in bytes; ``None`` where there is no such file."""

    state: str  # migrated, interrupted, running, or left: a version 1 image, and nothing more is to be seen
    record: Optional[str] = None  # the last that did not fail
    dest: Optional[str] = None
    dest_format: Optional[str] = None
    retired: Optional[str] = None
    reversible: bool = False
    bytes: Optional[int] = None  # of the version 1 image on disk, under whichever name
    bytes_after: Optional[int] = None


def format_of(path: str) -> Optional[str]:
    """``qcow``, ``qcow2`` or ``other`` by the first eight bytes; ``None`` where there is no such file."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(8)
    except FileNotFoundError:
        return None
    if head[:4] != b"QFI\xfb":
        return "other"
    return {1: "qcow", 2: "qcow2", 3: "qcow2"}.get(int.from_bytes(head[4:], "big"), "other")


def allocated(path: Optional[str]) -> Optional[int]:
    """Bytes on disk; ``None`` where there is no such file."""
    return os.stat(path).st_blocks * 512 if path and os.path.exists(path) else None


def records(state_dir: pathlib.Path) -> list[dict[str, Any]]:
    """What each record says by its end, the oldest first, with the time of its first line as ``began``. A line that was cut short does not count."""
    found = []
    for path in sorted(state_dir.glob("records/*.jsonl")):
        facts: dict[str, Any] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                told = json.loads(line)
            except ValueError:
                continue
            facts.setdefault("began", told["time"])
            facts.update(told)
        if facts:
            found.append(facts)
    return found


def at_work(state_dir: pathlib.Path) -> bool:
    """Whether a run holds the lock of this host."""
    try:
        with open(state_dir / "lock", "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _name(facts: dict[str, Any], role: str) -> Optional[str]:
    return (facts.get(role) or {}).get("path")


def _of_record(facts: dict[str, Any], running: bool) -> Image:
    """What the last record of an image means, as the files are."""
    src, dest, retired = (_name(facts, role) for role in ("src", "dest", "retired"))
    assert src is not None and dest is not None
    original = next((path for path in (retired, src) if path and format_of(path) == "qcow"), None)
    if facts["state"] not in FINISHED:
        return Image("running" if running else "interrupted", facts["id"], bytes=allocated(original))
    if facts["state"] in IN_PLACE:
        return Image(
            "migrated",
            facts["id"],
            dest,
            format_of(dest),
            retired if retired and os.path.exists(retired) else None,
            facts["state"] == "done" and original is not None,
            allocated(original) if facts["state"] == "done" else None,
            allocated(dest),
        )
    return Image("left", facts["id"], bytes=allocated(src))


def images(tree: pathlib.Path, state_dir: pathlib.Path) -> dict[str, Image]:
    """Every image of a host that is, or was, version 1, by the path that it has or had as such."""
    running = at_work(state_dir)
    found: dict[str, Image] = {}
    originals = set()  # retired ones: told of with the image they come from
    for facts in records(state_dir):
        image = _of_record(facts, running)
        if facts["state"] != "failed" or str(_name(facts, "src")) not in found:
            found[str(_name(facts, "src"))] = image
        if image.retired:
            originals.add(image.retired)
    for folder, _folders, names in os.walk(tree):
        for path in (os.path.join(folder, name) for name in names):
            if format_of(path) == "qcow" and path not in originals and ".vmimage-qcow." not in path:
                found.setdefault(path, Image("left", bytes=allocated(path)))
    return found


Hosts = dict[str, dict[str, Image]]


def known_by_records(truth: Hosts) -> Hosts:
    """The part that records tell of: all that a controller can know which has never looked at the directories."""
    return {host: {path: image for path, image in found.items() if image.record} for host, found in truth.items()}


def differences(truth: Hosts, reports: pathlib.Path, unreached: set[str]) -> list[str]:
    """Where the tables of a report say something else than is true.

    :param unreached: hosts that could never be reached: nothing is known of their images.
    """
    report = json.loads((reports / "report.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (reports / "images.jsonl").read_text(encoding="utf-8").splitlines()]
    with open(reports / "hosts.csv", encoding="utf-8", newline="") as stream:
        lines = {line["host"]: line for line in csv.DictReader(stream)}
    hosts = {summary["host"]: summary for summary in report["hosts"]}
    every = set(truth) | unreached
    found = ["hosts: %s, told %s" % (sorted(every), sorted(told)) for told in (hosts, lines) if set(told) != every]
    found += ["%s %s is told twice" % key for key in {(row["host"], row["path"]) for row in rows} if _times(rows, *key) > 1]
    for host in sorted(every & set(hosts)):
        told = {row["path"]: row for row in rows if row["host"] == host and row["state"] != "other"}
        mine = truth.get(host, {})
        found += ["%s %s: %s, not told" % (host, path, mine[path].state) for path in sorted(set(mine) - set(told))]
        found += ["%s %s: told as %s, not there" % (host, path, told[path]["state"]) for path in sorted(set(told) - set(mine))]
        for path in sorted(set(mine) & set(told)):
            found += ["%s %s: %s" % (host, path, wrong) for wrong in _wrong(host, mine[path], told[path])]
        found += ["%s: %s" % (host, wrong) for wrong in _miscounted(mine, hosts[host], host in unreached)]
        for key, value in lines.get(host, {}).items():
            if key in hosts[host] and not isinstance(hosts[host][key], list) and value != _cell(hosts[host][key]):
                found.append("%s: %s is %r in report.json and %r in hosts.csv" % (host, key, hosts[host][key], value))
    return found + ["all hosts: " + wrong for wrong in _totals(truth, report["totals"], rows, len(unreached))]


def _times(rows: list[dict[str, Any]], host: str, path: str) -> int:
    return sum(row["host"] == host and row["path"] == path for row in rows)


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _wrong(host: str, image: Image, row: dict[str, Any]) -> Iterator[str]:
    if image.state == "left":
        if row["state"] not in LEFT - {"interrupted", "running"}:
            yield "is a version 1 image, told as %s" % row["state"]
        if row["dest"] or row["retired"] or row["rollback"]:
            yield "was not migrated, told with %r" % [row["dest"], row["retired"], row["rollback"]]
    elif row["state"] != image.state:
        yield "%s, told as %s" % (image.state, row["state"])
    elif image.state == "migrated":
        for key in ("record", "dest", "retired"):
            if row[key] != getattr(image, key):
                yield "%s is %s, told %s" % (key, getattr(image, key), row[key])
        if image.dest_format not in ("qcow2", "other"):
            yield "the result is %s" % image.dest_format
        if bool(row["rollback"]) != image.reversible:
            yield "%s be undone, told %r" % ("can" if image.reversible else "cannot", row["rollback"])
        if row["rollback"] and not (str(image.record) in row["rollback"] and host in row["rollback"]):
            yield "is undone by another command than %r" % row["rollback"]
        if image.bytes_after != row["bytes_after"]:
            yield "its result has %s bytes on disk, told %s" % (image.bytes_after, row["bytes_after"])
    if image.bytes is not None and row["bytes"] != image.bytes:
        yield "%s bytes on disk, told %s" % (image.bytes, row["bytes"])


def _miscounted(mine: dict[str, Image], summary: dict[str, Any], unreached: bool) -> Iterator[str]:
    migrated = sum(image.state == "migrated" for image in mine.values())
    left = len(mine) - migrated
    size = sum(image.bytes or 0 for image in mine.values() if image.state != "migrated")
    if (summary["migrated"], summary["left"]) != (migrated, left):
        yield "%d migrated and %d still to migrate, told %d and %d" % (migrated, left, summary["migrated"], summary["left"])
    if summary["left_bytes"] != size:
        yield "%d bytes are still to migrate, told %s" % (size, summary["left_bytes"])
    states = (
        {"missing", "unreached"} if unreached else {"failed", "left", "deferred", "running", "unreached"} if left else {"done", "unreached"}
    )
    if summary["state"] not in states:
        yield "is %s, told as %s" % (" or ".join(sorted(states)), summary["state"])


def _totals(truth: Hosts, totals: dict[str, Any], rows: list[dict[str, Any]], unreached: int) -> Iterator[str]:
    every = [image for found in truth.values() for image in found.values()]
    left = [image for image in every if image.state != "migrated"]
    true = {
        "hosts": len(truth) + unreached,
        "migrated": len(every) - len(left),
        "left": len(left),
        "left_bytes": sum(image.bytes or 0 for image in left),
        "interrupted": sum(image.state == "interrupted" for image in every),
        "running": sum(image.state == "running" for image in every),
    }
    for key, value in true.items():
        if totals[key] != value:
            yield "%s is %d, told %s" % (key, value, totals[key])
    for state in {row["state"] for row in rows} - {"left"}:
        if totals.get(state) != sum(row["state"] == state for row in rows):
            yield "%s are %s, and as many rows as %d" % (totals.get(state), state, sum(row["state"] == state for row in rows))


def _digits(text: str) -> str:
    """A number without what groups its digits."""
    return "".join(filter(str.isdigit, text))


def differences_of_page(truth: Hosts, page: str, unreached: set[str]) -> list[str]:
    """Where the page itself, as it is read, says something else than is true."""
    found = []
    shown = tables(page)
    images = {
        (table.caption[len("Images of ") :], row["code"]): row
        for table in shown
        if table.caption.startswith("Images of ")
        for row in table.rows
        if not row["State"].startswith("nothing to do")
    }
    true = {(host, path): image for host, mine in truth.items() for path, image in mine.items()}
    found += ["%s %s is not on the page" % key for key in sorted(set(true) - set(images))]
    found += ["%s %s is on the page, and not there" % key for key in sorted(set(images) - set(true))]
    for (host, path), image in sorted(true.items()):
        row = images.get((host, path), {"State": "", "Details": ""})
        words = {"left": ("failed", "to migrate", "deferred")}.get(image.state, (image.state,))
        if not row["State"].startswith(words):
            found.append("%s %s is %s, and shown as %s" % (host, path, image.state, row["State"]))
        if image.reversible != ("vmimage.qcow.rollback" in row["Details"] and str(image.record) in row["Details"]):
            found.append("%s %s: the way back is shown as %r" % (host, path, row["Details"]))
    left = sum(image.state != "migrated" for image in true.values())
    sums = [row["Images"] for table in shown for row in table.rows if row.get("State of QCOW v1 images") == "still to migrate"]
    found += ["%d are still to migrate, and shown as %s" % (left, number) for number in sums or ["nothing"] if _digits(number) != str(left)]
    hosts = {row["Host"].split()[0]: row for table in shown if table.head[:2] == ["Host", "State"] for row in table.rows}
    for host in sorted(set(truth) | unreached):
        mine = truth.get(host, {})
        done = sum(image.state == "migrated" for image in mine.values())
        numbers = {"To migrate": len(mine) - done, "Migrated": done}
        for heading, number in numbers.items():
            if _digits(hosts.get(host, {}).get(heading, "")) != str(number):
                found.append("%s: %s is %d, and shown as %s" % (host, heading, number, hosts.get(host, {}).get(heading)))
    return found
