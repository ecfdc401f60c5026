# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make demo` and `make demo-down`: the playbooks of the collection on the example inventory, and nothing else."""

from __future__ import annotations

import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from common import STAGE, VENV, WORK, ToolError, environment, heading, main_wrapper, say, seconds
from stage import stage
from suites import follow

INVENTORY = STAGE / "playbooks" / "example" / "inventory.yml"
RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s")


def play(playbook: str) -> int:
    """Run one of the collection's playbooks.

    :returns: how many tasks changed something.
    """
    env = environment(
        {
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
            "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "false",
            "ANSIBLE_FORCE_COLOR": "true" if sys.stdout.isatty() else "false",
            "ANSIBLE_PIPELINING": "true",
        },
        path=[VENV / "bin"],
    )
    command = [VENV / "bin" / "ansible-playbook", "-i", INVENTORY, f"cocoon.microvm.{playbook}"]
    command += ["-e", f"cocoon_python={VENV / 'bin' / 'python'}", "-e", f"image_cache_dir={WORK / 'image-packages'}"]
    # The demo's image brings its own.
    command += ["-e", "cocoon_kernel=false"]
    changed: list[int] = []

    def seen(line: str) -> None:
        if match := RECAP.match(re.sub(r"\x1b\[[0-9;]*m", "", line)):
            changed.append(int(match.group(2)))

    status = follow([str(word) for word in command], env, WORK, 1800, seen)
    if status:
        raise ToolError(f"the playbook cocoon.microvm.{playbook} returned {status}")
    return sum(changed)


def up() -> None:
    """Converge, then show that a second run finds nothing to do."""
    began = time.monotonic()
    heading("The first run: ansible-playbook -i playbooks/example/inventory.yml cocoon.microvm.demo")
    play("demo")
    spent = seconds(began)
    again = time.monotonic()
    heading("The same playbook again: nothing is left to do")
    changed = play("demo")
    if changed:
        raise ToolError(f"the second run changed {changed} things; it should have changed none")
    say(f"\nThree microVMs run. First run: {spent}; second run: changed=0, {seconds(again)}.")
    heading("A snapshot of one of them as it runs, then 5 clones of it")
    play("demo_clones")
    say("Edit playbooks/example/inventory.yml and run `make demo` again; `make demo-down` takes everything away.")


def down() -> None:
    """Remove all that the demo made."""
    heading("Removing the demo: ansible-playbook -i playbooks/example/inventory.yml cocoon.microvm.teardown")
    play("teardown")
    say("\nThe demo is gone. Packages and .work/ stay; `make clean` removes the latter.")


def main() -> int:
    """:returns: the exit status."""
    if os.geteuid():
        raise ToolError("the demo makes network interfaces and processes of other users: run it as root.")
    stage()
    actions = {"up": up, "down": down}
    actions[sys.argv[1]]()
    return 0


if __name__ == "__main__":
    main_wrapper(main)
