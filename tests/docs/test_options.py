# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options keep to rules: one name, one meaning and one type in all modules; a role's are the module's, but for the table of exceptions."""

import fnmatch
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("qcow_*.py"))
ROLES = {
    "scan": ["qcow_info", "qcow_report", "qcow_convert"],
    "migrate": ["qcow_convert", "qcow_report"],
    "rollback": ["qcow_rollback", "qcow_report"],
    "cleanup": ["qcow_cleanup", "qcow_report"],
    "status": ["qcow_status", "qcow_report"],
    "stop": ["qcow_stop", "qcow_report"],
}
# What says where something is, or which, depends on the module: its default and whether it is required may differ.
SUBJECTS = {"paths", "src", "dest", "path"}
UNITS = re.compile(r"(_minutes|_days|_ns|_seconds|_bytes)$")
TIMES = re.compile(r"(timeout|interval|time_limit|minutes|days|_age)")


@pytest.fixture(name="options", scope="module")
def _options() -> dict[str, dict[str, dict[str, Any]]]:
    """What ansible-doc, and with it the argument specs that sanity compares, says of each module's options."""
    names = ["vmimage.qcow." + name for name in MODULES]
    doc = os.path.join(os.path.dirname(sys.executable), "ansible-doc")
    answer = subprocess.run([doc, "--json", *names], check=True, capture_output=True, text=True).stdout
    return {name.rsplit(".", 1)[1]: entry["doc"]["options"] for name, entry in json.loads(answer).items()}


def roles() -> dict[str, dict[str, dict[str, Any]]]:
    specs = {role: yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text()) for role in ROLES}
    return {role: spec["argument_specs"]["main"]["options"] for role, spec in specs.items()}


def exceptions() -> dict[str, str]:
    """The table in the documentation: role's option -> module's, or nothing."""
    text = (ROOT / "docs" / "docsite" / "rst" / "options.rst").read_text().split("Names of options")[1]
    return dict(re.findall(r"^   \* - (?:``|\|)([\w*]+)(?:``|\|)\n     -(?: ``(\w+)``)?$", text, re.MULTILINE))


def exception_for(role: str, name: str) -> str | None:
    return next((other for option, other in exceptions().items() if fnmatch.fnmatchcase(role + "_" + name, option)), None)


def test_one_name_one_type_in_all_modules(options: dict[str, dict[str, dict[str, Any]]]) -> None:
    seen: dict[str, tuple[str, dict[str, Any]]] = {}
    for module in MODULES:
        for name, option in options[module].items():
            keys = ("type", "elements", "choices") + (() if name in SUBJECTS else ("default",))
            facts = {key: option.get(key) for key in keys}
            if (module, name) in (("qcow_report", "path"), ("qcow_report", "title")):
                continue  # on the controller
            first = seen.setdefault(name, (module, facts))
            assert facts == first[1], "%s is %s in %s and %s in %s" % (name, first[1], first[0], facts, module)


def test_yes_and_no_are_booleans_and_times_have_units(options: dict[str, dict[str, dict[str, Any]]]) -> None:
    for module in MODULES:
        for name, option in options[module].items():
            choices = {str(choice) for choice in option.get("choices") or ()}
            assert not choices & {"yes", "no", "true", "false", "allow", "full"} or choices & {"falloc"}, (module, name, choices)
            if TIMES.search(name) and not UNITS.search(name) and name not in ("timestamps",):
                assert option["type"] == "str" and re.fullmatch(r"\d+[smhd]", option["default"]), (module, name, option)


@pytest.mark.parametrize("role", ROLES)
def test_options_of_a_role_are_those_of_its_modules(role: str, options: dict[str, dict[str, dict[str, Any]]]) -> None:
    for full, option in roles()[role].items():
        assert full.startswith(role + "_"), full
        name = full[len(role) + 1 :]
        other = exception_for(role, name)
        if other is not None:
            assert not other or any(other in options[module] for module in ROLES[role]), (full, other)
            continue
        theirs = next((options[module][name] for module in ROLES[role] if name in options[module]), None)
        assert theirs is not None, "%s is an option of no module, and not in the table of exceptions" % full
        # A blank answer is a string, and a path is one of another machine: the module says what it makes of it.
        assert option["type"] in (theirs["type"], "str", "raw"), (full, option["type"], theirs["type"])
        assert (
            option.get("choices") == theirs.get("choices") and option.get("elements") == theirs.get("elements") or option["type"] == "raw"
        ), full
        if theirs.get("default") is not None or option.get("default") is not None:
            assert str(option.get("default")) == str(theirs.get("default")), (full, option.get("default"), theirs.get("default"))


def test_the_table_names_no_option_that_is_none() -> None:
    everything = {full for spec in roles().values() for full in spec}
    for name in exceptions():
        assert fnmatch.filter(everything, name), name


@pytest.mark.parametrize("role", ROLES)
def test_defaults_of_a_role_are_the_documented_ones(role: str) -> None:
    defaults = yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text())
    documented = {name: option["default"] for name, option in roles()[role].items() if "default" in option}
    assert defaults == documented


def test_no_private_option_is_documented(options: dict[str, dict[str, dict[str, Any]]]) -> None:
    assert not [name for module in MODULES for name in options[module] if name.startswith("_")]
