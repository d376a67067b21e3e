# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that was stopped, and whose records could not be looked at then."""

from ansible_collections.vmimage.qcow.plugins.plugin_utils import host_report


def test_a_look_that_failed_is_told() -> None:
    done = {"ended": True, "running": None, "msg": "It has ended."}
    looked = host_report.Results(found={"failed": True, "msg": "The state directory cannot be read."}, done=done)
    assert host_report.problems("stop", looked) == ["The state directory cannot be read."]
    seen = host_report.Results(found={"summary": {}, "errors": [{"msg": "x: this record cannot be read"}]}, done=done)
    assert host_report.problems("stop", seen) == ["x: this record cannot be read"]
    assert host_report.problems("stop", host_report.Results(found={"summary": {}}, done=done)) == []
