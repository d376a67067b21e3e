# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an examination of an image found, as values: merged into ranges, bounded in number, never bounded in their counts."""

from typing import Any, Dict, List, NamedTuple, Optional

ERROR = "error"
"""The image does not hold what it claims to hold; it is refused."""

WARNING = "warning"
"""The guest can be read in full, but something is not as any writer would leave it."""

NOTE = "note"
"""Worth knowing, nothing to do."""

SOUND = "sound"
SUSPECT = "suspect"
DAMAGED = "damaged"

MOST_FINDINGS = 64
"""Findings kept of one kind; the others are only counted."""


class Finding(NamedTuple):
    """One thing that was found. Ranges are in bytes; what does not apply is ``None``."""

    kind: str  # stable word for programs
    severity: str  # ERROR, WARNING or NOTE
    start: Optional[int]  # first guest byte
    length: int  # guest bytes, or bytes of the file where there is no guest byte to name
    offset: Optional[int]  # byte in the file
    text: str  # what it is, for a person

    def as_dict(self) -> Dict[str, Any]:
        """The finding as JSON takes it."""
        return dict(self._asdict())


class Findings:
    """Collects findings: neighbouring ranges of the same kind and text are one; the first :data:`MOST_FINDINGS` of a kind are kept."""

    def __init__(self) -> None:
        self._kept: Dict[str, List[Finding]] = {}
        self._counts: Dict[str, Dict[str, int]] = {}
        self._last: Dict[str, Finding] = {}
        self._severities: set = set()

    def add(self, kind: str, severity: str, start: Optional[int], length: int, offset: Optional[int], text: str, items: int = 1) -> None:
        """Take a finding in; see :class:`Finding`. ``items`` counts what it stands for (clusters, tables)."""
        self._severities.add(severity)
        counts = self._counts.get(kind)
        if counts is None:
            counts = self._counts[kind] = {"ranges": 0, "items": 0, "bytes": 0}
        counts["items"] += items
        counts["bytes"] += length
        last = self._last.get(kind)
        if last is not None and start is not None and last.start is not None and last.text == text and last.start + last.length == start:
            merged = last._replace(length=last.length + length)
            if counts["ranges"] <= MOST_FINDINGS:
                self._kept[kind][-1] = merged
        else:
            merged = Finding(kind, severity, start, length, offset, text)
            counts["ranges"] += 1
            if counts["ranges"] <= MOST_FINDINGS:
                self._kept.setdefault(kind, []).append(merged)
        self._last[kind] = merged

    def has(self, severity: str) -> bool:
        """Whether anything of this severity was found."""
        return severity in self._severities

    def listed(self) -> List[Finding]:
        """What was kept: errors first, then warnings, then notes; inside these in the order in which the kinds appeared."""
        rank = {ERROR: 0, WARNING: 1, NOTE: 2}
        return sorted((finding for kept in self._kept.values() for finding in kept), key=lambda finding: rank[finding.severity])

    def counts(self) -> Dict[str, Dict[str, int]]:
        """By kind: ``ranges``, ``items`` and ``bytes`` of everything found, kept or not."""
        return {kind: dict(counts) for kind, counts in self._counts.items()}


class Report(NamedTuple):
    """What the check of one image came to. All sizes in bytes."""

    level: str  # STRUCTURE or CONTENT
    verdict: str  # SOUND, SUSPECT (warnings: convertible as it is) or DAMAGED (errors: refuse)
    findings: List[Finding]  # errors first; a bounded number of each kind
    found: Dict[str, Dict[str, int]]  # by kind: ranges, items (clusters or tables) and bytes of all findings
    file_size: int
    virtual_size: int
    cluster_size: int
    clusters: int  # guest clusters of the disk
    allocated_clusters: int  # stored as they are (or encrypted)
    allocated_bytes: int  # guest bytes in them
    compressed_clusters: int
    compressed_bytes: int  # of the file, as often as they are referred to
    lost_clusters: int  # claimed by a table, but not to be had
    unallocated_clusters: int  # left to the backing file, or zeros
    data_extents: int
    tables: int  # L2 tables
    unaligned_tables: int  # not at a multiple of the cluster size
    unaligned_clusters: int  # at a multiple of 512, but not of the cluster size
    orphan_bytes: int  # of the file, owned by nobody
    l1_byteorder: str

    def as_dict(self) -> Dict[str, Any]:
        """The report as JSON takes it."""
        result = dict(self._asdict())
        result["findings"] = [finding.as_dict() for finding in self.findings]
        return result
