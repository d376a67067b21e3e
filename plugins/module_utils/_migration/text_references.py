# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text files that name images: configuration of Xen and Proxmox guests, units, scripts. They are read, never written."""

import bisect
import os
import re
from typing import Container, Dict, Iterable, List, Mapping, NamedTuple, Optional, Set, Tuple

from .._host.places import Directory
from .._libvirt.option_text import GLUE, TOKEN, WORD, absolute_starts, absolute_words, masked, occurrences, parts, readings
from .._paths import show
from .known_names import Images, KnownNames, Place, Spelling
from .stated_formats import Formats, Stated
from .text_files import text_files, text_of


class Mention(NamedTuple):
    """A line of a file that names an image."""

    file: bytes
    line: int  # counted from 1
    text: bytes  # the line as it is
    word: bytes  # how it names the image, escapes undone
    links: Tuple[bytes, ...] = ()  # the symbolic links that lead from this name to the image, in their order; not those of directories
    stated: Tuple[Stated, ...] = ()  # the formats that may be meant for it, qcow first
    more: Tuple[bytes, ...] = ()  # further words of the line that name the image

    @property
    def format(self) -> Optional[str]:
        """The format that is stated with the name, in small letters: qcow, qcow2 or raw."""
        return self.stated[0].format if self.stated else None

    @property
    def is_volume(self) -> bool:
        """Whether it may be a volume of Proxmox's."""
        return any(
            self.text[start - 1 : start] == b":"
            for word in (self.word, *self.more)
            if word[:1] != b"/"
            for start, _end in occurrences(self.text, word)
        )

    @property
    def shown(self) -> str:
        """The line for people to see."""
        return shown_line(self.text, self.word)


class Search(NamedTuple):
    """What was found, and which files and directories are there and were not searched, with the reason for each."""

    mentions: Dict[bytes, List[Mention]]
    unread: List[Tuple[bytes, str]]


_MOST_SHOWN = 300
_MOST_SEARCHED = 4096  # of a line, before a name


def shown_line(text: bytes, word: bytes) -> str:
    """A line for people to see: passwords masked, and of a very long one what stands around a word."""
    around = max(text.find(word), 0)
    text = masked(text[max(around - _MOST_SEARCHED, 0) : around + _MOST_SEARCHED]).strip()
    if len(text) > _MOST_SHOWN:
        start = max(text.find(word) - _MOST_SHOWN // 3, 0)
        end = start + _MOST_SHOWN
        text = (b"..." if start else b"") + text[start:end] + (b"..." if end < len(text) else b"")
    return show(text)


def mentions(directories: Iterable[bytes], paths: Mapping[bytes, Iterable[bytes]]) -> Search:
    """Which lines below the directories name which of these images.

    A name counts if it leads to the image: in full, through links, relative to the file's directory or to one that the file names, in the escapes of
    shells, XML, JSON, URLs, systemd and QEMU, with a prefix as Xen writes it, and as Proxmox writes volumes (``storage:100/a.qcow``). Symbolic links to
    directories below ``directories`` are not followed; files that hold no text name nothing.

    :param paths: the images, each with further names that are known to lead to it.
    """
    known = KnownNames(paths)
    search = Search({}, [])
    for file in text_files(directories, search.unread):
        data = text_of(file, search.unread)
        if data and known.may_be_in(data):
            text = _File(file, data, known)
            for image, hits in text.mentions().items():
                search.mentions.setdefault(image, []).extend(hits)
            if text.overfull:
                search.unread.append((file, "it has too many names to follow them all"))
    return search


_ENDS_HEAD = frozenset(b" \t\r\n'\"=,:;|<>()[]`&")
_MOST_TRIES = 64  # of one name in one line
_VARIABLE = re.compile(rb"\$(?:\{\w+[^}]*\}|\w+)/*")
_BELOW_VARIABLE = re.compile(rb"\$(?:\{\w+\}|\w+)/+([^\s'\"=,:;|<>()\[\]{}`&$]+)")
_USED = re.compile(rb"\$[{(]?([A-Za-z_]\w*)|\{\{-?\s*([A-Za-z_]\w*)")
_ASSIGNED = re.compile(rb"(?<![\w.])([A-Za-z_]\w*)(?:[\"']?:?[=-]|[\"']?\s*(?:[:?+]?=|:)\s*[\"']?\Z|\s+in\s)")
_MOST_BEFORE = 256  # bytes, for what a name is assigned to
_FEW = 8
_MOST_KEPT = 200  # lines of a file that name an image in the same way and state the same format, or none
_MOST_STEPS = 100000  # of a file
_MOST_STARTS = 8
_VOLUME = re.compile(rb":(?:\d+/[^\s:/,]+/)?([^\s:/,]+)/\Z")  # the last directory of one of Proxmox's, of a linked clone too
_CLONE = re.compile(rb"/\d+/[^\s:/,]")
_WITH_SPACES = re.compile(rb"'(/[^'\n]*)'|\"(/[^\"\n]*)\"|[=:][ \t]*(/[^'\"\n]*)\Z")
_OF_FILES = re.compile(
    rb"(?:(?:file|path|image|img|disk|source|hd[a-d]|drive|filename|vdi|location|target)[\"']?\s*[=:]\s*[\"']?|\s-hd[a-d]\s+|"
    rb"\b(?:qemu|kvm|xl|cp|mv|rm)\b[^;&|]*\s|\bcd\s[^;&|]*[;&|].*)\Z",
    re.IGNORECASE,
)


class _Relative(NamedTuple):
    """A known name behind something that does not say in full where it lies."""

    number: int
    word: bytes
    rest: bytes
    base: bytes


Named = Dict[Place, Tuple[Directory, Set[int]]]
"""Directories, each with the lines that name it."""

_OWN = -1  # instead of a line: the directory of the file


class _File:
    """One text, gone through once."""

    def __init__(self, path: bytes, data: bytes, known: KnownNames) -> None:
        self._path = path
        self._lines = data.split(b"\n")
        self._known = known
        self._formats = Formats(self._lines)
        self._found: Dict[bytes, Dict[int, Mention]] = {}
        self._kept: Dict[Tuple[bytes, Optional[str], Tuple[bytes, ...], bytes], int] = {}
        self._described: Dict[Tuple[int, bytes], Tuple[Stated, ...]] = {}
        self._absolute: Dict[bytes, List[int]] = {}  # and the lines where they stand
        self._tries: Dict[Tuple[int, bytes], int] = {}
        self._relative: Dict[Tuple[int, bytes, bytes], _Relative] = {}
        self._steps = 0

    @property
    def overfull(self) -> bool:
        """Whether there was more to follow than is followed."""
        return self._steps > _MOST_STEPS

    def mentions(self) -> Dict[bytes, List[Mention]]:
        """The lines that name each image, in their order; of very many, those that state a format and the first of the others."""
        for number, line in enumerate(self._lines):
            for glued in readings(line):
                self._read(number, glued)
        self._resolve_relative()
        self._follow_variables()
        return {image: [hits[number] for number in sorted(hits)] for image, hits in self._found.items()}

    def _step(self) -> bool:
        self._steps += 1
        return self._steps <= _MOST_STEPS

    def _read(self, number: int, glued: bytes) -> None:
        text = glued.replace(GLUE, b" ")
        for word in absolute_words(glued):
            self._absolute.setdefault(word, []).append(number)
            for part in self._known.parts(word):
                self._add(number, part, self._known.at(part))
        for match in _WITH_SPACES.finditer(text):
            self._absolute.setdefault(next(filter(None, match.groups())), []).append(number)
        if not self._known.may_end_in(text):
            return
        for match in TOKEN.finditer(text):
            token = match.group()
            spellings = self._known.tokens.get(token)
            if spellings is None and token.endswith(b"."):
                token = token[:-1]
                spellings = self._known.tokens.get(token)
            for spelling in spellings or ():
                end = match.start() + len(token) + len(spelling.tail)
                start = end - len(spelling.base)
                if start < 0 or text[start:end] != spelling.base:
                    continue
                if not _continues(text[end : end + 2]):
                    self._read_name(number, glued, text, spelling, start, end)
                elif _CLONE.match(text, end):
                    self._read_volume(number, text, spelling, start)

    def _read_name(self, number: int, glued: bytes, text: bytes, spelling: Spelling, start: int, end: int) -> None:
        for length in spelling.lengths:
            image = spelling.names.get(text[max(end - length, 0) : end])
            if image is not None and _begins(text, end - length):
                name = text[end - length : end]
                self._add(number, name, self._known.at(name) or ((image, ()),))
                return
        self._read_volume(number, text, spelling, start)
        tries = self._tries[number, spelling.base] = self._tries.get((number, spelling.base), 0) + 1
        if tries > _MOST_TRIES:
            return
        if start and text[start - 1 : start] != b"/" and _is_word(text[start - 1 : start]):
            return
        before = max(start - _MOST_SEARCHED, 0)
        for begin in absolute_starts(text[before:start])[-_MOST_STARTS:]:  # with spaces in its directories
            word = text[before + begin : end]
            self._add(number, word, self._known.at(word))
        head = _head(glued[before:start])
        if head is not None and (head or b"." in spelling.base or _OF_FILES.search(text[max(start - _MOST_BEFORE, 0) : start])):
            word = glued[start - len(head) : end].replace(GLUE, b" ")
            rest = _VARIABLE.sub(b"", head.replace(GLUE, b" "), 1) if head.startswith(b"$") else head.replace(GLUE, b" ")
            if b"$" not in rest or head.startswith(b"$"):
                self._relative.setdefault((number, rest, spelling.base), _Relative(number, word, rest.lstrip(b"/"), spelling.base))

    def _read_volume(self, number: int, text: bytes, spelling: Spelling, start: int) -> None:
        volume = _VOLUME.search(text[max(start - _MOST_BEFORE, 0) : start])
        images = spelling.volumes.get(volume.group(1), ()) if volume is not None else ()
        self._add(number, b"%s/%s" % (volume.group(1) if volume else b"", spelling.base), images)

    def _resolve_relative(self) -> None:
        if not self._relative:
            return
        named = self._directories()
        below = {b"": named}
        above = {directory.path for directory, _numbers in named.values()}
        answers: Dict[Tuple[bytes, bytes], List[Tuple[int, Images]]] = {}
        for relative in self._relative.values():
            rest, base = key = (relative.rest, relative.base)
            if relative.word.startswith(b"$"):
                key = (b"$", base)
                if key not in answers:
                    answers[key] = sorted(
                        {(0, images) for place, images in self._known.homes(base).items() if self._is_below(place, above)}
                    )
                for images in _nearest(answers[key], relative):
                    self._add(relative.number, relative.word, images)
                if b"$" in rest:
                    continue
                key = (rest, base)
            if rest not in below:
                below[rest] = self._below(named, rest)
            if key not in answers:
                homes = {place: images for place, images in self._known.homes(base).items() if place in below[rest]}
                answers[key] = sorted(
                    {(number, images) for place, images in homes.items() for number in below[rest][place][1] if number < 0 or self._step()}
                )
            for images in _nearest(answers[key], relative):
                self._add(relative.number, relative.word, images)

    def _is_below(self, place: Place, named: Container[bytes]) -> bool:
        """Whether a directory lies in one that is named, which a variable may hold."""
        path = self._known.paths[place]
        while path not in (b"/", b""):
            if path in named:
                return True
            path = os.path.dirname(path)
        return False

    def _directories(self) -> Named:
        """That of the file itself, those that it names, and those that it names by a variable and what is below it, each with the lines that do."""
        places = self._known.places
        own = places.directory(os.path.dirname(os.path.abspath(self._path)))
        found: Named = {} if own is None else {(own.dev, own.ino): (own, {_OWN})}
        for word, numbers in self._absolute.items():
            for part in parts(word):
                place = places.directory(part)
                if place is not None:
                    found.setdefault((place.dev, place.ino), (place, set()))[1].update(numbers)
        named = dict(found)
        for rest in sorted({rest for line in self._lines for rest in _BELOW_VARIABLE.findall(line)}):
            for key, (place, lines) in self._below(named, rest).items():
                found.setdefault(key, (place, set()))[1].update(lines)
        return found

    def _below(self, named: Named, rest: bytes) -> Named:
        found: Named = {}
        for directory, numbers in named.values():
            if not self._step():
                break
            place = self._known.places.directory(os.path.join(directory.path, rest))
            if place is not None:
                found.setdefault((place.dev, place.ino), (place, set()))[1].update(numbers)
        return found

    def _add(self, number: int, word: bytes, images: Images) -> None:
        word = word.rstrip(b"/")
        for image, links in images:
            if not self._step():
                return
            hits = self._found.setdefault(image, {})
            old = hits.get(number)
            if old is not None and (word == old.word or word in old.more) and (links or not old.links):
                continue
            hit = Mention(self._path, number + 1, self._lines[number], word, links, self._stated(number, word))
            if old is None:
                kind = (image, hit.format, links, word[:1])
                self._kept[kind] = self._kept.get(kind, 0) + 1
                if self._kept[kind] <= _MOST_KEPT:
                    hits[number] = hit
                continue
            if old.links and not links:
                old, hit = hit, old  # what keeps its name least counts
            stated = sorted({*old.stated, *hit.stated}, key=lambda one: (one.format != "qcow", one))
            hits[number] = old._replace(stated=tuple(stated), more=tuple(sorted({*old.more, *hit.more, hit.word} - {old.word}))[:_FEW])

    def _stated(self, number: int, word: bytes) -> Tuple[Stated, ...]:
        key = (number, word)
        if key not in self._described:
            line = self._lines[number]
            spans = occurrences(line, word)
            if not spans:  # it is escaped
                last = TOKEN.findall(word)[-1:]
                spans = [match.span() for match in TOKEN.finditer(line) if match.group() in last][:1]
            self._described[key] = self._formats.of(number, spans or [(0, 0)])
        return self._described[key]

    def _follow_variables(self) -> None:
        """The lines that name an image by a variable which was set to its name, or to another such variable."""
        pending = [
            (name, ((image, hit.links),))
            for image, hits in self._found.items()
            for hit in hits.values()
            for name in _assigned(hit.text, hit.text.find(hit.word))
        ]
        if not pending:
            return
        used: Dict[bytes, List[Tuple[int, bytes, int]]] = {}
        for number, line in enumerate(self._lines):
            for match in _USED.finditer(line):
                used.setdefault(match.group(1) or match.group(2), []).append((number, match.group(), match.start()))
        seen = set(pending)
        while pending:
            name, images = pending.pop()
            for number, word, start in used.get(name, ()):
                self._add(number, word, images)
                if self.overfull:
                    return
                for other in _assigned(self._lines[number], start):
                    if other in used and (other, images) not in seen:
                        seen.add((other, images))
                        pending.append((other, images))


def _assigned(line: bytes, start: int) -> Set[bytes]:
    """What may be variables that are set to what begins at ``start``."""
    return set(_ASSIGNED.findall(line[max(start - _MOST_BEFORE, 0) : max(start, 0)]))


def _nearest(found: List[Tuple[int, Images]], relative: _Relative) -> List[Images]:
    """Of images in many directories, those in the directories that are named next before and behind, unless a variable says which."""
    if len({images for _number, images in found}) > _FEW and not relative.word.startswith(b"$"):
        at = bisect.bisect_right(found, (relative.number + 1,))
        same = bisect.bisect_left(found, (relative.number,))
        found = [one for one in found[:_FEW] if one[0] == _OWN] + found[max(min(at - 1, same), 0) : at + 1]
    return [images for _number, images in found]


def _begins(text: bytes, start: int) -> bool:
    """Whether an absolute path may begin here; behind an option (``-f/a``, ``:-/a``) it may."""
    before = text[max(start - 3, 0) : start]
    return before[-1:] == b"-" or not _is_word(before[-1:]) or re.match(rb"[\s\0'\"]-[A-Za-z]\Z", before) is not None


def _is_word(character: bytes) -> bool:
    return re.match(rb"[" + WORD + rb"]", character) is not None


def _continues(behind: bytes) -> bool:
    """Whether a name goes on; not at the full stop of a sentence."""
    return _is_word(behind) and not (behind[:1] == b"." and not _is_word(behind[1:]))


_DEFAULT = re.compile(rb"^\$\{\w+[=+?-]")


def _head(before: bytes) -> Optional[bytes]:
    """What stands before a name in the same word; ``None`` where that cannot be resolved, or says in full where it lies."""
    at = len(before)
    while at and before[at - 1] not in _ENDS_HEAD:
        at -= 1
    head, behind = before[at:], before[at - 1 : at]
    if behind in (b":", b"=") and head[:1] in (b"-", b"+", b"?"):
        head = head[1:]  # ${NAME:-directory/name}
    head = _DEFAULT.sub(b"", head)
    if behind in (b")", b"`", b"}") and head.startswith(b"/"):
        return head.lstrip(b"/")  # $(command)/name
    if head.startswith(b"/") or head[:1] in (b"~", b"*", b"%") or (head and not head.endswith(b"/")):
        return None
    return head
