# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of qcow_convert as requests and settings."""

import os
import time
from typing import Any, Dict, List, Optional, Tuple

from .._directories import real_path
from .._options import (
    OptionError,
    absolute,
    bytes_of,
    cluster_size_of,
    exact_path,
    path_of,
    paths_of,
    require_at_least,
    reserve_of,
    seconds_of,
)
from .._paths import decode_exact, to_path
from .batch import Settings
from .calls import RUN_AGE, SENT, WATCHED_AS
from .domain_policy import Policy
from .record import Records
from .record_entries import LISTED
from .request import Request
from .search import Candidates, Search, candidates
from .seen_images import SeenImages

_LONGEST_WAY = 300.0
"""Seconds that a call is on its way at most. What looks longer is the difference of two clocks."""


ARGUMENTS = {
    "src": {"type": "path"},
    "dest": {"type": "path"},
    "paths": {"type": "list", "elements": "path"},
    "plan": {"type": "path"},  # read by the action plugin, which gives its images
    "exclude": {"type": "list", "elements": "str", "default": []},
    "one_filesystem": {"type": "bool", "default": False},
    "missing_ok": {"type": "bool", "default": False},
    "only": {"type": "list", "elements": "str"},
    "images": {
        "type": "list",
        "elements": "dict",
        "options": {
            "src": {"type": "path", "required": True},
            "src_base64": {"type": "str"},
            "dest": {"type": "path"},
            "dest_base64": {"type": "str"},
            "format": {"type": "str", "choices": ["qcow2", "raw"]},
            "passphrase_file": {"type": "path", "no_log": False},
            "action": {"type": "str", "choices": ["convert", "skip", "refuse"], "default": "convert"},
            "why": {"type": "list", "elements": "str", "default": []},
            "expect": {"type": "dict", "options": {"size": {"type": "int"}, "mtime_ns": {"type": "int"}, "ino": {"type": "int"}}},
        },
    },
    "workers": {"type": "int", "default": 1},
    "max_minutes": {"type": "float"},
    "until": {"type": "str"},  # the action plugin's
    "max_bytes": {"type": "str"},
    "fail_on_in_use": {"type": "bool", "default": True},
    "fail_on_no_space": {"type": "bool", "default": True},
    "progress_interval": {"type": "str", "default": "15s"},  # the action plugin's
    "reconnect_timeout": {"type": "str", "default": "1h"},  # the action plugin's
    "time_limit": {"type": "str", "default": "365d"},  # the action plugin's
    "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
    "keep_name": {"type": "bool", "default": False},
    "engine": {"type": "str", "choices": ["auto", "native", "qemu-img"], "default": "auto"},
    "cluster_size": {"type": "str"},
    "compression": {"type": "str", "choices": ["none", "zlib", "zstd"], "default": "none"},
    "lazy_refcounts": {"type": "bool", "default": False},
    "extended_l2": {"type": "bool", "default": False},
    "chains": {"type": "str", "choices": ["preserve", "flatten"], "default": "preserve"},
    "backing_dirs": {"type": "list", "elements": "path", "default": []},
    "backing_formats": {"type": "dict", "default": {}},
    "raw_bases": {"type": "bool", "default": True},
    "domains": {"type": "str", "choices": ["follow", "refuse", "ignore"], "default": "follow"},
    "libvirt_uri": {"type": "str", "default": "qemu:///system"},
    "links": {"type": "str", "choices": ["follow", "refuse", "ignore"], "default": "follow"},
    "running": {"type": "str", "choices": ["refuse", "shutdown", "live"], "default": "refuse"},
    "shutdown_timeout": {"type": "str", "default": "120s"},
    "reference_dirs": {"type": "list", "elements": "path", "default": []},
    "references": {"type": "str", "choices": ["refuse", "report"], "default": "refuse"},
    "allow_declared_raw": {"type": "bool", "default": False},
    "passphrase_file": {"type": "path", "no_log": False},  # names of files, not passphrases
    "passphrase_files": {"type": "dict", "default": {}, "no_log": False},
    "force_passphrase": {"type": "bool", "default": False, "no_log": False},
    "encryption": {"type": "str", "choices": ["none", "luks"], "default": "none"},
    "luks_passphrase_file": {"type": "path", "no_log": False},
    "salvage": {"type": "bool", "default": False},
    "overwrite_device": {"type": "bool", "default": False},
    "preallocation": {"type": "str", "choices": ["off", "metadata", "falloc", "full"], "default": "off"},
    "compat": {"type": "str", "choices": ["0.10", "1.1"], "default": "1.1"},
    "verify": {"type": "bool", "default": True},
    "original": {"type": "str", "choices": ["keep", "retire"], "default": "keep"},
    "timestamps": {"type": "bool", "default": True},
    "layout": {"type": "str", "choices": ["recluster", "keep"], "default": "recluster"},
    "bandwidth": {"type": "str"},
    "priority": {"type": "str", "choices": ["normal", "low"], "default": "normal"},
    "page_cache": {"type": "str", "choices": ["use", "spare"], "default": "use"},
    "reserve": {"type": "str", "default": "64M"},
    "list_records": {"type": "str", "choices": list(LISTED), "default": "unfinished"},
    "lock_timeout": {"type": "str", "default": "0s"},
    "moved_files": {"type": "str", "choices": ["auto", "compare", "accept"], "default": "auto"},
    "state_dir": {"type": "path", "default": "/var/lib/vmimage-qcow"},
}  # type: Dict[str, Any]
"""The module's argument spec."""


def passphrase_files_of(params: Dict[str, Any], image: Dict[str, Any]) -> Tuple[Tuple[bytes, bytes], ...]:
    """Which file has the passphrase of which image; the one for all others is under the empty name."""
    files = {
        real_path(absolute(path, "passphrase_files")): absolute(str(secret), "passphrase_files")
        for path, secret in params["passphrase_files"].items()
    }
    if image.get("passphrase_file"):
        files[real_path(exact_path(image, "src"))] = absolute(image["passphrase_file"], "passphrase_file")
    if params["passphrase_file"] is not None:
        files[b""] = absolute(params["passphrase_file"], "passphrase_file")
    return tuple(sorted(files.items()))


def common_request(params: Dict[str, Any]) -> Request:
    """What all images have in common.

    :raises OptionError: an option cannot be meant.
    """
    many = params["src"] is None
    dest = path_of(params, "dest")
    into = dest is not None and (many or params["dest"].endswith("/") or os.path.isdir(dest))
    return Request(
        src=b"",
        dest=None if into else dest,
        dest_dir=dest if into else None,
        format=params["format"],
        keep_name=params["keep_name"],
        engine=params["engine"],
        verify=params["verify"],
        retire=params["original"] == "retire",
        cluster_size=cluster_size_of(params, "cluster_size"),
        compression=params["compression"],
        lazy_refcounts=params["lazy_refcounts"],
        extended_l2=params["extended_l2"],
        layout=params["layout"],
        bandwidth=bytes_of(params, "bandwidth"),
        page_cache=params["page_cache"],
        timestamps=params["timestamps"],
        state_dir=absolute(params["state_dir"], "state_dir"),
        chains=params["chains"],
        links=params["links"],
        backing_dirs=paths_of(params, "backing_dirs") + paths_of(params, "paths"),
        backing_formats=tuple((absolute(path, "backing_formats"), str(name)) for path, name in sorted(params["backing_formats"].items())),
        raw_bases=params["raw_bases"],
        force_passphrase=params["force_passphrase"],
        encryption=params["encryption"],
        luks_passphrase_file=path_of(params, "luks_passphrase_file"),
        salvage=params["salvage"],
        allow_declared_raw=params["allow_declared_raw"],
        overwrite_device=params["overwrite_device"],
        preallocation=params["preallocation"],
        compat=params["compat"],
    )


def requests_of(params: Dict[str, Any], common: Request) -> List[Request]:
    """What O(src) or O(images) ask for, one request an image.

    :raises OptionError: an option cannot be meant.
    """
    images = params["images"] if params["images"] is not None else [{"src": params["src"], "action": "convert", "why": []}]
    return [request_of(params, common, image) for image in images if image["action"] != "skip"]


def request_of(params: Dict[str, Any], common: Request, image: Dict[str, Any]) -> Request:
    """One entry of O(images).

    :raises OptionError: an option cannot be meant.
    """
    request = common._replace(
        src=exact_path(image, "src"),
        format=image.get("format") or params["format"],
        passphrase_files=passphrase_files_of(params, image),
        expect=tuple((key, value) for key, value in sorted((image.get("expect") or {}).items()) if value is not None),
        refused="; ".join(image["why"]) or "the plan gives no reason" if image["action"] == "refuse" else "",
    )
    if image.get("dest") or image.get("dest_base64"):
        dest = exact_path(image, "dest")
        inside = decode_exact(image.get("dest") or "", image.get("dest_base64")).endswith(b"/")
        request = request._replace(dest=None if inside else dest, dest_dir=dest if inside else None)
    return request


class FoundImages:
    """Asks for every image below O(paths), and keeps what was found last."""

    def __init__(self, params: Dict[str, Any], common: Request) -> None:
        self._search = Search(
            paths_of(params, "paths"),
            tuple(to_path(pattern) for pattern in params["exclude"]),
            params["one_filesystem"],
            params["missing_ok"],
        )
        self._params = params
        self._common = common
        self.last = Candidates([], [], 0, 0)

    def __call__(self, around: SeenImages) -> List[Request]:
        self.last = candidates(self._search, Records(self._common.state_dir), around)
        passphrase_files = passphrase_files_of(self._params, {})
        return [self._common._replace(src=path, passphrase_files=passphrase_files) for path in self.last.paths]


def settings_of(params: Dict[str, Any], *, check_mode: bool) -> Settings:
    """How the call is run.

    :raises OptionError: an option cannot be meant.
    """
    require_at_least(params, workers=1, max_minutes=0)
    if params["until"] is not None:
        raise OptionError(
            "until: only the controller knows when this run began. Set max_minutes where the module runs without its action plugin"
        )
    for name, least in (("progress_interval", 0), ("reconnect_timeout", 0), ("time_limit", 1)):  # the action plugin's
        seconds_of(params, name, least)
    reserve, percent = reserve_of(params)
    return Settings(
        state_dir=absolute(params["state_dir"], "state_dir"),
        workers=params["workers"],
        wait=seconds_of(params, "lock_timeout"),
        check_mode=check_mode,
        max_minutes=None if params["max_minutes"] is None else max(params["max_minutes"] - _on_the_way() / 60, 0),
        max_bytes=bytes_of(params, "max_bytes"),
        only=params["only"],
        fail_on_in_use=params["fail_on_in_use"],
        fail_on_no_space=params["fail_on_no_space"],
        watched_as=os.environ.get(WATCHED_AS),
        run_age=_run_age(),
        domains=params["domains"],
        libvirt_uri=params["libvirt_uri"],
        reference_dirs=paths_of(params, "reference_dirs"),
        references=params["references"],
        moved_files=params["moved_files"],
        raw_allowed=params["allow_declared_raw"],
        running=Policy(params["running"], seconds_of(params, "shutdown_timeout")),
        reserve=reserve,
        reserve_percent=percent,
    )


def _on_the_way() -> float:
    """Seconds that the call has been on its way from the controller: connecting, sending, starting. 0 where the two clocks do not agree."""
    try:
        passed = time.time() - float(os.environ[SENT])
    except (KeyError, ValueError):
        return 0.0  # called by something else than the action plugin
    return passed if 0 <= passed < _LONGEST_WAY else 0.0


def _run_age() -> Optional[float]:
    try:
        return float(os.environ[RUN_AGE]) + _on_the_way()
    except (KeyError, ValueError):
        return None  # called by something else than the action plugin
