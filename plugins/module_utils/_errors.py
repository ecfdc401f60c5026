# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error tree of the engine: raised below, caught once per item and once in main()."""

from __future__ import annotations


class CocoonError(Exception):
    """Something a user can act on.

    :param message: what happened, naming the object.
    :param option: the module option to blame, if any.
    :param remedy: what to do about it, one sentence.
    """

    def __init__(self, message: str, option: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.option = option
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.message
        if self.option:
            text = f"{self.option}: {text}"
        if self.remedy:
            text = f"{text.rstrip('.')}. {self.remedy}"
        return text


class InputError(CocoonError):
    """An argument that can never work; fails the task before anything is touched."""


class NotFoundError(CocoonError):
    """Something named does not exist."""


class MissingImageError(NotFoundError):
    """The store has no image of the name that a VM is to be made from."""


class ConflictError(CocoonError):
    """A name, MAC, address or object is taken, in use, or owned by somebody else."""


class BusyError(CocoonError):
    """A lock was not had within the time allowed."""


class UnsupportedError(CocoonError):
    """The driver, image or host cannot do what was asked."""


class ResourceError(CocoonError):
    """Too little memory, disk, or addresses."""


class ChangeRefusedError(CocoonError):
    """A change that needs a permission the task did not give, or that is never made."""


class StateError(CocoonError):
    """A state file is missing, damaged, or of an unknown layout."""


class HypervisorError(CocoonError):
    """The hypervisor did not start, died, or refused a request."""


class ToolError(CocoonError):
    """An external tool is missing or failed; the message holds its last output lines."""


class GuestTimeoutError(CocoonError):
    """The guest did not reach the awaited condition in time."""
