# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _types as types
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("2GiB", 2 << 30),
        ("2gb", 2 << 30),
        (" 1 T ", 1 << 40),
        ("4096", 4096),
        (4096, 4096),
        ("8K", 8192),
        *(("1.5G", 3 << 29), ("0.25 MiB", 1 << 18), ("2.50T", 5 << 39)),
        ("0", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert types.parse_size(text, "memory") == size


@pytest.mark.parametrize(
    "text", ["10Q", "", "G", "-1G", "1.5", "1.G", ".5G", "1.0001M", "1e3", "1 2", "G1", "1MM", "٣M٣"]
)
def test_what_is_no_size_names_the_option(text: str) -> None:
    with pytest.raises(InputError) as caught:
        types.parse_size(text, "memory")
    assert caught.value.option == "memory"
    assert "512M" in str(caught.value) or text == "1.0001M"


def test_a_size_below_the_minimum_says_the_minimum() -> None:
    with pytest.raises(InputError, match="The minimum is 16M"):
        types.parse_size("1M", "data_disks[0].size", types.MIN_DATA_DISK)


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1536, 1 << 20, 3 << 20, 5 << 30, 1 << 40])
def test_formatted_sizes_parse_back(size: int) -> None:
    assert types.parse_size(types.format_size(size), "x") == size


@pytest.mark.parametrize("name", ["a", "web-1", "A.b_c", "0" * 63])
def test_names(name: str) -> None:
    assert types.check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "ä", "0" * 64, "a\n", "True", "False", "None"])
def test_bad_names(name: str) -> None:
    with pytest.raises(InputError):
        types.check_name(name)


def test_mac_is_canonical() -> None:
    assert types.check_mac("02-AB-00-12-34-56", "mac") == "02:ab:00:12:34:56"


@pytest.mark.parametrize(
    "mac", ["", "02:00", "zz:00:00:00:00:00", "01:00:5e:00:00:01", "02:00:00:00:00:00:00", "00-00-00-00-00-00"]
)
def test_bad_macs(mac: str) -> None:
    with pytest.raises(InputError):
        types.check_mac(mac, "nics[0].mac")


def test_ids_are_26_base32_characters() -> None:
    ids = {types.new_id() for _count in range(200)}
    assert len(ids) == 200
    assert all(re.fullmatch("[a-z2-7]{26}", one) for one in ids)


def test_derived_macs_are_local_unicast_and_differ_by_attempt() -> None:
    first, second = types.derive_mac("vm/0"), types.derive_mac("vm/0", 1)
    assert first != second
    assert first == types.derive_mac("vm/0")
    assert types.check_mac(first, "mac") == first
    assert int(first[:2], 16) & 3 == 2


def test_now_is_rfc3339() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", types.now())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, name) for name in ("web1", "Web-1", "db.example", "0ad", "a1.2b", "x" * 63)),
        *(("Deb_Two.x", "Deb-Two.x"), ("web_", "web"), ("web-", "web"), ("web.", "web"), ("a..b", "a.b")),
        *(("a._.b", "a.b"), ("a_.-b", "a.b"), ("a__b", "a--b"), ("x" * 62 + "_", "x" * 62)),
        *(("42", "vm-42"), ("10.0.0.1", "10.0.0.vm-1"), ("web.7", "web.vm-7"), ("0x1F", "vm-0x1F")),
        *(("0" * 63, "vm-" + "0" * 60), ("x" * 61 + ".1", "x" * 61 + ".v"), ("0_.", "vm-0")),
    ],
)
def test_host_names_made_of_names(name: str, expected: str) -> None:
    assert types.check_name(name) == name
    assert types.host_name({"config": {"name": name}}) == expected
    assert types.check_host_name(expected, "hostname") == expected
    assert types.derive_host_name(expected) == expected
    assert types.host_name({"config": {"name": name}, "hostname": "given.example"}) == "given.example"


@pytest.mark.parametrize(
    "name", ["", "a_b", "-a", "a-", "a.", ".a", "a..b", "ä", "a b", "42", "a.7", "10.0.0.1", "0x1", "x" * 64, "a\n"]
)
def test_bad_host_names(name: str) -> None:
    with pytest.raises(InputError) as caught:
        types.check_host_name(name, "hostname")
    assert caught.value.option == "hostname" and "hyphens" in str(caught.value)
