# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What becomes of images that text files name: which lines stay right after a migration, and what to write in the others."""

import os
from typing import Dict, List, Optional, Tuple

from .._libvirt.option_text import TOKEN, is_variable, is_virtualbox, masked, renamed, with_format
from .._paths import show
from .plan import REFUSE, Plan
from .stated_formats import Stated
from .text_files import could_not_search
from .text_references import Mention, mentions, shown_line

_MOST_NAMED = 10


def refuse_referenced(plans: List[Plan], directories: Tuple[bytes, ...], *, report: bool) -> List[Plan]:
    """The plans, those refused after which a line of a text file would be wrong; with ``report`` they only say so.

    What could not be searched is a warning of the first plan that it matters to.
    """
    moving = [plan for plan in plans if plan.retires]
    if not directories or not moving:
        return plans
    search = mentions(directories, {plan.request.src: [link.path for link in plan.links] for plan in moving})
    warnings = tuple(could_not_search(search.unread))
    judged = []
    for plan in plans:
        if plan.retires:
            plan = plan._replace(warnings=plan.warnings + warnings)
            warnings = ()
            wrong = [hit for hit in search.mentions.get(plan.request.src, ()) if not stays_right(plan, hit)]
            plan = _judged(plan, wrong, report=report) if wrong else plan
        judged.append(plan)
    return judged


def keeps_name(plan: Plan, mention: Mention) -> bool:
    """Whether the name by which a line names the image leads to the result when it has been migrated; a variable is set elsewhere."""
    followed = bool(mention.links) and mention.links[-1] in {link.path for link in plan.links}
    return plan.in_place or followed or is_variable(mention.word)


def stays_right(plan: Plan, mention: Mention) -> bool:
    """Whether a line says the truth when the image has been migrated."""
    return keeps_name(plan, mention) and not _states_another(plan, mention) and not _suffix_misleads(plan, mention)


def _suffix_misleads(plan: Plan, mention: Mention) -> bool:
    """Whether Proxmox would take another format from the suffix of the result's name."""
    if any(one.line == mention.line for one in mention.stated):
        return False  # it says so itself
    return mention.is_volume and os.path.splitext(plan.dest)[1] != b"." + plan.request.format.encode("ascii")


def _states_another(plan: Plan, mention: Mention) -> List[Stated]:
    return [one for one in mention.stated if one.format != plan.request.format]


def _judged(plan: Plan, wrong: List[Mention], *, report: bool) -> Plan:
    told: Dict[Tuple[bytes, int], str] = {}
    for hit in wrong[:_MOST_NAMED]:
        for line, text in _places(plan, hit).items():
            if line == hit.line or (hit.file, line) not in told:  # a line's own name says more of it than one beside
                told[hit.file, line] = text
    places = [told[key] for key in sorted(told)]
    if len(wrong) > _MOST_NAMED:
        places.append("and {0} more lines".format(len(wrong) - _MOST_NAMED))
    if report:
        return plan._replace(reasons=plan.reasons + ["still named in " + "; ".join(places)])
    other_way = "set references=report, and change it when the image is migrated, before a guest starts."
    others = [one for hit in wrong for one in _states_another(plan, hit)]
    if others:
        way = "A result under the same name would not help, because the format is stated there: " + other_way
        if any(is_virtualbox(one.text, one.span) for one in others):
            way = "Or set references=report, and let VirtualBox convert its disk."
    elif any(hit.is_volume for hit in wrong):
        way = "A result under the same name would not help, because Proxmox takes the format from the suffix: " + other_way
    else:
        way = "Set keep_name=true, or " + other_way
    why = "{0}: It is named in {1}. Nothing here changes that. {2} Nothing was changed."
    return plan._replace(action=REFUSE, code="referenced", reasons=[why.format(show(plan.request.src), "; ".join(places), way)])


def _places(plan: Plan, mention: Mention) -> Dict[int, str]:
    """A line as it is, with that which states the format, and what to write there where that is certain."""
    others = _states_another(plan, mention)
    changes: Dict[int, Tuple[bytes, Optional[bytes]]] = {mention.line: (mention.text, mention.text)}
    todo = "to name {0} as {1}".format(show(plan.dest), plan.request.format)
    for one in others:
        changes[one.line] = (one.text, with_format(one.text, one.span, plan.request.format.encode("ascii")) if len(others) == 1 else None)
        if is_virtualbox(one.text, one.span):
            todo = "of VirtualBox, which knows no {0} under that name: set original=keep".format(plan.request.format)
    text = changes[mention.line][1]
    if not keeps_name(plan, mention):
        for word in sorted((mention.word, *mention.more), key=len, reverse=True):
            text = None if text is None else renamed(text, word, plan.request.src, plan.dest)
        if text is not None and not keeps_name(plan, mention) and not is_variable(mention.word):
            last = TOKEN.findall(os.path.basename(plan.request.src))[-1:]
            text = None if set(last) & set(TOKEN.findall(text)) else text  # it may be named there once more
        changes[mention.line] = (mention.text, text)
    certain = not _suffix_misleads(plan, mention) and all(new is not None and masked(new) == new for _text, new in changes.values())
    told = {}
    for line, (text, new) in sorted(changes.items()):
        if new == text and len(changes) > 1:
            continue
        do = todo
        if new == text and not _suffix_misleads(plan, mention):
            do = "which stays as it is"
        elif new is not None and certain:
            do = "to be: {0}".format(shown_line(new, mention.word))
        told[line] = "{0} line {1}: {2} ({3})".format(show(mention.file), line, shown_line(text, mention.word), do)
    return told
