# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What modules return: every entry of a list is one of these types, turned into a dictionary. RETURN documents their fields."""

from typing import Any, Dict, List, NamedTuple, Optional

from .._paths import encode_exact, show


class Outcome(NamedTuple):
    """What happened to one image. Sizes in bytes, times in seconds."""

    changed: bool
    dest: bytes
    engine: Optional[str] = None
    verified: bool = False
    fingerprint: Optional[str] = None
    retired: Optional[bytes] = None
    record: Optional[str] = None
    after: Dict[str, Any] = {}
    warnings: List[str] = []
    copy_seconds: float = 0.0
    verify_seconds: float = 0.0


class ImageResult(NamedTuple):
    """What has become of one image, or would. Sizes in bytes, times in seconds."""

    src: str
    src_base64: Optional[str]
    dest: str
    dest_base64: Optional[str]
    action: str
    reasons: List[str]
    changed: bool = False
    failed: bool = False
    engine: Optional[str] = None
    verified: Optional[bool] = None
    fingerprint: Optional[str] = None
    retired: Optional[str] = None
    retired_base64: Optional[str] = None
    record: Optional[str] = None
    source: Optional[Dict[str, int]] = None
    copy_bytes: int = 0
    before: Dict[str, Any] = {}
    after: Dict[str, Any] = {}
    warnings: List[str] = []
    chain: List[Dict[str, Any]] = []
    backing: Optional[Dict[str, Any]] = None
    repointed: List[str] = []
    links: List[Dict[str, Any]] = []
    domains: List[Dict[str, Any]] = []
    lost: List[Dict[str, Any]] = []
    seconds: float = 0.0
    copy_seconds: float = 0.0
    verify_seconds: float = 0.0
    reason: Optional[str] = None
    msg: str = ""
    details: Dict[str, Any] = {}


class RecordEntry(NamedTuple):
    """What a record says, for people and programs. Sizes in bytes, times in seconds."""

    record: str
    src: str
    src_base64: Optional[str]
    dest: str
    dest_base64: Optional[str]
    retired: Optional[str]
    retired_base64: Optional[str]
    format: Optional[str]
    state: str
    began: Optional[str]  # when its first state was written down
    time: Optional[str]  # when its last one was
    verified: bool
    fingerprint: Optional[str]
    before: Dict[str, Any]
    after: Dict[str, Any]
    seconds: Optional[float]
    domains: List[str]  # that were pointed to the result
    returned: Optional[int]  # bytes that a cleanup has given back
    error: Optional[str]
    unfinished: Optional[str]  # what is left to do
    reversible: bool  # whether a rollback may undo it


class Recovered(NamedTuple):
    """What was, or would be, done about one thing that an interrupted run has left."""

    msg: str
    state: Optional[str]
    failed: bool = False
    record: Optional[str] = None
    src: Optional[str] = None
    src_base64: Optional[str] = None
    dest: Optional[str] = None
    dest_base64: Optional[str] = None


class Running(NamedTuple):
    """How far a call is. Times in seconds, sizes in bytes; what cannot be told is ``None``."""

    pid: Optional[int]
    since: Optional[str]
    stage: str
    images: int
    done: int
    failed: int
    percent: Optional[int]
    seconds_left: Optional[int]
    current: List[Dict[str, Any]]


class LastRun(NamedTuple):
    """How the last run has ended, as it has left it."""

    since: Optional[str] = None
    time: Optional[str] = None
    images: int = 0
    done: int = 0
    failed: int = 0
    left: Optional[int] = None
    stopped: bool = False


class Undone(NamedTuple):
    """What has become of one record in a rollback or a cleanup, or would; each of them adds keys of its own."""

    action: str
    reasons: List[str]
    msg: str
    changed: bool = False
    failed: bool = False
    reason: Optional[str] = None
    record: Optional[str] = None
    src: Optional[str] = None
    src_base64: Optional[str] = None
    dest: Optional[str] = None
    dest_base64: Optional[str] = None
    retired: Optional[str] = None
    retired_base64: Optional[str] = None
    state: Optional[str] = None
    time: Optional[str] = None


class MovedDomain(NamedTuple):
    """A domain that uses the image, or did."""

    name: str
    uuid: str
    changed: bool
    targets: List[str]
    path: str
    format: str
    was_running: bool
    method: str
    started: bool = False
    saved: Optional[str] = None


class InfoImage(NamedTuple):
    """What was seen of one file. Sizes in bytes; what cannot be told is ``None``."""

    path: str
    path_base64: Optional[str]
    format: str
    version: Optional[int] = None
    virtual_size: Optional[int] = None
    file_size: Optional[int] = None
    allocated_size: Optional[int] = None
    mtime: Optional[float] = None
    cluster_size: Optional[int] = None
    encrypted: Optional[bool] = None
    compressed_clusters: Optional[int] = None
    data_bytes: Optional[int] = None
    producer: Optional[str] = None
    backing: Optional[Dict[str, Any]] = None
    chain: List[Dict[str, Any]] = []
    dependents: List[Dict[str, Any]] = []
    links: List[Dict[str, Any]] = []
    in_use: List[Dict[str, Any]] = []
    users: List[Dict[str, Any]] = []
    domains: Optional[Dict[str, Any]] = None
    references: List[Dict[str, Any]] = []
    check: Optional[Dict[str, Any]] = None
    safety: List[Dict[str, Any]] = []
    fingerprint: Optional[str] = None
    candidate: bool = False
    reasons: List[str] = []
    error: Optional[str] = None


def info_image(path: bytes, format_name: str, **facts: Any) -> Dict[str, Any]:
    """A new entry for a file, to be filled in."""
    fresh = {"chain": [], "dependents": [], "links": [], "in_use": [], "users": [], "references": [], "safety": [], "reasons": []}  # type: Dict[str, Any]
    return dict(InfoImage(show(path), encode_exact(path), format_name, **dict(fresh, **facts))._asdict())


def warnings_of(recovered: List[Dict[str, Any]]) -> List[str]:
    """What a module warns of among the entries that a run returns as ``recovered``."""
    return ["An interrupted run cannot be finished: {0}".format(entry["msg"]) for entry in recovered if entry["failed"]]
