# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks broken by hand under running VMs: the next run sees it, says so, and plugs the VMs in again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._network import wires
from ansible_collections.cocoon.microvm.plugins.module_utils._network.ruleset import table_name
from ansible_collections.cocoon.microvm.tests.integration.support import audit
from ansible_collections.cocoon.microvm.tests.integration.support.engine import GUEST, IDLE, Engine, idle_image
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.networking import inside
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules

BRIDGE = "cm-lab"
VM: dict[str, Any] = {"name": "one", **GUEST}


@pytest.fixture(scope="module", name="engine")
def fixture_engine(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    scratch: Path,
) -> Iterator[Engine]:
    """A host with a network and two running VMs on it, one of them with a NIC elsewhere, too."""
    engine = Engine(make_netns(), make_store())
    modules(engine.netns, engine.dirs)("cocoon_image", name=IDLE, **idle_image(scratch))
    try:
        engine.network(subnet="10.97.0.0/24", nat=False)
        engine.network(name="other", subnet="10.98.0.0/24", nat=False)
        engine.vm(state="started", **VM, nics=[{}, {"network": "other"}])
        engine.vm(state="started", **{**VM, "name": "two"})
        yield engine
    finally:
        audit.clean(engine)
    assert not audit.held(engine)


@pytest.fixture(name="tap")
def fixture_tap(engine: Engine) -> str:
    """The TAP of VM one on the network lab, as it should be."""
    tap = str(engine.record("one")["network_configs"][0]["tap"])
    assert plugged(engine, tap)
    return tap


def plugged(engine: Engine, tap: str, isolated: bool = False) -> bool:
    """Whether the TAP is as the start of its VM left it."""
    found = inside(engine.netns, wires.look)
    wire, bridge = found[tap], found.get(BRIDGE)
    state = (wire.up, wire.mtu, wire.hairpin, wire.isolated)
    return bridge is not None and wire.master == bridge.index and state == (True, 1500, False, isolated)


def running(engine: Engine) -> list[int]:
    """The hypervisors' pids, of which none may go."""
    return [engine.record(name)["pid"] for name in ("one", "two")]


DAMAGE = {
    "bridge": ["ip link del cm-lab"],
    "off": ["ip link set {tap} nomaster"],
    "elsewhere": ["ip link set {tap} nomaster", "ip link set {tap} master cm-other"],
    "down": ["ip link set {tap} down"],
    "mtu": ["ip link set {tap} mtu 1300"],
    "hairpin": ["bridge link set dev {tap} hairpin on"],
    "isolated": ["bridge link set dev {tap} isolated on"],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("by", ["network", "vm"])
def test_what_was_unplugged_is_plugged_in_again(engine: Engine, tap: str, by: str, damage: str) -> None:
    before = running(engine)
    for words in DAMAGE[damage]:
        engine.netns.run(*words.format(tap=tap).split())
    assert not plugged(engine, tap)

    def run(check: bool = False) -> Any:
        if by == "network":
            return engine.network(subnet="10.97.0.0/24", check=check)
        return engine.vm(state="started", check=check, **VM, nics=[{}, {"network": "other"}])

    told = run(check=True)
    assert told["changed"] and not plugged(engine, tap)
    label = "nics[0] of one" if by == "network" else "nics[0]"
    before_words = told["diff"]["before"]
    shown = (before_words["host"] if by == "network" else before_words)[label]
    words = {"down": "down", "mtu": "MTU 1300 and not 1500", "hairpin": "in hairpin mode", "isolated": "isolated"}
    assert shown == words.get(damage, f"not on {BRIDGE}")
    done = run()
    assert done["changed"] and done["diff"] == told["diff"]
    assert plugged(engine, tap)
    assert not run()["changed"]
    assert running(engine) == before
    if damage == "bridge":  # of the other VM, the network's run takes care too, the first VM's own does not
        other = engine.record("two")["network_configs"][0]["tap"]
        assert plugged(engine, other) == (by == "network")
        engine.network(subnet="10.97.0.0/24")
        assert plugged(engine, other)


def test_a_network_becomes_isolated_under_its_guests(engine: Engine, tap: str) -> None:
    assert engine.network(isolated=True)["changed"]
    assert plugged(engine, tap, isolated=True)
    assert not engine.vm(state="started", **VM, nics=[{}, {"network": "other"}])["changed"]
    assert not engine.network(isolated=True)["changed"]
    assert engine.network(isolated=False)["changed"]
    assert plugged(engine, tap)


def test_a_damaged_network_fails_alone(engine: Engine, tap: str) -> None:
    """Guests on it go on, and so do the other networks and their VMs; put back, or removed by name, all is well."""
    engine.network(name="third", subnet="10.99.0.0/24")
    before, rules = running(engine), engine.netns.run("nft", "list", "table", table(engine))
    documents = [path_of(engine, name) for name in ("other", "third")]
    whole = [path.read_bytes() for path in documents]
    for path in documents:
        path.write_bytes(path.read_bytes()[:60])
    assert not engine.network(subnet="10.97.0.0/24")["changed"], "the rules of the damaged ones are as they were"
    assert engine.netns.run("nft", "list", "table", table(engine)) == rules
    assert not engine.vm(state="started", **{**VM, "name": "two"})["changed"]
    assert "is damaged" in engine.refused(state="started", **{**VM, "name": "new", "network": "other"})
    assert "VMs: one" in str(engine.start_network(name="other", state="absent").wait().error)
    assert engine.network(name="third", state="absent")["changed"]
    assert "cm-third" not in inside(engine.netns, wires.look)
    assert "10.99.0" not in engine.netns.run("nft", "list", "table", table(engine))
    documents[0].write_bytes(whole[0])
    assert not engine.network(name="other")["changed"]
    assert not engine.vm(state="started", **VM, nics=[{}, {"network": "other"}])["changed"]
    assert running(engine) == before and plugged(engine, tap)


def path_of(engine: Engine, network: str) -> Path:
    network_id = engine.store.index("network").lookup(network)
    return Path(engine.paths.object_dir("network", str(network_id))) / "network.json"


def table(engine: Engine) -> str:
    return f"inet {table_name(engine.store.store_id)}"


def test_a_tap_that_is_gone_is_told_of(engine: Engine) -> None:
    """The hypervisor holds a TAP that leads nowhere: only a restart helps, and that is for the user to say."""
    tap = engine.record("two")["network_configs"][0]["tap"]
    engine.netns.run("ip", "link", "del", tap)
    outcome = engine.vms({**VM, "name": "two", "state": "started"})
    (result,) = outcome.results
    assert not result["changed"] and "the TAP of nics[0] is gone" in " ".join(result["warnings"])
    engine.vm(**{**VM, "name": "two"}, state="restarted", force=True)
    assert plugged(engine, tap)
