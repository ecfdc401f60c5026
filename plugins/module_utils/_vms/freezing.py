# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""File systems of a VM's guest that stand still while its disks are copied, where they are wanted to and can be."""

from __future__ import annotations

import contextlib
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import FREEZE_NO, FREEZE_REQUIRED
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import asking

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest.freezing import Standstill
    from ansible_collections.cocoon.microvm.plugins.module_utils._vms.vm import Vm

REMEDY = "freeze: auto takes the disks all the same, as they would be after a power cut."


class Freeze:
    """What is wanted of a guest's file systems, and what came of it.

    :param how: ``auto``, ``required`` or ``no``.
    """

    def __init__(self, vm: Vm, how: str) -> None:
        self._vm, self._how = vm, how
        self._standstill: Standstill | None = None

    def begin(self) -> None:
        """Have them stand still.

        :raises CocoonError: they cannot, and are required to; or nobody knows whether they go on.
        """
        from ansible_collections.cocoon.microvm.plugins.module_utils._guest.freezing import StuckError

        if self._how == FREEZE_NO:
            return
        try:
            standstill = self._reach()
            standstill.begin()
            self._standstill = standstill
        except StuckError:
            raise
        except (CocoonError, OSError) as exc:
            if self._how == FREEZE_REQUIRED:
                words = exc.message if isinstance(exc, CocoonError) else str(exc)
                raise HypervisorError(f"{self._cannot}: {words}", "freeze", REMEDY) from exc
        self._vm.mark("save.frozen")

    @property
    def _cannot(self) -> str:
        return f"the file systems in VM '{self._vm.name}' cannot be frozen"

    def _reach(self) -> Standstill:
        from ansible_collections.cocoon.microvm.plugins.module_utils._guest.freezing import LOOK, Standstill

        return Standstill(asking.listening(self._vm, LOOK))

    def end(self) -> None:
        """Let them go on. Never raises: :meth:`outcome` does."""
        if self._standstill is not None:
            self._standstill.end()

    @property
    def stuck(self) -> bool:
        return self._standstill is not None and self._standstill.problem is not None

    def outcome(self) -> bool:
        """Whether they stood still.

        :raises CocoonError: they did not, and were required to; or they may do so yet.
        """
        standstill = self._standstill
        if standstill is not None and standstill.problem is not None:
            raise standstill.problem
        lasted = standstill is not None and standstill.lasted
        if self._how == FREEZE_REQUIRED and not lasted:
            raise HypervisorError(
                f"the file systems in VM '{self._vm.name}' went on before its disks were copied", "freeze", REMEDY
            )
        return lasted

    @contextlib.contextmanager
    def around(self) -> t.Iterator[None]:
        """From :meth:`begin` to :meth:`end`, which comes after the block at the latest."""
        self.begin()
        try:
            yield
        finally:
            self.end()
