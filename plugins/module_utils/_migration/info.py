# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Looks at images and trees and tells what is there. Changes nothing and stops at nothing."""

import os
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from .._directories import real_path
from .._errors import QcowError
from .._host import in_use, tree
from .._host.symbolic_links import SymbolicLinks
from .._image import safety
from .._image.chain import NATIVE, Graph, Rules
from .._image.detect import HEAD, QCOW1_MAGIC, QCOW_MAGIC, UNKNOWN, Identity, identify, is_qcow1, reader_at
from .._image.extent import SECTOR
from .._image.findings import DAMAGED, SOUND
from .._image.producer import likely_producer
from .._image.qcow1 import Qcow1
from .._image.qcow1_check import check
from .._image.qcow2 import Qcow2
from .._paths import decode_exact, encode_exact, show
from .domain_references import Domains
from .record import Records
from .request import is_retired
from .results import info_image
from .search import WALKERS, absent, unseen
from .seen_images import Searched, SeenImages
from .source import Source

REPORTS = ("v1", "known", "all")


class Question(NamedTuple):
    """What to look at, and how closely."""

    paths: Tuple[bytes, ...]
    exclude: Tuple[bytes, ...] = ()
    recurse: bool = True
    one_filesystem: bool = False
    missing_ok: bool = False  # paths that do not exist are no errors
    report: str = "known"  # v1: QCOW v1 only; known: every recognised format; all: raw or unknown files too
    check: str = "structure"  # none, structure or content
    fingerprint: bool = False
    in_use: bool = True
    chains: bool = True  # follow backing files, and find out which of the images rest on which
    reference_dirs: Tuple[bytes, ...] = ()  # where links may lie, too
    backing_dirs: Tuple[bytes, ...] = ()  # where backing files may lie, besides ``paths`` and the directory of each image


class Answer(NamedTuple):
    """The images, what they amount to, and what could not be looked at."""

    images: List[Dict[str, Any]]
    summary: Dict[str, Any]
    errors: List[Dict[str, Any]]
    searched: List[Searched]  # in which overlays and links were looked for


def look(question: Question, records: Records, domains: Optional[Domains] = None) -> Answer:
    """Every file that the question asks for.

    :param records: of this host; a path that was named and is gone because its image was migrated is no error.
    :param domains: whose images are looked at for what rests on the images that are found.
    """
    counts = tree.Counts()
    errors: List[Dict[str, Any]] = []
    gone = absent(question.paths, records, missing_ok=question.missing_ok)
    named = {name for path in question.paths for name in (path, real_path(path))}
    around = SeenImages(domains)
    around.told, around.exclude, around.one_filesystem = question.paths, question.exclude, question.one_filesystem
    prefix = b"" if question.report != "v1" else QCOW_MAGIC if question.chains else QCOW1_MAGIC
    images = []
    for found in tree.walk(
        [path for path in question.paths if path not in gone],
        prefix=prefix,
        workers=WALKERS,
        exclude=question.exclude,
        one_filesystem=question.one_filesystem,
        recurse=question.recurse,
        counts=counts,
    ):
        if question.chains:
            around.add(found)
        if question.report == "v1" and found.error is None and not is_qcow1(found.head) and found.path not in named:
            continue
        image = _describe(found, question, errors)
        if found.path in named or found.error or question.report == "all" or image["format"] != UNKNOWN:
            images.append(image)
    around.links.add(counts.links)
    around.has_walked(question.paths if question.recurse else ())
    candidates = [image for image in images if image["candidate"]]
    if question.in_use:
        _add_users(images)
    if question.chains and candidates:
        beside = {os.path.dirname(decode_exact(image["path"], image["path_base64"])): None for image in candidates}
        around.look_at((*question.backing_dirs, *question.reference_dirs), beside)
    if question.chains:
        _add_dependents(images, around.graph)
    _add_links(candidates, around.links)
    for image in images:
        del image["_key"]
    return Answer(images, _summary(images, counts), errors, list(around.searched.values()))


def _describe(found: tree.Found, question: Question, errors: List[Dict[str, Any]]) -> Dict[str, Any]:
    status = found.stat
    if found.error is not None:
        errors.append(unseen(found))
    image = info_image(
        found.path,
        UNKNOWN,
        file_size=None if status is None else status.st_size,
        allocated_size=None if status is None else status.st_blocks * SECTOR,
        mtime=None if status is None else status.st_mtime,
        error=None if found.error is None else errors[-1]["msg"],
    )
    image["_key"] = found.key
    if found.error is None and status is not None:
        kind = identify(found.head, status.st_size, found.read_at)
        image.update(format=kind.format, version=kind.version)
        try:
            _describe_content(image, kind, found.path, question)
        except QcowError as error:
            image["error"] = str(error)
            image["reasons"].append(error.reason)
        except OSError as error:
            errors.append(unseen(found._replace(error=error.strerror)))
            image["error"] = errors[-1]["msg"]
    return image


def _describe_content(image: Dict[str, Any], kind: Identity, path: bytes, question: Question) -> None:
    if kind.format == "qcow2":
        with Source(path) as source:
            reader = Qcow2(source.fd, path, content=question.fingerprint)
            image.update(virtual_size=reader.virtual_size, cluster_size=reader.cluster_size, encrypted=bool(reader.header.crypt_method))
            image["backing"] = _backing(reader.backing_name, reader.header.backing_format)
            whole = image["backing"] is None or (question.chains and _describe_chain(image, source, question))
            if question.fingerprint and whole and all(member["format"] in NATIVE for member in image["chain"]):
                image["fingerprint"] = _fingerprint(
                    [(kind.format, source.fd, path)] + [(member.format, fd, member.path) for member, fd in source.pairs()]
                )
    elif kind.format == "qcow":
        image["candidate"] = not is_retired(path)
        image["reasons"] = ["QCOW v1"] if image["candidate"] else ["retired original"]
        with Source(path) as source:
            _describe_v1(image, source, question)
    elif kind.format == UNKNOWN and kind.version is not None:
        image["error"] = "{0}: the magic says QCOW, but there is no version {1}".format(show(path), kind.version)


def _fingerprint(files: List[Tuple[str, int, bytes]]) -> str:
    """That of an image, by the formats, descriptors and names of the files of its chain."""
    from .._verify.compare import fingerprint
    from .._verify.qcow_readers import open_reader

    return fingerprint([open_reader(*file) for file in files])


def _describe_chain(image: Dict[str, Any], source: Source, question: Question) -> bool:
    """The backing files as far as they may be followed; whether that is all the way."""
    try:
        source.follow(Rules(question.paths + question.backing_dirs))
        whole = True
    except QcowError as error:
        image["error"] = str(error)
        image["reasons"].append(error.reason)
        whole = False
    image["chain"] = [
        {"path": show(member.path), "path_base64": encode_exact(member.path), "format": member.format} for member in source.members
    ]
    return whole


def _add_dependents(images: Iterable[Dict[str, Any]], graph: Graph) -> None:
    """Which of the images that were seen rest on an image, by their headers."""
    for image in images:
        if image["_key"] is not None:
            image["dependents"] = [
                {"path": show(node.path), "path_base64": encode_exact(node.path), "format": node.format}
                for node in graph.dependents(image["_key"])
            ]


def _add_links(images: Iterable[Dict[str, Any]], links: SymbolicLinks) -> None:
    """The symbolic links that lead to an image."""
    by_path = {decode_exact(image["path"], image["path_base64"]): image for image in images}
    for path, found in links.to(by_path).items() if by_path else ():
        by_path[path]["links"] = [
            {"path": show(link.path), "path_base64": encode_exact(link.path), "target": show(link.target)} for link in found
        ]


def _describe_v1(image: Dict[str, Any], source: Source, question: Question) -> None:
    read_at = reader_at(source.fd)
    image["safety"] = [found.as_dict() for found in safety.inspect(read_at(HEAD, 0), source.identity.size, read_at)]
    verdict = SOUND
    if question.check != "none":
        report = check(source.fd, source.path, question.check)
        verdict = report.verdict
        image.update(
            check=report.as_dict(),
            compressed_clusters=report.compressed_clusters,
            data_bytes=report.allocated_bytes + report.compressed_clusters * report.cluster_size,
        )
        if verdict != SOUND:
            image["reasons"].append(verdict)
    reader = Qcow1(source.fd, source.path)
    image.update(virtual_size=reader.virtual_size, cluster_size=reader.cluster_size, encrypted=bool(reader.header.crypt_method))
    image["backing"] = _backing(reader.backing_name, None)
    if verdict == DAMAGED:
        return
    image["producer"] = likely_producer(reader).name
    if image["backing"] is not None and not (question.chains and _describe_chain(image, source, question)):
        return
    if question.fingerprint and not image["encrypted"] and all(member["format"] in NATIVE for member in image["chain"]):
        from .._verify.compare import fingerprint

        source.open_layers()
        image["fingerprint"] = fingerprint(source.readers())


def _backing(name: Optional[bytes], format_name: Optional[str]) -> Optional[Dict[str, Any]]:
    return None if name is None else {"name": show(name), "name_base64": encode_exact(name), "format": format_name}


def _add_users(images: Iterable[Dict[str, Any]]) -> None:
    """Who has the QCOW v1 images open; one look at all processes for all of them."""
    candidates = [image for image in images if image["format"] == "qcow" and image["_key"] is not None]
    users = in_use.find_users_many(image["_key"] for image in candidates)
    for image in candidates:
        image["in_use"] = [use._asdict() for use in users.get(image["_key"], [])]


def _summary(images: List[Dict[str, Any]], counts: tree.Counts) -> Dict[str, Any]:
    formats: Dict[str, int] = {}
    for image in images:
        formats[image["format"]] = formats.get(image["format"], 0) + 1
    v1 = [image for image in images if image["format"] == "qcow"]
    return {
        "directories": counts.directories,
        "files": counts.files,
        "formats": formats,
        "v1": len(v1),
        "candidates": sum(image["candidate"] for image in images),
        "candidate_bytes": sum(image["allocated_size"] or 0 for image in images if image["candidate"]),
        "retired": sum("retired original" in image["reasons"] for image in v1),
        "damaged": sum("damaged" in image["reasons"] or (image["check"] or {}).get("verdict") == DAMAGED for image in v1),
        "overlays": sum(image["backing"] is not None for image in v1),
        "in_use": sum(bool(image["in_use"]) for image in v1),
        "errors": sum(image["error"] is not None for image in images),
    }


def add_domains(images: List[Dict[str, Any]], summary: Dict[str, Any], domains: Domains) -> List[str]:
    """Give each image its ``users``, and each candidate in ``domains`` what a migration would do about them.

    :return: what keeps the answer from being complete, in sentences.
    :raises QcowError: libvirt answers, and then fails.
    """
    answer = domains.survey()
    for image in images:
        path = decode_exact(image["path"], image["path_base64"])
        for user in domains.users(path):
            known = answer.domains[user["uuid"]]
            image["users"].append(
                dict(user, snapshots=list(known.snapshots), checkpoints=list(known.checkpoints), managed_save=known.managed_save)
            )
        if image["users"] and image["candidate"]:
            image["domains"] = _forecast(path, domains)
    summary["used_by_domains"] = sum(bool(image["users"]) for image in images)
    summary["kept_back_by_domains"] = sum((image["domains"] or {}).get("action") == "refuse" for image in images)
    return [] if answer.complete or not answer.domains else [answer.reason or "libvirt did not answer"]


def _forecast(path: bytes, domains: Domains) -> Dict[str, Any]:
    against = domains.against(path)
    if against:
        return {"action": "refuse", "reasons": against}
    running = sorted(domains.running(path).values())
    if running:
        return {
            "action": "running",
            "reasons": [
                "Domain {0} runs: it has to be shut down (running=shutdown) or moved live (running=live).".format(", ".join(running))
            ],
        }
    names = sorted({"{0} ({1})".format(use.domain, use.target) for use in domains.definitions(path)})
    return {"action": "follow", "reasons": ["Its definition is pointed to the result: {0}.".format(", ".join(names))]}


def add_references(images: List[Dict[str, Any]], summary: Dict[str, Any], directories: Tuple[bytes, ...]) -> List[str]:
    """Give each image of a QCOW format the lines of text files that name it.

    :return: what keeps the answer from being complete, in sentences.
    """
    from .text_files import could_not_search
    from .text_references import mentions

    named = {decode_exact(image["path"], image["path_base64"]): image for image in images if image["format"] == "qcow"}
    search = mentions(directories, dict.fromkeys(named, ()))
    for path, hits in search.mentions.items():
        named[path]["references"] = [
            {"file": show(hit.file), "file_base64": encode_exact(hit.file), "line": hit.line, "text": hit.shown, "format": hit.format}
            for hit in hits
        ]
    summary["referenced"] = sum(bool(image["references"]) for image in images)
    return could_not_search(search.unread)
