# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What Ctrl-C does is one sentence, the same wherever it is told, and nothing else is told of it. That it is true: tests/roles/test_interrupt.py."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
SENTENCE = (
    "Ctrl-C ends ansible-playbook only: hosts that are at work go on with all their images; "
    "see how far they are with vmimage.qcow.status, and stop them with vmimage.qcow.stop."
)
# A name for a case tells nothing of what it does; and the option that takes the job away tells what is different then.
NAMES = (
    "Ctrl-C, and when the connection is lost",
    "Ctrl-C, a closed lid, a lost VPN",
    "Ctrl-C, a cancelled job,",
    "the same as Ctrl-C",
    "is a Ctrl-C:",
    "Whether it ends when the connection does, or with Ctrl-C, is up to the connection",
)
PLACES = ("*.md", "docs/docsite/rst/*.rst", "roles/*/README.md", "roles/*/meta/*.yml", "plugins/**/*.py", "playbooks/*.yml")


def plain(text: str) -> str:
    """A text without its markup and breaks of lines."""
    text = re.sub(r"\b[CVMPO]\(([^()]*)\)", r"\1", text)
    text = re.sub(r":[a-z]+:`([^`<]*?)(?:#\w+)?(?: <[^>]*>)?`", r"\1", text)
    return " ".join(text.replace("`", "").split())


def test_it_is_one_sentence() -> None:
    told, wrong = [], []
    for path in sorted({path for place in PLACES for path in ROOT.glob(place)} - set(ROOT.glob("CHANGELOG*"))):
        text = plain(path.read_text(encoding="utf-8"))
        told += [path.relative_to(ROOT)] * text.count(SENTENCE)
        for known in (SENTENCE, *NAMES):
            text = text.replace(known, "")
        found = re.search(r".{0,60}(?:(?i:ctrl.?c\b|control-c\b)|\^C\b).{0,60}", text)
        if found:
            wrong.append("%s: %s" % (path.relative_to(ROOT), found.group()))
    assert wrong == []
    assert len(told) >= 8, told
