# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lines of configuration and scripts as what reads them sees them, and what they say beside the name of an image. Pure."""

import itertools
import os
import re
from typing import Callable, Iterator, List, Match, Optional, Pattern, Tuple

Span = Tuple[int, int]

WORD = rb"A-Za-z0-9_./\x80-\xff-"
"""What makes a name another name where it stands before or behind it; the inside of a character class."""

GLUE = b"\0"
"""Stands for a space that does not end a word: it was quoted or escaped."""

MOST_READINGS = 16
MOST_OCCURRENCES = 20

# One backslash decoder for shell, JSON, YAML, C and systemd: where they differ, the sequences mean nothing to the others.
_BACKSLASH = re.compile(rb"(?:\\u[0-9A-Fa-f]{4})+|\\(?:x[0-9A-Fa-f]{2}|[0-7]{3}|.)", re.DOTALL)
_ENTITY = re.compile(rb"&(?:#(?:[xX]([0-9A-Fa-f]{1,6})|([0-9]{1,7}))|(amp|lt|gt|quot|apos));")
_NAMED = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_QUOTED = re.compile(rb"'([^'\n]*)'|\"([^\"\n]*)\"|>([^<>\n]*)(?=<)")
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_SIGN = re.compile(rb"\xe2\x80[\x80-\xbf]|\xef\xbb\xbf|\xef\xbc[\x80-\x8f\x9a-\xa0]|\xc2[\xa0\xab\xbb]|\xe3\x80[\x80-\xbf]")  # typographic
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
    (re.compile(rb"''"), lambda text: text.replace(b"'\\''", b"'").replace(b"''", b"'")),  # quotes in quotes of shells and YAML
    (re.compile(rb"\xe2\x80|\xef[\xbb\xbc]|\xc2[\xa0\xab\xbb]|\xe3\x80"), lambda text: _SIGN.sub(b" ", text)),
)
_CODED = re.compile(rb"[&\\'\"%]|,,|\xe2\x80|\xef[\xbb\xbc]|\xc2[\xa0\xab\xbb]|\xe3\x80|file:|>[^<>\n]*<", re.IGNORECASE)


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
_ABSOLUTE = re.compile(
    rb"(?=/)(?:^|(?<=[\s\0'\"<>|;(\[{,:=&#@!-])|(?<=[\s\0'\"]-[A-Za-z]))(/(?:[^\s'\"<>|;()\[\]{}`$*?,:=&#@!]|[,:=&#@!](?!/))*)",
    re.MULTILINE,
)
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


def occurrences(text: bytes, word: bytes) -> List[Span]:
    """Where a name stands in a text, and not as a part of another name. An absolute path may follow an option (``-f/a``, ``:-/a``)."""
    before = rb"(?:(?<![A-Za-z0-9_.\x80-\xff])|(?<=[\s'\"]-[A-Za-z]))" if word.startswith(b"/") else rb"(?<![" + WORD + rb"])"
    if word[:1] in (b"$", b"{"):
        before = b""
    behind = rb"(?![" + WORD.replace(b".", b"") + rb"]|\.[" + WORD + rb"])"
    found = re.finditer(before + re.escape(word) + behind, text)
    return [match.span() for match in itertools.islice(found, MOST_OCCURRENCES)]


_PLAIN = re.compile(rb"[A-Za-z0-9_./+-]*\Z")


def renamed(text: bytes, word: bytes, src: bytes, dest: bytes) -> Optional[bytes]:
    """A text with the result's name where ``word`` names the image; ``None`` where that cannot be done with certainty.

    :param src: the image's path. :param dest: the result's.
    """
    old, new = os.path.basename(src), os.path.basename(dest)
    beside = os.path.dirname(src) == os.path.dirname(dest)
    if is_variable(word):
        return text  # it is set elsewhere
    if beside and word.endswith(old):
        shared = os.path.commonprefix([old, new])
        if not _PLAIN.match(new[len(shared) :]):
            return None
        spans, name = occurrences(text, word), word[: -len(old)] + new
        if not spans:  # in escapes: only its end is changed, if there is but one
            last = (TOKEN.findall(old) or [old])[-1]
            ends = [match.span() for match in re.finditer(re.escape(last), text)]
            spans, name = (ends, last + new[len(old) :]) if new.startswith(old) and len(ends) == 1 else ([], b"")
            if not spans and last == old and text.count(old) == 1:
                spans, name = ends, new
    else:
        spans, name = occurrences(text, word), dest
        if not _PLAIN.match(dest) or any(text[:start].endswith(b":") and not word.startswith(b"/") for start, _end in spans):
            return None
    for start, end in reversed(spans):
        text = text[:start] + name + text[end:]
    return text if 0 < len(spans) < MOST_OCCURRENCES else None


def is_variable(word: bytes) -> bool:
    """Whether a name is nothing but a variable, of a shell or a template."""
    return word.startswith((b"$", b"{{")) and b"/" not in word


# Of QCOW any word of its own counts, because nothing else is called so; "raw" is a word of every language, and needs its key.
_STATED = re.compile(
    rb"(?<![\w./-])(?<!-O )(?:(qcow2?)(?![\w./=-])|-{0,2}(?:\w*format|\w*fmt|driver|type|f|F)['\"\]]*(?:\s*[=:>]\s*|\s+)['\"]?(raw)(?![\w./=-])|"
    rb"(raw):(?=/))",
    re.IGNORECASE,
)
_KEYED = re.compile(
    rb"(?<![\w./-])(?:(?:format|fmt|type|driver)[\"']?\s*[=:>]\s*|-{1,2}(?:[fF]|format)[\s=]\s*)[\"']?(qcow2|raw)(?![\w./=-])",
    re.IGNORECASE,
)
_FORMAT = re.compile(rb"qcow|raw", re.IGNORECASE)
_COMMENT = re.compile(rb"^\s*#|\s#(?=\s)")
_QUOTES = re.compile(rb"'[^']*'|\"[^\"]*\"")
_PIECE = re.compile(rb"\S+")
_PATH = re.compile(rb"(?<!<)/[\w.]")

_AROUND = 2048  # bytes: lines without end are data


def span_of(line: bytes, name: bytes) -> Span:
    """Where a name stands in a line; where it is spelled otherwise, where the first path begins."""
    start = max(line.find(b"/"), 0)
    return next(iter(occurrences(line, name)), (start, start))


def stated(line: bytes, name: Span) -> Optional[Span]:
    """Where a line states the format of the image that it names at ``name``: in the same word, in the same quotes, or outside what names other
    files. The nearest one counts.
    """
    start, end = name
    if not may_state(line):
        return None
    if len(line) > 3 * _AROUND + end - start:
        left = max(start - _AROUND, 0)
        near = stated(line[left : end + _AROUND], (start - left, end - left))
        return None if near is None else (left + near[0], left + near[1])
    text = uncommented(line)
    if len(text.rstrip()) < end:
        text = line  # all that is a comment
    text = text[:start] + b"/" * (end - start) + text[end:]
    quotes = [match.span() for match in _QUOTES.finditer(text)]
    around = [span for span in quotes if span[0] < start < span[1]]
    words = [match.span() for match in _PIECE.finditer(text)]
    for group in [span for span in words if span[0] <= start < span[1]] + around:
        found = _inside(text, group)
        if found:
            return _nearest(found, name)
    text = _without_files(text, [span for span in words + quotes if span not in around])
    found = _inside(text, (0, len(text)))
    # One command may convert an image of one format to another, or create one over the other.
    return _nearest([span for span in found if span[1] - span[0] == len(b"qcow")] or found, name)


def stated_in_options(line: bytes, name: bytes) -> Optional[Span]:
    """:func:`stated` where nothing is a comment."""
    return stated(line.replace(b"#", b"_"), span_of(line, name))


def stated_anywhere(line: bytes) -> List[Span]:
    """Where a line states formats, of whatever."""
    return _inside(line, (0, len(line)))


def may_state(line: bytes) -> bool:
    """Whether it is worth while to look for formats."""
    return _FORMAT.search(line) is not None


def neighbouring(line: bytes) -> List[Span]:
    """Where a line states formats for an image that a line near it names: of QCOW any word, of others what follows a key that says so."""
    if not may_state(line):
        return []
    text = uncommented(line)
    text = _without_files(text, [match.span() for pattern in (_PIECE, _QUOTES) for match in pattern.finditer(text)])
    words = [span for span in _inside(text, (0, len(text))) if span[1] - span[0] == len(b"qcow")]
    return words + [match.span(1) for match in _KEYED.finditer(text)]


def uncommented(line: bytes) -> bytes:
    """A line with spaces for what is a comment in shells, YAML and most configuration."""
    if line.lstrip()[:1] in (b"<", b"{"):
        return line
    comment = _COMMENT.search(_QUOTES.sub(lambda match: b"/" * len(match.group()), line))
    return line if comment is None else line[: comment.start()] + b" " * (len(line) - comment.start())


def _without_files(text: bytes, groups: List[Span]) -> bytes:
    """A text without the words and quotes that name files."""
    for start, end in [span for span in groups if _PATH.search(text, *span)]:
        text = text[:start] + b"/" * (end - start) + text[end:]
    return text


def _inside(text: bytes, group: Span) -> List[Span]:
    # The whole line is searched, so that what stands before the group still counts as its boundary.
    spans = [match.span(match.lastindex or 0) for match in _STATED.finditer(text)]
    return [span for span in spans if group[0] <= span[0] < group[1]]


def _nearest(found: List[Span], name: Span) -> Optional[Span]:
    return min(found, key=lambda span: max(name[0] - span[1], span[0] - name[1])) if found else None


_TAP = re.compile(rb"\btap2?:(?:tapdisk:)?$", re.IGNORECASE)


def with_format(line: bytes, span: Span, format_name: bytes) -> Optional[bytes]:
    """The line with another format where it states one; ``None`` where that is uncertain, as in capitals."""
    start, end = span
    if line[start:end].isupper():
        return None
    if format_name == b"raw" and _TAP.search(line[:start]):
        format_name = b"aio"  # Xen's block taps
    return line[:start] + format_name + line[end:]


_VIRTUALBOX = re.compile(rb"\bformat=[\"']\Z")


def is_virtualbox(line: bytes, span: Span) -> bool:
    """Whether a format is stated as VirtualBox does, which reads no other format under that name."""
    return line[slice(*span)].isupper() and _VIRTUALBOX.search(line[: span[0]]) is not None


def replaced(text: str, src: bytes, dest: bytes, old: Optional[str], new: str) -> Optional[str]:
    """A text with the result's name and format where it names the image at ``src`` and states the format ``old``; ``None`` where that is not possible,
    because another text states the format, for instance, or because a part is masked.
    """
    line = text.encode("utf-8", "surrogateescape")
    changed: Optional[bytes] = line
    if MASK in line:
        return None
    if old not in (None, new):
        where = stated_in_options(line, src)
        if where is None or line[slice(*where)].decode("ascii").lower() != old:
            return None
        changed = with_format(line, where, new.encode("ascii"))
    if changed is not None and src != dest:
        changed = renamed(changed, src, src, dest)
    return None if changed is None else changed.decode("utf-8", "backslashreplace")


MASK = b"********"

_VALUE = rb"(?:\"(?:[^\"\\]|\\.)*\"?|'[^']*'?|[^\s,\"'<>]+)"
_SECRETS = (
    re.compile(
        rb"((?:(?<![A-Za-z])pass|pass(?:w\w{0,16}|phrase)|psk|(?<!key-)(?<!password-)(?<!cookie-)(?<!passphrase-)secret|token|api_?key)[\"']?\s*[=:]\s*)"
        + _VALUE,
        re.IGNORECASE,
    ),
    re.compile(rb"(\bdata=)" + _VALUE, re.IGNORECASE),
    re.compile(rb"(\s--?(?:\w{1,16}-)?(?:pass(?:w\w{0,16}|phrase)?|psk|secret|token|api-?key)\s+)(?!-)" + _VALUE, re.IGNORECASE),
    re.compile(rb"(://[^\s/:@'\"]{0,256}:)[^\s/@]{1,256}(?=@)"),
)


def masked(line: bytes) -> bytes:
    """A line with what looks like passwords replaced, for people to see."""
    for secret in _SECRETS:
        line = secret.sub(rb"\1" + MASK, line)
    return line


def masked_text(text: str) -> str:
    """:func:`masked` of a text."""
    return masked(text.encode("utf-8", "surrogateescape")).decode("utf-8", "backslashreplace")
