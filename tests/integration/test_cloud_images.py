# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images by URL, from a web server with good and bad manners, and a cloud image from its download to its login."""

from __future__ import annotations

import bz2
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.tests.integration.support import cloud_image, web
from ansible_collections.cocoon.microvm.tests.integration.support.lab import Key, make_key, ssh_words
from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns, command
from ansible_collections.cocoon.microvm.tests.integration.support.registry import Authority
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Playbooks, Result

MIB = 1 << 20
HERE = Path(__file__).resolve().parent


@dataclass
class Site:
    """The web server, its files, and a host that downloads from it."""

    run: Modules
    folder: Path
    log: Path
    authority: Path

    def url(self, manner: str, name: str, scheme: str = "https") -> str:
        port = web.HTTPS if scheme == "https" else web.HTTP
        return f"{scheme}://127.0.0.1:{port}/{manner}/{name}"

    def put(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def image(self, source: str, /, ok: bool | None = True, name: str = "web", **options: Any) -> Result:
        """Runs cocoon_image; the name is free again after the test."""
        options = {"ca_path": str(self.authority), **options}
        return self.run("cocoon_image", ok=ok, name=name, source=source, **options)

    def refused(self, source: str, /, **options: Any) -> str:
        """The error of a download that has to fail, that nothing is left of, and that leaves another image alone.

        :raises AssertionError: it did not fail, or the store is not as it was.
        """
        if not any(name.startswith("blobs/") for name in self.kept()):
            self.image(str(self.put("bystander", disk(MIB, b"bystander"))), name="bystander")
        before, images = self.contents(), self.run("cocoon_image_info")["images"]
        assert images
        text = str(self.image(source, ok=False, **options)["msg"])
        assert self.contents() == before
        assert self.run("cocoon_image_info")["images"] == images
        return text

    def contents(self) -> dict[str, str]:
        """Every file of the store but for locks and what it remembers of sources: its digest, and whose it is."""
        root = Path(self.run.defaults["root_dir"])
        files = [path for path in root.rglob("*") if path.is_file() and path.parent.name not in ("locks", "sources")]
        found = {}
        for path in files:
            status = path.stat()
            owner = f"{status.st_mode:o} {status.st_uid} {status.st_gid}"
            found[str(path.relative_to(root))] = f"{sha(path.read_bytes())} {owner}"
        return found

    def kept(self) -> list[str]:
        """What there is of downloads, and of images."""
        images = Path(self.run.defaults["root_dir"]) / "images"
        return sorted(
            f"{folder}/{path.name}"
            for folder in ("downloads", "staging", "blobs")
            for path in images.glob(f"{folder}/*")
        )

    def requests(self) -> list[dict[str, Any]]:
        """What the server was asked since this was last called."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module", name="server")
def fixture_server(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """The server in a network namespace of its own, with a certificate by an authority that nobody else knows."""
    folder = tmp_path_factory.mktemp("web")
    files, log, ready = (folder / name for name in ("files", "log", "ready"))
    files.mkdir()
    authority = Authority(folder / "authority")
    good, expired = authority.sign("good")[0], authority.sign("expired", -1)[0]
    netns = make_netns()
    words = [*netns.enter(), sys.executable, str(HERE / "support" / "web.py"), files, log, good, expired, ready]
    with subprocess.Popen(words) as process:
        try:
            deadline = time.monotonic() + 20
            while not ready.exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            yield Site(modules(netns, make_store()), files, log, authority.certificate)
        finally:
            process.kill()


@pytest.fixture(name="site")
def fixture_site(server: Site) -> Iterator[Site]:
    """The server, with nothing asked yet and no image on the host; none is left."""
    server.requests()
    yield server
    for image in server.run("cocoon_image_info")["images"]:
        server.run("cocoon_image", name=image["id"], state="absent")
    for path in (Path(server.run.defaults["root_dir"]) / "images" / "downloads").glob("*"):
        path.unlink()
    assert server.kept() == []


def disk(size: int = 4 * MIB, seed: bytes = b"") -> bytes:
    """A raw disk that a BIOS would boot, a quarter of it noise and the rest holes."""
    noise = hashlib.shake_256(b"noise" + seed).digest(size // 4)
    return b"\xfa\xf4".ljust(510, b"\0") + b"\x55\xaa" + noise + bytes(size - 512 - len(noise))


def qcow2(folder: Path, *options: str, data: bytes | None = None) -> bytes:
    raw, result = folder / "x.raw", folder / "x.qcow2"
    raw.write_bytes(disk() if data is None else data)
    command("qemu-img", "convert", *options, "-f", "raw", "-O", "qcow2", raw, result)
    return result.read_bytes()


def sha(data: bytes, kind: str = "sha256") -> str:
    return f"{kind}:{hashlib.new(kind, data).hexdigest()}"


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout


# -- what comes, and how often ---------------------------------------------------------------------------------------


def test_a_disk_is_fetched_once(site: Site) -> None:
    data = disk()
    site.put("disk.raw", data)
    url = site.url("plain", "disk.raw")
    said = site.image(url, check=True)
    assert said.changed and said["actions"] == ["import", "tag"] and site.kept() == []
    assert sum(request["bytes"] for request in site.requests()) <= 128 << 10
    done = site.image(url)
    assert done["actions"] == said["actions"]
    assert done["image"]["id"] == sha(data) and done["image"]["type"] == "cloudimg"
    assert done["image"]["source"]["path"] == url
    assert done["image"]["disk"]["firmware"] == ["bios"]
    blob = Path(site.run.defaults["root_dir"]) / "images" / "blobs" / f"{sha(data)[7:]}.raw"
    status = blob.stat()
    assert blob.read_bytes() == data and status.st_blocks * 512 < len(data) // 2
    assert stat.S_IMODE(status.st_mode) == 0o440 and status.st_uid == 0
    assert [request["bytes"] for request in site.requests()] == [len(data)]
    again = site.image(url)
    assert not again.changed and site.requests() == []
    assert not site.image(url, pull="always").changed
    assert [(request["method"], request["bytes"]) for request in site.requests()] == [("HEAD", 0)]
    assert not site.image(url, checksum=sha(data), pull="always").changed
    assert not site.image(url, checksum=sha(data)).changed and site.requests() == []
    assert not site.image(url, force=True).changed
    assert [request["bytes"] for request in site.requests()] == [len(data)]


def test_another_file_behind_the_url(site: Site) -> None:
    url = site.url("plain", "moving.raw")
    site.put("moving.raw", disk())
    first = site.image(url)["image"]["id"]
    data = disk(seed=b"newer")
    site.put("moving.raw", data)
    assert not site.image(url).changed  # it has the name; pull: missing does not ask
    said = site.image(url, pull="always", check=True)
    moved = site.image(url, pull="always")
    assert said["actions"] == moved["actions"] == ["import", "tag"]
    assert moved["image"]["id"] == sha(data) != first
    assert len(site.run("cocoon_image_info")["images"]) == 1


def test_without_anything_that_tells_versions_apart(site: Site) -> None:
    data = disk()
    site.put("bare.raw", data)
    url = site.url("bare", "bare.raw")
    assert site.image(url).changed
    assert not site.image(url).changed
    site.requests()
    assert not site.image(url, pull="always").changed  # fetched again, and found to be the same
    assert sum(request["bytes"] for request in site.requests()) == len(data)
    assert not site.image(url, pull="always", checksum=sha(data)).changed and site.requests() == []


def packed(name: str, data: bytes, *beside: str) -> bytes:
    """A tar as of a cloud's: one disk, with its holes, and small files before and after it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as target:
        for text in (*beside[:1], name, *beside[1:]):
            info = tarfile.TarInfo(text)
            content = data if text == name else b"text"
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    return out.getvalue()


KINDS = ["disk.raw.gz", "disk.raw.xz", "disk.raw.zst", "disk.raw.bz2", "disk.qcow2", "q.gz"]


@pytest.mark.parametrize("name", [*KINDS, "raw.tar", "raw.tar.gz", "q.tar.xz", "ovf-raw.tar.zst"])
def test_kinds(site: Site, tmp_path: Path, name: str) -> None:
    raw = disk()
    plain = content = raw if "raw" in name else qcow2(tmp_path)
    if ".tar" in name:
        plain = packed("disk.raw" if "raw" in name else "any name", content, *(["a.ovf", "a.mf"] * ("ovf" in name)))
    pack = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstd, "bz2": bz2.compress}.get(name.rpartition(".")[2])
    site.put(name, pack(plain) if pack else plain)
    said = site.image(site.url("plain", name), check=True)
    done = site.image(site.url("plain", name), checksum=sha(site.folder.joinpath(name).read_bytes(), "sha512"))
    assert said["actions"] == done["actions"] == ["import", "tag"]
    assert done["image"]["id"] == sha(content)
    assert done["image"]["disk"]["format"] == ("raw" if "raw" in name else "qcow2")
    assert done["image"]["disk"]["firmware"] == ["bios"]
    for number, local in enumerate((f"file://{site.folder}/{name}", str(site.folder / name))):
        found = site.image(local, name=f"local{number}")
        assert found["actions"] == ["tag"] and found["image"]["id"] == sha(content)
        assert not site.image(local, name=f"local{number}").changed
        assert not site.image(local, name=f"local{number}", check=True).changed


def test_a_packed_disk_by_path(site: Site, tmp_path: Path) -> None:
    """With its holes, as GNU tar writes them; noticed when it changes."""
    (tmp_path / "disk.raw").write_bytes(disk())
    path = tmp_path / "gce.tar.gz"
    command("tar", "-C", tmp_path, "-czSf", path, "disk.raw")
    assert site.image(str(path), check=True)["actions"] == ["import", "tag"]
    done = site.image(str(path), checksum=sha(path.read_bytes()))
    assert done["image"]["id"] == sha(disk()) and done["image"]["type"] == "cloudimg"
    (blob,) = (Path(site.run.defaults["root_dir"]) / "images" / "blobs").glob("*.raw")
    assert blob.stat().st_blocks * 512 < 3 * MIB
    assert not site.image(str(path)).changed
    (tmp_path / "disk.raw").write_bytes(disk(seed=b"newer"))
    command("tar", "-C", tmp_path, "-czSf", path, "disk.raw")
    assert site.image(str(path))["image"]["id"] == sha(disk(seed=b"newer"))


def vmdk(folder: Path, data: bytes, kind: str = "streamOptimized") -> bytes:
    raw, result = folder / "x.raw", folder / "x.vmdk"
    raw.write_bytes(data)
    command("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={kind}", raw, result)
    return result.read_bytes()


@pytest.mark.parametrize("kind", ["streamOptimized", "monolithicSparse"])
def test_an_ova_and_its_disk(site: Site, tmp_path: Path, kind: str) -> None:
    """By path and URL, packed and not: one image, with the content of the disk, which then stays as it is."""
    content = vmdk(tmp_path, disk(), kind)
    ova, alone = site.put("vm.ova", packed("x.vmdk", content, "x.ovf", "x.mf")), site.put("x.vmdk", content)
    site.put("x.vmdk.xz", lzma.compress(content))
    said = site.image(str(ova), check=True)
    done = site.image(str(ova), checksum=sha(ova.read_bytes()))
    assert said["actions"] == done["actions"] == ["import", "tag"]
    image = done["image"]
    assert image["id"] == sha(content) and image["type"] == "cloudimg" and image["source"]["kind"] == "vmdk"
    assert image["disk"] == {**image["disk"], "format": "qcow2", "virtual_size": len(disk()), "firmware": ["bios"]}
    (blob,) = (Path(site.run.defaults["root_dir"]) / "images" / "blobs").glob("*.qcow2")
    status = blob.stat()
    assert stat.S_IMODE(status.st_mode) == 0o440 and status.st_uid == 0
    assert sha(blob.read_bytes()) == f"sha256:{blob.stem}"  # by which it is checked when it moves to another host
    command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", blob, tmp_path / "back.raw")
    assert (tmp_path / "back.raw").read_bytes() == disk()
    assert not site.image(str(ova)).changed and not site.image(str(ova), force=True).changed
    urls = [site.url("plain", name) for name in ("vm.ova", "x.vmdk", "x.vmdk.xz")]
    for number, other in enumerate((str(alone), f"file://{site.folder}/x.vmdk.xz", *urls)):
        assert site.image(other, name=f"other{number}")["actions"] == ["tag"]
        assert not site.image(other, name=f"other{number}").changed
    assert len(site.run("cocoon_image_info")["images"]) == 1
    site.run("cocoon_image", name=image["id"], state="absent")
    assert site.kept() == []
    assert site.image(str(alone))["image"]["id"] == sha(content)


def test_a_vmdk_becomes_no_more_than_is_allowed(site: Site, tmp_path: Path) -> None:
    """Compressed in itself, so its own size says little."""
    content = vmdk(tmp_path, disk(MIB)[:512] + b"a" * (8 * MIB - 512))
    assert len(content) < MIB
    path = tmp_path / "bomb.vmdk"
    path.write_bytes(content)
    assert "the disk in" in site.refused(str(path), max_size="4M")
    assert site.image(str(path), max_size="16M").changed


def large_sectors() -> bytes:
    """A disk with a partition table for sectors of 4096 bytes."""
    table = bytearray(disk())
    table[446:462] = bytes(4) + b"\xee" + bytes(11)
    table[512:520] = bytes(8)
    table[4096:4104] = b"EFI PART"
    return bytes(table)


def test_packed_disks_that_are_refused(site: Site, tmp_path: Path) -> None:
    plain = vmdk(tmp_path, disk())
    hostile = plain.replace(b'SPARSE "x.vmdk"', b'FLAT "/etc/hostname" 0')
    secret = (tmp_path / "x.raw").rename(tmp_path / "d.raw")
    flat = f'# Disk DescriptorFile\ncreateType="monolithicFlat"\nRW 8192 FLAT "{secret}" 0\n'.encode()
    large, converted = large_sectors(), qcow2(tmp_path, data=large_sectors())
    backed = tmp_path / "backed"
    command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", tmp_path / "d.raw", backed)
    cases = {
        "hostile.ova": (packed("d.vmdk", hostile, "d.ovf", "d.mf"), "keeps its data in another file of the host"),
        "hostile.vmdk": (hostile, "keeps its data in another file of the host"),
        "flat.vmdk": (flat, "the description of a VMDK disk, whose data is in other files"),
        "torn.vmdk.gz": (gzip.compress(plain[: MIB // 2]), "qemu-img cannot read"),
        "text.gz": (gzip.compress(b"text" * 1000), "neither a tar nor a disk"),
        "backed.tar": (packed("b.qcow2", backed.read_bytes()), "has a backing file"),
        "4k.raw": (large, "for sectors of 4096 bytes"),
        "4k.tar.xz": (lzma.compress(packed("disk.raw", large)), "for sectors of 4096 bytes"),
        "4k.qcow2": (converted, "for sectors of 4096 bytes"),
        "odd.tar": (packed("disk.raw", disk() + b"x"), "of no kind"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        assert message in site.refused(str(tmp_path / name)), name
    with tarfile.open(tmp_path / "more.tar", "w") as target:
        for name in ("a.raw", "b.raw"):
            (tmp_path / name).write_bytes(disk())
            target.add(tmp_path / name, name)
    assert "holds two disks, a.raw and b.raw" in site.refused(str(tmp_path / "more.tar"))
    with tarfile.open(tmp_path / "more.tar", "w") as target:
        target.add(tmp_path / "a.raw", "a.raw")
        info = tarfile.TarInfo("data")
        info.size = 2 * MIB
        target.addfile(info, io.BytesIO(b"x" * info.size))
    assert "and other files as well" in site.refused(str(tmp_path / "more.tar"))


def test_a_root_file_system_by_url(site: Site) -> None:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as archive:
        for name in ("boot/vmlinuz", "boot/initrd.img"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"boot"))
    site.put("root.tar.gz", memory.getvalue())
    done = site.image(site.url("plain", "root.tar.gz"))
    assert done["image"]["type"] == "oci" and done["image"]["boot"]
    assert not site.image(site.url("plain", "root.tar.gz"), pull="always").changed


# -- networks as they are --------------------------------------------------------------------------------------------


def test_goes_on_where_it_was_cut_off(site: Site) -> None:
    data = disk(8 * MIB)
    site.put("cut.raw", data)
    site.image(site.url("cut-3000000", "cut.raw"))
    requests = site.requests()
    assert [request["status"] for request in requests] == [200, 206, 206]
    assert sum(request["bytes"] for request in requests) == len(data)


def under_way(site: Site, url: str, size: int) -> subprocess.Popen[str]:
    """A download of which so many bytes have come, and no more will."""
    child = site.run.start("cocoon_image", name="web", source=url, ca_path=str(site.authority))
    part = Path(site.run.defaults["root_dir"]) / "images" / "downloads" / f"{sha(url.encode())[7:]}.part"
    deadline = time.monotonic() + 20
    while not part.exists() or part.stat().st_size < size:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    return child


def killed(child: subprocess.Popen[str]) -> None:
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()


def test_goes_on_in_the_next_run(site: Site) -> None:
    """Killed in the middle: what has come stays, and does not come again."""
    data = disk(8 * MIB)
    site.put("killed.raw", data)
    url = site.url(f"stall-{3 * MIB}", "killed.raw")
    killed(under_way(site, url, 3 * MIB))
    assert site.image(url)["image"]["id"] == sha(data)
    served = [(request["status"], request["bytes"]) for request in site.requests()]
    assert served == [(200, 3 * MIB), (206, 5 * MIB)]
    assert not [name for name in site.kept() if name.startswith("downloads")]


def test_prune_removes_what_nobody_goes_on_with(site: Site) -> None:
    site.put("pruned.raw", disk(8 * MIB))
    url = site.url(f"stall-{3 * MIB}", "pruned.raw")
    prune = functools.partial(site.run, "cocoon_image_prune", keep=["*"])
    child = under_way(site, url, 3 * MIB)
    assert not prune(check=True).changed and not prune().changed
    killed(child)
    before = site.contents()
    left = [path for path in before if path.startswith("images/downloads/")]
    assert len(left) == 2
    said = prune(check=True)
    assert said["downloads"] == [url] and 2 * MIB < said["reclaimed"] < 3 * MIB  # of which a third are holes
    assert not prune(downloads=False).changed and site.contents() == before
    done = prune()
    assert [done[key] for key in ("changed", "downloads", "reclaimed")] == [True, [url], said["reclaimed"]]
    assert site.contents() == {path: what for path, what in before.items() if path not in left}
    assert not prune().changed


def test_a_part_is_given_up_after_a_week(site: Site) -> None:
    downloads = Path(site.run.defaults["root_dir"]) / "images" / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    for name, days in (("a.part", 8), ("a.json", 8), ("b.part", 1), ("b.json", 8)):
        path = downloads / name
        path.write_bytes(b"{}")
        os.utime(path, (time.time() - days * 86400,) * 2)
    site.put("week.raw", disk())
    site.image(site.url("plain", "week.raw"))
    assert sorted(path.name for path in downloads.iterdir()) == ["b.json", "b.part"]


def test_another_version_is_not_glued_to_the_old_part(site: Site) -> None:
    old, new = disk(8 * MIB), disk(8 * MIB, b"new")
    url = site.url("plain", "glue.raw")
    downloads = Path(site.run.defaults["root_dir"]) / "images" / "downloads"
    stem = hashlib.sha256(url.encode()).hexdigest()
    for has, status in ((old, 206), (new, 200)):
        site.run("cocoon_image", name="web", state="absent")
        version = {"etag": f'"{hashlib.sha256(old).hexdigest()[:12]}"', "last_modified": "", "size": len(old)}
        downloads.mkdir(parents=True, exist_ok=True)
        (downloads / f"{stem}.json").write_text(json.dumps(version), encoding="utf-8")
        (downloads / f"{stem}.part").write_bytes(old[: 3 * MIB])
        site.put("glue.raw", has)
        site.requests()
        assert site.image(url)["image"]["id"] == sha(has)
        assert [(request["status"], request["bytes"]) for request in site.requests()] == [
            (status, len(has) - (3 * MIB if status == 206 else 0))
        ]


def test_a_server_that_is_away(site: Site) -> None:
    """Nothing has come, so nothing is kept; what has come of a file is."""
    site.put("away.raw", disk())
    assert "Run the task again" in site.refused(site.url("cut-0", "away.raw"))
    assert "503" in site.refused(site.url("busy-99", "away.raw"))
    assert "cannot get" in site.refused("https://127.0.0.1:1/away.raw")


@pytest.mark.parametrize("manner", ["norange", "chunked", "busy-2", "moved"])
def test_manners(site: Site, manner: str) -> None:
    data = disk()
    name = f"{manner}.raw"
    site.put(name, data)
    assert site.image(site.url(manner, name))["image"]["id"] == sha(data)


def test_two_at_once_fetch_it_once(site: Site) -> None:
    data = disk(8 * MIB)
    site.put("both.raw", data)
    options = {"source": site.url("plain", "both.raw"), "ca_path": str(site.authority)}
    runs = [site.run.start("cocoon_image", name=name, **options) for name in ("one", "two")]
    for run in runs:
        assert not site.run.finish(run).failed
    assert sum(request["bytes"] for request in site.requests()) == len(data)
    assert len(site.run("cocoon_image_info")["images"]) == 1


# -- checksums -------------------------------------------------------------------------------------------------------


def test_checksums(site: Site) -> None:
    data = disk()
    site.put("sum.raw", data)
    url = site.url("plain", "sum.raw")
    wrong = site.refused(url, checksum=sha(b"other"))
    assert "nothing of it was kept" in wrong and sha(data) in wrong
    assert "is not a checksum" in site.refused(url, checksum="md5:abc")
    assert site.image(url, checksum=sha(data, "sha512")).changed
    site.requests()
    assert not site.image(url, checksum=sha(data, "sha512"), pull="always").changed and site.requests() == []


def test_lists_of_checksums(site: Site) -> None:
    data = disk()
    site.put("listed.raw", data)
    url = site.url("plain", "listed.raw")
    lines = [f"{sha(b'x')[7:]}  other.raw", f"{sha(data, 'sha512')[7:]} *./listed.raw"]
    site.put("SHA512SUMS", "\n".join(["-----BEGIN PGP SIGNED MESSAGE-----", *lines, ""]).encode())
    sums = site.url("plain", "SHA512SUMS")
    done = site.image(url, checksum=sums)
    assert done["image"]["id"] == sha(data)
    site.requests()
    assert not site.image(url, checksum=sums).changed and site.requests() == []
    assert not site.image(url, checksum=f"sha512:{sums}", pull="always").changed
    assert [request["path"] for request in site.requests()] == ["/plain/SHA512SUMS"]
    newer = disk(seed=b"newer")
    site.put("listed.raw", newer)
    assert "nothing of it was kept" in site.refused(url, checksum=sums, pull="always", force=True)
    site.put("SHA512SUMS", f"SHA512 (listed.raw) = {sha(newer, 'sha512')[7:]}\n".encode())
    assert site.image(url, checksum=sums, pull="always")["image"]["id"] == sha(newer)
    site.put("SHA512SUMS", b"nothing\n")
    assert "has no checksum of listed.raw" in site.refused(url, checksum=sums, pull="always")
    assert "proves nothing" in site.refused(url, checksum=site.url("plain", "SHA512SUMS", "http"))


# -- what is refused -------------------------------------------------------------------------------------------------


def test_certificates_and_schemes(site: Site) -> None:
    site.put("safe.raw", disk())
    url = site.url("plain", "safe.raw")
    unknown = site.refused(url, ca_path=None)
    assert unknown.startswith("ca_path: ") and "Give the certificate of its authority" in unknown
    expired = site.refused(url.replace(str(web.HTTPS), str(web.EXPIRED)))
    assert expired.startswith("source: ") and "certificate has expired" in expired and "renewed" in expired
    assert "which is not safe" in site.refused(site.url("lowered", "safe.raw"))
    assert "Use https, or give its checksum" in site.refused(site.url("plain", "safe.raw", "http"))
    assert "ends up in logs" in site.refused(url.replace("://", "://me:secret@"))
    assert "cannot use" in site.refused(url, ca_path=str(site.folder / "safe.raw"))
    assert site.image(url, ca_path=None, validate_certs=False).changed
    http = site.url("plain", "safe.raw", "http")
    assert site.image(http, name="http", checksum=sha(disk()))["actions"] == ["tag"]


def test_no_images(site: Site, tmp_path: Path) -> None:
    site.put("page.raw", b"<!DOCTYPE html><html>")
    site.put("noise", os.urandom(100_000))
    site.put("empty", b"")
    site.put("twice.gz", gzip.compress(gzip.compress(disk())))
    site.put("short.gz", gzip.compress(disk())[:-1000])
    assert "is a web page" in site.refused(site.url("page", "page.raw"))
    assert "is a web page" in site.refused(site.url("plain", "page.raw"))
    assert "of no kind" in site.refused(site.url("plain", "noise"))
    assert "is empty" in site.refused(site.url("plain", "empty"))
    assert "compressed" in site.refused(site.url("plain", "twice.gz"))
    assert "damaged" in site.refused(site.url("plain", "short.gz"))
    assert "HTTP status 404" in site.refused(site.url("plain", "missing"))
    for name, message in hostile(site, tmp_path).items():
        assert message in site.refused(site.url("plain", name)), name


def hostile(site: Site, folder: Path) -> dict[str, str]:
    """Disks that would show a guest files of the host: their names, and what is said of them."""
    secret = folder / "secret"
    secret.write_bytes(b"secret".ljust(MIB, b"\0"))
    backed, outside = folder / "backed", folder / "outside"
    command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, backed)
    data_file = f"data_file={folder / 'data'},data_file_raw=on"
    command("qemu-img", "create", "-q", "-f", "qcow2", "-o", data_file, outside, "1M")
    site.put("backed.qcow2", backed.read_bytes())
    site.put("backed.qcow2.gz", gzip.compress(backed.read_bytes()))
    site.put("outside.qcow2", outside.read_bytes())
    return {
        "backed.qcow2": "has a backing file",
        "backed.qcow2.gz": "has a backing file",
        "outside.qcow2": "keeps its data in another file",
    }


def test_sizes_are_bounded(site: Site) -> None:
    data = disk()
    site.put("large.raw", data)
    site.put("bomb.raw.gz", gzip.compress(disk()[:512] + bytes(200 * MIB)))
    site.put("bomb.raw.zst", zstd(disk()[:512] + bytes(200 * MIB)))
    limit = {"max_size": "1M"}
    for manner in ("plain", "chunked"):
        assert "is larger than 1M" in site.refused(site.url(manner, "large.raw"), **limit)
    for name in ("bomb.raw.gz", "bomb.raw.zst"):
        assert "the disk in" in site.refused(site.url("plain", name), **limit)
    assert "is larger than 20G" in site.refused(site.url("wide", "large.raw"))
    assert "are free in" in site.refused(site.url("wide", "large.raw"), max_size="2T")
    huge = site.put("huge.raw", data)
    os.truncate(huge, (20 << 30) + 512)  # a hole
    for path, options in (
        (str(huge), {}),
        (str(huge), {"check": True}),
        (str(huge), {"checksum": sha(b"", "sha512")}),
        (huge.as_uri(), {}),
    ):
        said = site.refused(path, **options)
        assert "max_size: " in said and "is larger than 20G" in said
    assert "is larger than 1M" in site.refused(str(site.folder / "large.raw"), **limit)
    assert site.image(str(site.folder / "large.raw"), max_size="4M").changed


def test_a_full_disk(site: Site, make_store: Callable[[], dict[str, str]]) -> None:
    site.put("full.raw.gz", gzip.compress(os.urandom(512)[:510] + b"\x55\xaa" + os.urandom(80 * MIB)))
    dirs = make_store()
    root = Path(dirs["root_dir"])
    root.mkdir(parents=True)
    command("mount", "-t", "tmpfs", "-o", "size=150m,mode=711", "none", root)
    try:
        small = dataclasses.replace(site, run=site.run.with_defaults(**dirs))
        assert "no space left" in small.refused(site.url("plain", "full.raw.gz"))
    finally:
        command("umount", root)


# -- a cloud image, from its download to its login -------------------------------------------------------------------

VM = {"image": "cloud", "cpu": 2, "memory": "512M", "accel": "tcg", "network": "lab", "storage": "3G"}
USER_DATA = """#cloud-config
users:
- {name: bob, lock_passwd: true}
write_files:
- {path: /etc/given, content: "by user_data"}
mounts:
- [tmpfs, /mnt/scratch, tmpfs]
bootcmd:
- echo >> /var/boots
"""
PASSWORD = "correct horse & battery: 'staple'"
BOOT = 400


@dataclass
class Cloud:
    """A VM made of a cloud image, and what talks to it."""

    site: Site
    key: Key
    store: dict[str, str]

    def vm(self, name: str = "one", /, *, ok: bool = True, **options: Any) -> Result:
        return self.site.run("cocoon_vm", ok=ok, name=name, run_timeout=BOOT + 100, **options)

    def ssh(self, vm: dict[str, Any], script: str, user: str = "alice") -> str:
        """Run a script in a guest once its cloud-init is through."""
        words = ssh_words(user, vm["network_configs"][0]["network"]["ip"], self.key)
        netns = self.site.run.netns
        assert netns is not None
        return netns.run(*words, f"cloud-init status --wait > /dev/null; {script}", timeout=BOOT).strip()

    def folder(self, vm: dict[str, Any]) -> Path:
        return Path(self.store["root_dir"]) / "vms" / vm["id"]

    def files(self, vm: dict[str, Any]) -> set[str]:
        return {path.name for path in self.folder(vm).iterdir()}


@pytest.fixture(scope="module", name="cloud")
def fixture_cloud(
    server: Site, make_store: Callable[[], dict[str, str]], scratch: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cloud]:
    """A store with the image, fetched by URL with its list of checksums, as one does it with a distribution's."""
    image = cloud_image.built(scratch)
    store = make_store()
    site = Site(server.run.with_defaults(**store), server.folder, server.log, server.authority)
    (site.folder / "debian.qcow2").symlink_to(image)
    with image.open("rb") as stream:
        digest = hashlib.sha512(stream.read()).hexdigest()
    site.put("SUMS", f"{digest}  debian.qcow2\n".encode())
    done = site.image(site.url("plain", "debian.qcow2"), name="cloud", checksum=site.url("plain", "SUMS"))
    assert done["image"]["disk"]["firmware"] == ["uefi"]
    site.run("cocoon_network", name="lab", subnet="10.219.0.0/24", nat=True, dns=["10.219.0.1", "192.0.2.53"])
    yield Cloud(site, make_key(tmp_path_factory.mktemp("keys"), "given"), store)
    for vm in site.run("cocoon_vm_info")["vms"]:
        site.run("cocoon_vm", name=vm["config"]["name"], state="absent", force=True)
    for snapshot in site.run("cocoon_snapshot_info")["snapshots"]:
        site.run("cocoon_snapshot", name=snapshot["name"], state="absent", force=True)
    site.run("cocoon_network", name="lab", state="absent")
    site.run("cocoon_image", name="cloud", state="absent")


@pytest.fixture(scope="module", name="first")
def fixture_first(cloud: Cloud) -> Result:
    """Its first boot, with everything that there is to be told."""
    disks = [{"name": "db", "size": "64M"}, {"name": "blank", "size": "16M", "fstype": "none"}]
    login = {"user": "alice", "password": PASSWORD, "ssh_keys": [cloud.key.public], "user_data": USER_DATA}
    options = {**VM, **login, "data_disks": disks, "wait_for": "port", "timeout": BOOT, "state": "started"}
    first = cloud.vm(**options)
    assert not cloud.vm(**options).changed
    return first


def test_first_boot(cloud: Cloud, first: Result) -> None:
    vm = first["vm"]
    assert vm["firmware"] == "uefi" and vm["boot_config"]["firmware_path"].endswith(".fd")
    assert [item["serial"] for item in vm["storage_configs"]] == ["cocoon-cow", "db", "blank", "cocoon-cidata"]
    said = cloud.ssh(
        vm,
        "hostname; id -un; sudo -n id -un; cat /etc/given; echo; findmnt -no FSTYPE /mnt/db;"
        " findmnt -no FSTYPE /mnt/scratch;"
        " ls -d /mnt/blank 2>&1 | grep -c such; ls /sys/firmware/efi > /dev/null && echo efi; id -un bob;"
        " sudo cut -d: -f1,2 /etc/shadow | grep -c '^root:[*!]'; ip -4 -br address show eth0;"
        " cat /sys/class/net/eth0/address; networkctl status eth0 | grep -c 192.0.2.53; df --output=size / | tail -1",
    ).splitlines()
    config = vm["network_configs"][0]
    assert said[:10] == ["one", "alice", "root", "by user_data", "ext4", "tmpfs", "1", "efi", "bob", "1"]
    assert said[10].split() == ["eth0", "UP", f"{config['network']['ip']}/24"]
    assert said[11:13] == [config["mac"], "1"]
    assert int(said[13]) > 2500 << 10  # the root file system grew with the disk
    # the password is what was given
    crypt = cloud.ssh(vm, "sudo grep ^alice: /etc/shadow").split(":")[1]
    salt = crypt.split("$")[2]
    assert command("openssl", "passwd", "-6", "-salt", salt, PASSWORD).strip() == crypt


def test_plays_go_on_inside(cloud: Cloud, first: Result, playbook: Playbooks, tmp_path: Path) -> None:
    """Through the agent that distributions ship: facts, files, packages, services and another user, without ssh."""
    assert cloud.vm(state="started", wait_for="agent", timeout=BOOT)["vm"]["ready"]["condition"] == "agent"
    (tmp_path / "greeting.j2").write_text("hello {{ ansible_facts.hostname }}\n", encoding="utf-8")
    (tmp_path / "data").write_bytes(os.urandom(100_000))
    tasks: list[dict[str, Any]] = [
        {"name": "facts", "ansible.builtin.setup": {"gather_subset": ["!all", "min"]}},
        {"name": "copy", "ansible.builtin.copy": {"src": str(tmp_path / "data"), "dest": "/root/data"}},
        {"name": "template", "ansible.builtin.template": {"src": "greeting.j2", "dest": "/root/greeting"}},
        {"name": "package", "ansible.builtin.package": {"name": "bash", "state": "present"}},
        {"name": "service", "ansible.builtin.service": {"name": "ssh", "state": "restarted"}},
        {"name": "shell", "ansible.builtin.shell": "sha256sum < /root/data; cat /root/greeting"},
        {"name": "user", "ansible.builtin.command": "id -un", "become": True, "become_user": "alice"},
    ]
    inside = {"ansible_connection": "cocoon.microvm.guest", "cocoon_host": "hv1"}
    inside["ansible_python_interpreter"] = "/usr/bin/python3"
    hosts = {"hv1": {"ansible_connection": "local"}, "one": inside}
    places = {f"cocoon_{name}": path for name, path in cloud.store.items()}
    (tmp_path / "play.yml").write_text(json.dumps([{"hosts": "one", "gather_facts": False, "tasks": tasks}]))
    found = playbook(tmp_path / "play.yml", {"all": {"hosts": hosts}}, variables=places)
    facts = found.result("facts")["ansible_facts"]
    assert (facts["ansible_hostname"], facts["ansible_distribution"]) == ("one", "Debian")
    changed = [found.result(name).changed for name in ("copy", "template", "package", "service")]
    assert changed == [True, True, False, True]
    digest = hashlib.sha256((tmp_path / "data").read_bytes()).hexdigest()
    assert found.result("shell")["stdout_lines"] == [f"{digest}  -", "hello one"]
    assert found.result("user")["stdout"] == "alice"


def test_secrets_of_the_first_boot(cloud: Cloud, first: Result) -> None:
    """In files that only root or the VM's own user can read, and in no record or result. Public keys are none."""
    vm = first["vm"]
    uid = (cloud.folder(vm) / "overlay.qcow2").stat().st_uid
    modes = {path.name: (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) for path in cloud.folder(vm).iterdir()}
    assert modes["cidata.img"] == (0o400, uid) and modes["cidata.json"] == (0o400, 0)
    assert modes["OVMF_VARS.fd"] == (0o600, uid)
    hashed = json.loads((cloud.folder(vm) / "cidata.json").read_text(encoding="utf-8"))["password"]
    for text in (json.dumps(first), (cloud.folder(vm) / "vm.json").read_text(encoding="utf-8")):
        assert not [secret for secret in (PASSWORD, hashed, USER_DATA) if secret in text]


def test_saved_and_put_back(cloud: Cloud, first: Result) -> None:
    """A snapshot of a running VM has its firmware's variables, and the volume that it was told by."""
    vm = first["vm"]
    cloud.ssh(vm, "sync; sudo touch /run/before")
    taken = cloud.site.run("cocoon_snapshot", name="warm", vm="one")["snapshot"]
    assert {"OVMF_VARS.fd", "cidata.img", "overlay.qcow2", "mem"} <= set(taken["files"])
    cloud.ssh(vm, "sudo touch /run/after")
    # Its agent freezes what is on it, and what the hypervisor keeps of the disk's own tables is in the copy as well.
    alone = cloud.site.run("cocoon_snapshot", name="alone", vm="one", disks_only=True)["snapshot"]
    assert set(alone["files"]) == set(taken["files"]) - {"mem", "vmstate"} and alone["frozen"] is True
    copy = Path(cloud.site.run.defaults["root_dir"], "snapshots", alone["id"], "overlay.qcow2")
    disk = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(copy)}}
    command("qemu-img", "check", "-q", f"json:{json.dumps(disk)}")
    done = cloud.site.run("cocoon_snapshot", name="warm", vm="one", state="restored", run_timeout=BOOT)
    assert done.changed
    assert cloud.ssh(vm, "ls /run/before /run/after 2> /dev/null || true") == "/run/before"


def test_after_the_first_boot(cloud: Cloud, first: Result) -> None:
    """A clean shutdown is the end of what was given; later boots go without a volume, and know who they are."""
    stopped = cloud.vm(state="stopped", stop_timeout=120)["vm"]
    assert stopped["reason"] == "shut down"
    assert not {"cidata.img", "cidata.json"} & cloud.files(stopped)
    assert "OVMF_VARS.fd" in cloud.files(stopped)
    cloud.site.run("cocoon_snapshot", name="cold", vm="one")
    again = cloud.vm(state="started", wait_for="port", timeout=BOOT)["vm"]
    assert [item["serial"] for item in again["storage_configs"]] == ["cocoon-cow", "db", "blank"]
    said = cloud.ssh(
        again,
        "hostname; findmnt -no FSTYPE /mnt/db; sudo cloud-init query instance_id; cloud-init status | cut -d' ' -f2;"
        " sudo cloud-init query subplatform; wc -l < /var/boots; ip -4 -br address show eth0",
    ).split()
    config = again["network_configs"][0]
    address = ["eth0", "UP", f"{config['network']['ip']}/24"]
    assert said == ["one", "ext4", again["id"], "done", "seed-dir", "(ds_config)", "2", *address]
    cloud.vm(state="stopped", force=True)


def test_clone_of_disks_becomes_itself(cloud: Cloud, first: Result) -> None:
    clone = cloud.vm("two", snapshot="cold", network="lab", state="started", wait_for="port", timeout=BOOT)["vm"]
    assert clone["firmware"] == "uefi"
    config = clone["network_configs"][0]
    assert config["network"]["ip"] != first["vm"]["network_configs"][0]["network"]["ip"]
    said = cloud.ssh(clone, "hostname; cat /sys/class/net/eth0/address; sudo cloud-init query instance_id").split()
    assert said == ["two", config["mac"], clone["id"]]
    # it has said that it is done: the power may go
    assert "cidata.img" not in cloud.files(cloud.vm("two", state="stopped", force=True)["vm"])
    # It has never been given login data by us. Now it is, and takes them without taking itself for another machine.
    login = {"user": "dora", "password": PASSWORD, "ssh_keys": [cloud.key.public]}
    done = cloud.vm("two", state="started", wait_for="port", timeout=BOOT, **login)
    assert done["actions"] == ["set_login", "start"]
    said = cloud.ssh(done["vm"], "hostname; sudo cloud-init query instance_id; sudo grep ^dora: /etc/shadow", "dora")
    name, instance, shadow = said.split()
    crypt = shadow.split(":")[1]
    assert [name, instance] == ["two", clone["id"]]
    assert command("openssl", "passwd", "-6", "-salt", crypt.split("$")[2], PASSWORD).strip() == crypt
    assert not cloud.vm("two", state="started", **login).changed
    stopped = cloud.vm("two", state="stopped", force=True)["vm"]
    assert not {"cidata.img", "cidata.json"} & cloud.files(stopped)
    cloud.vm("two", state="absent", force=True)


def test_rebuilt(cloud: Cloud, first: Result) -> None:
    more = {"state": "stopped", "user": "alice", "user_data": USER_DATA + "# more\n", "password": PASSWORD}
    kept = cloud.vm(**more)
    warned = str(kept["warnings"])
    assert not kept.changed and "recreate: true" in warned and "user_data" in warned and "# more" not in warned
    done = cloud.vm(**{**more, "recreate": True, "user": "carol", "password": "another one"})
    assert done["actions"] == ["rebuild"]
    assert not {"cidata.img", "OVMF_VARS.fd"} & cloud.files(done["vm"])
    seed = json.loads((cloud.folder(done["vm"]) / "cidata.json").read_text(encoding="utf-8"))
    assert sorted(seed) == ["password", "user", "user_data", "word"] and seed["user"] == "carol"


def test_firmware_is_a_choice(cloud: Cloud, first: Result) -> None:
    other = {**VM, "memory": "64M", "cpu": 1}
    made = cloud.vm("bios", firmware="bios", **other)["vm"]
    assert made["firmware"] == "bios"
    assert cloud.vm("bios", state="started", **other)["vm"]["boot_config"] == {}
    assert "allow_restart" in cloud.vm("bios", ok=False, state="started", firmware="uefi")["msg"]
    again = cloud.vm("bios", state="started", firmware="uefi", allow_restart=True, force=True)["vm"]
    assert again["boot_config"]["firmware_path"] and "OVMF_VARS.fd" in cloud.files(again)
    cloud.vm("bios", state="absent", force=True)
