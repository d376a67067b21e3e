# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`make migrate`: starts the playbook vmimage.qcow.migrate for this machine.

Takes IMAGES, FORMAT and CHECK from the environment, where make puts them, and more arguments for ansible-playbook from argv.
"""

import json
import os
import sys

build = os.path.abspath("build")
images = os.environ.get("IMAGES", "")
variables = {
    "qcow_hosts": "localhost",
    "ansible_python_interpreter": "{{ ansible_playbook_python }}",
    "migrate_paths": [os.path.abspath(images or os.path.join(build, "samples"))],
    "migrate_report_dir": os.path.join(build, "reports"),
}
if not images or os.geteuid() != 0:
    # Records belong in the role's default place under /var/lib, but for samples, and where that place cannot be written.
    variables["migrate_state_dir"] = os.path.join(build, "state")
if os.environ.get("FORMAT"):
    variables["migrate_format"] = os.environ["FORMAT"]

program = os.path.join(os.path.dirname(sys.executable), "ansible-playbook")
command = [program, "-i", "localhost,", "-c", "local", "-e", json.dumps(variables), "vmimage.qcow.migrate"]
if os.environ.get("CHECK", "") not in ("", "0"):
    command += ["--check", "--diff"]
sys.stdout.flush()
os.execv(program, command + sys.argv[1:])
