# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""Plans: files on the controller that say what is to be done with each image of a host, for people to review and edit."""

from __future__ import annotations

import json
import math
import os
import typing as t

import yaml

from ansible_collections.vmimage.qcow.plugins.module_utils._paths import decode_exact, show
from ansible_collections.vmimage.qcow.plugins.plugin_utils.visible import visible

Facts = t.Dict[str, t.Any]

SCHEMA = 1

HEAD = """\
---
# Plan for {host}. Nothing has been changed yet.
#
# Review and edit it, then carry it out:
#   ansible-playbook vmimage.qcow.migrate -e migrate_plan={directory}
# Images are migrated in this order, backing files before their overlays. To leave an image as it is, set its action to "skip" or remove it.
# An image with the action "refuse" cannot be migrated as things are; as long as it is listed, the run fails and names it.
# A name that has a "src_base64" or "dest_base64" is that one; to change the name, remove it.
# "expect" is the state of the image when it was examined: an image that has changed since is refused.
"""

_FOR_MODULE = ("src", "src_base64", "dest", "dest_base64", "format", "expect", "action", "why")


class PlanError(Exception):
    """A plan cannot be carried out; the message says which, why, and what to do."""


class PlanFile(t.NamedTuple):
    """What a plan asks for: images as ``qcow_convert`` takes them, and the directories that were looked at."""

    images: list[Facts]
    paths: list[str]


def name_of(host: str) -> str:
    """What the plan of a host is called."""
    return f"plan-{host}.yml"


def read(path: str, host: str, *, missing_ok: bool = False) -> PlanFile:
    """The plan for a host.

    :param path: a plan, or a directory of plans; relative to the directory the controller was started in.
    :param missing_ok: a directory without a plan for the host is a plan to do nothing.
    :raises PlanError: there is none, it is not for this host, or it could not be carried out when it was made.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(path):
        directory, path = path, os.path.join(path, name_of(host))
        if not os.path.exists(path):
            if missing_ok and any(name.startswith("plan-") for name in os.listdir(directory)):
                return PlanFile([], [])
            raise PlanError(
                f"There is no plan for this host: {path} does not exist. Nothing was changed. Scan the host, or set missing_ok to leave hosts "
                "without a plan alone."
            )
    try:
        with open(path, encoding="utf-8") as stream:
            plan = yaml.safe_load(stream)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PlanError(f"The plan {path} cannot be read: {error}. Nothing was changed.") from error
    if not isinstance(plan, dict) or plan.get("schema") != SCHEMA or not isinstance(plan.get("images"), list):
        raise PlanError(f"{path} is no plan that vmimage.qcow.scan has written. Nothing was changed.")
    if plan.get("host") != host:
        raise PlanError(f"The plan {path} is for the host {plan.get('host')}. Nothing was changed.")
    if plan.get("refused"):
        raise PlanError(
            f"The plan {path} could not be carried out as a whole: {plan['refused']} Nothing was changed. Fix that, scan again, and review the new plan."
        )
    return PlanFile([_entry(image, path) for image in plan["images"]], [str(item) for item in plan.get("paths") or []])


def _entry(image: t.Any, path: str) -> Facts:
    if not isinstance(image, dict) or not image.get("src") or not image.get("action"):
        raise PlanError(f"An image of the plan {path} has no src or no action: {image}. Nothing was changed.")
    entry = {key: image[key] for key in _FOR_MODULE if image.get(key) is not None}
    differing = [name for name in ("src", "dest") if not _one_name(entry.get(name), entry.get(name + "_base64"))]
    if differing and entry["action"] != "skip":
        why = [f"{name} and {name}_base64 are not the same name; remove {name}_base64 if {name} is right" for name in differing]
        # Without the Base64, which the module need not be able to read: the others are migrated.
        entry = {key: value for key, value in entry.items() if key[: -len("_base64")] not in differing}
        entry.update(action="refuse", why=why)
    return entry


def _one_name(name: t.Any, encoded: t.Any) -> bool:
    """Whether a name and its Base64, where it has one, still say the same."""
    try:
        return not encoded or show(decode_exact("", str(encoded))) == name
    except ValueError:
        return False


def text(host: str, directory: str, time: str, paths: list[str], planned: Facts, speed: float) -> str:
    """A plan as a file.

    :param directory: where it will be.
    :param time: when the host was looked at, in words.
    :param planned: what ``qcow_convert`` has returned in check mode; empty where there was nothing to plan.
    :param speed: bytes a second that times are estimated with.
    """
    images = [_planned(image, speed) for image in planned.get("images") or []]
    wanted = [image for image in images if image["action"] == "convert"]
    facts = {
        "schema": SCHEMA,
        "host": host,
        "time": time,
        "paths": paths,
        "total": {
            "images": len(wanted),
            "space_bytes": sum(image["space_bytes"] for image in wanted),
            "seconds": math.ceil(sum(image["copy_bytes"] for image in wanted) / speed),
        },
        "refused": refusal(planned),
        "images": images,
    }
    head = HEAD.format(host=host, directory=directory)
    # Texts of Ansible are subclasses of str, which YAML does not know.
    body = yaml.dump(json.loads(json.dumps(facts)), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))
    return head + "\n".join(visible(line) for line in body.split("\n"))


class _Dumper(yaml.SafeDumper):
    """Puts texts with characters that act in double quotes, in which YAML reads what :func:`visible` makes of them as the same characters."""


def _quoted(dumper: _Dumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if visible(value) == value else '"')


_Dumper.add_representer(str, _quoted)


def refusal(planned: Facts) -> str | None:
    """Why a whole call was refused in check mode, for instance for want of space."""
    if not planned or ("images" in planned and not planned.get("reason")):
        return None
    return str(planned.get("msg") or "no reason was given")


def _planned(image: Facts, speed: float) -> Facts:
    return {
        "src": image["src"],
        "src_base64": image["src_base64"],
        "action": {"retire": "convert", "noop": "skip"}.get(image["action"], image["action"]),
        "why": image["reasons"],
        "dest": image["dest"],
        "dest_base64": image["dest_base64"],
        "format": image["after"].get("format"),
        "rests_on": [member["path"] for member in image["chain"]],
        "copy_bytes": image["copy_bytes"],
        "space_bytes": image["after"].get("file_size") or 0,
        "seconds": math.ceil(image["copy_bytes"] / speed),
        "expect": image["source"],
    }
