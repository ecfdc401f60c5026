# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes to another host with a VM is all that it is, whatever its options are."""

from __future__ import annotations

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _records as records
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Driver
from ansible_collections.cocoon.microvm.plugins.module_utils._moving import converging, passport
from ansible_collections.cocoon.microvm.plugins.module_utils._planning import checks
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.options import OPTIONS, value_of
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.settings import MAX_ROUTES
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.tests.unit.documents import document, names


def driver(name: str) -> Driver:
    return registry.driver(name, Paths())


def issued(record: Record) -> Record:
    return passport.issue(record, driver(record["hypervisor"]))


@pytest.mark.parametrize("name", [name for name in names("vm") if not name.endswith("removed")])
def test_vms_of_every_layout_can_go(name: str) -> None:
    record = records.read_vm(document(name))
    found = passport.check(issued(record), driver)
    kept = [row.name for row in OPTIONS.values() if row.at]
    assert {option: value_of(found, option) for option in kept} == {option: value_of(record, option) for option in kept}


def test_every_option_that_a_record_keeps_goes_along() -> None:
    known = {"record": passport.SCHEMA["properties"], "config": passport.SCHEMA["properties"]["config"]["properties"]}
    assert [row.name for row in OPTIONS.values() if row.at and row.name not in known[row.at]] == []


def test_a_vm_at_the_limits_of_its_options_can_go() -> None:
    record = records.read_vm(document(names("vm")[-1]))
    routes = [{"to": f"10.{number}.0.0/16", "via": "10.0.0.9"} for number in range(MAX_ROUTES)]
    nic = {**record["network_configs"][0], "metric": checks.MAX_METRIC, "routes": routes}
    record["network_configs"] = [nic]
    record["ports"] = [f"{number}:80" for number in range(1, checks.MAX_PORTS + 1)]
    record["detached_disks"] = [{"name": f"d{number}", "size": 1 << 24, "fstype": "ext4"} for number in range(17)]
    assert passport.check(issued(record), driver)["nics"][0]["metric"] == checks.MAX_METRIC
    record["ports"].append("2000:80")
    with pytest.raises(InputError, match=r"not valid \(ports: "):
        passport.check(issued(record), driver)


def test_limits_of_disks_go_along() -> None:
    record = records.read_vm(document(names("vm")[-1]))
    limits = {"total": {"rate": 1 << 20, "burst": 1 << 20, "iops": 9}}
    disk = {"name": "db", "size": 1 << 24, "fstype": "none", "limits": limits}
    record.update(limits=limits, data_disks=[disk])
    found = passport.check(issued(record), driver)
    assert found["limits"] == limits and found["data_disks"] == [disk]
    for bad in ({"total": {"rate": "fast"}}, {"total": {"iops": -1}}, {"all": {}}):
        with pytest.raises(InputError, match="limits"):
            passport.check({**issued(record), "limits": bad}, driver)


def test_nics_are_taken_as_they_were_checked() -> None:
    """Whoever wrote them, a record has them as it would from a task."""
    record = records.read_vm(document(names("vm")[-1]))
    found = issued(record)
    nic = {**found["nics"][0], "limits": {"rx": {"rate": "10M"}}, "mtu": 1400}
    (taken,) = passport.check({**found, "nics": [nic]}, driver)["nics"]
    assert taken == {**nic, "limits": {"rx": {"rate": 10 << 20, "burst": 1 << 20}}, "ip": taken.get("ip")}
    nic["limits"]["rx"]["rate"] = "fast"
    with pytest.raises(InputError, match=r"nics\[0\].limits.rx.rate"):
        passport.check({**found, "nics": [nic]}, driver)


@pytest.mark.parametrize(
    ("state", "params", "option"),
    [
        ("described", {}, "name"),
        ("settled", {"token": "t"}, "name"),
        ("arrived", {"name": "web1", "token": "t", "host": "hv2"}, "path"),
        ("admitted", {}, "passports"),
    ],
)
def test_a_step_says_what_it_needs(state: str, params: Record, option: str) -> None:
    with pytest.raises(InputError, match=f"needed for state: {state}") as caught:
        converging.converge({"state": state, **params}, check=False)
    assert caught.value.option == option
