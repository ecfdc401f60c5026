# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records, users and plans of images."""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, InputError, NotFoundError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import converging, fingerprints, listing, prune
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.kinds import RootTar
from ansible_collections.cocoon.microvm.plugins.module_utils._images.source import Sources
from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import Wanted
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, read_json, write_json
from ansible_collections.cocoon.microvm.tests.unit.documents import document

A, B = "a" * 64, "b" * 64


@pytest.fixture(name="store")
def fixture_store(tmp_path: pathlib.Path) -> Store:
    store = Store.open(Paths(str(tmp_path / "root"), str(tmp_path / "run"), str(tmp_path / "log")))
    images.make_directories(store.paths)
    return store


def put(store: Store, image: str = A, names: tuple[str, ...] = ("web",), **fields: Any) -> dict[str, Any]:
    record = document("image-1-first", boot=None, folders=[], owner="me", layers=[image], names=list(names))
    record.update({"id": f"sha256:{image}", "name": names[0] if names else "", "config": {}, **fields})
    write_json(images.record_path(store.paths, record["id"]), record)
    for name in names:
        write_json(store.index("image").path(name), {"name": name, "id": record["id"]})
    pathlib.Path(images.blob_path(store, image)).touch()
    return record


def test_by_name_and_by_digest(store: Store) -> None:
    record = put(store)
    assert images.resolve(store, "web") == record
    assert images.resolve(store, record["id"]) == record
    assert images.resolve(store, "other") is None
    assert images.resolve(store, f"sha256:{B}") is None


@pytest.mark.parametrize("name", ["web", "ubuntu:24.04", "docker.io/library/nginx:1.27", "r.example:5000/a@b"])
def test_names(name: str) -> None:
    assert images.check_image_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "/etc", "a b", f"sha256:{A}", "a" * 256, "a\nb"])
def test_bad_names(name: str) -> None:
    with pytest.raises(InputError, match="not a valid image name"):
        images.check_image_name(name)


@pytest.mark.parametrize("name", ["True", "False", "None"])
def test_names_that_yaml_made(name: str) -> None:
    with pytest.raises(InputError, match="what YAML makes of a bare on"):
        images.check_image_name(name)


def test_the_bytes_of_layers_are_known_by_their_files(store: Store) -> None:
    """Read once, and again when another file has taken the place of one."""
    record = put(store, layers=[A, B, A])
    files = {layer: pathlib.Path(images.blob_path(store, layer)) for layer in (A, B)}
    for layer, file in files.items():
        file.write_bytes(layer.encode())
    write_json(images.blob_path(store, A, "json"), {"entries": {}, "plain": A})  # of an earlier version
    expected = {layer: f"sha256:{hashlib.sha256(layer.encode()).hexdigest()}" for layer in (A, B)}
    assert fingerprints.digests(store, record) == expected
    known = read_json(images.blob_path(store, A, "json"))
    assert known and (known["plain"], known["file"]["digest"]) == (A, expected[A])
    times = files[A].stat()
    files[A].write_bytes(B.encode())
    os.utime(files[A], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprints.digests(store, record) == expected, "it was read again"
    os.utime(files[A], ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert fingerprints.digests(store, record) == {A: expected[B], B: expected[B]}
    assert fingerprints.digests(store, {**record, "layers": [], "type": "cloudimg"}) == {}


def test_groups_lie_beside_the_uids_of_vms(store: Store) -> None:
    half = store.uid_start + store.uid_count // 2
    for blob in (A, B, "0" * 64, "f" * 64):
        assert half <= images.blob_gid(store, blob) < store.uid_start + store.uid_count
    boot = {"kernel_path": f"/x/boot/{B}/vmlinuz", "initrd_path": f"/x/boot/{B}/initrd.img"}
    record = put(store, boot=boot)
    assert images.blobs(record) == [(A, "erofs"), (B, "boot")]
    assert images.gids(store, record) == sorted({images.blob_gid(store, A), images.blob_gid(store, B)})


def test_users(store: Store) -> None:
    record = put(store)
    assert images.users(store, record["id"]) == []
    images.pin(store, record["id"], "vm1")
    images.pin(store, record["id"], "vm1")
    images.pin(store, record["id"], "vm2")
    assert images.users(store, record["id"]) == ["vm1", "vm2"]
    images.unpin(store, record["id"], "vm1")
    images.unpin(store, record["id"], "vm1")
    assert images.users(store, record["id"]) == ["vm2"]
    with pytest.raises(NotFoundError):
        images.pin(store, f"sha256:{B}", "vm1")
    with pytest.raises(InputError):
        images.pin(store, record["id"], "../../x")


def test_users_have_names(store: Store) -> None:
    os.makedirs(store.paths.vm_dir("vm1"))
    write_json(os.path.join(store.paths.vm_dir("vm1"), "vm.json"), document("vm-1-first", id="vm1"))
    assert images.describe_user(store, "vm1") == "vm web1"
    assert images.describe_user(store, "vm2") == "vm2"


def sources(image: str) -> Sources:
    return Sources(RootTar("/x", image, image), None, None)


PLANS: list[tuple[str, dict[str, Any], str | None, tuple[str, ...]]] = [
    ("nothing to do", {}, A, ()),
    ("without a source", {}, None, ()),
    ("another image", {}, B, ("import", "tag")),
    ("a new name for the same", {"name": "web2"}, A, ("tag",)),
    ("labels", {"labels": {"a": "b"}}, A, ("update",)),
    ("same labels", {"labels": {}}, None, ()),
    ("same owner", {"owner": "me"}, A, ()),
    ("a new name on another's image", {"name": "web2", "owner": "you"}, A, ("tag",)),
    ("another's image, nothing to do", {"owner": "you"}, A, ()),
    ("taken over", {"owner": "you", "force": True}, A, ("update",)),
    ("absent", {"state": "absent"}, None, ("remove",)),
    ("absent by digest", {"state": "absent", "name": f"sha256:{A}"}, None, ("remove",)),
    ("absent already", {"state": "absent", "name": "other"}, None, ()),
]


@pytest.mark.parametrize(("what", "options", "image", "steps"), PLANS, ids=[plan[0] for plan in PLANS])
def test_plans(store: Store, what: str, options: dict[str, Any], image: str | None, steps: tuple[str, ...]) -> None:
    put(store)
    wanted = Wanted(**{"name": "web", **options})
    plan = converging.make_plan(store, wanted, sources(image) if image else None)
    assert plan.steps == steps
    if steps in ((), ("remove",)):
        assert (plan.before == plan.after) is (not steps)


def test_one_name_of_two_is_only_taken_away(store: Store) -> None:
    put(store, names=("web", "web2"))
    assert converging.make_plan(store, Wanted("web2", state="absent"), None).steps == ("untag",)


def test_missing_files_are_imported_again(store: Store) -> None:
    put(store)
    os.unlink(images.blob_path(store, A))
    assert converging.make_plan(store, Wanted("web"), sources(A)).steps == ("import",)
    with pytest.raises(CocoonError, match="source: files of image 'web' are missing"):
        converging.make_plan(store, Wanted("web"), None)


@pytest.mark.parametrize(
    ("options", "image"),
    [({"labels": {"a": "b"}}, A), ({}, B), ({"state": "absent"}, None)],
)
def test_another_owners_image_is_left_alone(store: Store, options: dict[str, Any], image: str | None) -> None:
    put(store)
    with pytest.raises(CocoonError, match="owner: image 'web' belongs to 'me'"):
        converging.make_plan(store, Wanted("web", owner="you", **options), sources(image) if image else None)
    forced = Wanted("web", owner="you", force=True, **options)
    assert converging.make_plan(store, forced, sources(image) if image else None).steps


def test_an_image_that_was_never_there() -> None:
    with pytest.raises(NotFoundError, match="source: image 'web' is not in the store"):
        converging.make_plan(None, Wanted("web"), None)


def test_the_index_decides_about_names(store: Store) -> None:
    record = put(store, names=("web", "gone"))
    os.unlink(store.index("image").path("gone"))
    assert images.current_names(store, record) == ["web"]
    assert listing.public(store, {**record, "name": "gone"})["name"] == "web"


def test_looking_makes_nothing(tmp_path: pathlib.Path) -> None:
    assert listing.info(Paths(str(tmp_path / "none"))) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("keep", "unmatched"),
    [
        (["tiny"], []),
        (["tinny"], ["tinny"]),
        (["ti*", "base-*", f"sha256:{A}"], ["base-*"]),
        ([f"sha256:{'c' * 64}", "Tiny"], [f"sha256:{'c' * 64}", "Tiny"]),
        (["*"], []),
    ],
)
def test_what_is_to_be_kept_and_is_not_there(store: Store, keep: list[str], unmatched: list[str]) -> None:
    for image, name in ((A, "tiny"), (B, "other")):
        put(store, image, (name,), updated_at="2026-01-01T00:00:00.000000Z", size=0)
    outcome = prune.prune(store.paths, prune.Rules(tuple(keep)), True)
    assert outcome.warnings == [f"keep: no image is called '{name}'" for name in unmatched]
