# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where files are opened, created, renamed and removed by path: in the rooms that resolve paths, and in a few named places outside image directories."""

import ast
import pathlib

UTILITIES = pathlib.Path(__file__).resolve().parents[2] / "plugins" / "module_utils"
CHANGING = {
    "open",
    "rename",
    "replace",
    "unlink",
    "remove",
    "link",
    "symlink",
    "mkdir",
    "makedirs",
    "rmdir",
    "truncate",
    "chmod",
    "chown",
    "mknod",
}
ROOMS = {"_directories.py", "_host/files.py", "_host/renames.py", "_host/tree.py"}
"""They take names in open directories, or resolve paths."""

OUTSIDE = {
    "_migration/record.py": "the state directory, which require_ours has found to be ours",
    "_migration/progress.py": "the same",
    "_migration/domain_move.py": "a definition below the state directory, and a look at what a domain is to use",
    "_migration/domain_definitions.py": "a lock on a directory of the state directory",
    "_migration/overlay_headers.py": "a descriptor of our own, by /proc",
    "_migration/text_files.py": "text in directories that the operator has named, of which the lines that name images are told",
    "_migration/lock.py": "the lock in the state directory, which is looked at first",
    "_migration/stop.py": "a request in the state directory, which is looked at first",
    "_migration/calls.py": "/proc",
    "_image/crypt.py": "a passphrase file that the operator has named",
    "_libvirt/survey.py": "libvirt's own files",
    "_host/in_use.py": "/proc",
    "_host/procfs.py": "/proc and /sys",
    "_host/linux.py": "/proc",
    "_host/qemu_img.py": "a temporary directory of our own",
}


def calls_by_path(tree: ast.AST) -> list[int]:
    """Lines of calls that change something, or open a file, by a path and not by a name in an open directory."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        by_os = (
            isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "os" and called.attr in CHANGING
        )
        if by_os and not {keyword.arg for keyword in node.keywords} & {"dir_fd", "src_dir_fd"}:
            found.append(node.lineno)
        if isinstance(called, ast.Name) and called.id == "open":
            found.append(node.lineno)
    return found


def test_only_the_rooms_for_it_open_and_change_by_path() -> None:
    elsewhere = {}
    for path in sorted(UTILITIES.rglob("*.py")):
        name = path.relative_to(UTILITIES).as_posix()
        lines = calls_by_path(ast.parse(path.read_text(encoding="utf-8")))
        if lines and name not in ROOMS:
            elsewhere[name] = lines
    assert set(elsewhere) == set(OUTSIDE), "a new place, or one that is none any more: %s" % elsewhere


def test_the_rooms_take_paths_apart_first() -> None:
    """In the rooms only the root, the directory that a descriptor stands for, and /proc are opened without one."""
    for name in ROOMS - {"_directories.py"}:
        assert calls_by_path(ast.parse((UTILITIES / name).read_text(encoding="utf-8"))) == [], name
