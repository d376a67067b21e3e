# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The jobs of the workflow are together what `make test` runs, and on every supported core."""

import pathlib
import re
import shlex

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
STEPS = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]["test"]["strategy"]["matrix"][
    "step"
]
WORDS = [word for step in STEPS for word in shlex.split(step)]


def of_makefile(variable: str) -> list[str]:
    found = re.search(rf"^{variable} [:?]?= (.*)$", MAKEFILE, re.MULTILINE)
    assert found, variable
    return found[1].split()


def given(variable: str) -> list[str]:
    return [value for word in WORDS if word.startswith(variable + "=") for value in word.partition("=")[2].split()]


def test_every_step_of_make_test_is_a_job() -> None:
    recipe = re.search(r"^test: .*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe
    steps = {word for line in re.findall(r"\$\(MAKE\)([^;]*);", recipe[1]) for word in line.split() if re.fullmatch(r"[a-z][a-z-]+", word)}
    assert steps - {"environments"} == {word for word in WORDS if "=" not in word and not word.startswith("sanity-")}


def test_every_core_is_tried() -> None:
    assert {word for word in WORDS if word.startswith("sanity-")} == {"sanity-" + core for core in of_makefile("ALL_CORES")}


def test_every_scenario_is_run() -> None:
    assert sorted(given("SCENARIOS")) == sorted(of_makefile("SCENARIOS"))


def test_every_directory_of_tests_is_in_one_job() -> None:
    directories = {"tests/" + path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("test_*.py")}
    directories -= {"tests/integration", "tests/output", "tests/support", "tests/lab"}  # norecursedirs of pyproject.toml
    assert sorted(given("EXTRA")) == sorted(directories)
