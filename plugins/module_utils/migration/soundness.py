# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the files of a chain hold what they claim: errors refuse it, doubts are told, and salvage lists what it gives up."""

from typing import Any, Dict, List, Sequence, Set, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.errors import DamagedImage
from ansible_collections.vmimage.qcow.plugins.module_utils.image.chain import Key
from ansible_collections.vmimage.qcow.plugins.module_utils.image.check import check
from ansible_collections.vmimage.qcow.plugins.module_utils.image.extent import COMPRESSED
from ansible_collections.vmimage.qcow.plugins.module_utils.image.findings import DAMAGED, ERROR, WARNING, Finding, Report
from ansible_collections.vmimage.qcow.plugins.module_utils.image.qcow1 import Damage, Qcow1
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.source import Source
from ansible_collections.vmimage.qcow.plugins.module_utils.paths import show

MAX_RANGES = 100
"""Damaged ranges named one by one in a message or result; the rest is counted."""

Lost = Dict[int, List[Damage]]
"""What salvage gives up, by place in the chain."""


def require_sound(source: Source, level: str, known: Set[Key], *, salvage: bool) -> Lost:
    """Open the layers of a chain, and make sure that nothing in their tables contradicts their files.

    What is suspect but no error goes into ``source.doubts``.

    :param level: of the structure check.
    :param known: files found sound before, which are not looked at again.
    :param salvage: go on past damage.
    :return: with ``salvage`` what is given up; else nothing.
    :raises DamagedImage: naming every damaged range (up to ``MAX_RANGES``) of the first damaged file.
    """
    found: Lost = {}
    source.open_layers(found)
    for place, layer in enumerate(source.layers):
        key = source.members[place - 1].key if place else source.identity[:2]
        if key in known and not salvage:
            continue
        if isinstance(layer, Qcow1) and not salvage:
            report = check(layer.fd, layer.path, level)
            _require_verdict(report, layer.path)
            source.doubts.extend(_in_words(finding) for finding in report.findings if finding.severity == WARNING)
            continue
        for extent in layer.extents():
            if salvage and extent.kind == COMPRESSED:
                layer.inflate(extent)
    return {place: _merged(damage) for place, damage in found.items() if damage}


def _merged(found: List[Damage]) -> List[Damage]:
    """Each damaged range once, neighbours of the same kind as one."""
    merged: List[Damage] = []
    for damage in sorted(set(found)):
        last = merged[-1] if merged else None
        if last is not None and damage.start <= last.start + last.length and damage.kind == last.kind and damage.what == last.what:
            merged[-1] = last._replace(length=max(last.length, damage.start + damage.length - last.start))
        else:
            merged.append(damage)
    return merged


def _require_verdict(report: Report, path: bytes) -> None:
    """Refuse an image in whose structure the check found errors, naming them (up to ``MAX_RANGES``)."""
    if report.verdict != DAMAGED:
        return
    errors = [finding for finding in report.findings if finding.severity == ERROR]
    total = sum(report.found[kind]["ranges"] for kind in {finding.kind for finding in errors})
    listed = errors[:MAX_RANGES]
    raise DamagedImage(
        "damaged in {0} place{1}: {2}{3}".format(
            total,
            "" if total == 1 else "s",
            "; ".join(_in_words(finding) for finding in listed),
            "; and {0} more".format(total - len(listed)) if total > len(listed) else "",
        ),
        path,
        hint="The image was not changed. Restore it from a backup, or say salvage to keep what can be read.",
        ranges=[{"start": f.start, "length": f.length, "offset": f.offset, "what": f.text} for f in listed],
    )


def _in_words(finding: Finding) -> str:
    place = "" if finding.offset is None else " (file offset {0})".format(finding.offset)
    if finding.start is None:
        return finding.text + place
    return "guest bytes {0}..{1}: {2}{3}".format(finding.start, finding.start + finding.length - 1, finding.text, place)


def ranges_of(lost: Lost) -> Dict[int, List[Tuple[int, int]]]:
    """What was given up as the second reading path takes it."""
    return {place: [(damage.start, damage.length) for damage in found] for place, found in lost.items()}


def listed(lost: Lost, paths: Sequence[bytes]) -> List[Dict[str, Any]]:
    """What salvage gives up, as results, reports and records list it: every range, with the file it is missing from.

    :param paths: the files of the chain, the image itself first.
    """
    return [
        {"path": show(paths[place]), "start": d.start, "length": d.length, "offset": d.offset, "what": d.what}
        for place, found in sorted(lost.items())
        for d in found
    ]
