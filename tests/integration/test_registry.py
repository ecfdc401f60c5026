# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images from a real registry with TLS and passwords, and from what stands in the way of one; docker save; prune."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import (
    converging,
    kernel,
    listing,
    prune,
    pull,
    skopeo,
    tarball,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import Wanted
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.networking import inside
from ansible_collections.cocoon.microvm.tests.integration.support.registry import (
    ARCHITECTURE,
    PASSWORD,
    USER,
    Authority,
    Meddler,
    Registry,
    Shelf,
    auth_file,
    binary,
    hexes,
    layer,
    mirrored,
)
from ansible_collections.cocoon.microvm.tests.integration.support.running import Playbooks
from ansible_collections.cocoon.microvm.tests.integration.support.stores import files_of, untouched

pytestmark = [
    pytest.mark.skipif(binary() is None, reason="needs docker-registry: run `make setup`"),
    pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo: run `make setup`"),
]

KERNEL, INITRD = b"kernel" * 3000, b"initrd" * 5000
BOOT = layer(("boot/vmlinuz", KERNEL), ("boot/initrd.img", INITRD))
FOREIGN = "s390x" if ARCHITECTURE != "s390x" else "amd64"
MakeStore = Callable[[], dict[str, str]]


def noise(seed: str, size: int = 300_000) -> bytes:
    """A layer that does not compress."""
    return layer((f"data/{seed}", random.Random(seed).randbytes(size)))


@dataclass
class World:
    """The namespace with its registries, and a store of a test's own."""

    netns: Netns
    secure: Registry
    plain: Registry
    expired: Registry
    meddler: Meddler
    shelf: Shelf
    authority: Authority
    folder: Path
    paths: Paths

    def converge(
        self, name: str, check: bool = False, paths: Paths | None = None, **options: Any
    ) -> converging.Outcome:
        """Through the plain registry or the meddler, unless options say otherwise."""
        options.setdefault("validate_certs", False)
        wanted = Wanted(name, **{key: str(v) if isinstance(v, Path) else v for key, v in options.items()})
        return inside(self.netns, converging.converge, paths or self.paths, wanted, check)

    def login(self, name: str, **options: Any) -> converging.Outcome:
        """From the registry with TLS and passwords."""
        given = {"registry_user": USER, "registry_password": PASSWORD, "ca_path": self.authority.certificate}
        return self.converge(f"{self.secure.host}/{name}", **{**given, "validate_certs": True, **options})

    def params(self) -> dict[str, Any]:
        return {"root_dir": self.paths.root, "run_dir": self.paths.run, "log_dir": self.paths.log}


@pytest.fixture(scope="module", name="place")
def fixture_place(make_netns: Callable[[], Netns], scratch: Path) -> Iterator[World]:
    netns = make_netns()
    folder = scratch / "registry"
    folder.mkdir()
    authority = Authority(folder / "ca")
    with contextlib.ExitStack() as stack:

        def registry(port: int, tls: tuple[Path, Path] | None, passwords: bool) -> Registry:
            made = Registry(netns, folder, port, tls, passwords)
            stack.callback(made.stop)
            return made

        secure = registry(5443, authority.sign("good"), True)
        plain = registry(5000, None, False)
        expired = registry(5444, authority.sign("expired", -1), False)
        meddler = Meddler(netns, 5001, plain.host)
        stack.callback(meddler.stop)
        shelf = Shelf(folder, plain)
        yield World(netns, secure, plain, expired, meddler, shelf, authority, folder, Paths("", "", ""))


@pytest.fixture(name="world")
def fixture_world(place: World, make_store: MakeStore) -> World:
    place.meddler.reset()
    place.paths = Paths.from_params(make_store())
    return place


def fails(message: str, work: Callable[..., Any], *arguments: Any, **options: Any) -> CocoonError:
    with pytest.raises(CocoonError, match=message) as caught:
        work(*arguments, **options)
    assert caught.value.option and caught.value.remedy
    return caught.value


def refused(world: World, message: str, name: str, paths: Paths | None = None, **options: Any) -> None:
    """It fails, and the store, which has an image, stays as it is."""
    with untouched(paths or world.paths):
        fails(message, options.pop("work", world.converge), name, paths=paths, **options)


@pytest.fixture(name="neighbour")
def fixture_neighbour(world: World) -> str:
    """An image in the store that shares a layer with most others here; its name."""
    name = f"{world.plain.host}/neighbour:v1"
    world.shelf.push("neighbour:v1", BOOT, noise("neighbour"))
    assert world.converge(name).changed
    return name


def test_a_private_registry(world: World) -> None:
    layers = (BOOT, noise("private"))
    digest = world.shelf.push("team/app:v1", *layers)
    name = f"{world.secure.host}/team/app:v1"
    predicted = world.login("team/app:v1", check=True)
    assert predicted.changed and predicted.image is None and Store.load(world.paths) is None
    outcome = world.login("team/app:v1")
    image = outcome.image
    assert image and outcome.actions == ["import", "tag"] and outcome.diff == predicted.diff
    assert image["id"] == image["digest"] == digest and image["names"] == [name]
    assert image["layers"] == hexes(layers)
    assert image["platform"] == f"linux/{ARCHITECTURE}" and image["created"] == "2026-01-02T03:04:05Z"
    assert image["size"] > 300_000
    assert image["source"] == {
        "path": f"docker://{name}",
        "kind": "registry",
        "digest": digest,
        "reference": name,
        "reference_digest": digest,
    }
    assert Path(image["boot"]["kernel_path"]).read_bytes() == KERNEL
    assert files_of(world.paths, "pulls", "staging", "pending") == []
    again = world.login("team/app:v1", pull="always")
    assert not again.changed and again.image == image
    # No question at all: no host of that name answers.
    assert not world.login("team/app:v1", mirror="127.0.0.1:9").changed
    assert not world.login("team/app:v1", pull="never", mirror="127.0.0.1:9").changed
    fails("pull: image .* is not in the store", world.login, "team/app:v2", pull="never")


def test_credentials_from_a_file(world: World, tmp_path: Path) -> None:
    world.shelf.push("team/file:v1", BOOT)
    good = auth_file(tmp_path / "auth.json", world.secure.host)
    options = {"registry_user": None, "registry_password": None}
    assert world.login("team/file:v1", auth_file=good, **options).changed
    bad = auth_file(tmp_path / "bad.json", world.secure.host, password="wrong")
    fails("^auth_file: .*does not accept", world.login, "team/file:v1", auth_file=bad, pull="always", **options)


@pytest.mark.usefixtures("neighbour")
def test_no_way_in(world: World) -> None:
    """Each obstacle is told apart, and says which option to see to."""
    world.shelf.push("team/app:v1", BOOT)
    nobody = {"registry_user": None, "registry_password": None}
    for check in (True, False):
        for message, name, options in (
            ("^registry_user: .*wants credentials.*auth_file", "team/app:v1", nobody),
            ("^registry_user: .*does not accept", "team/app:v1", {"registry_password": "wrong"}),
            ("^ca_path: .*unknown authority", "team/app:v1", {"ca_path": None}),
            (r"^name: .*has no 127.0.0.1:5443/team/app:v9. The repository has: v1\.", "team/app:v9", {}),
            ("^name: .*has no repository 127.0.0.1:5443/team/nothing", "team/nothing:v1", {}),
            ("^name: .*has no 127.0.0.1:5443/team/app@sha256:00", f"team/app@sha256:{'0' * 64}", {}),
            ("^mirror: .*cannot be reached", "team/app:v1", {"mirror": "127.0.0.1:9"}),
            ("^mirror: .*cannot be reached", "team/app:v1", {"mirror": "registry.invalid/hub"}),
        ):
            refused(world, message, name, work=world.login, check=check, **options)
        trusted = {"validate_certs": True, "ca_path": world.authority.certificate, "check": check}
        refused(world, "^ca_path: .*expired", f"{world.expired.host}/team/app:v1", **trusted)
        refused(world, "^validate_certs: .*plain HTTP", f"{world.plain.host}/team/app:v1", **trusted)


def test_no_skopeo(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(skopeo, "PATH", str(tmp_path))
    with pytest.raises(CocoonError, match=r"skopeo is not installed. Install skopeo, or run the role"):
        world.login("team/app:v1")


def test_platforms_and_digests(world: World) -> None:
    index = world.shelf.push("many:v1", (FOREIGN, (BOOT, noise("foreign"))), (ARCHITECTURE, (BOOT, noise("own"))))
    image = world.converge("own", source=f"docker://{world.plain.host}/many:v1").image
    assert image and image["platform"] == f"linux/{ARCHITECTURE}" and image["layers"][1:] == hexes([noise("own")])
    assert image["source"]["reference_digest"] == index != image["id"]
    other = world.converge("other", source=f"docker://{world.plain.host}/many:v1", platform=f"linux/{FOREIGN}").image
    assert other and other["platform"] == f"linux/{FOREIGN}" and other["layers"][1:] == hexes([noise("foreign")])
    message = f"^platform: .*has no image for linux/mips. It has: linux/{min(FOREIGN, ARCHITECTURE)}, linux/"
    refused(world, message, "mips", source=f"docker://{world.plain.host}/many:v1", platform="linux/mips")
    # By the digest of the index and by that of the image; the second is never asked for again.
    for digest in (index, image["id"]):
        name = f"{world.meddler.host}/many@{digest}"
        outcome = world.converge(name)
        assert outcome.actions == ["tag"] and outcome.image and outcome.image["id"] == image["id"]
        world.meddler.reset()
        assert not world.converge(name, pull="always").changed and world.meddler.asked == []
    world.shelf.push("foreign:v1", (FOREIGN, (BOOT,)))
    foreign, message = f"{world.plain.host}/foreign:v1", f"no image for linux/{ARCHITECTURE}. It has: linux/{FOREIGN}"
    for check in (True, False):
        refused(world, f"^name: .*{message}", foreign, check=check)
        refused(world, f"^source: .*{message}", "foreign", source=f"docker://{foreign}", check=check)
        refused(world, "^checksum: ", f"{world.plain.host}/many:v1", checksum=f"sha256:{'0' * 64}", check=check)
    assert world.converge(f"{world.plain.host}/many:v1", checksum=index).changed


def test_manifests_of_docker(world: World) -> None:
    """The digest stays the registry's, though skopeo would make another manifest of it."""
    digest = world.shelf.push("docker/app:v1", BOOT, noise("docker"), form="v2s2")
    image = world.converge(f"{world.plain.host}/docker/app:v1").image
    assert image and image["id"] == digest


@pytest.mark.usefixtures("neighbour")
def test_layers_that_skopeo_does_not_know(world: World) -> None:
    """Docker's own type for zstd is taken from archives; what fetches from registries refuses the whole manifest."""
    plain = noise("zstd")
    packed = subprocess.run(["zstd", "-cq"], input=plain, capture_output=True, check=True).stdout
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{name}" for name in hexes([plain])]}
    config = json.dumps({"architecture": ARCHITECTURE, "os": "linux", "rootfs": rootfs}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": described(config, "application/vnd.docker.container.image.v1+json"),
        "layers": [described(packed, "application/vnd.docker.image.rootfs.diff.tar.zstd")],
    }
    world.shelf.place("odd/app:v1", manifest, config, packed)
    message = "^name: .*app:v1: skopeo does not know the type of a layer .*diff.tar.zstd.*Push the image again as OCI"
    refused(world, message, f"{world.plain.host}/odd/app:v1")


def described(data: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{hexes([data])[0]}", "size": len(data)}


def test_a_tag_that_moves(world: World) -> None:
    base, name = noise("base"), f"{world.meddler.host}/moving:v1"
    first = world.shelf.push("moving:v1", BOOT, base, noise("first"))
    assert world.converge(name).image
    second = world.shelf.push("moving:v1", BOOT, base, noise("second"))
    assert not world.converge(name).changed  # it has one of that name
    world.meddler.reset()
    predicted = world.converge(name, check=True, pull="always")
    assert predicted.diff["before"]["id"] == first and predicted.diff["after"]["id"] == second
    assert not any("/blobs/" in path and hexes([base])[0] in path for path in world.meddler.asked)
    world.meddler.reset()
    outcome = world.converge(name, pull="always")
    assert outcome.diff == predicted.diff and outcome.actions == predicted.actions == ["import", "tag"]
    fetched = set(world.meddler.blobs())
    assert hexes([noise("second")])[0] in fetched and hexes([base])[0] not in fetched  # the store has that layer
    world.meddler.reset()
    assert not world.converge(name, pull="always").changed
    assert world.meddler.blobs() == [] and len(world.meddler.asked) <= 2  # the version, the manifest
    assert [record["id"] for record in listing.info(world.paths)] == [second]


def test_another_source_under_the_same_name(world: World) -> None:
    for number in (1, 2):
        world.shelf.push(f"numbered:v{number}", BOOT, noise(f"number {number}"))
    sources = [f"docker://{world.meddler.host}/numbered:v{number}" for number in (1, 2)]
    assert world.converge("app", source=sources[0]).actions == ["import", "tag"]
    world.meddler.reset()
    assert not world.converge("app", source=sources[0]).changed and world.meddler.asked == []
    assert world.converge("app", source=sources[1]).actions == ["import", "tag"]
    assert not world.converge("app", source=sources[1]).changed
    assert len(listing.info(world.paths)) == 1


def test_kernel_and_initrd_beside(world: World, tmp_path: Path) -> None:
    for name in ("kernel", "initrd"):
        (tmp_path / name).write_bytes(name.encode())
    digest = world.shelf.push("bare:v1", noise("bare"))
    boot = {"kernel": tmp_path / "kernel", "initrd": tmp_path / "initrd"}
    image = world.converge(f"{world.meddler.host}/bare:v1", **boot).image
    assert image and image["id"] != digest and image["source"]["digest"] == digest
    world.meddler.reset()
    assert not world.converge(f"{world.meddler.host}/bare:v1", **boot).changed and world.meddler.asked == []


def test_a_mirror(world: World) -> None:
    digest = world.shelf.push("hub/library/thing:v3", BOOT)
    image = world.converge("docker.io/library/thing:v3", mirror=f"{world.plain.host}/hub").image
    assert image and image["id"] == digest and image["source"]["reference"] == "docker.io/library/thing:v3"
    assert world.converge("thing", source="docker://thing:v3", mirror=f"{world.plain.host}/hub").actions == ["tag"]


def test_gone_in_the_middle_of_a_layer(world: World) -> None:
    """What was complete is kept, and nothing else; the next pull fetches the rest."""
    world.converge(f"{world.plain.host}/keep:v1") if world.shelf.push("keep:v1", BOOT, noise("keep")) else None
    before = files_of(world.paths)
    one, two = noise("one"), noise("two")
    first, second = hexes([one, two])
    world.shelf.push("cut:v1", BOOT, one, two)
    world.meddler.cut = {second}
    world.meddler.delay = {second: 0.4}
    name = f"{world.meddler.host}/cut:v1"
    fails("^name: registry 127.0.0.1:5001 broke off|cannot be reached", world.converge, name)
    left = files_of(world.paths)
    blobs = sorted(os.path.basename(path) for path in set(left) - set(before))
    assert first in blobs and second not in blobs and all(path.startswith("pulls/") for path in set(left) - set(before))
    assert [record["names"] for record in listing.info(world.paths)] == [[f"{world.plain.host}/keep:v1"]]
    world.meddler.reset()
    assert world.converge(name).actions == ["import", "tag"]
    assert second in world.meddler.blobs() and first not in world.meddler.blobs()
    assert files_of(world.paths, "pulls") == []
    # Another image goes on from such leftovers, too.
    three = noise("three")
    world.shelf.push("cut:v2", one, noise("four"), three)
    world.converge(name, state="absent")
    world.meddler.cut, world.meddler.delay = set(hexes([three])), {hexes([three])[0]: 0.4}
    fails("broke off|cannot be reached", world.converge, f"{world.meddler.host}/cut:v2")
    world.meddler.reset()
    assert world.converge(name).changed and first not in world.meddler.blobs()


@pytest.mark.usefixtures("neighbour")
def test_other_bytes_than_promised(world: World) -> None:
    """Not even layers that came well before are kept."""
    bad, name = noise("spoiled"), f"{world.meddler.host}/spoiled:v1"
    world.shelf.push("spoiled:v1", noise("well"), bad)
    world.meddler.spoiled, world.meddler.delay = set(hexes([bad])), {hexes([bad])[0]: 0.4}
    refused(world, "^name: .*sent something else.*Nothing of it was kept. Try again", name)
    assert hexes([noise("well")])[0] in world.meddler.blobs()
    world.meddler.reset()
    assert world.converge(name).changed


@pytest.mark.usefixtures("neighbour")
def test_other_documents_than_promised(world: World) -> None:
    """A manifest and a config whose bytes change on the way, asked for by tag and by digest."""
    index = world.shelf.push("papers:v1", (FOREIGN, (noise("foreign"),)), (ARCHITECTURE, (noise("papers"),)))
    entries = json.loads(world.shelf.manifest("papers:v1"))["manifests"]
    (manifest,) = [item["digest"] for item in entries if item["platform"]["architecture"] == ARCHITECTURE]
    config = json.loads(world.shelf.manifest(f"papers@{manifest}"))["config"]["digest"]
    for spoiled, suffix, message in (
        (index, f"@{index}", "the registry sent sha256:.* for .*Try again"),
        (manifest, f"@{manifest}", "the registry sent sha256:.* for .*Try again"),
        (manifest, ":v1", f"papers:v1: document {manifest} does not have that digest.*Nothing of it was kept.*get it"),
        (config, ":v1", "sent something else than what .*papers:v1 consists of .*Try again"),
    ):
        world.meddler.spoiled = {images.hex_of(spoiled)}
        for check in (True, False):
            refused(world, f"^name: .*{message}", f"{world.meddler.host}/papers{suffix}", check=check)
    world.meddler.reset()
    assert world.converge(f"{world.meddler.host}/papers:v1").changed


@pytest.mark.usefixtures("neighbour")
def test_a_config_that_lies_about_its_layers(world: World) -> None:
    """A layer is what the manifest says, and not what the config says: compressed or not, fetched or in the store."""
    plain = noise("compressed")
    packed = gzip.compress(plain, 1)
    world.shelf.push("layers:true", BOOT, packed, plain=(BOOT, plain))
    world.shelf.push("layers:lie", BOOT, packed, plain=(BOOT, BOOT))
    digest, promised = hexes([packed, BOOT])
    message = f"layer sha256:{digest} of .*layers:lie: uncompressed, .*sha256:{promised}. Nothing of it was kept"
    refused(world, f"^name: {message}", f"{world.plain.host}/layers:lie")
    assert world.converge(f"{world.plain.host}/layers:true").changed
    refused(world, f"^name: {message}", f"{world.plain.host}/layers:lie")


def test_layers_come_in_parallel(world: World, modules: Callable[..., Any]) -> None:
    """While the first one stalls, the others arrive and are converted."""
    layers = (BOOT, noise("parallel 1"), noise("parallel 2"))
    world.shelf.push("parallel:v1", *layers)
    first, *others = hexes(layers)
    world.meddler.stalled = {first}
    name = f"{world.meddler.host}/parallel:v1"
    runner = modules(world.netns, world.params())
    child = waiting(world, name, runner, validate_certs=False)
    deadline = time.monotonic() + 20
    while not {f"blobs/{digest}.erofs" for digest in others} <= set(files_of(world.paths)):
        assert child.poll() is None and time.monotonic() < deadline, files_of(world.paths)
        time.sleep(0.02)
    assert f"blobs/{first}.erofs" not in files_of(world.paths) and listing.info(world.paths) == []
    world.meddler.go_on.set()
    image = runner.finish(child)["image"]
    assert image["layers"] == hexes(layers) and world.meddler.blobs().count(first) == 1


@pytest.mark.usefixtures("neighbour")
def test_a_registry_that_falls_silent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection stays open and nothing comes: given up in time, and the next run goes on from what is complete."""
    one, two = noise("heard"), noise("never heard")
    world.shelf.push("silent:v1", one, two)
    world.meddler.stalled = set(hexes([two]))
    before, name, others = set(files_of(world.paths)), f"{world.meddler.host}/silent:v1", set(skopeos())
    monkeypatch.setattr(pull, "STALLED", 2.5)
    fails("^name: .*sent nothing for 2.5 s. Run the task again: complete layers are kept", world.converge, name)
    (left,) = set(files_of(world.paths)) - before
    assert left.startswith("pulls/") and left.endswith(hexes([one])[0]) and not set(skopeos()) - others
    world.meddler.go_on.set()
    world.meddler.reset()
    assert world.converge(name).actions == ["import", "tag"]
    assert world.meddler.blobs().count(hexes([two])[0]) == 1 and hexes([one])[0] not in world.meddler.blobs()


def test_leftovers_that_rot_are_not_believed(world: World) -> None:
    """A kept layer whose bytes changed is found out by its digest, and goes."""
    one, two = noise("sound"), noise("rest")
    world.shelf.push("rot:v1", BOOT, one, two)
    world.meddler.cut, world.meddler.delay = set(hexes([two])), {hexes([two])[0]: 0.4}
    fails("broke off|cannot be reached", world.converge, f"{world.meddler.host}/rot:v1")
    (path,) = [path for path in files_of(world.paths, "pulls") if path.endswith(hexes([one])[0])]
    with open(os.path.join(world.paths.images, path), "r+b") as stream:
        stream.seek(2000)
        stream.write(b"rot")
    world.meddler.reset()
    fails("^name: layer sha256:.*does not have that digest", world.converge, f"{world.meddler.host}/rot:v1")
    assert files_of(world.paths) == []
    assert world.converge(f"{world.meddler.host}/rot:v1").changed


def waiting(world: World, name: str, runner: Any, **options: Any) -> subprocess.Popen[str]:
    """A module that pulls, and waits for a layer that does not come."""
    child: subprocess.Popen[str] = runner.start("cocoon_image", name=name, **options)
    assert world.meddler.stalling.wait(30), child.communicate()
    return child


def skopeos() -> list[int]:
    """Processes of skopeo that are the tests'."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == "skopeo\n":
                found.append(int(pid))
    return found


def test_killed_in_the_middle(world: World, modules: Callable[..., Any]) -> None:
    one, two = noise("before"), noise("after")
    world.shelf.push("killed:v1", BOOT, one, two)
    world.meddler.stalled = set(hexes([two]))
    runner = modules(world.netns, world.params())
    name = f"{world.meddler.host}/killed:v1"
    others = set(skopeos())
    child = waiting(world, name, runner, validate_certs=False)
    mine = set(skopeos()) - others
    deadline = time.monotonic() + 20
    while not any(path.endswith(hexes([one])[0]) for path in files_of(world.paths, "pulls")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert mine
    for pid in mine:  # nobody who could do anything
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^Groups:\s*$", status, re.MULTILINE) and "CapEff:\t0000000000000000" in status
        assert int(re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE).group(1)) >= 0x70000000  # type: ignore[union-attr]
    child.send_signal(signal.SIGKILL)
    child.communicate()
    while mine & set(skopeos()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    world.meddler.go_on.set()
    world.meddler.reset()
    assert world.converge(name).actions == ["import", "tag"]
    assert hexes([one])[0] not in world.meddler.blobs()
    assert files_of(world.paths, "pulls", "staging", "pending") == []


def test_secrets_stay_out_of_sight(world: World, modules: Callable[..., Any]) -> None:
    """While a pull waits, its password is in no argument, no environment and no file; nor in what it says."""
    world.shelf.push("secret:v1", BOOT, noise("secret"))
    world.meddler.stalled = set(hexes([noise("secret")]))
    runner = modules(world.netns, world.params())
    login = {"registry_user": USER, "registry_password": PASSWORD, "validate_certs": False}
    child = waiting(world, f"{world.meddler.host}/secret:v1", runner, **login)
    encoded = subprocess.run(["base64"], input=f"{USER}:{PASSWORD}".encode(), capture_output=True, check=True).stdout
    needles = (PASSWORD.encode(), encoded.strip())
    for pid in skopeos():
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/{name}").read_bytes()
                assert not any(needle in text for needle in needles)
    for folder in (world.paths.root, world.paths.run):
        for place, _folders, names in os.walk(folder):
            for name in names:
                text = Path(place, name).read_bytes()
                assert not any(needle in text for needle in needles), name
    world.meddler.go_on.set()
    result = runner.finish(child)
    assert result.changed
    for needle in needles:
        assert needle not in json.dumps(result).encode()


def test_pulls_at_once_do_the_work_once(world: World, modules: Callable[..., Any]) -> None:
    layers = (BOOT, noise("crowd 1"), noise("crowd 2"))
    world.shelf.push("crowd:v1", *layers)
    world.meddler.delay = dict.fromkeys(hexes(layers), 0.3)
    runner = modules(world.netns, world.params())
    name = f"{world.meddler.host}/crowd:v1"
    names = [{"name": name}, {"name": name}, {"name": "alias", "source": f"docker://{name}"}]
    children = [runner.start("cocoon_image", validate_certs=False, **options) for options in names]
    results = [runner.finish(child) for child in children]
    assert not any(result.failed for result in results), results
    assert sum("import" in result["actions"] for result in results) == 1
    fetched = world.meddler.blobs()
    assert all(fetched.count(digest) == 1 for digest in hexes(layers))
    assert len(listing.info(world.paths)) == 1 and files_of(world.paths, "pulls") == []


PROGRESS = re.compile(
    r"^hv1: pulling \S+/slow:v1: [\d.]+ MiB of 40\.\d MiB \(\d+ %\), [012] of 2 layers, [\d.]+ MiB/s, \d+ s left$",
    re.MULTILINE,
)
SLOW = "library/slow:v1"


@pytest.mark.parametrize(("module", "lines"), [("cocoon_image", 2), ("cocoon_vms", 1)])
def test_a_long_pull_says_how_far_it_is(world: World, scratch: Path, module: str, lines: int) -> None:
    """Of an image alone, and of one that VMs need."""
    layers = (BOOT, layer(("slow", bytes(40 << 20))))  # large, and quickly compressed
    world.shelf.push(SLOW, *layers)
    world.meddler.pace = {hexes(layers)[1]: 3.0 * lines + 2}
    vm = {"name": "slow", "image": f"docker.io/{SLOW}", "pull": "always", "memory": "64M"}
    image = {"name": f"{world.meddler.host}/{SLOW}", "validate_certs": False, "pull": "always"}
    options = {"cocoon_image": image, "cocoon_vm": vm, "cocoon_vms": {"vms": [vm]}}[module]
    name = f"cocoon.microvm.{module}"
    gone = {"name": "Leave", "cocoon.microvm.cocoon_vm": {"name": "slow", "state": "absent", **world.params()}}
    run = Playbooks(mirrored(world.plain, world.meddler.host), scratch, {})
    predict, get = ({"name": word, name: {**options, **world.params()}} for word in ("Predict", "Get"))
    first = run([play(predict, check_mode=True), play(get)], variables={"cocoon_progress_interval": 1})
    said = first.output.partition("TASK [Get]")
    assert "pulling" not in said[0] and len(PROGRESS.findall(said[2])) >= lines, first.output
    for task in ("Predict", "Get"):
        assert first.result(task).changed and "deferred" not in first.result(task)
    results = first.result("Get").get("results", [first.result("Get")])
    assert module == "cocoon_image" or results[0]["actions"] == ["pull", "create"]
    assert world.meddler.blobs().count(hexes(layers)[1]) == 1
    again = run([play(get), play(gone)])
    assert not again.result("Get").changed and "pulling" not in again.output
    assert files_of(world.paths, "pulls") == []


def play(task: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"hosts": "all", "gather_facts": False, "tasks": [{**task, **more}]}


DEVICES = 10_001


def devices() -> bytes:
    import io
    import tarfile

    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as target:
        for number in range(DEVICES):
            info = tarfile.TarInfo(f"dev/{number}")
            info.type = tarfile.CHRTYPE
            target.addfile(info)
    return sink.getvalue()


MEMBERS = 20_000  # as many as take a second


def many_files() -> bytes:
    """One file more than a layer may have, in a few kilobytes."""
    import tarfile

    return gzip.compress(tarfile.TarInfo("file").tobuf() * (MEMBERS + 1) + bytes(1024), 1)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "traversal": (lambda: layer(("../../etc/passwd", b"x")), "leaves the archive"),
    "devices": (devices, "device nodes"),
    "garbage": (lambda: b"x" * 70_000, "damaged"),
    "files": (many_files, f"more than {MEMBERS} members"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_layers_leave_nothing(world: World, neighbour: str, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The error says which layer of which image; the image beside it shares a layer, and can still be had."""
    monkeypatch.setitem(vars(tarball.DEFAULT_LIMITS), "members", MEMBERS)
    make, message = HOSTILE[what]
    bad, name = make(), f"{world.plain.host}/hostile:{what}"
    world.shelf.push(f"hostile:{what}", BOOT, bad)
    where = f"layer sha256:{hexes([bad])[0]} of {re.escape(name)}"
    refused(world, f"^name: {where}: .*{message}.*Nothing of it was kept. ", name)
    assert not world.converge(neighbour, pull="always").changed


@pytest.mark.usefixtures("neighbour")
def test_a_vm_of_a_hostile_image(world: World, modules: Callable[..., Any]) -> None:
    """Whoever asks for the image as a VM's is told about that option."""
    world.shelf.push("library/hostile:vm", BOOT, HOSTILE["traversal"][0]())
    runner = modules(mirrored(world.plain), world.params())
    with untouched(world.paths):
        result = runner("cocoon_vm", name="victim", image="docker.io/library/hostile:vm", ok=False)
    assert re.match(
        r"image: there is no .* of docker.io/library/hostile:vm: .* Nothing of it was kept\.", result["msg"]
    )


def test_a_full_disk(world: World, make_store: MakeStore) -> None:
    folders = make_store()
    root = Path(folders["root_dir"])
    root.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=711", "tmpfs", root], check=True)
    try:
        paths = Paths.from_params(folders)
        world.shelf.push("small:v1", BOOT)
        assert world.converge(f"{world.plain.host}/small:v1", paths=paths).changed
        # One that is seen not to fit beforehand, and one that only shows when it is converted.
        world.shelf.push("big:v1", BOOT, noise("big", 3 << 20))
        world.shelf.push(
            "big:v2", BOOT, layer(("hex", random.Random(2).randbytes(3 << 19).hex().encode())), form="v2s2"
        )
        for tag in ("v1", "v2"):
            refused(world, "^root_dir: no space", f"{world.plain.host}/big:{tag}", paths=paths)
        assert not world.converge(f"{world.plain.host}/small:v1", paths=paths, pull="always").changed
    finally:
        subprocess.run(["umount", root], check=True)


def save(world: World, folder: Path, *images: tuple[str, tuple[bytes, ...]]) -> Path:
    """An archive as `docker save` makes it, by skopeo."""
    target = folder / "saved.bin"
    for name, layers in images:
        layout = folder / f"layout-{time.monotonic_ns()}"
        world.shelf.layout(world.shelf.image(layout, *layers), path=layout)
        subprocess.run(
            ["skopeo", "copy", "-q", f"oci:{layout}:it", f"docker-archive:{target}:{name}"],
            check=True,
            capture_output=True,
        )
    return target


@pytest.mark.usefixtures("neighbour")
def test_archives_of_docker_save(world: World, tmp_path: Path) -> None:
    layers = (BOOT, noise("saved"))
    archive = save(world, tmp_path, ("app:v1", layers))
    predicted = world.converge("saved", source=archive, check=True)
    outcome = world.converge("saved", source=archive)
    image = outcome.image
    assert image and outcome.diff == predicted.diff and image["source"]["kind"] == "docker-archive"
    assert image["layers"] == hexes(layers) and image["created"] == "2026-01-02T03:04:05Z"
    assert not world.converge("saved", source=archive).changed
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(archive.read_bytes(), 1))
    assert world.converge("packed", source=packed).actions == ["tag"]
    assert world.converge("saved", source=archive, tag="docker.io/library/app:v1").actions == []
    fails("^tag: .*has no image 'app:v2'. It has: docker.io/library/app:v1", world.converge, "x", source=archive,
          tag="app:v2")  # fmt: skip
    changed = bytearray(archive.read_bytes())
    changed[changed.index(noise("saved")[600:700])] ^= 1
    packed.write_bytes(changed)
    for name in ("saved", "packed"):
        world.converge(name, state="absent")
    for check in (True, False):
        refused(world, "^source: layer .*does not have that digest", "changed", source=packed, check=check)


def prune_all(world: World, check: bool = False, **options: Any) -> prune.Pruned:
    return prune.prune(world.paths, prune.Rules(**options), check)


def test_prune(world: World) -> None:
    shared = noise("shared")
    for number in (1, 2, 3):
        world.shelf.push(f"unused:v{number}", BOOT, shared, noise(f"unused {number}"))
        assert world.converge(f"n{number}", source=f"docker://{world.plain.host}/unused:v{number}").changed
    store = Store.load(world.paths)
    assert store
    ids = {record["name"]: record["id"] for record in listing.info(world.paths)}
    images.pin(store, ids["n1"], "vm1")
    world.meddler.cut = set(hexes([noise("lost")]))
    world.shelf.push("lost:v1", BOOT, noise("half"), noise("lost"))
    world.meddler.delay = {hexes([noise("lost")])[0]: 0.4}
    fails("broke off|cannot be reached", world.converge, f"{world.meddler.host}/lost:v1")
    before = files_of(world.paths)
    world.converge(kernel.NAME, source=f"docker://{world.plain.host}/unused:v1")
    assert not prune_all(world, keep=("n*",), downloads=False).changed
    images.unpin(store, ids["n1"], "vm1")
    assert [image["names"] for image in prune_all(world, check=True).images] == [["n2"], ["n3"]]  # a default kernel
    images.pin(store, ids["n1"], "vm1")
    world.converge(kernel.NAME, state="absent")
    assert not prune_all(world, older_than=3600, downloads=False).changed
    assert not prune_all(world, owner="somebody", downloads=False).changed
    predicted = prune_all(world, check=True, keep=("n3",))
    assert files_of(world.paths) == before
    free = disk_use(world.paths)
    outcome = prune_all(world, keep=("n3",))
    assert outcome == predicted and [image["names"] for image in outcome.images] == [["n2"]]
    assert len(outcome.downloads) == 1 and files_of(world.paths, "pulls") == []
    assert abs(free - disk_use(world.paths) - outcome.reclaimed) < 16384
    assert sorted(record["name"] for record in listing.info(world.paths)) == ["n1", "n3"]
    assert [image["names"] for image in prune_all(world).images] == [["n3"]]
    images.unpin(store, ids["n1"], "vm1")
    assert prune_all(world).changed and files_of(world.paths) == [] and not prune_all(world).changed


def disk_use(paths: Paths) -> int:
    names = [name for name in files_of(paths, "blobs", "boot", "pulls") if not name.endswith(".json")]
    files = [os.lstat(os.path.join(paths.images, name)) for name in names]
    return sum(min(status.st_size, status.st_blocks * 512) for status in files)


def test_an_image_that_lost_its_name_is_pruned(world: World) -> None:
    for number in (1, 2):
        world.shelf.push(f"named:v{number}", BOOT, noise(f"named {number}"))
    first = world.converge("named", source=f"docker://{world.plain.host}/named:v1").image
    store = Store.load(world.paths)
    assert first and store
    images.pin(store, first["id"], "vm1")
    world.converge("named", source=f"docker://{world.plain.host}/named:v2")
    assert not prune_all(world, keep=("named",)).changed
    images.unpin(store, first["id"], "vm1")
    predicted = prune_all(world, check=True, keep=("named",))
    assert [image["id"] for image in predicted.images] == [first["id"]]
    assert prune_all(world, keep=("named",)) == predicted


def test_the_modules(world: World, modules: Callable[..., Any]) -> None:
    world.shelf.push("module:v1", BOOT, noise("module"))
    runner = modules(world.netns, world.params())
    name = f"{world.secure.host}/module:v1"
    login = {"registry_user": USER, "registry_password": PASSWORD, "ca_path": str(world.authority.certificate)}
    assert runner("cocoon_image", name=name, check=True, **login).changed
    assert runner("cocoon_image", name=name, **login)["image"]["names"] == [name]
    assert not runner("cocoon_image", name=name, pull="always", **login).changed
    refused = runner("cocoon_image", name=name, pull="always", ok=False, **{**login, "registry_password": "wrong"})
    assert refused["option"] == "registry_user" and refused["error"] == "RegistryError"
    assert "mutually exclusive" in runner("cocoon_image", name=name, auth_file="/x", ok=False, **login)["msg"]
    info = runner("cocoon_image_info", name=name)["images"][0]
    assert info["users"] == [] and info["shared_size"] == 0 and len(info["blobs"]) == 3
    predicted = runner("cocoon_image_prune", check=True)
    assert predicted.changed and predicted["images"][0]["names"] == [name]
    assert runner("cocoon_image_prune")["reclaimed"] == predicted["reclaimed"] > 300_000
    assert not runner("cocoon_image_prune").changed
