# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lines of configuration and scripts as what reads them sees them, and what they say beside the name of an image. Pure."""

import os
import re
from typing import Callable, Iterator, List, Match, Optional, Pattern, Tuple

WORD = rb"A-Za-z0-9_./\x80-\xff-"
"""What makes a name another name where it stands before or behind it; the inside of a character class."""

GLUE = b"\0"
"""Stands for a space that does not end a word: it was quoted or escaped."""

MOST_READINGS = 16

# One backslash decoder for shell, JSON, YAML, C and systemd: where they differ, the sequences mean nothing to the others.
_BACKSLASH = re.compile(rb"(?:\\u[0-9A-Fa-f]{4})+|\\(?:x[0-9A-Fa-f]{2}|[0-7]{3}|.)", re.DOTALL)
_ENTITY = re.compile(rb"&(?:#(?:[xX]([0-9A-Fa-f]{1,6})|([0-9]{1,7}))|(amp|lt|gt|quot|apos));")
_NAMED = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_QUOTED = re.compile(rb"'([^'\n]*)'|\"([^\"\n]*)\"|>([^<>\n]*)(?=<)")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_FILE_URL = re.compile(rb"\bfile:(?://(?:localhost)?)?(?=/)", re.IGNORECASE)


def _unescaped(match: Match[bytes]) -> bytes:
    text = match.group()
    if text.startswith(b"\\u") and len(text) > 2:
        units = bytes.fromhex(text.replace(b"\\u", b"").decode("ascii"))
        return _printable(units.decode("utf-16-be", "surrogatepass").encode("utf-8", "surrogatepass"))
    if text.startswith(b"\\x") and len(text) == 4:
        return _glued(_printable(bytes([int(text[2:], 16)])))
    if len(text) == 4:
        return _glued(_printable(bytes([int(text[1:], 8) & 0xFF])))
    return {b"\\ ": GLUE, b"\\n": b" ", b"\\t": b" ", b"\\r": b" "}.get(text, text[1:])


def _printable(text: bytes) -> bytes:
    return b" " if text in (b"\n", b"\0", b"\r") else text


def _glued(text: bytes) -> bytes:
    return text.replace(b" ", GLUE)


def _character(match: Match[bytes]) -> bytes:
    if match.group(3):
        return _NAMED[match.group(3)]
    number = int(match.group(1), 16) if match.group(1) else int(match.group(2))
    return _printable(chr(number).encode("utf-8", "surrogatepass")) if number < 0x110000 else b"?"


def _unquoted(match: Match[bytes]) -> bytes:
    if match.group(3) is not None:
        return b">" + _glued(match.group(3))
    return _glued(match.group(1) if match.group(1) is not None else match.group(2))


_DECODERS: Tuple[Tuple[Pattern[bytes], Callable[[bytes], bytes]], ...] = (
    (re.compile(rb"&"), lambda text: _ENTITY.sub(_character, text)),  # XML
    (re.compile(rb"\\"), lambda text: _BACKSLASH.sub(_unescaped, text)),
    (re.compile(rb"['\"]|>[^<>\n]*<"), lambda text: _QUOTED.sub(_unquoted, text)),
    (re.compile(rb"%|file:", re.IGNORECASE), lambda text: _FILE_URL.sub(b" ", _PERCENT.sub(_byte, text))),
    (re.compile(rb"%%"), lambda text: text.replace(b"%%", b"%")),  # systemd
    (re.compile(rb",,"), lambda text: text.replace(b",,", b",")),  # QEMU
)
_CODED = re.compile(rb"[&\\'\"%]|,,|file:|>[^<>\n]*<", re.IGNORECASE)


def _byte(match: Match[bytes]) -> bytes:
    return _glued(_printable(bytes([int(match.group(1), 16)])))


def readings(line: bytes) -> List[bytes]:
    """A line, or several, as they stand, and with the escapes of what may read them undone, one kind after the other; some hold :data:`GLUE`.

    They are as many lines as before. Where there are :data:`MOST_READINGS` or more, some are missing.
    """
    found = [line]
    if _CODED.search(line) is None:
        return found
    for trigger, decode in _DECODERS:
        for text in found[:MOST_READINGS]:
            if trigger.search(text) is not None:
                decoded = decode(text)
                if decoded not in found:
                    found.append(decoded)
    return found


TOKEN = re.compile(rb"[" + WORD.replace(b"/", b"") + rb"]+")
"""What the parts of a name are made of, unless they are unusual."""

# No path that a program is given begins behind the end of a variable, of a substitution or of a pattern. No two of these words share a byte.
_ABSOLUTE = re.compile(rb"(?:^|(?<=[\s\0'\"<>|;(\[{,:=&#@!]))(/(?:[^\s'\"<>|;()\[\]{}`$*?,:=&#@!]|[,:=&#@!](?!/))*)", re.MULTILINE)
_CUT = re.compile(rb"[,:=&#@\\]")
_MOST_CUTS = 8


def absolute_starts(text: bytes) -> List[int]:
    """Where absolute paths may begin."""
    return [match.start() for match in _ABSOLUTE.finditer(text)]


def absolute_words(text: bytes) -> List[bytes]:
    """The words of a reading that begin like absolute paths, for :func:`parts`."""
    return _ABSOLUTE.findall(text)


def parts(word: bytes) -> Iterator[bytes]:
    """What may be a path in a word: all of it, and what stands before something that may separate options."""
    word = word.replace(GLUE, b" ")
    yield word.rstrip(b".,:;=")
    for number, cut in enumerate(_CUT.finditer(word)):
        if number == _MOST_CUTS:
            break
        yield word[: cut.start()]


def renamed(text: bytes, word: bytes, src: bytes, dest: bytes) -> Optional[bytes]:
    """A text with the result's name where ``word`` names the image; ``None`` where the word stands there in escapes that cannot be imitated.

    :param src: the image's path. :param dest: the result's.
    """
    old, new = os.path.basename(src), os.path.basename(dest)
    beside = os.path.dirname(src) == os.path.dirname(dest)
    if word.startswith(b"$") and not word.endswith(old):
        return text  # a variable that is set elsewhere
    if word in text:
        return _replaced(text, word, word[: -len(old)] + new if beside and word.endswith(old) else dest)
    tokens = TOKEN.findall(old)
    if beside and tokens and word.endswith(old) and old.endswith(tokens[-1]) and new.startswith(old[: -len(tokens[-1])]):
        changed = _replaced(text, tokens[-1], new[len(old) - len(tokens[-1]) :])
        return changed if changed != text else None
    return None


def _replaced(text: bytes, word: bytes, new: bytes) -> bytes:
    return re.sub(rb"(?<![" + WORD.replace(b"/", b"") + rb"])" + re.escape(word) + rb"(?![" + WORD + rb"])", lambda _match: new, text)


# Of QCOW any word of its own counts, because nothing else is called so; "raw" is a word of every language, and needs its key.
_STATED = re.compile(
    rb"(?<![\w./-])(?<!-O )(?:(qcow2?)(?![\w./=-])|-{0,2}(?:\w*format|\w*fmt|driver|type|f|F)['\"\]]*(?:\s*[=:>]\s*|\s+)['\"]?(raw)(?![\w./=-])|"
    rb"(raw):(?=/))",
    re.IGNORECASE,
)
_KEYED = re.compile(
    rb"^\s*(?:[{-]?\s*['\"]?\w*(?:format|fmt|driver|type)\w*['\"]?\s*[=:]\s*|<(?:driver|format)\s(?:[^<>]*\s)?type\s*=\s*)['\"]?(?:qcow2?|raw)\b[^<]*$",
    re.IGNORECASE,
)
_QUOTES = re.compile(rb"'[^']*'|\"[^\"]*\"")
_PIECE = re.compile(rb"\S+")
_PATH = re.compile(rb"(?<!<)/[\w.]")

_AROUND = 2048  # bytes: lines without end are data

Span = Tuple[int, int]


def span_of(line: bytes, name: bytes) -> Span:
    """Where a name stands in a line; where it is spelled otherwise, where the first path begins."""
    for part in (name, b"/"):
        start = line.find(part)
        if start >= 0:
            return start, start + len(part)
    return 0, 0


def stated(line: bytes, name: Span) -> Optional[Span]:
    """Where a line states the format of the image that it names at ``name``: in the same word, in the same quotes, or outside what names other
    files. The nearest one counts.
    """
    start, end = name
    if len(line) > 3 * _AROUND + end - start:
        left = max(start - _AROUND, 0)
        near = stated(line[left : end + _AROUND], (start - left, end - left))
        return None if near is None else (left + near[0], left + near[1])
    text = line[:start] + b"/" * (end - start) + line[end:]
    quotes = [match.span() for match in _QUOTES.finditer(text)]
    around = [span for span in quotes if span[0] < start < span[1]]
    words = [match.span() for match in _PIECE.finditer(text)]
    for group in [span for span in words if span[0] <= start < span[1]] + around:
        found = _inside(text, group)
        if found:
            return _nearest(found, name)
    others = [span for span in words + quotes if span not in around and _PATH.search(text, *span)]
    for span in others:
        text = text[: span[0]] + b"/" * (span[1] - span[0]) + text[span[1] :]
    found = _inside(text, (0, len(text)))
    # One command may convert an image of one format to another, or create one over the other.
    return _nearest([span for span in found if span[1] - span[0] == len(b"qcow")] or found, name)


def _inside(text: bytes, group: Span) -> List[Span]:
    # The whole line is searched, so that what stands before the group still counts as its boundary.
    spans = [match.span(match.lastindex or 0) for match in _STATED.finditer(text)]
    return [span for span in spans if group[0] <= span[0] < group[1]]


def _nearest(found: List[Span], name: Span) -> Optional[Span]:
    return min(found, key=lambda span: max(name[0] - span[1], span[0] - name[1])) if found else None


def stated_around(lines: List[bytes], number: int) -> Optional[Tuple[int, Span]]:
    """Which line states it instead: one of the same command (continued lines) or of the same group (as far indented, without a gap).

    :param number: of the line that names the image, from 0.
    :return: the number of that line, and where.
    """
    for step in (1, -1):
        for place, same_command in _neighbours(lines, number, step):
            line = lines[place]
            if same_command or _KEYED.match(line):
                found = stated(line, (len(line), len(line)))
                if found is not None:
                    return place, found
    return None


def _neighbours(lines: List[bytes], number: int, step: int) -> List[Tuple[int, bool]]:
    found: List[Tuple[int, bool]] = []
    depth, command = _depth(lines[number]), True
    place = number
    while 0 <= place + step < len(lines) and len(found) < 40:
        if step < 0 and lines[place].lstrip().startswith(b"- ") and not command:
            break  # the first line of an item of a list
        place += step
        line = lines[place]
        command = command and lines[place if step < 0 else place - 1].rstrip().endswith(b"\\")
        below = _depth(line)
        ends = not line.strip() or below < depth or (step > 0 and line.lstrip().startswith(b"- ")) or line.lstrip().startswith(b"[")
        if ends and not command:
            break
        if command or below == depth:
            found.append((place, command))
    return found


def _depth(line: bytes) -> int:
    """How far a line is indented; the dash of a list's item counts as space."""
    bare = line.lstrip()
    return len(line) - len(bare[2:].lstrip() if bare.startswith(b"- ") else bare)


_TAP = re.compile(rb"\btap2?:(?:tapdisk:)?$", re.IGNORECASE)


def with_format(line: bytes, span: Span, format_name: bytes) -> Optional[bytes]:
    """The line with another format where it states one; ``None`` where what reads it knows no such format (VirtualBox writes in capitals)."""
    start, end = span
    if line[start:end].isupper():
        return None
    if format_name == b"raw" and _TAP.search(line[:start]):
        format_name = b"aio"  # Xen's block taps
    return line[:start] + format_name + line[end:]


def replaced(text: str, src: bytes, dest: bytes, old: Optional[str], new: str) -> Optional[str]:
    """A text with the result's name and format where it names the image at ``src`` and states the format ``old``; ``None`` where that is not possible."""
    line = text.encode("utf-8", "surrogateescape")
    where = stated(line, span_of(line, src))
    changed = line if where is None or old in (None, new) else with_format(line, where, new.encode("ascii"))
    changed = None if changed is None else renamed(changed, src, src, dest)
    return None if changed is None else changed.decode("utf-8", "backslashreplace")


_SECRET = re.compile(
    rb"((?:passw\w*|passphrase|secret|token|api_?key|\bdata)[\"']?\s*[=:]\s*[\"']?)(?![\s/$,=:])[^\s,\"'<>]+", re.IGNORECASE
)


def masked(line: bytes) -> bytes:
    """A line with what looks like passwords replaced, for people to see."""
    return _SECRET.sub(rb"\1********", line)


def masked_text(text: str) -> str:
    """:func:`masked` of a text."""
    return masked(text.encode("utf-8", "surrogateescape")).decode("utf-8", "backslashreplace")
