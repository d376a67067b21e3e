# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Migrations, rollbacks and cleanups as diff mode shows them: the names, the formats, and what follows, in lines before and after."""

from typing import Any, Dict, Iterable, Optional

from .._paths import show
from .link_references import links_of
from .overlay_headers import repointed
from .plan import CONVERT
from .record import Record

Diff = Dict[str, str]

ORIGINAL = "qcow version 1"


def _visible(text: str) -> str:
    """A text without characters that act on a terminal: names of files may have any."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _diff(before_header: str, after_header: str, before: Iterable[str], after: Iterable[str]) -> Diff:
    texts = ["".join(_visible(line) + "\n" for line in lines) for lines in (before, after)]
    return {"before_header": _visible(before_header), "after_header": _visible(after_header), "before": texts[0], "after": texts[1]}


def _file(path: str, format_name: Optional[str], backing: Optional[Dict[str, Any]] = None) -> str:
    below = ", backing file {0} ({1})".format(backing.get("path"), backing.get("format")) if backing else ""
    return "{0}: {1}{2}".format(path, format_name, below)


def _disk(domain: str, facts: Dict[str, Any]) -> str:
    """A disk of a domain, by what a change of it says."""
    from .._libvirt.domain_xml import Change, drawn  # where a domain was changed, this is there

    return drawn(domain, Change(**facts))


def of_migration(result: Dict[str, Any]) -> Diff:
    """What ``qcow_convert`` did to an image, or would; from its result."""
    src, dest, retired = result["src"], result["dest"], result["retired"]
    made = result["after"].get("format") or "qcow2"
    original, image = _file(src, ORIGINAL, next(iter(result["chain"]), None)), _file(dest, made, result["backing"])
    before = [original] if result["action"] == CONVERT else [original, image]
    after = [image] + ([_file(retired, ORIGINAL)] if retired else [original])
    for path, format_name, lines in ((src, "qcow", before), (dest, made, after)):
        if dest != src:
            lines += ["link {0} -> {1}".format(link["path"], path) for link in result["links"]]
        lines += ["overlay {0}: backing file {1} ({2})".format(overlay, path, format_name) for overlay in result["repointed"]]
    for use in result["domains"]:
        facts = {"target": use["target"], "depth": 0, "path": src, "format": use["format"] or "no format"}
        before.append(_disk(use["name"], facts))
        after.append(_disk(use["name"], dict(facts, path=dest, format=made)))
    return _diff(src, dest, before, after)


def of_rollback(record: Record, kept: Optional[bytes]) -> Diff:
    """What a rollback does to what a record speaks of. Call it before: a rollback takes out of the record what it has undone.

    :param kept: the name that the result is kept under.
    :raises StateError: where the record lacks a name that a finished one has.
    """
    src, dest, retired = record.path_of("src"), record.path_of("dest"), record.file("retired")
    made = str(record.facts.get("format"))
    before = [_file(show(retired or src), ORIGINAL), _file(show(dest), made)]
    after = [_file(show(src), ORIGINAL)]
    if record.facts.get("adopted"):
        after.append(_file(show(dest), made))
    elif kept is not None:
        after.append(_file(show(kept), made))
    for path, format_name, lines in ((dest, made, before), (src, "qcow", after)):
        lines += ["link {0} -> {1}".format(show(link), show(path)) for link in links_of(record)]
        lines += [
            "overlay {0}: backing file {1} ({2})".format(show(overlay), show(path), format_name) for overlay in sorted(repointed(record))
        ]
    for entry in record.facts.get("domains") or ():
        for facts in entry["back"]:
            before.append(_disk(entry["domain"], dict(facts, path=show(dest), format=made, volume=None)))
            after.append(_disk(entry["domain"], facts))
    return _diff(show(dest), show(src), before, after)


def of_cleanup(result: Dict[str, Any]) -> Diff:
    """The file that ``qcow_cleanup`` deleted, or would; from its result."""
    line = "{0}: {1}, {2} bytes".format(result["retired"], ORIGINAL, result["returns"])
    return _diff(result["retired"], "deleted", [line], [])
