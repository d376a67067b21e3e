# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""ARCHITECTURE.md says what is there: each file it names, each wing, and who may import whom, as the import contracts have it."""

import pathlib
import re
from typing import Any

import pytest
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PLUGINS = ROOT / "plugins"
# Paths on the page are relative to one of these.
PLACES = [ROOT, PLUGINS, PLUGINS / "module_utils", ROOT / "roles" / "migrate"]
CONTAINERS = {
    "ansible_collections.vmimage.qcow.plugins": "plugins",
    "ansible_collections.vmimage.qcow.plugins.module_utils": "plugins/module_utils",
}

LONGEST = 400  # lines

Layers = list[set[str]]
Arrows = set[tuple[str, str]]


def downwards(layers: Layers) -> Arrows:
    """Each wing with each that stands below it."""
    return {(upper, lower) for place, above in enumerate(layers) for below in layers[place + 1 :] for upper in above for lower in below}


def drawn() -> tuple[dict[str, Layers], Arrows]:
    """The layers of each picture, and what is not imported although it stands lower."""
    picture = next(block for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) if block.startswith("plugins/\n"))
    layers: dict[str, Layers] = {}
    never: Arrows = set()
    above, arrow, row = "", False, r"  ([a-z_]+(?:/|\.py)(?: \| [a-z_]+(?:/|\.py))*)(?: {2,}.*)?"
    for line in filter(None, picture.splitlines()):
        crossed = re.fullmatch(r"  ([a-z_, ]+?) +-x-> +([a-z_, ]+)", line)
        wings = re.fullmatch(row, line)
        if crossed:
            never |= {(source, target) for source in crossed[1].split(", ") for target in crossed[2].split(", ")}
        elif wings:
            assert layers[above] == [] or arrow, "no arrow above: " + line
            layers[above].append({re.sub(r"/$|\.py$", "", name) for name in wings[1].split(" | ")})
            arrow = False
        elif line.strip() == "v":
            arrow = True
        elif line.endswith("/"):
            above, arrow = line.rstrip("/"), False
            layers[above] = []
        else:
            assert line == "though it stands higher, it does not import:", "what is this? " + line
    return layers, never


def contracts(kind: str) -> list[dict[str, Any]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [contract for contract in settings["tool"]["importlinter"]["contracts"] if contract["type"] == kind]


def agreed() -> tuple[dict[str, Layers], Arrows]:
    """The same from pyproject.toml."""
    layers = {
        CONTAINERS[container]: [set(layer.split(" | ")) for layer in contract["layers"]]
        for contract in contracts("layers")
        for container in contract["containers"]
    }
    never = {
        (source.rpartition(".")[2], target.rpartition(".")[2])
        for contract in contracts("forbidden")
        for source in contract["source_modules"]
        for target in contract["forbidden_modules"]
    }
    return layers, never


@pytest.mark.parametrize("container", CONTAINERS.values())
def test_the_picture_is_what_the_import_contracts_allow(container: str) -> None:
    (pictures, crossed), (layers, forbidden) = drawn(), agreed()
    assert pictures[container] == layers[container]
    allowed = downwards(layers[container]) - forbidden
    assert downwards(pictures[container]) - crossed == allowed
    assert crossed & downwards(pictures[container]) == forbidden & downwards(layers[container]), "each exception is drawn, and no other"


@pytest.mark.parametrize("container", CONTAINERS.values())
def test_every_wing_is_in_the_picture(container: str) -> None:
    there = {path.stem for path in (ROOT / container).iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert set().union(*drawn()[0][container]) == there


def test_every_file_that_is_named_is_there() -> None:
    words = re.findall(r"`([^`\s]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)) + re.findall(r"\]\(([^)#:]+)\)", PAGE)
    named = {word for word in words if not word.startswith("/") and ("/" in word or re.search(r"\.(py|toml|md|yml|sh)$", word))}
    assert len(named) > 40
    assert sorted(name for name in named if not any((place / name).exists() for place in PLACES)) == []


def test_files_stay_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in PLUGINS.rglob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}
