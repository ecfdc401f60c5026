# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Platforms of images: which of several variants a VM runs best."""

from __future__ import annotations

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.qemu import probe
from ansible_collections.cocoon.microvm.plugins.module_utils._images import platforms
from ansible_collections.cocoon.microvm.plugins.module_utils._images.platforms import Platform


@pytest.mark.parametrize("platform", ["amd64", "linux/", "Linux/amd64", "linux/arm/v7/x", "linux/a b"])
def test_what_is_no_platform(platform: str) -> None:
    with pytest.raises(CocoonError, match="is not a platform"):
        platforms.check_platform(platform)


@pytest.mark.parametrize(
    ("wanted", "best_first", "never"),
    [
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64"], ["linux/amd64/v3", "linux/amd64/v4", "linux/amd64/new"]),
        ("linux/amd64/v3", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64/v1"], ["linux/amd64/v4"]),
        ("linux/amd64/v1", ["linux/amd64"], ["linux/amd64/v2", "windows/amd64", "linux/386"]),
        ("linux/x86_64", ["linux/amd64/v2", "linux/amd64"], ["linux/arm64"]),
        ("linux/arm64", ["linux/arm64/v8", "linux/arm64/v9"], ["linux/arm", "linux/arm/v8"]),
        ("linux/arm64/v8", ["linux/arm64"], ["linux/arm64/v9"]),
        ("linux/arm", ["linux/arm/v7", "linux/arm/v6"], ["linux/arm64"]),
        ("linux/arm/v7", ["linux/arm/v7"], ["linux/arm/v6"]),
        ("linux/arm/v6", ["linux/arm/v6", "linux/arm"], ["linux/arm/v7"]),
        ("linux/s390x", ["linux/s390x"], ["linux/ppc64le"]),
    ],
)
def test_what_runs_best(wanted: str, best_first: list[str], never: list[str]) -> None:
    def rank(text: str) -> int:
        return Platform.parse(text).rank(Platform.parse(wanted))

    ranks = [rank(text) for text in best_first]
    assert all(ranks) and ranks == sorted(set(ranks), reverse=True)
    assert not any(rank(text) for text in never)


def test_a_variant_that_nobody_names_is_the_plain_one() -> None:
    for text, plain in (("linux/amd64/v1", "linux/amd64"), ("linux/arm64/v8", "linux/arm64")):
        for wanted in (text, plain):
            ranks = {Platform.parse(other).rank(Platform.parse(wanted)) for other in (text, plain)}
            assert len(ranks) == 1 and ranks != {0}


def test_machines_by_the_names_that_tools_give_them() -> None:
    assert str(Platform.of({"os": "Linux", "architecture": "x86_64"})) == "linux/amd64"
    assert str(Platform.of({"os": "linux", "architecture": "aarch64", "variant": "v8"})) == "linux/arm64/v8"
    assert str(Platform.of({"architecture": "amd64"})) == "amd64" and Platform.of({}) == Platform()


def test_the_level_is_that_of_every_cpu_model() -> None:
    """x86-64-v2 is what the pinned model names feature by feature; those of KVM have at least that."""
    assert platforms.GUEST_LEVEL == 2
    for feature in ("cx16", "lahf-lm", "popcnt", "ssse3", "sse4.1", "sse4.2"):
        assert f"{feature}=on" in probe.BASELINE
