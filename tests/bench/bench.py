# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: measure, print a table, write .work/bench.json (or --json FILE)."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LONG = 2000
sys.path[:0] = [str(HERE), str(HERE.parent / "tools")]

from common import COLLECTIONS, VENV, WORK, ToolError, heading, main_wrapper, save_json, say
from stage import stage

sys.path.insert(0, str(COLLECTIONS))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each measurement (5)")
    parser.add_argument("--vms", type=int, default=20, help="VMs of a fleet (20)")
    parser.add_argument("--only", default="1,2,3,4,5,6,7,8,9,10", help="items, separated by commas: 1 to 10")
    parser.add_argument("--json", type=Path, default=WORK / "bench.json", help="where the numbers go")
    parser.add_argument("--records", default="10,1000,10000", help="sizes of the stores of item 5")
    # To try item 6 out: smaller than what its aims are for.
    parser.add_argument("--touched", type=int, default=400, help=argparse.SUPPRESS)
    parser.add_argument("--clones", default="1,10,30", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace, scratch: Path) -> int:
    """Run the items, print and write what they gave."""
    import agents
    import measures
    import moves
    import networks
    import pulls
    import results
    import snapshots
    import versus
    from fleet import Fleet

    from ansible_collections.cocoon.microvm.tests.integration.support import images, leaks
    from ansible_collections.cocoon.microvm.tests.integration.support.machine import PREFIX, make_netns

    before = leaks.snapshot()
    image = images.built("tiny", scratch)
    made: list[Fleet] = []

    def fleet(folder: Path = scratch) -> Fleet:
        number = len(made)
        netns = make_netns(f"{PREFIX}-{number}")
        made.append(Fleet(folder / f"f{number}", netns, "10.231.0.0/16", image, options.vms))
        return made[-1].prepare()

    charts: dict[str, Any] = {}
    counts = tuple(int(word) for word in options.clones.split(","))
    plan = snapshots.Plan(options.runs, options.touched, counts)
    sizes = tuple(int(word) for word in options.records.split(","))
    items = {
        "1": ("a run that changes nothing", lambda: measures.no_change(fleet(), options.runs)),
        "2": ("from nothing to running guests, and back", lambda: measures.life(fleet(), options.runs)),
        "3": ("the engine's own time", lambda: measures.own_time(fleet(), options.runs)),
        "4": ("the same by libvirt", lambda: versus.libvirt(fleet(), scratch, options.runs)),
        "5": ("state", lambda: measures.state(fleet, options.runs, sizes)),
        "6": ("snapshots and clones", lambda: snapshots.measure(fleet, scratch, plan, charts)),
        "7": ("images from a registry", lambda: pulls.measure(fleet(), scratch, options.runs)),
        "8": ("the agent in a guest", lambda: agents.measure(fleet(), options.runs)),
        "9": ("a VM on its way to another host", lambda: moves.measure(fleet, options.runs)),
        "10": ("a VM's NIC", lambda: networks.measure(fleet(), scratch, options.runs)),
    }
    about = results.machine(scratch)
    rows: list[results.Row] = []
    try:
        for key in options.only.split(","):
            heading(f"{key}. {items[key][0]}")
            began = time.monotonic()
            rows += items[key][1]()
            say(f"   {time.monotonic() - began:.0f} s")
    finally:
        # One run's VMs must not disturb the next one's numbers, nor stay behind when it is interrupted.
        found = leaks.left(before, strict=False, patience=0)
        leaks.clean()
    about = results.machine(scratch) if not about["libvirt"] else about
    document = {"machine": about, "runs": options.runs, "rows": [row.as_json() for row in rows], **charts}
    save_json(options.json, document)
    say(f"\n{results.sentence(about)}. Median of {options.runs}.\n\n{results.table(rows)}\n\nwritten to {options.json}")
    for thing in found:
        if thing.startswith("process"):
            say(f"ended: {thing}")
    return 1 if any(row.met is False for row in rows) else 0


def main() -> int:
    """:returns: 1 if an aim was missed."""
    options = arguments()
    if os.geteuid():
        raise ToolError("the bench starts hypervisors as other users in network namespaces: run it as root.")
    stage()
    from ansible_collections.cocoon.microvm.tests.integration.support.machine import PREFIX, TOKEN

    os.environ[TOKEN[0]] = TOKEN[1]
    os.environ["PATH"] = f"{VENV / 'bin'}:{os.environ['PATH']}"
    scratch = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-", dir="/var/tmp"))
    scratch.chmod(0o711)
    try:
        return measure(options, scratch)
    except AssertionError as error:  # what the runners raise when a module or playbook fails
        raise ToolError(str(error)[:LONG]) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main_wrapper(main)
