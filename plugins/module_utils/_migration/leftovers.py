# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether an interrupted run has left anything on this host. Hardly ever, so what looks after it (``recover``) is imported only then."""

from typing import Any, Dict, List

from .session import Session


def explain(session: Session) -> List[Dict[str, Any]]:
    """What :func:`look_after` would do something about; nothing is done."""
    if not session.anything_left:
        return []
    from .recover import explain_all

    return explain_all(session)


def look_after(session: Session) -> List[Dict[str, Any]]:
    """Finish or clean up what is left, with the session entered.

    :return: see :func:`.recover.recover`.
    """
    if not session.anything_left:
        session.records.sweep()
        return []
    from .recover import recover_all

    return recover_all(session)


def look_after_waiting(session: Session) -> List[Dict[str, Any]]:
    """What had to wait for what the run has migrated since."""
    if not session.waiting:
        return []
    from .recover import recover_waiting

    return recover_waiting(session)
