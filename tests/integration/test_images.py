# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images for real: every kind of source imported, EROFS blobs mounted and compared, runs killed, disks full.

What a source is made of is made here. Both ways to an EROFS blob are compared, with an mkfs.erofs of 1.8 or newer that
`make setup` fetches where the distribution's is older.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils import _disks
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import (
    converging,
    disk_importer,
    erofs,
    listing,
    prune,
    source,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.findings import MARKER
from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import Wanted
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store, locked
from ansible_collections.cocoon.microvm.tests.integration.support.layers import (
    DIR,
    LNK,
    REG,
    SYM,
    layer,
    layer_blobs,
    make_layout,
    mounted,
    overlay_portrait,
    portrait,
    umoci_portrait,
    without_links,
)
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns
from ansible_collections.cocoon.microvm.tests.integration.support.running import Playbooks
from ansible_collections.cocoon.microvm.tests.integration.support.stores import files_of, untouched
from ansible_collections.cocoon.microvm.tests.unit.documents import document

KERNEL, INITRD = b"kernel" * 3000, b"initrd" * 5000
CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)  # cap_net_bind_service=ep
MakeStore = Callable[[], dict[str, str]]


@pytest.fixture(name="paths")
def fixture_paths(make_store: MakeStore) -> Paths:
    return Paths.from_params(make_store())


@pytest.fixture(name="work")
def fixture_work(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def converge(paths: Paths, name: str = "web", check: bool = False, **options: Any) -> converging.Outcome:
    wanted = Wanted(name, **{key: str(value) if key == "source" else value for key, value in options.items()})
    return converging.converge(paths, wanted, check)


def the_store(paths: Paths) -> Store:
    store = Store.load(paths)
    assert store
    return store


def whole(paths: Paths) -> list[str]:
    """Names of all images, each proven complete."""
    store = Store.load(paths)
    names = []
    for name, _image_id in store.index("image").entries() if store else ():
        assert store
        record = images.resolve(store, name)
        if record:
            assert images.missing_files(store, record) == []
            names.append(name)
    return names


def make_tree(root: Path) -> None:
    """A root file system with one of everything."""
    for folder in ("boot", "dev", "etc", "usr/bin", "usr/lib/cocoon-microvm", "var/empty", "tmp"):
        (root / folder).mkdir(parents=True)
    (root / "boot/vmlinuz-6.1").write_bytes(KERNEL)
    (root / "boot/initrd.img-6.1").write_bytes(INITRD)
    (root / "boot/vmlinuz-6.1.old").write_bytes(b"old")
    (root / "vmlinuz").symlink_to("boot/vmlinuz-6.1")
    (root / "initrd.img").symlink_to("/boot/initrd.img-6.1")
    (root / MARKER).write_text(json.dumps({"version": 1, "features": ["user", "password", "ssh_keys"]}))
    (root / "etc/shadow").write_text("root:*:1::::::")
    (root / "etc/shadow").chmod(0o640)
    os.chown(root / "etc/shadow", 0, 42)
    (root / "usr/bin/tool").write_bytes(os.urandom(100) + b"tool" * 50_000)
    (root / "usr/bin/tool").chmod(0o4755)
    os.link(root / "usr/bin/tool", root / "usr/bin/same")
    (root / "usr/bin/listen").write_bytes(b"\x7fELF")
    (root / "usr/bin/listen").chmod(0o755)
    os.setxattr(root / "usr/bin/listen", "security.capability", CAPABILITY)
    os.setxattr(root / "usr/bin/listen", "user.note", b"\x00\xff binary")
    os.setxattr(root / "var/empty", "trusted.note", b"folder")
    os.chown(root / "usr/bin/listen", 100_000, 4_000_000_000)
    os.setxattr(root / "usr/bin/listen", "security.capability", CAPABILITY)  # chown takes it away
    (root / "etc/empty").touch()
    (root / "etc/nom-\u00e9").write_text("utf-8")
    (Path(os.fsdecode(os.fsencode(root / "etc") + b"/latin-\xe9"))).write_text("latin-1")
    (root / "etc" / ("n" * 254)).write_text("long")
    (root / "etc/dangling").symlink_to("/nowhere/at/all")
    with (root / "var/sparse").open("wb") as stream:
        stream.truncate(3 << 20)
        stream.seek(1 << 20)
        stream.write(b"island")
    os.mknod(root / "dev/null", 0o020666, os.makedev(1, 3))
    os.mknod(root / "dev/sda", 0o060660, os.makedev(8, 0))
    os.mkfifo(root / "dev/pipe")
    os.lchown(root / "etc/dangling", 7, 8)
    (root / "tmp").chmod(0o1777)
    root.chmod(0o755)


def pack(root: Path, target: Path, *options: str) -> Path:
    command = ["tar", "-C", root, "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sort=name", *options]
    subprocess.run([*command, "-cf", target, "."], check=True)
    return target


@pytest.fixture(name="rootfs")
def fixture_rootfs(work: Path) -> Path:
    root = work / "rootfs"
    root.mkdir()
    make_tree(root)
    return root


@pytest.fixture(name="small")
def fixture_small(work: Path) -> Path:
    """A tar that boots, in the loosest sense."""
    return small_tar(work / "small.tar", b"small")


def small_tar(path: Path, text: bytes) -> Path:
    with tarfile.open(path, "w") as target:
        for name, data in (("boot/vmlinuz", KERNEL), ("boot/initrd.img", INITRD), ("etc/text", text)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return path


COMPRESSIONS = {"plain": None, "gzip": ["gzip", "-1"], "zstd": ["zstd", "-q", "-1"], "xz": ["xz", "-0"]}


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_tar_becomes_an_equal_file_system(paths: Paths, work: Path, rootfs: Path, compression: str) -> None:
    packed = pack(rootfs, work / "image.jpg")  # names say nothing
    command = COMPRESSIONS[compression]
    if command:
        packed.write_bytes(subprocess.run([*command, "-c", packed], check=True, capture_output=True).stdout)
    outcome = converge(paths, source=packed)
    image = outcome.image
    assert outcome.changed and image
    assert image["id"] == "sha256:" + hashlib.sha256(packed.read_bytes()).hexdigest()
    assert image["type"] == "oci" and image["features"] == ["user", "password", "ssh_keys"]
    assert Path(image["boot"]["kernel_path"]).read_bytes() == KERNEL
    assert Path(image["boot"]["initrd_path"]).read_bytes() == INITRD
    with mounted(*layer_blobs(paths, image), work=work) as place:
        assert portrait(place) == portrait(rootfs)


def test_files_are_readable_by_their_group_alone(paths: Paths, small: Path) -> None:
    image = converge(paths, source=small).image
    assert image
    store = the_store(paths)
    boot = image["boot"]
    digest = os.path.basename(os.path.dirname(boot["kernel_path"]))
    for path, gid in (
        (layer_blobs(paths, image)[0], images.blob_gid(store, image["layers"][0])),
        (boot["kernel_path"], images.blob_gid(store, digest)),
        (boot["initrd_path"], images.blob_gid(store, digest)),
    ):
        status = os.stat(path)
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, gid, 0o440)
        read = ["setpriv", f"--reuid={store.uid_start}", f"--regid={store.uid_start}", "cat", path]
        assert subprocess.run([*read[:3], f"--groups={gid}", *read[3:]], capture_output=True, check=False).stdout
        assert subprocess.run([*read[:3], "--clear-groups", *read[3:]], capture_output=True, check=False).returncode
    for place, _folders, _files in os.walk(paths.images):
        assert stat.S_IMODE(os.stat(place).st_mode) in (0o711, 0o700)


def test_conversion_is_reproducible(paths: Paths, make_store: MakeStore, work: Path, rootfs: Path) -> None:
    packed = pack(rootfs, work / "a.tar")
    first = converge(paths, source=packed).image
    other = Paths.from_params(make_store())
    time.sleep(1.1)  # a clock that got in would show
    second = converge(other, source=packed).image
    assert first and second
    blobs = [Path(*layer_blobs(where, image)).read_bytes() for where, image in ((paths, first), (other, second))]
    assert blobs[0] == blobs[1]


def oci_layout(work: Path, rootfs: Path) -> Path:
    """Three layers made by umoci: a tree; changes, removals and a folder made anew; one more file."""
    layout, bundle = work / "layout", work / "bundle"

    def umoci(*words: str | Path) -> None:
        subprocess.run(["umoci", *words], check=True, capture_output=True)

    umoci("init", "--layout", layout)
    umoci("new", "--image", f"{layout}:v1")
    umoci("unpack", "--image", f"{layout}:v1", bundle)
    (bundle / "rootfs").rmdir()
    subprocess.run(["cp", "-a", rootfs, bundle / "rootfs"], check=True)
    umoci("repack", "--image", f"{layout}:v1", bundle)
    shutil.rmtree(bundle)
    umoci("unpack", "--image", f"{layout}:v1", bundle)
    root = bundle / "rootfs"
    (root / "etc/shadow").unlink()
    shutil.rmtree(root / "var/empty")
    (root / "etc/new").write_text("new")
    os.setxattr(root / "etc/new", "user.note", b"layer")
    (root / "usr/bin/tool").chmod(0o755)
    umoci("repack", "--image", f"{layout}:v1", bundle)
    shutil.rmtree(bundle)
    return layout


@pytest.mark.parametrize(("interval", "least"), [(0.5, 1), (0, 0)])
def test_an_import_says_how_far_it_is(
    make_netns: Callable[[], Netns], paths: Paths, work: Path, interval: float, least: int
) -> None:
    """As often as it is asked to."""
    tree = work / "tree"
    tree.mkdir()
    # An EROFS file is made slowly of noise: enough for a few seconds, and the size of what is watched.
    (tree / "noise").write_bytes(os.urandom(5 << 20) + bytes(35 << 20))
    where = {"root_dir": paths.root, "run_dir": paths.run, "log_dir": paths.log}
    task = {"cocoon.microvm.cocoon_image": {"name": "noise", "source": str(pack(tree, work / "noise.tar")), **where}}
    play = {"hosts": "all", "gather_facts": False, "tasks": [{"name": "Import", **task}]}
    run = Playbooks(make_netns(), work, {})([play], variables={"cocoon_progress_interval": interval})
    # Which of the two there is time for depends on how an EROFS file is made here.
    line = r"^hv1: (?:reading|converting) .*noise.*: [\d.]+ MiB of 40.\d MiB \(\d+ %\).*$"
    said = re.findall(line, run.output, re.MULTILINE)
    print(*said, sep="\n")
    assert run.result("Import").changed and len(said) >= least and bool(said) == bool(least), run.output


def test_an_oci_layout_as_umoci_sees_it(paths: Paths, work: Path, rootfs: Path) -> None:
    layout = oci_layout(work, rootfs)
    image = converge(paths, source=layout).image
    assert image and len(image["layers"]) == 2
    assert image["platform"] == "linux/amd64" or os.uname().machine != "x86_64"
    seen = without_links(overlay_portrait(paths, image, work))
    assert seen == umoci_portrait(layout, work)
    assert "etc/shadow" not in seen and "var/empty" not in seen and "etc/new" in seen
    assert not converge(paths, source=layout).changed
    # The same as an archive, plain and compressed, is the same image.
    archive = work / "archive"
    subprocess.run(["tar", "-C", layout, "-cf", archive, "."], check=True)
    again = converge(paths, "archived", source=archive)
    assert again.actions == ["tag"] and again.image and again.image["id"] == image["id"]
    assert again.image["names"] == ["archived", "web"]


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
def test_an_oci_archive(paths: Paths, work: Path, rootfs: Path, compression: str) -> None:
    """Its content says what it is: the name promises something else."""
    layout = oci_layout(work, rootfs)
    archive = work / "archive.tar.xz"
    subprocess.run(["tar", "-C", layout, "-cf", archive, "--sort=name", "."], check=True)
    if compression != "plain":
        archive.write_bytes(subprocess.run([compression, "-c", archive], check=True, capture_output=True).stdout)
    predicted = converge(paths, source=archive, check=True)
    outcome = converge(paths, source=archive)
    assert outcome.image and outcome.actions == predicted.actions and outcome.diff == predicted.diff
    assert outcome.image["source"]["kind"] == "oci-archive"
    assert without_links(overlay_portrait(paths, outcome.image, work)) == umoci_portrait(layout, work)
    assert outcome.image["id"] == converge(paths, "layout", source=layout).image["id"]  # type: ignore[index]


BOTTOM = layer(
    ("boot/", DIR, b""),
    ("boot/vmlinuz", REG, KERNEL),
    ("boot/initrd.img", REG, INITRD),
    ("gone", REG, b"1"),
    ("folder/", DIR, b""),
    ("folder/below", REG, b"1"),
    ("folder/deep/", DIR, b""),
    ("folder/deep/below", REG, b"1"),
    ("opaque/", DIR, b""),
    ("opaque/below", REG, b"1"),
    ("again/", DIR, b""),
    ("again/below", REG, b"1"),
    ("unsaid/below", REG, b"1"),
    ("late/below", REG, b"1"),
    ("stays", REG, b"1"),
    ("implied/below", REG, b"1"),
    ("replaced/", DIR, b""),
    ("replaced/below", REG, b"1"),
    ("becomes-folder", REG, b"1"),
)
TOP = layer(
    ("/.wh.gone", REG, b""),
    (".wh.never-was", REG, b""),
    ("folder/.wh.deep", REG, b""),
    ("opaque/", DIR, b""),
    ("opaque/.wh..wh..opq", REG, b""),
    ("/opaque/above", REG, b"2"),
    (".wh.again", REG, b""),
    ("/again/", DIR, b""),
    ("again/above", REG, b"2"),
    (".wh.unsaid", REG, b""),
    ("unsaid/above", REG, b"2"),
    ("late/", DIR, b""),
    ("late/above", REG, b"2"),
    (".wh.late", REG, b""),
    ("stays", REG, b"2"),
    (".wh.stays", REG, b""),
    ("implied/.wh..wh..opq", REG, b""),
    ("implied/above", REG, b"2"),
    ("replaced", REG, b"now a file"),
    ("becomes-folder/", DIR, b""),
    ("becomes-folder/above", REG, b"2"),
    (".wh..wh.plnk/", DIR, b""),
)
MERGED = {
    ".",
    "boot",
    "boot/vmlinuz",
    "boot/initrd.img",
    "folder",
    "folder/below",
    "opaque",
    "opaque/above",
    "again",
    "again/above",
    "unsaid",
    "unsaid/above",
    "late",
    "late/above",
    "stays",
    "implied",
    "implied/above",
    "replaced",
    "becomes-folder",
    "becomes-folder/above",
}


def test_whiteouts_and_opaque_folders(paths: Paths, work: Path) -> None:
    layout = make_layout(work / "layout", BOTTOM, TOP)
    image = converge(paths, source=layout).image
    assert image
    merged = overlay_portrait(paths, image, work)
    assert set(merged) == MERGED and without_links(merged) == umoci_portrait(layout, work)
    with mounted(layer_blobs(paths, image)[1], work) as place:
        gone = os.lstat(place / "gone")
        assert stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0
        for folder in ("opaque", "again", "implied", "unsaid", "late"):
            assert os.getxattr(place / folder, "trusted.overlay.opaque") == b"y"
        assert not any(name.startswith(".wh.") for name in os.listdir(place))


@pytest.mark.parametrize("what", ["rootfs", "whiteouts"])
def test_both_ways_to_a_blob_are_equal(
    make_store: MakeStore, work: Path, rootfs: Path, newer: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    origin = pack(rootfs, work / "a.tar") if what == "rootfs" else make_layout(work / "layout", BOTTOM, TOP)
    seen = []
    monkeypatch.setattr(erofs, "MKFS", newer)
    for streams in (False, True):
        paths = Paths.from_params(make_store())
        monkeypatch.setattr(erofs, "takes_tar", lambda _mkfs, answer=streams: answer)
        image = converge(paths, source=origin).image
        assert image
        found = [images.load_record(the_store(paths), image["id"])]
        for blob in layer_blobs(paths, image):
            with mounted(blob, work) as place:
                found.append(portrait(place))
        found[0] = {key: found[0][key] for key in ("layers", "features", "id")}  # type: ignore[index]
        seen.append(found)
    assert seen[0] == seen[1]


def test_layers_are_kept_once(paths: Paths, work: Path, modules: Callable[..., Any]) -> None:
    first = converge(paths, "first", source=make_layout(work / "a", BOTTOM, TOP)).image
    other = layer(("extra", REG, b"more"))
    second = converge(paths, "second", source=make_layout(work / "b", BOTTOM, other)).image
    assert first and second and first["layers"][0] == second["layers"][0]
    assert first["boot"] == second["boot"]
    blob = layer_blobs(paths, first)[0]
    inode = os.stat(blob).st_ino
    run = modules(None, {"root_dir": paths.root, "run_dir": paths.run, "log_dir": paths.log})
    one, two = run("cocoon_image_info")["images"]
    sizes = [{part["digest"]: part["size"] for part in shown["blobs"]} for shown in (one, two)]
    common = set(sizes[0]) & set(sizes[1])
    assert one["shared_size"] == two["shared_size"] == sum(sizes[0][digest] for digest in common) > 0
    assert f"sha256:{first['layers'][0]}" in common and f"sha256:{first['layers'][1]}" not in common
    for shown, parts in ((one, sizes[0]), (two, sizes[1])):
        assert shown["shared_size"] < shown["size"] == sum(parts.values())
    converge(paths, "first", state="absent")
    assert os.stat(blob).st_ino == inode and whole(paths) == ["second"]
    assert not os.path.exists(layer_blobs(paths, first)[1])
    assert listing.info(paths)[0]["shared_size"] == 0
    converge(paths, "second", state="absent")
    assert files_of(paths) == []


def test_hard_links_of_a_layer_as_umoci_sees_them(paths: Paths, work: Path) -> None:
    """Between layers they are copies, which the other comparisons leave out."""
    entries = [("a", REG, b"x"), ("b", LNK, "a"), ("c/", DIR, b""), ("c/d", LNK, "b")]
    absolute = [("/", DIR, b""), ("/e", REG, b"y"), ("//c//f", LNK, "/e"), ("g", LNK, "//c/f")]
    layout = make_layout(work / "one", layer(*entries, *absolute))
    image = converge(paths, source=layout).image
    assert image
    seen = overlay_portrait(paths, image, work)
    assert seen == umoci_portrait(layout, work, links=True) and seen["c/d"][4:6] == seen["a"][4:6]
    assert seen["g"][4:6] == seen["c/f"][4:6] == seen["e"][4:6] != seen["a"][4:6]


def test_boot_files_come_from_any_layer(paths: Paths, work: Path) -> None:
    """The kernel below, the initrd above; both layers in the store already, without the boot files kept."""
    below = layer(("boot/vmlinuz-6.1", REG, KERNEL), ("boot/initrd.img-6.1", REG, b"old initrd"))
    above = layer(("boot/initrd.img-6.1", REG, INITRD))
    converge(paths, "below", source=make_layout(work / "a", below))
    image = converge(paths, "both", source=make_layout(work / "b", below, above)).image
    assert image
    assert Path(image["boot"]["kernel_path"]).read_bytes() == KERNEL
    assert Path(image["boot"]["initrd_path"]).read_bytes() == INITRD


def test_a_tar_without_a_kernel(paths: Paths, work: Path) -> None:
    bare = work / "bare.tar"
    bare.write_bytes(layer(("etc/", DIR, b""), ("etc/text", REG, b"x")))
    assert converge(paths, source=bare, check=True).changed and files_of(paths) == []
    plain = converge(paths, source=bare).image
    assert plain and plain["boot"] is None  # it boots with the host's default kernel
    kernel, initrd = work / "k", work / "i"
    kernel.write_bytes(KERNEL)
    initrd.write_bytes(INITRD)
    options = {"source": bare, "kernel": str(kernel), "initrd": str(initrd)}
    image = converge(paths, **options).image
    assert image and Path(image["boot"]["kernel_path"]).read_bytes() == KERNEL
    assert not converge(paths, **options).changed
    initrd.write_bytes(INITRD + b"newer")
    newer = converge(paths, **options)
    assert newer.actions == ["import", "tag"] and newer.image
    assert newer.image["layers"] == image["layers"]
    assert Path(newer.image["boot"]["initrd_path"]).read_bytes() == INITRD + b"newer"
    assert len(listing.info(paths)) == 1


def make_disk(work: Path) -> Path:
    """A raw disk with a boot sector, mostly holes."""
    disk = work / "disk.raw"
    with disk.open("wb") as stream:
        stream.truncate(64 << 20)
        stream.seek(510)
        stream.write(b"\x55\xaa")
        stream.seek(5 << 20)
        stream.write(b"island" * 1000)
    return disk


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_disks(paths: Paths, work: Path, form: str) -> None:
    disk = make_disk(work)
    if form == "qcow2":
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", disk, work / "disk.iso"], check=True)
        disk = work / "disk.iso"
    predicted = converge(paths, source=disk, check=True)
    outcome = converge(paths, source=disk)
    image = outcome.image
    assert image and (predicted.actions, predicted.diff) == (outcome.actions, outcome.diff)
    assert image["type"] == "cloudimg" and image["boot"] is None and image["layers"] == []
    about = {"virtual_size": 64 << 20, "firmware": image["disk"]["firmware"]}
    assert image["disk"] == {"hex": image["id"][7:], "format": form, **about}
    blob = Path(images.blob_path(the_store(paths), image["disk"]["hex"], form))
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == image["disk"]["hex"]
    assert blob.stat().st_blocks * 512 < 2 << 20
    assert not converge(paths, source=disk).changed


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_an_overlay_shows_the_image(paths: Paths, work: Path, form: str) -> None:
    disk = make_disk(work)
    origin = disk
    if form == "qcow2":
        origin = work / "disk.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", disk, origin], check=True)
    image = converge(paths, source=origin).image
    assert image
    store = the_store(paths)
    uid = store.uid_start + 3
    folder = Path(paths.vm_dir("vm1"))
    folder.mkdir(mode=0o711)
    overlay = folder / "overlay.qcow2"
    with pytest.raises(CocoonError, match="storage: .* less than the image's disk. Give at least 64M"):
        _disks.create_overlay(store, str(overlay), image, 1 << 20, uid)
    assert _disks.create_overlay(store, str(overlay), image, None, uid) == 64 << 20
    assert _disks.create_overlay(store, str(overlay), image, 128 << 20, uid) == 128 << 20
    gid = images.blob_gid(store, image["disk"]["hex"])
    _disks.grow(str(overlay), 256 << 20, "none", uid, "qcow2", gid)
    _disks.grow(str(overlay), 256 << 20, "none", uid, "qcow2", gid)
    status = overlay.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (uid, uid, 0o600)
    subprocess.run(["qemu-img", "convert", "-O", "raw", overlay, work / "flat"], check=True)
    flat = (work / "flat").read_bytes()
    assert len(flat) == 256 << 20 and flat[: 64 << 20] == disk.read_bytes() and flat[64 << 20 :].count(0) == 192 << 20
    converge(paths, state="absent")
    assert os.listdir(images.directory(paths, "templates")) == []


def test_a_disk_that_would_show_files_of_the_host(paths: Paths, work: Path, small: Path) -> None:
    converge(paths, "good", source=small)
    base, leaky, external = make_disk(work), work / "leaky", work / "external"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, leaky], check=True)
    option = f"data_file={work}/data,data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", option, external, "1M"], check=True)
    for disk, message in ((leaky, "has a backing file"), (external, "keeps its data in another file")):
        for check in (True, False):
            with untouched(paths), pytest.raises(CocoonError, match=message):
                converge(paths, source=disk, check=check)


def test_the_second_opinion_is_unprivileged(paths: Paths, work: Path, small: Path) -> None:
    """A qcow2 whose header looks right, and that qemu-img cannot read."""
    converge(paths, "good", source=small)
    disk = work / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1G"], check=True)
    data = bytearray(disk.read_bytes())
    data[40:48] = (1).to_bytes(8, "big")  # where the first table is, and tables are aligned
    disk.write_bytes(data)
    with untouched(paths), pytest.raises(CocoonError, match="source: qemu-img cannot read"):
        converge(paths, source=disk)


def test_check_mode_is_exact_and_writes_nothing(paths: Paths, work: Path, small: Path) -> None:
    predicted = converge(paths, source=small, check=True, labels={"a": "b"}, owner="me")
    assert not os.path.exists(paths.root) and predicted.image is None
    outcome = converge(paths, source=small, labels={"a": "b"}, owner="me")
    assert (predicted.changed, predicted.actions, predicted.diff) == (True, outcome.actions, outcome.diff)
    before = (files_of(paths), os.listdir(images.directory(paths, "sources")))
    other = small_tar(work / "other.tar", b"other")
    for options in ({"source": other}, {"labels": {}}, {"state": "absent"}, {"source": small}):
        predicted = converge(paths, check=True, **options)
        assert (files_of(paths), os.listdir(images.directory(paths, "sources"))) == before
        if predicted.changed and "state" not in options:
            done = converge(paths, **options)
            assert (done.actions, done.diff) == (predicted.actions, predicted.diff)
            before = (files_of(paths), os.listdir(images.directory(paths, "sources")))


def test_an_unchanged_source_is_not_read(paths: Paths, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(0.05)
    converge(paths, source=small)
    monkeypatch.setattr(source, "_inspect", None)
    assert not converge(paths, source=small).changed
    assert not converge(paths, source=small, check=True).changed


def test_a_name_moves_to_a_new_image(paths: Paths, work: Path, small: Path) -> None:
    old = converge(paths, source=small).image
    assert old
    new = converge(paths, source=small_tar(work / "b.tar", b"b"))
    assert new.actions == ["import", "tag"] and new.image and new.image["names"] == ["web"]
    assert new.diff["before"]["id"] == old["id"] and new.diff["after"]["id"] == new.image["id"]
    assert [image["id"] for image in listing.info(paths)] == [new.image["id"]]
    # With a user it stays until a run after the user has gone.
    images.pin(the_store(paths), new.image["id"], "vm1")
    third = converge(paths, source=small).image
    assert third and {image["id"] for image in listing.info(paths)} == {third["id"], new.image["id"]}
    converge(paths, "again", source=small)
    assert len(listing.info(paths)) == 2
    images.unpin(the_store(paths), new.image["id"], "vm1")
    converge(paths, "more", source=small)
    assert [image["id"] for image in listing.info(paths)] == [third["id"]]
    assert whole(paths) == ["again", "more", "web"]


def test_removal_is_refused_while_used(paths: Paths, small: Path) -> None:
    image = converge(paths, source=small).image
    assert image
    store = the_store(paths)
    folder = Path(paths.vm_dir("vm1"))
    folder.mkdir()
    vm = document("vm-6-roles", id="vm1")
    (folder / "vm.json").write_text(json.dumps({**vm, "config": {**vm["config"], "name": "web1"}}))
    images.pin(store, image["id"], "vm1")
    images.pin(store, image["id"], "snapshot2")
    assert [user["description"] for user in listing.info(paths, "web")[0]["users"]] == ["snapshot2", "vm web1"]
    for name in ("web", image["id"]):
        for check in (True, False):
            for force in (True, False):
                with pytest.raises(CocoonError, match="name: image .* is used by snapshot2, vm web1"):
                    converge(paths, name, state="absent", check=check, force=force)
    assert whole(paths) == ["web"]
    converge(paths, "web2", source=small)
    assert converge(paths, "web2", state="absent").actions == ["untag"]  # a further name may go
    for user in ("vm1", "snapshot2"):
        images.unpin(store, image["id"], user)
    assert converge(paths, image["id"], state="absent").actions == ["remove"]
    assert not converge(paths, "web", state="absent").changed
    assert files_of(paths) == []


def test_lost_files_are_made_again(paths: Paths, small: Path) -> None:
    image = converge(paths, source=small).image
    assert image
    os.unlink(image["boot"]["initrd_path"])
    assert converge(paths, source=small, check=True).actions == ["import"]
    assert converge(paths, source=small).actions == ["import"]
    assert whole(paths) == ["web"] and not converge(paths, source=small).changed


HOSTILE = {
    "through a link": (layer(("a", SYM, "/etc"), ("a/passwd", REG, b"x")), "goes through the symbolic link 'a' of"),
    "through a file": (layer(("a", REG, b""), ("a/b", REG, b"x")), "which is no directory"),
    "a folder replaced": (layer(("a/", DIR, b""), ("a", SYM, "/etc")), "replaces a directory"),
    "hard link to nothing": (layer(("a", LNK, "b")), "hard link to 'b', which is not in the same layer"),
    "hard link through a link": (layer(("l", SYM, "/etc"), ("a", LNK, "l/passwd")), "through the symbolic link"),
    "above": (layer(("../../a", REG, b"x")), "leaves the archive"),
    "whiteout of nothing": (layer(("a/.wh.", REG, b"")), "whiteout of nothing"),
    "whiteout above": (layer(("a/.wh...", REG, b"")), "whiteout of nothing"),
    "damaged marker": (layer((MARKER, REG, b"{")), "is damaged"),
}


@pytest.mark.parametrize("way", ["tree", "tar"])
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_tars_leave_nothing(
    paths: Paths,
    work: Path,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    what: str,
    way: str,
) -> None:
    if way == "tar":
        monkeypatch.setattr(erofs, "MKFS", request.getfixturevalue("newer"))
    else:
        monkeypatch.setattr(erofs, "takes_tar", lambda _mkfs: False)
    data, message = HOSTILE[what]
    path = work / "hostile.tar"
    path.write_bytes(data)
    converge(paths, "good", source=small)
    with untouched(paths), pytest.raises(CocoonError, match=re.escape(message)) as caught:
        converge(paths, source=path)
    assert str(caught.value).startswith(f"source: {path}: ")
    assert (caught.value.remedy or "").startswith("Nothing of it was kept. ")
    assert whole(paths) == ["good"]


def test_layers_with_wrong_digests_leave_nothing(paths: Paths, work: Path, small: Path) -> None:
    good = converge(paths, "good", source=small).image
    layout = make_layout(work / "layout", BOTTOM, TOP)
    digest = hashlib.sha256(TOP).hexdigest()
    changed = bytearray(TOP)
    changed[600] ^= 1
    (layout / "blobs/sha256" / digest).write_bytes(changed)
    message = f"^source: layer sha256:{digest} of {layout}: .*(does not have that digest|is damaged).*Nothing of it was"
    for check in (True, False):
        with untouched(paths), pytest.raises(CocoonError, match=message):
            converge(paths, source=layout, check=check)
    assert good and whole(paths) == ["good"]


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
def test_configs_that_lie_about_layers(paths: Paths, work: Path, small: Path, compression: str) -> None:
    converge(paths, "good", source=small)
    command, top = COMPRESSIONS[compression], TOP
    if command:
        top = subprocess.run([*command, "-c"], input=TOP, check=True, capture_output=True).stdout
    truth = make_layout(work / "truth", BOTTOM, top, plain=(BOTTOM, TOP))
    lie = make_layout(work / "lie", BOTTOM, top, plain=(BOTTOM, BOTTOM))
    digest, promised = (hashlib.sha256(data).hexdigest() for data in (top, BOTTOM))
    message = f"^source: layer sha256:{digest} of {lie}: uncompressed, .*sha256:{promised}. Nothing of it was kept"
    for check in (True, False):
        with untouched(paths), pytest.raises(CocoonError, match=message):
            converge(paths, source=lie, check=check)
    image = converge(paths, "truth", source=truth).image
    assert image and set(overlay_portrait(paths, image, work)) == MERGED
    with untouched(paths), pytest.raises(CocoonError, match=message):  # the store has the layer now
        converge(paths, source=lie)


def test_a_layout_with_several_images(paths: Paths, work: Path) -> None:
    layout = make_layout(work / "layout", BOTTOM)
    make_layout(layout, BOTTOM, TOP, tag="v2")
    with pytest.raises(CocoonError, match=f"tag: {layout} has several images. Choose one of: v1, v2"):
        converge(paths, source=layout)
    one = converge(paths, "one", source=layout, tag="v1").image
    two = converge(paths, "two", source=layout, tag="v2").image
    assert one and two and (len(one["layers"]), len(two["layers"])) == (1, 2)


def test_a_full_disk(make_store: MakeStore, work: Path) -> None:
    folders = make_store()
    root = Path(folders["root_dir"])
    root.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=711", "tmpfs", root], check=True)
    try:
        paths = Paths.from_params(folders)
        good = small_tar(work / "good.tar", b"good")
        converge(paths, "good", source=good)
        big = work / "big.tar"
        big.write_bytes(
            layer(("boot/vmlinuz", REG, KERNEL), ("boot/initrd.img", REG, INITRD), ("big", REG, os.urandom(4 << 20)))
        )
        disk = work / "disk.raw"
        disk.write_bytes(bytes(510) + b"\x55\xaa" + os.urandom((4 << 20) - 512))
        layout = make_layout(work / "layout", big.read_bytes())
        for origin in (big, disk, layout):
            with untouched(paths), pytest.raises(CocoonError, match="root_dir: no space left"):
                converge(paths, source=origin)
            assert whole(paths) == ["good"]
        assert converge(paths, "good", state="absent").changed
        assert files_of(paths) == []
    finally:
        subprocess.run(["umount", root], check=True)


MUTATIONS = ("mkdir", "rename", "unlink", "rmdir", "link", "open", "fchown", "fsync", "mknod", "symlink")


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Run *work* in a process that kills itself before its *number*-th change of a file; whether it got there."""
    child = os.fork()
    if child == 0:
        count = 0

        def counting(real: Callable[..., Any], name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                flags = arguments[1] if name == "open" and len(arguments) > 1 else os.O_CREAT
                if flags & os.O_CREAT:
                    count += 1
                    if count == number:
                        os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        for name in MUTATIONS:
            setattr(os, name, counting(getattr(os, name), name))
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _pid, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def every_step(work: Callable[[], object], after: Callable[[int], None]) -> int:
    number = 1
    while killed_at(number, work):
        after(number)
        number += 1
    return number


def test_killed_at_every_step_of_an_import(make_store: MakeStore, small: Path) -> None:
    paths = Paths.from_params(make_store())
    Store.open(paths)

    def check(number: int) -> None:
        visible = whole(paths)
        assert visible in ([], ["web"])
        if number % 2:
            outcome = converge(paths, source=small)
            assert outcome.image and whole(paths) == ["web"], number
            assert not converge(paths, source=small).changed
            if visible == [] and number > 2:
                assert outcome.changed
            converge(paths, state="absent")
        else:
            # The next run may be about something else, and cleans up all the same.
            converge(paths, "other", source=small)
            converge(paths, "other", state="absent")
            converge(paths, "web", state="absent")
        assert files_of(paths) == [], number
        assert os.listdir(images.directory(paths, "staging")) == []

    steps = every_step(lambda: converge(paths, source=small), check)
    assert steps > 30


def test_pruned_after_every_step_of_an_import(make_store: MakeStore, small: Path) -> None:
    """What a killed import has kept goes with a prune as well, which says so in check mode."""
    paths = Paths.from_params(make_store())
    Store.open(paths)
    kept = 0

    def check(number: int) -> None:
        nonlocal kept
        before = files_of(paths)
        predicted = prune.prune(paths, prune.Rules(), check_mode=True)
        assert files_of(paths) == before
        assert prune.prune(paths, prune.Rules(), check_mode=False) == predicted
        assert files_of(paths) == [] and not list(Path(images.directory(paths, "staging")).glob("*")), number
        assert not prune.prune(paths, prune.Rules(), check_mode=True).changed
        kept = max(kept, predicted.reclaimed if not predicted.images else 0)

    every_step(lambda: converge(paths, source=small), check)
    assert kept > 1000


def test_killed_at_every_step_of_a_removal(make_store: MakeStore, small: Path, work: Path) -> None:
    paths = Paths.from_params(make_store())
    other = small_tar(work / "other.tar", b"other")  # shares the boot files
    converge(paths, "keep", source=other)
    kept = files_of(paths)
    converge(paths, source=small)

    def check(number: int) -> None:
        assert whole(paths) in (["keep"], ["keep", "web"])
        converge(paths, state="absent")
        assert files_of(paths) == kept, number
        converge(paths, source=small)

    assert every_step(lambda: converge(paths, state="absent"), check) > 5
    assert files_of(paths) == kept and whole(paths) == ["keep"]


def test_killed_at_every_step_of_a_move(make_store: MakeStore, small: Path, work: Path) -> None:
    paths = Paths.from_params(make_store())
    other = small_tar(work / "other.tar", b"other")
    converge(paths, source=small)
    converge(paths, "keep", source=small)  # the way back is short
    before = files_of(paths)

    def check(number: int) -> None:
        assert whole(paths) == ["keep", "web"]
        assert converge(paths, source=other).image
        assert len(listing.info(paths)) == 2
        converge(paths, source=small)
        assert files_of(paths) == before, number

    assert every_step(lambda: converge(paths, source=other), check) > 30


def test_killed_at_every_step_of_a_move_that_removes(make_store: MakeStore, small: Path, work: Path) -> None:
    """The new image is there under another name; the old one goes with the move."""
    paths = Paths.from_params(make_store())
    other = small_tar(work / "other.tar", b"other")
    converge(paths, "other", source=other)
    alone = files_of(paths)
    converge(paths, source=small)

    def check(number: int) -> None:
        assert whole(paths) == ["other", "web"]
        converge(paths, source=other)
        assert files_of(paths) == alone, number
        converge(paths, source=small)

    assert every_step(lambda: converge(paths, source=other), check) > 10
    assert files_of(paths) == alone


def test_killed_while_mkfs_runs(paths: Paths, work: Path, modules: Callable[..., Any], store_dirs: Any) -> None:
    """The module's own process, killed in the middle."""
    big = work / "big.tar"
    data = b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(120_000))
    big.write_bytes(layer(("boot/vmlinuz", REG, KERNEL), ("boot/initrd.img", REG, INITRD), ("big", REG, data)))
    run = modules(None, {"root_dir": paths.root, "run_dir": paths.run, "log_dir": paths.log})
    child = run.start("cocoon_image", name="web", source=str(big))
    deadline = time.monotonic() + 60
    while not any("/" in file for file in files_of(paths) if file.startswith("staging/")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    child.kill()
    child.communicate()
    assert whole(paths) == []
    result = run("cocoon_image", name="web", source=str(big))
    assert result.changed and whole(paths) == ["web"]
    assert os.listdir(images.directory(paths, "staging")) == []
    run("cocoon_image", name="web", state="absent")
    assert files_of(paths) == []


def _import(paths: Paths, name: str, origin: str, answers: Any) -> None:
    answers.put(converging.converge(paths, Wanted(name, source=origin), False).actions)


@pytest.mark.parametrize("names", [("web",) * 8, tuple(f"web{number}" for number in range(8))])
def test_imports_at_once_do_the_work_once(paths: Paths, work: Path, small: Path, names: tuple[str, ...]) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    layout = make_layout(work / "layout", BOTTOM, TOP)
    crew = [context.Process(target=_import, args=(paths, name, str(layout), answers)) for name in names]
    for process in crew:
        process.start()
    actions = [answers.get(timeout=120) for _process in crew]
    for process in crew:
        process.join()
        assert process.exitcode == 0
    assert sum("import" in action for action in actions) == 1
    assert sum(bool(action) for action in actions) == len(set(names))
    assert whole(paths) == sorted(set(names))
    for name in set(names):
        converge(paths, name, state="absent")
    assert files_of(paths) == []


def test_removal_and_import_at_once(paths: Paths, work: Path) -> None:
    """Images that share everything come and go: none is ever seen without its files, and nothing stays."""
    layout = make_layout(work / "layout", BOTTOM, TOP)
    other = make_layout(work / "other", BOTTOM)

    def churn(name: str, origin: Path) -> None:
        for _round in range(15):
            assert converge(paths, name, source=origin).changed
            image = images.resolve(the_store(paths), name)
            assert image and images.missing_files(the_store(paths), image) == []
            assert converge(paths, name, state="absent").changed

    context = multiprocessing.get_context("fork")
    crew = [context.Process(target=churn, args=(f"n{n}", (layout, other)[n % 2])) for n in range(4)]
    for process in crew:
        process.start()
    for process in crew:
        process.join(120)
        assert process.exitcode == 0
    converge(paths, "last", state="absent")
    assert files_of(paths) == []


def test_a_busy_image_is_said_to_be(paths: Paths, small: Path) -> None:
    Store.open(paths)
    with locked(paths, ["image:web"], 1), pytest.raises(CocoonError, match="image:web is busy, waited 0.05 s"):
        converge(paths, source=small, lock_timeout=0.05)


def test_the_module(paths: Paths, small: Path, work: Path, modules: Callable[..., Any]) -> None:
    run = modules(None, {"root_dir": paths.root, "run_dir": paths.run, "log_dir": paths.log})
    predicted = run("cocoon_image", name="web", source=str(small), check=True, diff=True)
    assert predicted.changed and predicted["image"] is None
    result = run("cocoon_image", name="web", source=str(small), labels={"tier": "front"}, diff=True)
    assert result.changed and result["image"]["names"] == ["web"] and result["actions"] == ["import", "tag"]
    assert not run("cocoon_image", name="web", source=str(small), labels={"tier": "front"}).changed
    assert run("cocoon_image_info", name="web")["images"][0]["labels"] == {"tier": "front"}
    assert run("cocoon_image_info", name="nothing")["images"] == []
    for options, message in (
        ({"name": "sha256:" + "0" * 64, "source": str(small)}, "not a valid image name"),
        ({"name": "web", "source": "/no/such/file"}, "source: /no/such/file does not exist"),
        ({"name": "new"}, "source: image 'new' is not in the store"),
        ({"name": "web", "kernel": "/k"}, "kernel: means nothing without a source"),
        ({"name": "web", "max_size": "1G"}, "max_size: means nothing without a source"),
        ({"name": "web", "source": "docker://nginx", "max_size": "1G"}, "max_size: is for files"),
        ({"name": "web", "source": str(work), "max_size": "1G"}, "max_size: is for files"),
        ({"name": "web", "source": str(small), "max_size": "1K"}, "is larger than 1K"),
        ({"name": "web", "source": str(small), "checksum": "sha256:" + "0" * 64}, "checksum: "),
    ):
        assert message in run("cocoon_image", ok=False, **options)["msg"]
    assert run("cocoon_image", name="web", state="absent").changed
    assert files_of(paths) == []


def test_disks_of_vms(paths: Paths, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(paths)
    uid = store.uid_start + 7
    folder = Path(paths.vm_dir("vm1"))
    folder.mkdir(mode=0o711)
    cow = folder / "cow.raw"
    _disks.create_cow(store, str(cow), {}, 1 << 30, uid)  # makes the template
    with monkeypatch.context() as without:
        without.setattr(subprocess, "Popen", None)  # the next ones are copies of it: no program is run
        _disks.create_cow(store, str(folder / "cow1.raw"), {}, 1 << 30, uid)
    status = cow.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (uid, uid, 0o600)
    assert status.st_blocks * 512 < 8 << 20
    subprocess.run(["e2fsck", "-fn", cow], check=True, capture_output=True)
    one, two = folder / "data-a.raw", folder / "data-b.raw"
    for disk in (one, two):
        _disks.create_data(str(disk), 64 << 20, "ext4", uid)
    blkid = ["blkid", "-o", "value", "-s", "UUID"]
    uuids = {subprocess.run([*blkid, disk], capture_output=True, check=True).stdout for disk in (one, two)}
    assert len(uuids) == 2
    for disk, size in ((one, 128 << 20), (cow, 2 << 30)):
        for _time in range(2):
            _disks.grow(str(disk), size, "ext4", uid)
        subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)
        show = subprocess.run(["dumpe2fs", "-h", disk], check=True, capture_output=True, text=True).stdout
        blocks = re.search(r"Block count:\s+(\d+)", show)
        assert blocks and int(blocks.group(1)) * 4096 >= size * 0.99 or int(blocks.group(1)) * 1024 >= size * 0.99  # type: ignore[union-attr]
    assert sorted(os.listdir(folder))[:1] == ["cow.raw"]
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_tools_on_a_guests_disk_run_as_its_uid(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(paths)
    uid = store.uid_start + 9
    folder = Path(paths.vm_dir("vm2"))
    folder.mkdir(mode=0o711)
    disk = folder / "data.raw"
    _disks.create_data(str(disk), 32 << 20, "ext4", uid)
    calls = []
    real = _disks.run_tool

    def watch(argv: list[str], **options: Any) -> bytes:
        calls.append((argv[0], argv[4], options.get("uid")))
        return real(argv, **options)

    monkeypatch.setattr(_disks, "run_tool", watch)
    _disks.grow(str(disk), 48 << 20, "ext4", uid)
    assert calls == [("prlimit", "e2fsck", uid), ("prlimit", "resize2fs", uid)]


def test_importer_names_its_limits() -> None:
    """What hostile files may use of this host is bounded."""
    limits = disk_importer.INFO_LIMITS
    assert limits[0] == "prlimit" and any(word.startswith("--as=") for word in limits)
