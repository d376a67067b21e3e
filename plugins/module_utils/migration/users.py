# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who refers to the images that were found: libvirt domains, and text files that only people can change."""

from typing import Any, Dict, List, Tuple

from ansible_collections.vmimage.qcow.plugins.module_utils.host import mentions
from ansible_collections.vmimage.qcow.plugins.module_utils.migration.domains import Domains
from ansible_collections.vmimage.qcow.plugins.module_utils.paths import decode_exact, encode_exact, show


def add_domains(images: List[Dict[str, Any]], summary: Dict[str, Any], keeper: Domains) -> List[str]:
    """Give each image its ``users``, and each candidate in ``domains`` what a migration would do about them.

    :return: what keeps the answer from being complete, in sentences.
    :raises QcowError: libvirt answers, and then fails.
    """
    answer = keeper.survey()
    for image in images:
        path = decode_exact(image["path"], image["path_base64"])
        for user in keeper.users(path):
            known = answer.domains[user["uuid"]]
            image["users"].append(
                dict(user, snapshots=list(known.snapshots), checkpoints=list(known.checkpoints), managed_save=known.managed_save)
            )
        if image["users"] and image["candidate"]:
            image["domains"] = _forecast(path, keeper)
    summary["used_by_domains"] = sum(bool(image["users"]) for image in images)
    summary["kept_back_by_domains"] = sum((image["domains"] or {}).get("action") == "refuse" for image in images)
    return [] if answer.complete or not answer.domains else [answer.reason or "libvirt did not answer"]


def _forecast(path: bytes, keeper: Domains) -> Dict[str, Any]:
    against = keeper.against(path)
    if against:
        return {"action": "refuse", "reasons": against}
    running = sorted(keeper.running(path).values())
    if running:
        return {
            "action": "running",
            "reasons": [
                "Domain {0} runs: it has to be shut down (running=shutdown) or moved live (running=live).".format(", ".join(running))
            ],
        }
    names = sorted({"{0} ({1})".format(use.domain, use.target) for use in keeper.definitions(path)})
    return {"action": "follow", "reasons": ["Its definition is pointed to the result: {0}.".format(", ".join(names))]}


def add_references(images: List[Dict[str, Any]], summary: Dict[str, Any], directories: Tuple[bytes, ...]) -> None:
    """Give each image of a QCOW format the lines of text files that name it."""
    named = {decode_exact(image["path"], image["path_base64"]): image for image in images if image["format"] == "qcow"}
    for path, hits in mentions.search(directories, named).items():
        named[path]["references"] = [{"file": show(hit.file), "file_base64": encode_exact(hit.file), "line": hit.line} for hit in hits]
    summary["referenced"] = sum(bool(image["references"]) for image in images)
