# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options that the guides name are links to their documentation: ``|migrate_format=raw|``, defined at the end of the page.

That they lead to options which exist is checked by antsibull-docs (`make lint`) and, once more, when the site is built.
"""

import pathlib
import re

import pytest
import yaml

from ansible_collections.vmimage.qcow.tests.docs import pages

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "docsite" / "rst").glob("*.rst"))
DEFINITION = re.compile(r"\.\. \|(.+)\| replace:: \\ :ansopt:`vmimage\.qcow\.([a-z_]+)#(module|role:main):([^`]+)`")


def of_roles() -> dict[str, str]:
    """The options of all roles, and whose each is."""
    specs = {path.parts[-3]: path for path in ROOT.glob("roles/*/meta/argument_specs.yml")}
    return {
        name: role
        for role, path in specs.items()
        for name in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]["main"]["options"]
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_options_are_links(page: pathlib.Path) -> None:
    """``migrate_format`` as plain text is none, nor is ``format: raw`` or ``format=raw``; ``format`` alone may be any word."""
    roles = of_roles()
    of_modules = {name[len(role) + 1 :] for name, role in roles.items()}
    plain = []
    for number, line in pages.prose(page):
        for name, value in re.findall(r"(?<![`:])``([a-z0-9_]+)((?:=|: )[\w.%-]+)?``(?!`)", line):
            if name in roles or (value and name in of_modules):
                target = name + value.replace(": ", "=")
                owner = roles[name] + "#role:main" if name in roles else "qcow_convert#module"
                definition = ".. |%s| replace:: \\ :ansopt:`vmimage.qcow.%s:%s`" % (target, owner, target)
                plain.append("line %d: write |%s|, and at the end of the page\n%s" % (number, target, definition))
    assert not plain, "\n".join(plain)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_defines_what_it_uses(page: pathlib.Path) -> None:
    text = page.read_text(encoding="utf-8")
    definitions = DEFINITION.findall(text)
    assert text.count("replace::") == len(definitions), "a definition of another form"
    assert [name for name, _owner, _kind, target in definitions if name != target] == [], "is shown as something else"
    assert [(name, owner) for name, owner, kind, _target in definitions if kind != "module" and not name.startswith(owner + "_")] == []
    used = {name for _number, line in pages.prose(page) if "replace::" not in line for name in re.findall(r"\|([a-z][\w=.%-]*)\|", line)}
    assert [definition[0] for definition in definitions] == sorted(used)


def test_there_are_links() -> None:
    assert sum(len(DEFINITION.findall(page.read_text(encoding="utf-8"))) for page in PAGES) > 100
