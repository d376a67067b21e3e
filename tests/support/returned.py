# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What modules return for an image, made by them: a test changes what it is about, and can add no key that they do not have."""

import functools
import os
import pathlib
import tempfile
from typing import Any

from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch, info
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record import Records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.record_entries import listed_records
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build

Entry = dict[str, Any]


@functools.lru_cache
def _made() -> tuple[Entry, Entry, Entry, Entry]:
    with tempfile.TemporaryDirectory() as scratch:
        state = os.fsencode(os.path.join(scratch, "state"))
        good, bad = pathlib.Path(scratch, "good.qcow"), pathlib.Path(scratch, "bad.qcow")
        image = build(ImageSpec(size=1 << 20, clusters={1: Plain(b"data"), 9: Plain(b"more")}))
        image.write(good)
        image.write(bad)
        os.truncate(bad, os.path.getsize(bad) - 4096)
        answer = info.look(info.Question((os.fsencode(good), os.fsencode(bad))), Records(state))
        (result,) = batch.run([Request(src=os.fsencode(good), state_dir=state, retire=True)], batch.Settings(state))
        assert result["changed"] and not result["failed"]
        (record,) = listed_records(Records(state), "all")
        return answer.images[0], answer.images[1], result, record


def _changed(entry: Entry, facts: Entry) -> Entry:
    unknown = set(facts) - set(entry)
    assert not unknown, "no module returns %s" % ", ".join(sorted(unknown))
    return dict(entry, **facts)


def looked_at(path: str, **facts: Any) -> Entry:
    """As qcow_info returns it for a sound image."""
    return _changed(_made()[0], dict(facts, path=path))


def damaged(path: str, **facts: Any) -> Entry:
    """As qcow_info returns it for an image that is cut off."""
    return _changed(_made()[1], dict(facts, path=path))


def converted(path: str, **facts: Any) -> Entry:
    """As qcow_convert returns it for an image that was migrated."""
    names = {"src": path, "dest": path + ".qcow2", "retired": path + ".qcow1.orig"}
    return _changed(_made()[2], dict(names, **facts))


def recorded(path: str, number: int = 1, **facts: Any) -> Entry:
    """As every module returns the record of a finished migration.

    :param number: records of a host are numbered by their time.
    """
    identifier = "20261101T%06d.000000Z-1a2b3c4d" % number
    names = {"src": path, "dest": path + ".qcow2", "retired": path + ".qcow1.orig", "record": identifier}
    return _changed(_made()[3], dict(names, **facts))
