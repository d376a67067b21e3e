# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This doc fragment is PRIVATE to the collection: it may change at any time. Do not use it from elsewhere.


class ModuleDocFragment:
    """What every module of the collection says about itself; the module adds C(support) for each attribute."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
  diff_mode:
    description: Returns details on what has changed, or would change in C(check_mode), when in diff mode.
  idempotent:
    description:
      - When run twice in a row outside check mode, with the same arguments, the second invocation indicates no change.
      - This assumes that the images and domains looked at have not been changed by others in between.
  platform:
    description: Target OS/families that can be operated against.
    support: full
    platforms: posix
  async:
    description: Supports being used with the C(async) keyword.
    support: full
"""

    # For modules that only look; used together with the standard fragment.
    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This module does not change anything.
  diff_mode:
    support: N/A
    details:
      - This module does not change anything.
  idempotent:
    support: full
    details:
      - This module does not change anything.
"""

    # For modules with an action plugin of the same name; used together with the standard fragment.
    ACTION = r"""
options: {}
attributes:
  action:
    description: Indicates this has a corresponding action plugin so some parts of the options can be executed on the controller.
    support: full
"""

    # Membership in the action group of meta/runtime.yml; used together with the standard fragment.
    ACTIONGROUP_QCOW = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/vmimage.qcow.qcow) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - vmimage.qcow.qcow
"""
