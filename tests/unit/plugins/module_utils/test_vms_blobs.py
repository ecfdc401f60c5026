# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Saved memories, and the bytes of the image's files that they go with."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._vms import resuming
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Options, Run
from ansible_collections.cocoon.microvm.tests.unit.documents import document

A, B, IMAGE = "a" * 64, "b" * 64, "sha256:" + "c" * 64
OTHER = "sha256:" + "0" * 64


@pytest.fixture(name="run")
def fixture_run(tmp_path: Path) -> Run:
    store = Store.open(Paths(str(tmp_path / "root"), str(tmp_path / "run"), str(tmp_path / "log")))
    images.make_directories(store.paths)
    write_json(images.record_path(store.paths, IMAGE), document("image-1-first", id=IMAGE, layers=[A, B]))
    for layer in (A, B):
        Path(images.blob_path(store, layer)).write_text(layer)
    return Run(store, Options(lock_timeout=1, memory_reserve=0))


def test_the_same_bytes_and_what_was_saved_here_before_they_were_known(run: Run) -> None:
    for saved in (run.blob_digests(IMAGE), None):
        resuming.check_blobs(run, IMAGE, saved, "it", "state")


@pytest.mark.parametrize("option", resuming.REMEDIES)
def test_other_bytes(run: Run, option: str) -> None:
    for saved in ({**run.blob_digests(IMAGE), B: OTHER}, {A: run.blob_digests(IMAGE)[A]}):
        with pytest.raises(
            StateError, match="it goes with other EROFS files .* of 1 of its image's 2 layers"
        ) as caught:
            resuming.check_blobs(run, IMAGE, saved, "it", option)
        assert caught.value.option == option and caught.value.remedy == resuming.REMEDIES[option]
    with pytest.raises(StateError, match="does not say which EROFS files"):
        resuming.check_blobs(run, IMAGE, {}, "it", option)


def test_disks_alone_need_no_bytes(run: Run) -> None:
    facts = {"size": 1}
    record = {
        "id": "s",
        "name": "warm",
        "kind": "full",
        "hypervisor": "qemu",
        "image_id": IMAGE,
        "blob_digests": {},
        "layout": {"version": 1},
    }
    record["files"] = dict.fromkeys(("vmstate", "mem", "cocoon.json", "cow.raw", "OVMF_VARS.fd"), facts)
    with pytest.raises(StateError):
        resuming.check_snapshot(run, record, record, "snapshot")
    disks = snapshots.disks_of(record)
    resuming.check_snapshot(run, disks, disks, "snapshot")
    assert list(disks["files"]) == ["cow.raw", "OVMF_VARS.fd"] and record["kind"] == "full"
