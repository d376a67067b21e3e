# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Text files that name images: configuration of Xen and Proxmox guests, units, scripts. They are read, never written."""

import os
import re
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Set, Tuple

from .._directories import real_path
from .._host.places import Directory, Places
from .._libvirt.option_text import (
    GLUE,
    MOST_READINGS,
    TOKEN,
    WORD,
    Span,
    absolute_starts,
    absolute_words,
    masked,
    parts,
    readings,
    stated,
    stated_around,
)
from .._paths import show
from .text_files import text_files, text_of


class Mention(NamedTuple):
    """A line of a file that names an image."""

    file: bytes
    line: int  # counted from 1
    text: bytes  # the line as it is
    word: bytes  # how it names the image, escapes undone
    format: Optional[str] = None  # that is stated with the name, in small letters: qcow, qcow2 or raw
    links: Tuple[bytes, ...] = ()  # the symbolic links that lead from this name to the image, in their order; not those of directories
    stated_line: int = 0  # where the format is stated, counted from 1
    stated_text: bytes = b""  # that line as it is
    stated_span: Span = (0, 0)  # and where in it

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


Images = Tuple[Tuple[bytes, Tuple[bytes, ...]], ...]
"""Images that a name leads to, each with the symbolic links on the way."""


def mentions(directories: Iterable[bytes], paths: Mapping[bytes, Iterable[bytes]]) -> Search:
    """Which lines below the directories name which of these images.

    A name counts if it leads to the image: in full, through links, relative to the file's directory or to one that the file names, in the escapes of
    shells, XML, JSON, URLs, systemd and QEMU, with a prefix as Xen writes it, and as Proxmox writes volumes (``storage:100/a.qcow``). Symbolic links to
    directories below ``directories`` are not followed; files that hold no text name nothing.

    :param paths: the images, each with further names that are known to lead to it.
    """
    known = _Known(paths)
    search = Search({}, [])
    for file in text_files(directories, search.unread):
        data = text_of(file, search.unread)
        if data and known.may_be_in(data):
            for image, hits in _File(file, data, known).mentions().items():
                search.mentions.setdefault(image, []).extend(hits)
    return search


_ENDS_HEAD = frozenset(b" \t\r\n'\"=,:;|<>()[]`&")
_MOST_TRIES = 64  # of one name in one line
_VARIABLE = re.compile(rb"\$(?:\{\w+[^}]*\}|\w+)/*")
_BELOW_VARIABLE = re.compile(rb"\$(?:\{\w+\}|\w+)/+([^\s'\"=,:;|<>()\[\]{}`&$]+)")
_ASSIGNED = re.compile(rb"(?:^|[\s\"';])([A-Za-z_]\w*)=[\"']?\Z")
_MOST_STARTS = 8


class _Spelling(NamedTuple):
    image: bytes
    name: bytes
    base: bytes
    tail: bytes  # what follows the last token of the base


class _Known:
    """The images by everything that a word can be compared with."""

    def __init__(self, paths: Mapping[bytes, Iterable[bytes]]) -> None:
        self.places = Places(os.path.dirname(real_path(path)) for path in paths)
        self.tokens: Dict[bytes, List[_Spelling]] = {}
        self._keys: Dict[Tuple[int, int, bytes], Images] = {}
        self._words: Dict[bytes, Images] = {}
        self._dull: Set[bytes] = set()  # words that lead to no image
        self._marks: Set[bytes] = set()  # words with which a known name may end
        for path in paths:
            for entry in self.places.entries(path):
                self._keys[entry.key] = self._keys.get(entry.key, ()) + ((path, ()),)
        for path, more in paths.items():
            for name in sorted({path, real_path(path), *more}):
                self._add(path, name)

    def _add(self, image: bytes, name: bytes) -> None:
        base = os.path.basename(name)
        tokens = list(TOKEN.finditer(base))
        if tokens:
            last = tokens[-1]
            self.tokens.setdefault(last.group(), []).append(_Spelling(image, name, base, base[last.end() :]))
            self._marks.update((last.group(), last.group() + b"."))
        entries = self.places.entries(name)
        if entries and entries[0].key not in self._keys:  # a link
            self._keys[entries[0].key] = self.at(name)

    def may_be_in(self, data: bytes) -> bool:
        """Whether it is worth while to look at a text line by line."""
        texts = readings(data)
        if len(texts) >= MOST_READINGS:
            return True
        words: Set[bytes] = set()
        for text in texts:
            words.update(absolute_words(text))
            if self.may_end_in(text):
                return True
        return any(self.parts(word) for word in words - self._dull)

    def may_end_in(self, text: bytes) -> bool:
        """Whether a text has the last word of a known name."""
        return not self._marks.isdisjoint(TOKEN.findall(text))

    def parts(self, word: bytes) -> List[bytes]:
        """What of a word, as it stands in a reading, leads to an image."""
        if word in self._dull:
            return []
        found = [part for part in parts(word) if self.at(part)]
        if not found:
            self._dull.add(word)
        return found

    def at(self, path: bytes) -> Images:
        """The images that an absolute path leads to."""
        if path not in self._words:
            links: Tuple[bytes, ...] = ()
            found: Images = ()
            for entry in self.places.entries(path):
                if entry.key in self._keys:
                    found = tuple((image, links + more) for image, more in self._keys[entry.key])
                    break
                links += (entry.path,)
            self._words[path] = found
        return self._words[path]

    def inside(self, directory: Directory, rest: bytes, base: bytes) -> Images:
        """The images of that name below a directory."""
        place = self.places.directory(os.path.join(directory.path, rest)) if rest else directory
        return self._keys.get((place.dev, place.ino, base), ()) if place is not None else ()


class _Relative(NamedTuple):
    """A known name behind something that does not say in full where it lies."""

    number: int
    word: bytes
    rest: bytes
    base: bytes


class _File:
    """One text, gone through once."""

    def __init__(self, path: bytes, data: bytes, known: _Known) -> None:
        self._path = path
        self._lines = data.split(b"\n")
        self._known = known
        self._found: Dict[bytes, Dict[int, Mention]] = {}
        self._absolute: Set[bytes] = set()
        self._tries: Dict[Tuple[int, bytes], int] = {}
        self._relative: Dict[Tuple[int, bytes, bytes], _Relative] = {}

    def mentions(self) -> Dict[bytes, List[Mention]]:
        """The lines that name each image, in their order."""
        for number, line in enumerate(self._lines):
            for glued in readings(line):
                self._read(number, glued)
        self._resolve_relative()
        for image in list(self._found):
            self._add_variables(image)
        return {image: [hits[number] for number in sorted(hits)] for image, hits in self._found.items()}

    def _read(self, number: int, glued: bytes) -> None:
        text = glued.replace(GLUE, b" ")
        for word in absolute_words(glued):
            self._absolute.add(word)
            for part in self._known.parts(word):
                self._add(number, part, self._known.at(part))
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
                if start >= 0 and text[start:end] == spelling.base and not _continues(text[end : end + 2]):
                    self._read_name(number, glued, text, spelling, start, end)

    def _read_name(self, number: int, glued: bytes, text: bytes, spelling: _Spelling, start: int, end: int) -> None:
        full = end - len(spelling.name)
        if full >= 0 and text[full:end] == spelling.name and not _is_word(text[full - 1 : full] if full else b""):
            known = self._known.at(spelling.name)
            self._add(number, spelling.name, known or ((spelling.image, ()),))
            return
        tries = self._tries[number, spelling.base] = self._tries.get((number, spelling.base), 0) + 1
        if tries > _MOST_TRIES:
            return
        if start and text[start - 1 : start] != b"/" and _is_word(text[start - 1 : start]):
            return
        volume = os.path.join(os.path.basename(os.path.dirname(spelling.name)), spelling.base)
        if text.endswith(b":" + volume, 0, end):
            self._add(number, volume, ((spelling.image, ()),))
        before = max(start - _MOST_SEARCHED, 0)
        for begin in absolute_starts(text[before:start])[-_MOST_STARTS:]:  # with spaces in its directories
            word = text[before + begin : end]
            self._add(number, word, self._known.at(word))
        head = _head(glued[before:start])
        if head is not None and (head or not _is_key(spelling.base, text[end:])):
            word = glued[start - len(head) : end].replace(GLUE, b" ")
            rest = _VARIABLE.sub(b"", head.replace(GLUE, b" "), 1) if head.startswith(b"$") else head.replace(GLUE, b" ")
            if b"$" not in rest:
                self._relative.setdefault((number, rest, spelling.base), _Relative(number, word, rest.lstrip(b"/"), spelling.base))

    def _resolve_relative(self) -> None:
        if not self._relative:
            return
        answers: Dict[Tuple[bytes, bytes], Images] = {}
        places = self._directories()
        for relative in self._relative.values():
            key = (relative.rest, relative.base)
            if key not in answers:
                answers[key] = tuple(hit for place in places for hit in self._known.inside(place, *key))
            self._add(relative.number, relative.word, answers[key])

    def _directories(self) -> List[Directory]:
        """That of the file itself, those that it names, and those that it names by a variable and what is below it."""
        places = self._known.places
        own = places.directory(os.path.dirname(os.path.abspath(self._path)))
        named = [places.directory(part) for word in sorted(self._absolute) for part in parts(word)]
        found = {place: None for place in [own] + named if place is not None}
        below = {rest for line in self._lines for rest in _BELOW_VARIABLE.findall(line)}
        for place in list(found):
            for rest in sorted(below):
                more = places.directory(os.path.join(place.path, rest))
                if more is not None:
                    found[more] = None
        return list(found)

    def _add(self, number: int, word: bytes, images: Images) -> None:
        for image, links in images:
            hits = self._found.setdefault(image, {})
            if number not in hits or (hits[number].links and not links):  # what keeps its name least counts
                hits[number] = self._described(number, word, links)

    def _described(self, number: int, word: bytes, links: Tuple[bytes, ...]) -> Mention:
        line = self._lines[number]
        start = line.find(word)
        span = (start, start + len(word))
        if start < 0:  # it is escaped
            last = TOKEN.findall(word)[-1:]
            span = next((match.span() for match in TOKEN.finditer(line) if match.group() in last), (0, 0))
        place, where = number, stated(line, span)
        if where is None:
            around = stated_around(self._lines, number)
            if around is not None:
                place, where = around
        mention = Mention(self._path, number + 1, line, word, None, links)
        if where is None:
            return mention
        text = self._lines[place]
        return mention._replace(
            format=text[slice(*where)].decode("ascii").lower(), stated_line=place + 1, stated_text=text, stated_span=where
        )

    def _add_variables(self, image: bytes) -> None:
        """The lines that name it by a variable which was set to its name."""
        hits = self._found[image]
        for hit in list(hits.values()):
            assigned = _ASSIGNED.search(hit.text[: max(hit.text.find(hit.word), 0)])
            if assigned is None:
                continue
            used = re.compile(rb"\$(?:" + assigned.group(1) + rb"(?!\w)|\{" + assigned.group(1) + rb"\})")
            for other, line in enumerate(self._lines):
                match = used.search(line)
                if match is not None:
                    hits.setdefault(other, self._described(other, match.group(), hit.links))


def _is_word(character: bytes) -> bool:
    return re.match(rb"[" + WORD + rb"]", character) is not None


def _continues(behind: bytes) -> bool:
    """Whether a name goes on; not at the full stop of a sentence."""
    return _is_word(behind) and not (behind[:1] == b"." and not _is_word(behind[1:]))


def _is_key(base: bytes, behind: bytes) -> bool:
    """Whether a word without a suffix, which may be any word, is the key of something."""
    return b"." not in base and re.match(rb"['\"]?\s*[=:]", behind) is not None


def _head(before: bytes) -> Optional[bytes]:
    """What stands before a name in the same word; ``None`` where that cannot be resolved, or says in full where it lies."""
    at = len(before)
    while at and before[at - 1] not in _ENDS_HEAD:
        at -= 1
    head, behind = before[at:], before[at - 1 : at]
    if behind in (b")", b"`", b"}") and head.startswith(b"/"):
        return head.lstrip(b"/")  # $(command)/name
    if head.startswith(b"/") or head[:1] in (b"~", b"*", b"%") or (head and not head.endswith(b"/")):
        return None
    return head
