# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Looks at an image and decides what is to become of it: makes a :class:`.plan.Plan`."""

import os
import time
from typing import Any, Dict, List, Optional, Set

from .._directories import exists, is_directory, status_of
from .._errors import DamagedImage, PassphraseError, QcowError, StateError, UnsafeImage, UnsupportedImage, VerificationFailed
from .._fingerprint import rounded
from .._host.attributes import protection
from .._host.files import check_name
from .._host.in_use import WRITER, find_users, in_use
from .._host.procfs import Use
from .._image import safety
from .._image.chain import Key, Member
from .._image.detect import HEAD, UNKNOWN, reader_at
from .._image.extent import SECTOR
from .._image.findings import ERROR
from .._image.qcow1 import Qcow1
from .._image.qcow1_check import STRUCTURE
from .._paths import show
from .._verify.compare import verify
from .._verify.qcow_readers import open_reader
from .backing import KEEP, RECLUSTER, Replacement, kept_layout, needed, require_thin_possible, require_writable, rest_on, rules_of
from .block_device import device_at, require_usable
from .hard_links import under_one_name
from .moved_files import MovedFiles
from .plan import CONVERT, NATIVE, NOOP, QEMU_IMG, REFUSE, RETIRE, STAGED, Plan
from .record import Record, Records, State
from .request import WRITTEN, Request, require_expected, result_path, retired_path
from .source import MAX_RANGES, Losses, Source, identity_of, ranges_of, require_sound
from .taken_names import taken

_LOOKS = 10
_BETWEEN_LOOKS = 0.2  # seconds


class Bases:
    """What is already known while a batch is planned, bases before their overlays: the plans by what their originals are.

    :param level: of the check of each image. A run that only asks has every stream inflated, a real one does that while it copies.
    :param moved: settles which file an earlier record speaks of.
    """

    def __init__(self, level: str = STRUCTURE, moved: Optional[MovedFiles] = None) -> None:
        self.level = level
        self.moved = moved or MovedFiles()
        self.plans: Dict[Key, Plan] = {}
        self.sound: Set[Key] = set()
        self.users: Dict[Key, List[Use]] = {}  # from one look at all processes for all images


def make_plan(request: Request, records: Records, bases: Optional[Bases] = None) -> Plan:
    """Look at an image and decide. Changes nothing and never raises for what it finds: that is a refusal.

    :param records: of earlier migrations on this host.
    :param bases: what the batch has planned before; gets this plan too.
    """
    bases = Bases() if bases is None else bases
    dest = result_path(request)
    try:
        plan = _decide(request, dest, records, bases)
        if plan.action in (CONVERT, RETIRE):
            plan = under_one_name(plan, bases.plans.get(_key_of(plan) or (0, 0)), records)
    except QcowError as error:
        plan = Plan(REFUSE, request, dest, [str(error)], error.reason, details=error.details)
    except OSError as error:
        plan = Plan(REFUSE, request, dest, ["{0}: {1}".format(show(request.src), error.strerror)], "error")
    key = _key_of(plan)
    if key is not None:
        bases.plans.setdefault(key, plan)
    return plan


def _key_of(plan: Plan) -> Optional[Key]:
    """What the image is; ``None`` where there is none, and nothing can rest on it."""
    if plan.identity is not None:
        return plan.identity[:2]
    try:
        status = status_of(plan.request.src)
    except (QcowError, OSError):
        return None
    return status.st_dev, status.st_ino


def _decide(request: Request, dest: bytes, records: Records, bases: Bases) -> Plan:
    if request.refused:
        raise QcowError(
            "the plan refuses it: {0}".format(request.refused),
            request.src,
            reason="planned",
            hint="It was left as it is. Fix that and scan again, or set its action in the plan to skip.",
        )
    done = _last_done(records.of_source(request.src))
    if not exists(request.src):
        if done is not None and exists(done.file("dest") or b""):
            return Plan(NOOP, request, done.file("dest") or dest, ["migrated before (record {0})".format(done.id)], "")
        raise QcowError("there is no such file", request.src, reason="missing")
    with Source(request.src) as source:
        kind = source.identify()
        if kind.format != "qcow":
            if kind.format == request.format or (done is not None and done.file("dest") == request.src):
                return Plan(NOOP, request, request.src, ["the image is {0} already".format(request.format)], "", identity=source.identity)
            raise UnsupportedImage(
                "not a QCOW v1 image but {0}".format("raw or unknown" if kind.format == UNKNOWN else kind.format),
                request.src,
                reason="not-v1",
                hint="It was left as it is.",
            )
        unsettled = None
        if done is not None and done.file("dest") == dest and exists(dest):
            try:
                if bases.moved.is_original(done, source):
                    return _converted_before(request, dest, source, done, bases)
            except StateError as error:
                unsettled = error
        require_expected(request, source.identity)
        try:
            return _plan_conversion(request, dest, source, records, bases)
        except QcowError:
            if unsettled is not None:  # nor is the result equal to it
                raise unsettled from None
            raise


def _converted_before(request: Request, dest: bytes, source: Source, done: Record, bases: Bases) -> Plan:
    action, retired = (RETIRE, retired_path(request.src)) if request.retire else (NOOP, None)
    if retired is not None:
        _require_renamable(source)
    return Plan(
        action,
        request,
        dest,
        ["converted before (record {0})".format(done.id)] + bases.moved.words(done),
        "",
        retired,
        identity=source.identity,
        unfinished=done.id if done.unfinished else None,
    )


def _last_done(records: List[Record]) -> Optional[Record]:
    for record in reversed(records):
        if record.state in State.IN_PLACE:
            return record
    return None


def _look(request: Request, source: Source, bases: Bases) -> Losses:
    """Whether the images are sound. One that a guest is writing may be caught between a table's entry and its cluster: it gets another look."""
    looks = _LOOKS if request.domain_access == WRITTEN else 1
    while True:
        looks -= 1
        try:
            return require_sound(source, bases.level, bases.sound, salvage=request.salvage)
        except DamagedImage:
            if not looks:
                raise
            time.sleep(_BETWEEN_LOOKS)


def _require_safe(request: Request, source: Source) -> None:
    """What the safety checks call an error, in the image and in the v1 images it rests on, is refused where it was not for a better reason before."""
    files = [(source.path, source.fd)] + [(member.path, fd) for member, fd in source.pairs() if member.format == "qcow"]
    for path, fd in files:
        read_at = reader_at(fd)
        found = safety.inspect(read_at(HEAD, 0), os.fstat(fd).st_size, read_at)
        allowed = safety.DAMAGE if request.salvage else frozenset()
        if request.allow_declared_raw:
            allowed |= safety.AMBIGUOUS
        errors = [finding.text for finding in found if finding.severity == ERROR and finding.kind not in allowed]
        if errors:
            raise UnsafeImage(
                "; ".join(errors),
                path,
                hint="It was left as it is: a guest may have written a QCOW header into its own raw disk. If you are sure that it is an image, set "
                "allow_declared_raw=true.",
            )


def _plan_conversion(request: Request, dest: bytes, source: Source, records: Records, bases: Bases) -> Plan:
    members = tuple(source.follow(rules_of(request)))
    lost = _look(request, source, bases)
    _require_safe(request, source)
    image = source.layers[0]
    source.unlock(dict(request.passphrase_files), force=request.force_passphrase)
    bases.sound.update(member.key for member in members)
    retired = retired_path(request.src) if request.retire else None
    before = {
        "path": show(request.src),
        "format": "qcow",
        "virtual_size": image.virtual_size,
        "file_size": source.identity.size,
        "allocated_size": os.fstat(source.fd).st_blocks * SECTOR,
        "cluster_size": image.cluster_size,
    }
    common: Dict[str, Any] = {
        "retired": retired,
        "identity": source.identity,
        "before": before,
        "virtual_size": rounded(image.virtual_size),
        "below": members[1:],
        "lost": lost,
    }
    _require_names(request, dest, retired, records)
    if retired is not None:
        _require_renamable(source)
    device = device_at(request.dest)
    if dest != request.src and exists(dest) and device is None:
        return _adopt(request, dest, source, common, records)
    if request.domain_access != WRITTEN:
        _require_free(source, bases, replaced=retired is not None and request.domain_access != "read")
    engine = choose_engine(request, device)
    _require_luks_passphrase(request)
    if device is not None:
        require_usable(request, dest, rounded(image.virtual_size))
    backing = None
    if source.members and request.chains == "preserve" and request.format == "qcow2":
        require_thin_possible(request, native=engine == NATIVE)
        backing = rest_on(request, dest, members[0], members[1], _replacement_of(source.members[0], request.src, records, bases))
    cluster_size, need = needed(request, source, backing, rounded(image.virtual_size))
    reasons = ["QCOW v1 image of {0} bytes".format(image.virtual_size)]
    layout = RECLUSTER
    if request.layout == KEEP and request.format == "qcow2":
        layout, cluster_size, need = kept_layout(
            request, source, backing, cluster_size, need, reasons, native=engine == NATIVE and not lost
        )
    require_writable(request, backing, cluster_size, rounded(image.virtual_size))
    if backing is not None:
        reasons.append("overlay, stays thin over {0} ({1}), clusters of {2} bytes".format(show(backing.name), backing.format, cluster_size))
    elif source.members:
        reasons.append("overlay of {0} files, flattened".format(len(members)))
    if image.virtual_size % SECTOR:
        reasons.append("virtual size rounded up to {0} bytes, no guest byte is lost".format(rounded(image.virtual_size)))
    for layer, above in zip(source.layers[1:], source.layers):
        if layer.virtual_size % SECTOR and layer.virtual_size < above.virtual_size:
            reasons.append(
                "the last {0} bytes of the base {1}, less than a sector, which QEMU does not show, are part of the disk".format(
                    layer.virtual_size % SECTOR, show(layer.path)
                )
            )
    if any(isinstance(layer, Qcow1) and layer.header.crypt_method for layer in source.layers):
        reasons.append("legacy encryption; found: " + (", ".join(sorted(set(source.recognised))) or "no known signature"))
    if source.warnings:
        reasons.append("suspect, converted as it can be read: " + "; ".join(source.warnings[:MAX_RANGES]))
    if lost:
        ranges = sum(len(found) for found in lost.values())
        reasons.append("{0} damaged ranges will read as zeros (salvage)".format(ranges))
    return Plan(
        CONVERT,
        request,
        dest,
        reasons,
        "",
        engine=engine,
        guest_bytes=need.guest,
        device=device,
        need=need.file if device is None else 0,
        foreign_need=source.foreign_need(whole=backing is not None),
        backing=backing,
        cluster_size=cluster_size,
        layout=layout,
        **common,
    )


def _require_luks_passphrase(request: Request) -> None:
    if request.encryption != "luks" or request.luks_passphrase_file is None:
        return
    from .._image.crypt import read_passphrase

    if not read_passphrase(request.luks_passphrase_file).strip(b"\r\n"):
        raise PassphraseError(
            "the LUKS passphrase is empty: anybody could read the result",
            request.luks_passphrase_file,
            hint="Nothing was changed. Write a passphrase to that file and run again.",
        )


def choose_engine(request: Request, device: Optional[int]) -> str:
    """The engine for a request: ours, unless it is asked for another or for something that only qemu-img writes."""
    if device is not None:
        if request.engine == QEMU_IMG:
            raise UnsupportedImage("block devices are written natively only", request.src, hint="Set engine=auto. Nothing was changed.")
        return NATIVE
    if request.engine == QEMU_IMG:
        if request.salvage:
            raise UnsupportedImage("qemu-img silently reads damage as zeros", request.src, hint="Set engine=auto to salvage it.")
        return QEMU_IMG
    if request.format == "qcow2" and (request.compression == "zstd" or request.encryption == "luks"):
        if request.engine == NATIVE:
            what = "zstd compression" if request.compression == "zstd" else "LUKS encryption"
            raise UnsupportedImage(
                "{0} is written by qemu-img only".format(what), request.src, hint="Set engine=auto. Nothing was changed."
            )
        return STAGED
    return NATIVE


def _replacement_of(base: Member, src: bytes, records: Records, bases: Bases) -> Optional[Replacement]:
    """What a base is replaced by: in this run, or already.

    :raises QcowError: where the base is QCOW v1 and will not be migrated.
    """
    plan = bases.plans.get(base.key)
    if base.format != "qcow":
        return None
    if plan is not None and plan.action in (CONVERT, RETIRE, NOOP):
        return Replacement(plan.dest, plan.request.format, plan.backing, plan.action != CONVERT)
    if plan is not None:
        raise QcowError("its base {0} cannot be migrated: {1}".format(show(base.path), "; ".join(plan.reasons)), src, reason="chain")
    done = _last_done(records.of_source(base.real))
    if done is not None and exists(done.path_of("dest")):
        with Source(base.real, identity_of(base)) as there:
            if bases.moved.is_original(done, there):
                return Replacement(done.path_of("dest"), done.facts["format"], None, True)
    raise QcowError(
        "its base {0} is a QCOW v1 image that is not migrated in this run".format(show(base.path)),
        src,
        reason="chain",
        hint="Nothing was changed. Migrate both together, or set chains=flatten.",
    )


def _require_names(request: Request, dest: bytes, retired: Optional[bytes], records: Records) -> None:
    check_name(dest)
    if dest == request.src and retired is None:
        raise QcowError(
            "the result would take the name of the original, and the original is to be kept",
            request.src,
            reason="exists",
            hint="Nothing was changed. Set original=retire, or give another dest.",
        )
    if retired is not None:
        check_name(retired)
        if exists(retired):
            raise taken("the name for the retired original", retired, request.src, records, "Find out whose it is, or set original=keep.")


def _require_renamable(source: Source) -> None:
    flags = " and ".join(protection(source.fd))
    if flags:
        raise QcowError(
            "the original is {0} (see lsattr) and could not be renamed".format(flags),
            source.path,
            reason="protected",
            hint="Nothing was changed. Take the flag away (chattr), or set original=keep.",
        )


def _require_free(source: Source, bases: Bases, *, replaced: bool) -> None:
    users = find_users(source.fd, seen=bases.users)
    against = users if replaced else [use for use in users if use.kind == WRITER]
    if against:
        raise in_use("the image", against, source.path, "Nothing was changed. Stop what uses it and run again.")


def _adopt(request: Request, dest: bytes, source: Source, common: Dict[str, Any], records: Records) -> Plan:
    """The result's name is taken: by what we would write (its record is lost), or by something else."""
    lost = ranges_of(common["lost"])
    try:
        with Source(dest) as there:
            there.follow(rules_of(request))
            kind = there.identify().format
            if request.format in (kind, "raw" if kind == UNKNOWN else kind):
                result = [open_reader(request.format, there.fd, dest)]
                result += [open_reader(member.format, fd, member.path) for member, fd in there.pairs()]
                verify(source.readers(lost), result, dest)
                action = RETIRE if request.retire else NOOP
                return Plan(action, request, dest, ["an identical result exists already"], "", **common)
    except (VerificationFailed, UnsafeImage, UnsupportedImage, DamagedImage, KeyError):
        pass
    way_out = "To put the result into it, end dest with a slash." if is_directory(dest) else "Give another dest."
    raise taken("the name for the result", dest, request.src, records, way_out)
