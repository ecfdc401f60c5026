# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``user_data``: text that says by its first line what it is, or a MIME message of such parts, as cloud-init has it.

It may hold secrets, and is not repeated in errors.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._types import format_size

if t.TYPE_CHECKING:
    from email.message import Message

MAX_BYTES = 512 << 10
# The first words by which cloud-init tells formats; case does not count.
KINDS = (
    *("#cloud-config", "#cloud-boothook", "#include", "#!", "#part-handler", "#upstart-job"),
    "## template:",
)
HINT = "Begin it with #cloud-config, #! (a script), or another first line that cloud-init knows."
UNTOLD = ("text/plain", "text/x-not-multipart")
PART_HANDLER = "text/part-handler"

_HEADERS_RE = re.compile(
    r"(?:From [^\n]*\n)?(?:[a-z0-9-]+:[^\n]*\n(?:[ \t][^\n]*\n)*)*?(?:content-type|mime-version):", re.I
)
# What follows `users:` on its line, and how the next line that says something begins.
_USERS_RE = re.compile(r"^users:[ \t]*([^\r\n]*)\r?\n?(?:[ \t]*(?:#[^\n]*)?\r?\n)*([^\n]?)", re.MULTILINE)


def check(value: t.Any, option: str) -> str:
    """The text, without what stands before its first line.

    :raises InputError: no text, too much of it, or nothing that cloud-init would know.
    """
    if isinstance(value, (dict, list, tuple)):
        raise InputError("is not text", option, "Write it as a block (user_data: |) that begins with #cloud-config.")
    text = str(value).lstrip("\ufeff \t\r\n")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES or "\0" in text:
        raise InputError(f"is not text of at most {format_size(MAX_BYTES)}", option, "Have the guest fetch more.")
    if is_message(text):
        _check_parts(leaves(text), option)
    elif not _known(text):
        raise InputError("does not say in its first line what it is", option, HINT)
    return text


def _check_parts(parts: t.Sequence[Message], option: str) -> None:
    if not parts:
        raise InputError("is a message without parts", option, "Name its boundary in the header Content-Type.")
    if any(part.get_content_type() == PART_HANDLER for part in parts):
        return  # it may take any
    if not all(part.get_content_type() not in UNTOLD or _known(content(part)) for part in parts):
        raise InputError("has a part that does not say what it is", option, HINT)


def _known(text: str) -> bool:
    return text[:64].lstrip().lower().startswith(KINDS)


def is_message(text: str) -> bool:
    """Whether it begins with headers, and not with a line of cloud-init's."""
    return _HEADERS_RE.match(text) is not None


def leaves(text: str) -> list[Message]:
    """The parts of a message that are no containers of others; itself, if it is not of several parts."""
    return [part for part in message(text).walk() if part.get_content_maintype() != "multipart"]


def content(part: Message) -> str:
    """The text of a part."""
    data = part.get_payload(decode=True)
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else ""


def message(text: str) -> Message:
    """A message that can be attached to another: what is beyond ASCII in it gets an encoding."""
    import email

    found = email.message_from_string(text)
    for part in found.walk():
        part.preamble = part.epilogue = None
        payload = part.get_payload()
        if isinstance(payload, str) and not payload.isascii():
            del part["Content-Transfer-Encoding"]
            part.set_payload(payload, "utf-8")
    return found


def check_accounts(text: str, option: str) -> None:
    """Refuse what an account of ours cannot be put beside: cloud-init merges lists and mappings, not text.

    :raises InputError: ``users`` is text, or nothing.
    """
    parts = [content(part) for part in leaves(text)] if is_message(text) else [text]
    for found in map(_USERS_RE.search, filter(_known, parts)):
        if found and not _lists(*found.groups()):
            raise InputError(
                "has users as text, and what user, password and ssh_keys say would be lost",
                option,
                "Write users as a list.",
            )


def _lists(value: str, follows: str) -> bool:
    """Whether ``users`` is a list or a mapping, by what follows on its line or begins the next one."""
    value = "" if value.startswith("#") else value.partition(" #")[0].strip()
    return value[0] in "[{&*!" if value else follows in tuple(" \t-")
