# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""XML as text with positions: edits replace what they mean and leave every other byte as it was. Pure."""

import re
from typing import Dict, Iterator, List, Optional, Tuple
from xml.parsers import expat

_START_TAG = re.compile(rb"<[^\"'>]*(?:\"[^\"]*\"[^\"'>]*|'[^']*'[^\"'>]*)*>")
_ATTRIBUTE = re.compile(rb"\s+([^\s=]+)\s*=\s*(\"[^\"]*\"|'[^']*')")


class Element:
    """An element and where it stands in the text (byte offsets).

    ``start`` is its ``<``, ``body`` the byte behind the start tag, ``close`` the ``<`` of its end tag (``body`` where the start
    tag is all there is), ``end`` the byte behind it.
    """

    __slots__ = ("name", "attributes", "children", "parent", "text", "start", "body", "close", "end")

    def __init__(self, name: str, attributes: Dict[str, str], parent: Optional["Element"], start: int, body: int) -> None:
        self.name = name
        self.attributes = attributes
        self.parent = parent
        self.children: List[Element] = []
        self.text = ""
        self.start = start
        self.body = body
        self.close = body
        self.end = body

    def child(self, name: str) -> Optional["Element"]:
        """The first child of that name."""
        return next((child for child in self.children if child.name == name), None)

    def walk(self) -> Iterator["Element"]:
        """This element and all below, in document order."""
        yield self
        for child in self.children:
            yield from child.walk()


def parse(xml: str) -> Element:
    """The root element of the text.

    :raises ValueError: not well-formed, or with a document type (libvirt writes none; entities could grow without bound).
    """
    return parse_bytes(xml.encode("utf-8"))


def parse_bytes(data: bytes) -> Element:
    """:func:`parse` of a text in UTF-8."""
    parser = expat.ParserCreate("UTF-8")
    parser.buffer_text = True
    root = Element("", {}, None, 0, 0)
    open_elements = [root]

    def started(name: str, attributes: Dict[str, str]) -> None:
        start = parser.CurrentByteIndex
        tag = _START_TAG.match(data, start)
        if tag is None:
            raise ValueError("no start tag at byte {0}".format(start))
        element = Element(name, attributes, open_elements[-1], start, tag.end())
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def ended(name: str) -> None:
        element = open_elements.pop()
        if data[element.body - 2 : element.body] != b"/>":
            element.close = parser.CurrentByteIndex
            element.end = data.index(b">", element.close) + 1

    def said(text: str) -> None:
        open_elements[-1].text += text

    def refused(*unused: object) -> None:
        raise ValueError("it has a document type declaration")

    parser.StartElementHandler = started
    parser.EndElementHandler = ended
    parser.CharacterDataHandler = said
    parser.StartDoctypeDeclHandler = refused
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError("not well-formed XML: {0}".format(error)) from error
    return root.children[0]


class Edit:
    """Replacements in a text, collected by byte offset and made in one go."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._replacements: List[Tuple[int, int, bytes]] = []

    def _attributes(self, element: Element) -> Iterator["re.Match[bytes]"]:
        at = element.start + 1 + len(element.name.encode("utf-8"))
        while True:
            found = _ATTRIBUTE.match(self._data, at, element.body)
            if found is None:
                return
            yield found
            at = found.end()

    def set(self, element: Element, name: str, value: str) -> None:
        """Give an attribute a value, in the quotes it has; a new one comes last."""
        if element.attributes.get(name) == value:
            return
        at = element.start + 1 + len(element.name.encode("utf-8"))
        for found in self._attributes(element):
            if found.group(1) == name.encode("utf-8"):
                self._replacements.append((found.start(2) + 1, found.end(2) - 1, _escape(value).encode("utf-8")))
                return
            at = found.end()
        self._replacements.append((at, at, " {0}={1}".format(name, quote(value)).encode("utf-8")))

    def remove_attribute(self, element: Element, name: str) -> None:
        """Take an attribute out, with the space before it."""
        for found in self._attributes(element):
            if found.group(1) == name.encode("utf-8"):
                self._replacements.append((found.start(), found.end(), b""))

    def insert(self, before: int, text: str) -> None:
        """Put an element before the one at that offset, on a line of its own with the same indent."""
        indent = self._data[self._data.rfind(b"\n", 0, before) + 1 : before]
        gap = b"\n" + indent if not indent.strip() else b""
        self._replacements.append((before, before, text.encode("utf-8") + gap))

    def replace(self, element: Element, text: str) -> None:
        """Another element in its place."""
        self._replacements.append((element.start, element.end, text.encode("utf-8")))

    def remove(self, element: Element) -> None:
        """Take an element out, with the white space before it."""
        start = len(self._data[: element.start].rstrip(b" \t\r\n"))
        self._replacements.append((start, element.end, b""))

    def result(self) -> bytes:
        """The text with all replacements made."""
        data = self._data
        for start, end, text in sorted(self._replacements, key=lambda item: (item[0], item[1]), reverse=True):
            data = data[:start] + text + data[end:]
        return data


def quote(value: str) -> str:
    """An attribute's value as it stands in XML, with its quotes. (``xml.sax.saxutils`` can do this, and loads the modules for HTTP and TLS.)"""
    return "'{0}'".format(_escape(value))


_ENTITIES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&apos;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
)


def _escape(value: str) -> str:
    return value.translate(_ENTITIES)


def canonical(xml: str) -> str:
    """A form in which two texts are equal exactly where they mean the same to libvirt: no comments, no layout, attributes sorted."""
    lines: List[str] = []

    def write(element: Element, depth: int) -> None:
        attributes = "".join(" {0}={1!r}".format(key, value) for key, value in sorted(element.attributes.items()))
        lines.append("{0}{1}{2} {3!r}".format(" " * depth, element.name, attributes, element.text.strip()))
        for child in element.children:
            write(child, depth + 1)

    write(parse(xml), 0)
    return "\n".join(lines) + "\n"
