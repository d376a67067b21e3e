# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What becomes of images that text files name: which lines stay right after a migration, and what to write in the others."""

from typing import Dict, List, Optional, Tuple

from .._libvirt.option_text import renamed, with_format
from .._paths import show
from .plan import CONVERT, REFUSE, RETIRE, Plan
from .text_files import could_not_search
from .text_references import Mention, mentions, shown_line

_MOST_NAMED = 10


def refuse_referenced(plans: List[Plan], directories: Tuple[bytes, ...], *, report: bool) -> List[Plan]:
    """The plans, those refused after which a line of a text file would be wrong; with ``report`` they only say so.

    What could not be searched is a warning of the first plan that it matters to.
    """
    moving = [plan for plan in plans if plan.action in (CONVERT, RETIRE) and plan.retired is not None]
    if not directories or not moving:
        return plans
    search = mentions(directories, {plan.request.src: [link.path for link in plan.links] for plan in moving})
    warnings = tuple(could_not_search(search.unread))
    judged = []
    for plan in plans:
        if plan.action in (CONVERT, RETIRE) and plan.retired is not None:
            plan = plan._replace(warnings=plan.warnings + warnings)
            warnings = ()
            wrong = [hit for hit in search.mentions.get(plan.request.src, ()) if not stays_right(plan, hit)]
            plan = _judged(plan, wrong, report=report) if wrong else plan
        judged.append(plan)
    return judged


def keeps_name(plan: Plan, mention: Mention) -> bool:
    """Whether the name by which a line names the image leads to the result when it has been migrated; a variable is set elsewhere."""
    followed = bool(mention.links) and mention.links[-1] in {link.path for link in plan.links}
    return plan.in_place or followed or (mention.word.startswith(b"$") and b"/" not in mention.word)


def stays_right(plan: Plan, mention: Mention) -> bool:
    """Whether a line says the truth when the image has been migrated."""
    return keeps_name(plan, mention) and not _states_another(plan, mention)


def _states_another(plan: Plan, mention: Mention) -> bool:
    return mention.format not in (None, plan.request.format)


def _judged(plan: Plan, wrong: List[Mention], *, report: bool) -> Plan:
    places = [_place(plan, hit) for hit in wrong[:_MOST_NAMED]]
    if len(wrong) > _MOST_NAMED:
        places.append("and {0} more lines".format(len(wrong) - _MOST_NAMED))
    if report:
        return plan._replace(reasons=plan.reasons + ["still named in " + "; ".join(places)])
    other_way = "set references=report, and change it when the image is migrated, before a guest starts."
    if any(_states_another(plan, hit) for hit in wrong):
        way = "A result under the same name would not help, because the format is stated there: " + other_way
    else:
        way = "Set keep_name=true, or " + other_way
    why = "{0}: It is named in {1}. Nothing here changes that. {2} Nothing was changed."
    return plan._replace(action=REFUSE, code="referenced", reasons=[why.format(show(plan.request.src), "; ".join(places), way)])


def _place(plan: Plan, mention: Mention) -> str:
    """A line as it is, and what to write there."""
    changes: Dict[int, Tuple[bytes, Optional[bytes]]] = {mention.line: (mention.text, mention.text)}
    if _states_another(plan, mention):
        new = with_format(mention.stated_text, mention.stated_span, plan.request.format.encode("ascii"))
        changes[mention.stated_line] = (mention.stated_text, new)
    text = changes[mention.line][1]
    if text is not None and not keeps_name(plan, mention):
        changes[mention.line] = (mention.text, renamed(text, mention.word, plan.request.src, plan.dest))
    told = []
    for line, (text, new) in sorted(changes.items()):
        if new == text and len(changes) > 1:
            continue
        if new is None:
            todo = "to name {0} as {1}".format(show(plan.dest), plan.request.format)
            if mention.stated_text[slice(*mention.stated_span)].isupper():
                todo = "of a program that knows no {0} under that name: set original=keep".format(plan.request.format)
        elif new == text:
            todo = "which stays as it is"
        else:
            todo = "to be: {0}".format(shown_line(new, mention.word))
        told.append("{0} line {1}: {2} ({3})".format(show(mention.file), line, shown_line(text, mention.word), todo))
    return "; ".join(told)
