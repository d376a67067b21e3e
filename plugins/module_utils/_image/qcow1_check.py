# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The structure check of QCOW v1, which no other tool has: the walk of the extents, keeping a ledger of who owns which bytes of the file.

What makes the guest's bytes unreadable or doubtful is an error. What was left behind by a crash but reads as every reader reads it is a warning.
Cost grows with the tables that are there, memory with nothing: whatever a header or a table claims, at most 64 MiB are used.
"""

import os
import stat
from array import array
from bisect import bisect_left, bisect_right
from itertools import islice
from operator import add, eq
from typing import Any, Dict, Iterator, List, Optional, Tuple

from .._errors import DamagedImage
from . import allocation, producer, qcow1_header
from .extent import COMPRESSED, SECTOR, ZERO, Extent
from .findings import DAMAGED, ERROR, NOTE, SOUND, SUSPECT, WARNING, Findings, Report
from .qcow1 import KIND_STREAM, KIND_TABLE_OUTSIDE, Damage, Qcow1, inflate_stream
from .qcow1_header import CRYPT_AES, HEADER_SIZE
from .raw import next_data

STRUCTURE = "structure"
"""Level: header and tables."""

CONTENT = "content"
"""Level: the same, and every compressed cluster is inflated."""

_FEW_TABLES = 4096
_MOST_TABLES = 1000000
_SPARE = 1 << 18
_AMPLIFIED = 4
_AMPLIFIED_FROM = 64 << 20
_FRONT_UNIT = 4096
_SAMPLES = 16


def check(fd: int, path: bytes, level: str = STRUCTURE) -> Report:
    """Check a QCOW v1 image.

    :param fd: read-only descriptor; stays the caller's.
    :param path: its name, for messages.
    :param level: :data:`STRUCTURE` or :data:`CONTENT`.
    :raises UnsupportedImage: where the file is no QCOW v1 image, or encrypted in an unknown way.
    """
    findings = Findings()
    try:
        return _Check(fd, path, level, findings).run()
    except DamagedImage as error:
        findings.add("header", ERROR, None, 0, 0, error.message)
        values: Dict[str, Any] = dict.fromkeys(Report._fields, 0)
        values.update(level=level, verdict=DAMAGED, findings=findings.listed(), found=findings.counts())
        values.update(file_size=os.lseek(fd, 0, os.SEEK_END), l1_byteorder="big")
        return Report(**values)


class _Check:
    def __init__(self, fd: int, path: bytes, level: str, findings: Findings) -> None:
        self.level = level
        self.findings = findings
        self.image = Qcow1(fd, path, self._damage)
        self.gathered = False
        self.first_pass = True
        self.last_stream: Tuple[int, int, Optional[str], Optional[str]] = (-1, -1, None, None)
        status = os.fstat(fd)
        self.sparse = stat.S_ISREG(status.st_mode) and 512 * status.st_blocks < status.st_size
        self.hole = (0, 0)
        self.owners = allocation.Ledger(self.image.file_size, self.image.header.cluster_bits)
        self.offsets = array("Q")  # of the L2 tables, ascending; with repetitions
        self.room = 0
        self.repeated = False
        self.fixed = self._fixed_areas()
        self.first_table: Optional[Tuple[int, array]] = None
        self.samples: List[int] = []
        self.allocated = self.allocated_bytes = self.compressed = self.compressed_bytes = self.lost = 0
        self.extents = self.tables = self.unaligned_tables = self.unaligned_clusters = self.orphan_bytes = 0

    def _fixed_areas(self) -> List[Tuple[int, int, str]]:
        """``(start, end, name)`` of what lies in the file apart from L2 tables and clusters."""
        image, header = self.image, self.image.header
        areas = [(0, HEADER_SIZE + (image.xen.size if image.xen else 0), "the header")]
        if header.has_backing:
            end = min(header.backing_offset + header.backing_length, image.file_size)
            areas.append((header.backing_offset, end, "the backing file's name"))
        areas.append((header.l1_offset, header.l1_offset + 8 * header.l1_entries, "the L1 table"))
        return areas

    def run(self) -> Report:
        self._look_at_front()
        self._gather_tables()
        while not self.owners.complete:
            self._pass()
            for start, end in self.owners.resolve():
                self._judge_gap(start, end)
            self.first_pass = False
        self._name_clashes()
        self._judge_amplification()
        self._judge_symptoms()
        self._judge_emptiness()
        return self._report()

    def _look_at_front(self) -> None:
        image, header = self.image, self.image.header
        if image.xen is not None and image.l1_order is not None:
            self.findings.add("xen", NOTE, None, 0, qcow1_header.OFFSET, "written by Xen's blktap: " + image.l1_order.text)
            if qcow1_header.checksum_matches(image.fd, image.xen, header.l1_offset, header.l1_entries) is False:
                text = "Xen's checksum of the L1 table does not fit; it is stale after an unclean shutdown"
                self.findings.add("xen-checksum", NOTE, None, 4, qcow1_header.OFFSET + 4, text)
        try:
            image.backing_name  # noqa: B018 - asked for its opinion
        except DamagedImage as error:
            self.findings.add("backing-name", ERROR, None, header.backing_length, header.backing_offset, error.message)

    def _gather_tables(self) -> None:
        """Where the L2 tables are, and whether L1 entries share any. Stops as soon as there are more than the file can hold."""
        image = self.image
        self.room = max(_FEW_TABLES, image.file_size // image.header.l2_size + 1)
        gathered = array("Q")
        count = 0
        for _start, offset in image.l2_tables():
            count += 1
            if count <= _MOST_TABLES:
                gathered.append(offset)
            if count > self.room:
                text = "the L1 table names more L2 tables than the file of {0} bytes can hold".format(image.file_size)
                self.findings.add("amplified", ERROR, 0, image.virtual_size, image.header.l1_offset, text)
                break
        self.gathered = True
        if count > _MOST_TABLES:
            return
        self.offsets = allocation.in_order(gathered)
        self.repeated = any(map(eq, islice(self.offsets, 1, None), self.offsets))

    def _tables(self) -> Iterator[Tuple[int, int, int]]:
        """``(first guest byte, offset, entries that name it)`` of each L2 table once, in guest order.

        No more of them than there is room for in the file, and where they overlap, no more than the file has bytes: a table may
        begin at any byte of another one.
        """
        image = self.image
        left = image.file_size + _SPARE
        seen = bytearray(len(self.offsets) if self.repeated else 0)
        for start, offset in islice(image.l2_tables(), self.room):
            times = 1
            if self.repeated:
                place = bisect_left(self.offsets, offset)
                if place == len(self.offsets) or self.offsets[place] != offset or seen[place]:
                    continue
                seen[place] = 1
                times = bisect_right(self.offsets, offset) - place
            left -= image.header.l2_size
            if left < 0:
                break
            yield start, offset, times

    def _pass(self) -> None:
        """One walk over the whole image; the ledger remembers as much of it as it has room for."""
        for start, end, _name in self.fixed:
            self.owners.tables.add(start, end)
        for start, offset, times in self._tables():
            self._walk_table(start, offset, times)
            self.owners.end_batch()

    def _walk_table(self, start: int, offset: int, times: int) -> None:
        image = self.image
        end = min(offset + image.header.l2_size, image.file_size)
        if self.first_pass:
            self.tables += 1
            self.unaligned_tables += offset % image.cluster_size != 0
            if times > 1:
                length = min(image.header.l2_coverage, image.virtual_size - start)
                text = "{0} L1 entries share the L2 table at byte {1}".format(times, offset)
                self.findings.add("cross-linked", WARNING, start, length, offset, text, times)
        if self._in_hole(offset, end):
            self.owners.tables.add(offset, end)
            self._note_table(
                "hole", WARNING, start, offset, "the L2 table lies in a hole of the file: it reads as empty, and may have been lost"
            )
            return
        entries = image.read_l2(start, offset)
        self.owners.tables.add(offset, offset + 8 * len(entries))
        self.owners.padding.add(offset + 8 * len(entries), end)
        if self.first_pass and start == 0:
            self.first_table = offset, entries
        if any(entries):
            self._own_clusters(start, entries, times)
        else:
            self._note_table("empty-table", NOTE, start, offset, "the L2 table is empty; no known program writes one")

    def _note_table(self, kind: str, severity: str, start: int, offset: int, text: str) -> None:
        if self.first_pass:
            length = min(self.image.header.l2_coverage, self.image.virtual_size - start)
            self.findings.add(kind, severity, start, length, offset, text)

    def _in_hole(self, offset: int, end: int) -> bool:
        if not self.sparse:
            return False
        if not self.hole[0] <= offset < end <= self.hole[1]:
            data_at = next_data(self.image.fd, offset)
            self.hole = (offset, self.image.file_size if data_at is None else data_at)
        return end <= self.hole[1]

    def _own_clusters(self, start: int, entries: array, times: int) -> None:
        """Enter the clusters of one table: as they are where they lie scattered and nothing is special about them, else extent by extent."""
        image = self.image
        inside = start + len(entries) * image.cluster_size <= image.virtual_size
        streams = image.only_streams(entries) if self.level != CONTENT and image.header.crypt_method != CRYPT_AES else None
        if streams is not None:
            self.owners.streams.starts.extend(streams[0])
            self.owners.streams.ends.extend(map(add, *streams))
            if self.first_pass:
                self.compressed += len(entries) * times
                self.compressed_bytes += sum(streams[1]) * times
        elif image.in_order(entries) or not (inside and image.only_whole_clusters(entries) and self.owners.has_marks_for(max(entries))):
            self._own_extents(start, entries, times)
        elif self.first_pass:
            self.extents += self.owners.mark(entries) * times
            clusters = len(entries) - entries.count(0)
            self.allocated += clusters * times
            self.allocated_bytes += clusters * image.cluster_size * times
            if len(self.samples) < _SAMPLES:
                self.samples.append(next(filter(None, entries)))

    def _own_extents(self, start: int, entries: array, times: int) -> None:
        cluster = self.image.cluster_size
        bits, mask = self.image.header.cluster_bits, cluster - 1
        first_pass = self.first_pass
        owners = self.owners
        marks, many = owners.marks, len(owners.marks)
        clusters = guest = extents = unaligned = 0
        for extent in self.image.table_extents(start, entries):
            _start, length, kind, _layer, offset, stored, _skip = extent
            if kind == COMPRESSED:
                owners.streams.add(offset, offset + stored)
                if first_pass:
                    self._judge_stream(extent, times)
            elif kind != ZERO:
                place = offset >> bits
                if length == cluster and place < many and not offset & mask:
                    if first_pass and marks[place] < 2:
                        marks[place] += 1
                    clusters += 1
                else:
                    owners.data.add(offset, offset + stored)
                    whole = -(-length // cluster)
                    clusters += whole
                    if length & mask:
                        owners.padding.add(offset + stored, min(offset + whole * cluster, self.image.file_size))
                    if offset & mask:
                        unaligned += whole
                extents += 1
                guest += length
                if len(self.samples) < _SAMPLES and extents == 1:
                    self.samples.append(offset)
        if first_pass:
            self.allocated += clusters * times
            self.allocated_bytes += guest * times
            self.unaligned_clusters += unaligned * times
            self.extents += extents * times

    def _judge_stream(self, extent: Extent, times: int) -> None:
        self.compressed += times
        self.compressed_bytes += extent.stored * times
        if self.image.header.crypt_method == CRYPT_AES:
            text = "a compressed cluster in an encrypted image is not encrypted; no writer makes such an image on purpose"
            self.findings.add("compressed-in-encrypted", WARNING, extent.start, extent.length, extent.offset, text)
        if self.level == CONTENT:
            if (extent.offset, extent.stored) != self.last_stream[:2]:  # many clusters may share one
                stream = os.pread(self.image.fd, extent.stored, extent.offset)
                _data, error, oddity = inflate_stream(stream, self.image.cluster_size)
                self.last_stream = (extent.offset, extent.stored, error, oddity)
            error, oddity = self.last_stream[2:]
            if error is not None:
                self._damage(Damage(extent.start, extent.length, extent.offset, "the compressed cluster " + error, KIND_STREAM))
            elif oddity is not None:
                self.findings.add("stream-oddity", NOTE, extent.start, extent.length, extent.offset, "the compressed cluster " + oddity)

    def _damage(self, damage: Damage) -> None:
        """Everything is reported the first time it is seen; tables outside the file are seen before the first pass."""
        if self.first_pass and not (self.gathered and damage.kind == KIND_TABLE_OUTSIDE):
            clusters = -(-damage.length // self.image.cluster_size)
            self.lost += clusters
            self.findings.add(damage.kind, ERROR, damage.start, damage.length, damage.offset, damage.what, clusters)

    def _judge_gap(self, start: int, end: int) -> None:
        """Bytes of the file that nobody owns are a leak, unless they are what a writer left to begin at a round place."""
        cluster = self.image.cluster_size
        size = end - start
        unit = max(cluster, _FRONT_UNIT)
        if any(start == area[1] for area in self.fixed):  # Xen, VirtualBox and mkimg leave room behind header and L1 table
            padding = size < 2 * unit
        elif end == self.image.file_size:
            padding = size < unit
        else:
            padding = (size < cluster and end % cluster == 0) or (size < SECTOR and end % SECTOR == 0)
        if not padding:
            self.orphan_bytes += size
            self.findings.add("orphan", NOTE, None, size, start, "bytes of the file that nothing refers to: a leak", -(-size // cluster))

    def _name_clashes(self) -> None:
        """Walk once more to say which guest bytes the ranges with two owners belong to."""
        overlaps, links = self.owners.overlaps, self.owners.links
        if not overlaps.total and not links.total:
            return
        for start, end in allocation.pairs(overlaps.ranges()):
            names = [name for first, last, name in self.fixed if first < end and last > start]
            text = "the same bytes belong to the header or a table, and to something else: " + (", ".join(names) or "an L2 table")
            self.findings.add("metadata-overlap", ERROR, None, end - start, start, text)
        for start, offset, _times in self._tables():
            for extent in self.image.table_extents(start, self.image.read_l2(start, offset)):
                if extent.kind != ZERO:
                    self._name_clash(extent, overlaps, "metadata-overlap", ERROR, "the cluster lies on the header or a table")
                    self._name_clash(extent, links, "cross-linked", WARNING, "the cluster shares bytes of the file with another one")

    def _name_clash(self, extent: Extent, clashes: allocation.Clashes, kind: str, severity: str, text: str) -> None:
        starts, ends = clashes.ranges()
        place = bisect_right(ends, extent.offset)
        while place < len(starts) and starts[place] < extent.offset + extent.stored:
            if extent.kind == COMPRESSED:
                self.findings.add(kind, severity, extent.start, extent.length, extent.offset, text)
                return
            first = max(starts[place], extent.offset)
            length = min(ends[place], extent.offset + extent.stored) - first
            items = -(-length // self.image.cluster_size)
            self.findings.add(kind, severity, extent.start + first - extent.offset, length, first, text, items)
            place += 1

    def _judge_amplification(self) -> None:
        """A disk that refers to the same bytes again and again is a bomb: kilobytes that become terabytes."""
        claimed, size = self.allocated_bytes + self.compressed_bytes, self.image.file_size
        if claimed > max(_AMPLIFIED * size, _AMPLIFIED_FROM):
            text = "the tables refer to {0} bytes of a file of {1}: to the same ones again and again".format(claimed, size)
            self.findings.add("amplified", ERROR, 0, self.image.virtual_size, None, text)

    def _judge_emptiness(self) -> None:
        if self.orphan_bytes >= self.image.cluster_size and not self.allocated and not self.compressed and not self.lost:
            text = "nothing is allocated, but the file holds {0} bytes nothing refers to: a table may have been lost".format(
                self.orphan_bytes
            )
            self.findings.add("lost-tables", WARNING, 0, self.image.virtual_size, self.image.header.l1_offset, text)

    def _judge_symptoms(self) -> None:
        """Damage that reads without complaint, but bears the mark of a known bug."""
        found = [producer.unflagged_compression(self.image, self.samples)]
        if self.first_table is not None:
            orphans = [finding for finding in self.findings.listed() if finding.kind == "orphan"]
            found.append(producer.virtualbox_overwrite(self.image.header, self.first_table[0], self.first_table[1], orphans))
        for finding in found:
            if finding is not None:
                self.findings.add(*finding)

    def _report(self) -> Report:
        image, found = self.image, self.findings
        clusters = -(-image.virtual_size // image.cluster_size)
        verdict = DAMAGED if found.has(ERROR) else SUSPECT if found.has(WARNING) else SOUND
        return Report(
            level=self.level,
            verdict=verdict,
            findings=found.listed(),
            found=found.counts(),
            file_size=image.file_size,
            virtual_size=image.virtual_size,
            cluster_size=image.cluster_size,
            clusters=clusters,
            allocated_clusters=self.allocated,
            allocated_bytes=self.allocated_bytes,
            compressed_clusters=self.compressed,
            compressed_bytes=self.compressed_bytes,
            lost_clusters=self.lost,
            unallocated_clusters=max(0, clusters - self.allocated - self.compressed - self.lost),
            data_extents=self.extents,
            tables=self.tables,
            unaligned_tables=self.unaligned_tables,
            unaligned_clusters=self.unaligned_clusters,
            orphan_bytes=self.orphan_bytes,
            l1_byteorder=image.l1_byteorder,
        )
