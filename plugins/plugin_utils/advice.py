# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# These plugin utils are PRIVATE to the collection: they may change at any time. Do not use them from elsewhere.

"""What each reason means, and what to do about it: for people who see the code of a reason on a page."""

from __future__ import annotations

import typing as t


class Advice(t.NamedTuple):
    """About one reason."""

    means: str
    do: str


_MIGRATE = "and migrate again."
_LIBVIRT = Advice("libvirt refused a request", f"Look at the message and at the log of libvirtd on the host, {_MIGRATE}")
_TOOL = "Look at the message: it has what the program printed. Repair that on the host, "

ADVICE = {
    "attributes": Advice(
        "Owner, mode or other attributes could not be carried over",
        "The image is in place. Correct the attributes as the message says, and run again.",
    ),
    "bad-name": Advice("The name of the file cannot be used", f"Rename the file {_MIGRATE}"),
    "block-job": Advice("A block job of libvirt failed", f"The domain still runs from its original. See the message, {_MIGRATE}"),
    "chain": Advice(
        "A backing file or an overlay of it cannot be migrated", "Solve what its base or its overlay reports; the chain follows."
    ),
    "changed": Advice("The image was changed while it was migrated", f"Shut the guest down or find who writes, {_MIGRATE}"),
    "cleaned": Advice("The original was deleted by a cleanup", "It cannot be rolled back any more. Restore it from a backup."),
    "damaged": Advice(
        "The image is damaged",
        "Restore it from a backup. If there is none, set migrate_salvage to take what can be read; its losses are listed.",
    ),
    "declared-raw": Advice(
        "A backing file is declared raw and looks like QCOW", "Check who wrote it, and declare its format in migrate_backing_formats."
    ),
    "deferred": Advice("Put off to the next run", "Run migrate again: it begins with these."),
    "domain": Advice("A libvirt domain stands against it", "Shut the domain down or see the message for the option that moves it."),
    "error": Advice("An error that has no code of its own", "See the message. Nothing was changed for these images."),
    "exists": Advice("The name of the result is taken", f"Look at what has the name, move it away, {_MIGRATE}"),
    "file-too-large": Advice("The file system does not take so large a file", "Set migrate_dest_dir on another file system."),
    "format-unknown": Advice("The format of a backing file is unknown", "If it is raw, declare it in migrate_backing_formats."),
    "hook": Advice(
        "A task of yours failed",
        "See the message: which task, and for which image. What a task before the migration stopped was not migrated; what one after it "
        "has found, look at on the host, and roll back if it does not run.",
    ),
    "in-use": Advice("The image is in use", f"Shut the guest down, or let the run do it (migrate_running), {_MIGRATE}"),
    "interrupted": Advice("A run was interrupted", "Run migrate again: unfinished work is completed or undone first."),
    "libvirt": _LIBVIRT,
    "linked": Advice("Another name of the same file is migrated", "Nothing, if the other name is the one in use; the message names it."),
    "locked": Advice("Another run is at work on the host", "Wait until it ends (status shows it), or stop it, and run again."),
    "missing": Advice("A file is gone", "Look on the host for who removed or renamed it; restore it from a backup if it is needed."),
    "missing-base": Advice("A backing file is missing", "Bring the backing file back, or correct the name that the overlay has of it."),
    "moved": Advice("Files were moved since", "See the message: it says which name was expected where."),
    "name-too-long": Advice("The name of the result would be too long", "Rename the image to a shorter name, or set migrate_dest_dir."),
    "needed": Advice("Something that is not migrated still needs it", "Migrate what the message names first."),
    "no-domain": Advice("There is no such libvirt domain", "Correct the name of the domain."),
    "no-result": Advice("There is no migrated image to move to", f"Migrate the image first, {_MIGRATE}"),
    "no-space": Advice(
        "There is not enough space", "Free space as the message says, clean up earlier originals, or migrate as many as fit."
    ),
    "not-v1": Advice("It is no QCOW version 1 image", "Nothing: there is nothing to migrate."),
    "not-writable": Advice("A directory or device may not be written", "Run with become, or correct the permissions."),
    "option": Advice("An option has a value that is not possible", "Correct the option that the message names."),
    "passphrase": Advice("The image is encrypted and no passphrase fits", "Give its passphrase in migrate_passphrase_files."),
    "process": Advice("A worker process ended unexpectedly", "Look for the out-of-memory killer in the host's log; lower migrate_workers."),
    "protected": Advice("The file is protected (immutable or append-only)", f"Remove the attribute with chattr, {_MIGRATE}"),
    "read-only": Advice("The file system is read-only", "Look for errors of the storage, and mount it for writing."),
    "report": Advice(
        "The file with what is known of a host cannot be read", "Move the file away and look at the host again: its records tell the rest."
    ),
    "retired": Advice("It is the original of a migrated image", "Nothing: it waits for a cleanup."),
    "rolled-back": Advice("It was migrated and rolled back", "Migrate it again when you like."),
    "running": Advice(
        "The run has not ended in the time that was given", "See how far it is with status; stop it again with more time, or now."
    ),
    "shutdown-timeout": Advice("A guest did not shut down in time", "Shut it down by hand, or raise migrate_shutdown_timeout."),
    "snapshot": Advice("A snapshot of a running domain was left", "Commit it as the message says before anything else."),
    "space": Advice("It did not fit beside the others", "Clean up earlier originals or free space, and migrate again."),
    "start-failed": Advice(
        "A guest did not start again", "Start it by hand; the message and libvirt's log say why. Roll back if it does not run."
    ),
    "state": Advice("The records on the host cannot be read or written", "Look at the state directory: permissions, space, file system."),
    "stop": Advice("The run was stopped before its turn", "Run migrate again: it begins with these."),
    "storage": Advice(
        "The storage reports an error", "Look at the host's kernel log. Do not migrate from failing storage; restore from a backup."
    ),
    "tool-failed": Advice("A program on the host failed", f"{_TOOL}{_MIGRATE}"),
    "tool-missing": Advice("A program is missing on the host", f"Install it, {_MIGRATE}"),
    "transient": Advice("The domain is transient", "Define it persistently, or shut it down before."),
    "unreadable": Advice("There is no permission to read it", "Run with become; over NFS look at root_squash."),
    "unreached": Advice(
        "The host was not reached", "Check that it is up and that SSH works, and look at it again. What is known of it may be old."
    ),
    "unsafe": Advice(
        "It is not safe to follow this image", "See the message: a link, a directory or a backing file leads outside what is allowed."
    ),
    "unsupported": Advice("The image uses what is not supported", "See the message for the option that helps, if there is one."),
    "unsupported-filesystem": Advice("The file system cannot keep the result safely", "Set migrate_dest_dir on another file system."),
    "unverified": Advice("The result was never verified", "Keep the original, or delete it by hand when you are sure."),
    "unfinished": Advice("A run was interrupted and has left work", "Run migrate again: unfinished work is completed or undone first."),
    "unplanned": Advice("It was not among the images that the run was given", "Run migrate again."),
    "verification-failed": Advice(
        "The result differs from the original",
        "The original is in place and nothing was published. Report this with the message; check memory and storage of the host.",
    ),
    "window": Advice("It could not have ended within the window", "Run migrate again in the next window."),
}
"""By the code of the reason."""


def advice(reason: str) -> Advice:
    """About a reason; a code that is not known stands for itself."""
    return ADVICE.get(reason, Advice(reason, "See the message."))
