# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one run of the engine carries around: the store, its options, and what it has looked up so far."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, NotFoundError, StateError
from ansible_collections.cocoon.microvm.plugins.module_utils._process import processes_by_uid
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Progress
from ansible_collections.cocoon.microvm.plugins.module_utils._records import read_network
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, read_record
from ansible_collections.cocoon.microvm.plugins.module_utils._types import GIB

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Driver
    from ansible_collections.cocoon.microvm.plugins.module_utils._network.wires import Wires
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import (
        ImageRecord,
        NetworkConfig,
        NetworkRecord,
        SnapshotRecord,
        VmRecord,
    )


# As docker run does with a bare name.
DOCKER_HUB = "docker.io"


def _no_mark(_place: str) -> None:
    """Production runs have no use for marks."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a task allows and how it goes about it. Sizes in bytes, times in seconds."""

    lock_timeout: float = 60.0
    memory_reserve: int = GIB // 4
    memory_overcommit: float = 1.0
    disk_overcommit: float = 1.0
    parallel: int = 16
    max_unavailable: int = 1
    # Leave VMs alone that would have to restart: whoever asks restarts them over a whole fleet.
    hold_restarts: bool = False
    progress: Progress = dataclasses.field(default_factory=Progress)
    # Images that no registry is asked for, and which one is asked where an image's name says none.
    never_pull: frozenset[str] = frozenset()
    default_registry: str | None = DOCKER_HUB


class Run:
    """One run over one store.

    :param mark: called with the name of each place between two side effects, so that a test can
        end the process there.
    """

    def __init__(self, store: Store, options: Options, mark: t.Callable[[str], None] | None = None) -> None:
        self.store = store
        self.options = options
        self.mark = mark or _no_mark
        self.lock = threading.Lock()
        self.networks_changed = False
        # What the plans of this pass would take, and the VMs that are removed before any of them is carried out.
        self.memory_planned = self.disk_planned = 0
        self.addresses_planned: dict[str, set[str]] = {}
        self.leaving: set[str] = set()
        # What passes from one VM to another, and who has it until then; see _planning.exchange.
        self.passing: dict[tuple[str, ...], str] = {}
        self._networks: dict[str, NetworkRecord | None] = {}
        self._images: dict[str, ImageRecord | None] = {}
        # In check mode: what a run would have made, and what it would have removed, by then.
        self.expected_images: dict[str, ImageRecord | None] = {}
        self._expected_networks: dict[str, NetworkRecord | None] = {}
        # Why an image could not be pulled, by its name and when that was to be done.
        self.unobtainable: dict[tuple[str, str], CocoonError] = {}
        self._snapshots: dict[str, SnapshotRecord | None] = {}
        self._drivers: dict[str, Driver] = {}
        self._ensured: set[str] = set()
        # VMs whose plugins have been asked to take down what they made; what failed is left to another run.
        self.unplugged: set[str] = set()
        # What did not keep anything from its place, and yet has to be told.
        self.warnings: list[str] = []
        self._verified: set[str] = set()
        self._blob_digests: dict[str, dict[str, str]] = {}
        self._processes: dict[int, list[int]] | None = None
        self._links: Wires | None = None
        self._network_documents: dict[str, NetworkRecord | None] = {}

    def forget(self) -> None:
        """Look networks and images up again, and count anew what plans would take: another pass begins."""
        self._networks.clear()
        self._images.clear()
        self._snapshots.clear()
        self._blob_digests.clear()
        self._processes = None
        self._links = None
        self._network_documents.clear()
        self.count_anew()

    def count_anew(self) -> None:
        """Nothing is taken by plans yet."""
        self.memory_planned = self.disk_planned = 0
        self.addresses_planned.clear()

    def processes(self) -> dict[int, list[int]]:
        """The host's processes by uid, looked up once a pass."""
        with self.lock:
            if self._processes is None:
                self._processes = processes_by_uid()
            return self._processes

    def nic_faults(self, record: VmRecord) -> dict[str, list[str]]:
        """What is wrong with the host's side of a running VM's NICs, by one look at all interfaces a pass."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import backends, guard, wires

        if not wires.is_settled(record):
            return {}
        if self._links is None:
            self._links = wires.look()
        found = {}
        configs = record["network_configs"]
        for nic in guard.nics(configs, lambda config: self._network_document(config["network_id"])):
            wrong = backends.of(nic.config).faults(nic.config, nic.network, self._links)
            wrong += guard.faults(self.store.store_id, nic)
            if wrong:
                place = configs.index(t.cast("NetworkConfig", nic.config))
                found[f"nics[{place}]"] = wrong
        return found

    def _network_document(self, network_id: str) -> NetworkRecord | None:
        """A network's record by its id, without all that goes with networks; ``None`` if it is damaged."""
        if network_id not in self._network_documents:
            path = os.path.join(self.store.paths.object_dir("network", network_id), "network.json")
            self._network_documents[network_id] = None
            with contextlib.suppress(StateError):
                self._network_documents[network_id] = read_record(path, read_network, network_id)
        return self._network_documents[network_id]

    def network(self, name: str) -> NetworkRecord | None:
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments

        if name not in self._networks:
            known = name in self._expected_networks
            self._networks[name] = self._expected_networks[name] if known else attachments.load(self.store, name)
        return self._networks[name]

    def known_network(self, name: str) -> NetworkRecord:
        record = self.network(name)
        if record is None:
            raise NotFoundError(f"there is no network '{name}'", "network", "Create it with cocoon_network first.")
        return record

    def image(self, name: str) -> ImageRecord | None:
        if name not in self._images:
            from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images

            known = name in self.expected_images
            self._images[name] = self.expected_images[name] if known else images.resolve(self.store, name)
        return self._images[name]

    def expect_image(self, name: str, record: ImageRecord | None) -> None:
        """In check mode: plan with an image that a real run would have, or would have removed."""
        self.expected_images[name] = record

    def expect_network(self, name: str, record: NetworkRecord | None) -> None:
        """In check mode: plan with a network that a real run would have, or would have removed."""
        self._expected_networks[name] = record

    def known_image(self, name: str) -> ImageRecord:
        record = self.image(name)
        if record is None:
            raise NotFoundError(f"there is no image '{name}'", "image", "Import it with cocoon_image first.")
        return record

    def blob_digests(self, image_id: str) -> dict[str, str]:
        """The digests of the EROFS files of an image, by layer; looked up once a pass."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._images import fingerprints

        image = self.known_image(image_id)
        with self.lock:
            if image_id not in self._blob_digests:
                self._blob_digests[image_id] = fingerprints.digests(self.store, image, self.options.lock_timeout)
            return self._blob_digests[image_id]

    def snapshot(self, name: str, disks_only: bool = False) -> SnapshotRecord | None:
        """A complete snapshot; with *disks_only* as if it had nothing but its disks."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots

        if name not in self._snapshots:
            self._snapshots[name] = snapshots.usable(self.store, name)
        record = self._snapshots[name]
        return snapshots.disks_of(record) if record and disks_only else record

    def verify(self, snapshot: SnapshotRecord) -> None:
        """Look whether the files of a snapshot are as they were, once per run."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._snapshots import store as snapshots

        with self.lock:
            if snapshot["id"] not in self._verified:
                snapshots.verify(self.store, snapshot)
                self._verified.add(snapshot["id"])

    def driver(self, name: str) -> Driver:
        """The driver *name*, one for all that the run does with it."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import registry

        if name not in self._drivers:
            self._drivers[name] = registry.driver(name, self.store.paths)
        return self._drivers[name]

    def ensure_network(self, name: str) -> None:
        """Bring a network's kernel objects up, once per run."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments

        with self.lock:
            if name not in self._ensured:
                attachments.ensure(self.store, self.known_network(name))
                self._ensured.add(name)

    def sync_networks(self) -> None:
        """Apply the published ports that changed in this run, in one go."""
        from ansible_collections.cocoon.microvm.plugins.module_utils._network import attachments

        with self.lock:
            if not self.networks_changed:
                return
            self.networks_changed = False  # what other threads change from here on is for the next one
            try:
                attachments.sync(self.store)
            except Exception:
                self.networks_changed = True
                raise
