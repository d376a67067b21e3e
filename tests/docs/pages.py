# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples in a page of documentation, reStructuredText or Markdown.

Examples are all code blocks in a shell language, YAML or INI. A comment before a block says what is to be done with it:

    file: NAME      write it into the page's directory (YAML and INI have to say this, or why not)
    tasks: NAME     write these tasks there as a play for vm_hosts, and run it
    exit: CODE      its last command ends with this exit code
    tomorrow: DATE  this date stands for that of tomorrow
    not run: WHY    leave it out

A shell block is a list of commands after ``$ `` (``> `` goes on with one), each with what it prints, where ``...`` stands for
anything; or, without any ``$ ``, a script. In reStructuredText the comment is ``.. file: NAME``, in Markdown ``<!-- file: NAME -->``.
"""

import pathlib
import re
import textwrap
from typing import Iterator, NamedTuple

SHELL = ("console", "shell", "bash", "sh")
DATA = ("yaml", "yaml+jinja", "ini")


class Example(NamedTuple):
    """One code block, with what the comment before it says."""

    line: int
    language: str
    text: str
    marks: dict[str, str]

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of a shell block and what each is said to print (a script is said to print anything)."""
        if not re.search(r"^\$ ", self.text, re.MULTILINE):
            return [(self.text, "...")]
        found: list[tuple[list[str], list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append(([line[2:]], []))
            elif line.startswith("> ") and not found[-1][1]:
                found[-1][0].append(line[2:])
            else:
                found[-1][1].append(line)
        return [("\n".join(command) + "\n", "\n".join(output)) for command, output in found]


def examples(path: pathlib.Path) -> list[Example]:
    """All examples of a page, in their order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    blocks = _markdown(lines) if path.suffix == ".md" else _restructured(lines)
    return [block for block in blocks if block.language in SHELL + DATA]


def prose(path: pathlib.Path) -> list[tuple[int, str]]:
    """The lines of a reStructuredText page that are neither in a code block nor a comment, with their numbers."""
    found = []
    inside = -1  # the indentation of a directive or comment whose block goes on
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        indentation = len(line) - len(line.lstrip())
        if inside >= 0 and (not line.strip() or indentation > inside):
            continue
        inside = -1
        hidden = re.match(r"(?:[ *-]*)(?=\.\. +(?:code|code-block|sourcecode)::|\.\. +[^_|:]+: |\.\.$)", line)
        if hidden:
            inside = hidden.end()
        else:
            found.append((number, line))
    return found


def _mark(comment: str, marks: dict[str, str]) -> None:
    found = re.fullmatch(r"(file|tasks|exit|tomorrow|not run): +(.+)", comment.strip())
    if found:
        marks[found.group(1)] = found.group(2)


def _markdown(lines: list[str]) -> Iterator[Example]:
    marks: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line = lines[number]
        if line.startswith("```"):
            end = lines.index("```", number + 1)
            yield Example(number + 1, line[3:].strip().lower(), "\n".join(lines[number + 1 : end]) + "\n", marks)
            number, marks = end, {}
        elif line.startswith("<!--"):
            _mark(line[4:].partition("-->")[0], marks)
        elif line.strip():
            marks = {}
        number += 1


def _restructured(lines: list[str]) -> Iterator[Example]:
    marks: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line = lines[number]
        directive = re.fullmatch(r"\.\. (?:code-block|code|sourcecode):: *(\S*)", line)
        if directive:
            first = number + 1
            end = first
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith((" ", "\t"))):
                end += 1
            body = textwrap.dedent("\n".join(lines[first:end])).strip("\n")
            body = re.sub(r"\A(?::[a-z-]+:.*\n)+\n*", "", body)
            yield Example(number + 1, directive.group(1).lower(), body + "\n", marks)
            number, marks = end - 1, {}
        elif line.startswith(".. "):
            _mark(line[3:], marks)
        elif line.strip():
            marks = {}
        number += 1
