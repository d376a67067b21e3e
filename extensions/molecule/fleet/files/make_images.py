# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes the images of the scenario: ``make_images.py DIRECTORY`` (a folder of small ones, and a large one)."""

import os
import sys

from ansible_collections.vmimage.qcow.tests.support.builder import build
from ansible_collections.vmimage.qcow.tests.support.make_samples import MIB, disk

directory = sys.argv[1]
os.makedirs(os.path.join(directory, "small"), exist_ok=True)
build(disk(11, size=64 * MIB, filled=1500)).write(os.path.join(directory, "small", "web.qcow"))
build(disk(12, size=32 * MIB, filled=300, packed=True)).write(os.path.join(directory, "small", "mail.img"))
build(disk(13, size=64 * MIB, filled=4096)).write(os.path.join(directory, "large.qcow"))
