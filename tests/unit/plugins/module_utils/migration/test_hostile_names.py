# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What diff mode and a look at the records say where names or journals are not as anybody would have made them."""

import pathlib

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import drawn, status


def test_names_do_not_act_on_the_terminal() -> None:
    diff = drawn.of_cleanup({"retired": "/srv/x\nok: [kvm9]\x1b[31m\u202e.qcow", "returns": 1})
    assert diff["before_header"] == "/srv/x\\nok: [kvm9]\\x1b[31m\\u202e.qcow"
    assert diff["before"] == "/srv/x\\nok: [kvm9]\\x1b[31m\\u202e.qcow: qcow version 1, 1 bytes\n"


def test_records_that_cannot_be_read_are_told(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "records").mkdir(mode=0o700)
    broken = tmp_path / "records" / "20261130T232243.147312Z-af1ca035.jsonl"
    broken.write_text("{broken\n")
    broken.chmod(0o600)
    found = status.status_of(str(tmp_path).encode(), "all")
    assert [(error["path"], "cannot be read" in error["msg"]) for error in found["errors"]] == [(str(broken), True)]
