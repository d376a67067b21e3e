# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Imports from the archive in which Ansible sends a module and what it imports, without byte code: compiling is most of the time that they take.

From Python 3.10 on, ``zipimport`` compiles a module that it finds in order to tell its file name, and then again to load it.
"""

import sys
import zipimport


class CompilingOnce(zipimport.zipimporter):
    """Imports modules from an archive; tells their file names without compiling them."""

    def get_filename(self, fullname: str) -> str:
        """The path of a module's source, as tracebacks show it."""
        name = fullname.rpartition(".")[2]
        return "{0}/{1}{2}{3}".format(self.archive, self.prefix, name, "/__init__.py" if self.is_package(fullname) else ".py")


def compile_once() -> None:
    """From now on, what is imported from the archive of this call is compiled once. Where modules are imported from files, nothing changes."""
    archive = getattr(sys.modules[__name__].__loader__, "archive", None)
    if archive is None or sys.version_info < (3, 10):
        return

    def importer_of(path: str) -> CompilingOnce:
        if not path.startswith(archive):
            raise ImportError(path)
        return CompilingOnce(path)

    sys.path_hooks.insert(0, importer_of)
    for path in [path for path in sys.path_importer_cache if path.startswith(archive)]:
        del sys.path_importer_cache[path]
