# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Our side of a measurement: one fresh Python process that does what a module does, from its arguments to its result.

Takes one JSON argument. Left out is what Ansible adds around a module (connection, unpacking, its own imports).
"""

import json
import os
import sys
from typing import Any


def migrate(state_dir: str, images: Any, workers: int = 1, **options: Any) -> Any:
    """``qcow_convert``: plan, copy, verify unless told not to, sync, publish and record."""
    from ansible_collections.vmimage.qcow.plugins.module_utils._migration.batch import Settings, run
    from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request

    directory = os.fsencode(state_dir)
    requests = [Request(src=os.fsencode(src), dest=os.fsencode(dest), state_dir=directory, **options) for src, dest in images]
    results = run(requests, Settings(state_dir=directory, workers=workers))
    failed = [result["msg"] for result in results if result["failed"]]
    if failed:
        sys.exit(failed[0])
    return [result["fingerprint"] for result in results]


def info(paths: Any, **options: Any) -> Any:
    """``qcow_info``."""
    from ansible_collections.vmimage.qcow.plugins.module_utils._migration.info import Question, look
    from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records

    answer = look(Question(tuple(os.fsencode(path) for path in paths), **options), Records(b"/nonexistent"))
    return {"images": len(answer.images), "summary": answer.summary}


def main() -> None:
    """Do what the argument says."""
    order = json.loads(sys.argv[1])  # type: Dict[str, Any]
    print(json.dumps({"migrate": migrate, "info": info}[order.pop("do")](**order)))


if __name__ == "__main__":
    main()
