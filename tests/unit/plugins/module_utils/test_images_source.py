# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a file is, and what is remembered of it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pathlib
import struct
import tarfile

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._images import converging, detect, kinds, source, streams
from ansible_collections.cocoon.microvm.plugins.module_utils._images import store as images
from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import Wanted
from ansible_collections.cocoon.microvm.plugins.module_utils._state import Store


def tar(*names: str | tuple[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as target:
        for item in names:
            name, data = (item, b"") if isinstance(item, str) else item
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def qcow2(
    version: int = 3,
    backing: int = 0,
    size: int = 1 << 30,
    crypt: int = 0,
    features: int = 0,
    extension: bytes = b"",
    bits: int = 16,
) -> bytes:
    head = b"QFI\xfb" + struct.pack(">IQIIQI", version, backing, 10 if backing else 0, bits, size, crypt)
    head = head.ljust(72, b"\0")
    if version == 3:
        head += struct.pack(">QQQII", features, 0, 0, 4, 104)
    return (head + extension).ljust(65536, b"\0")


def kind(tmp_path: pathlib.Path, data: bytes) -> str:
    path = tmp_path / "looks-like.txt"
    path.write_bytes(data)
    with path.open("rb") as stream:
        return detect.detect(stream.fileno(), str(path)).kind


DESCRIPTION = """# Disk DescriptorFile
version=1
CID=38c4cf39
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW 8192 SPARSE "d.vmdk"

ddb.adapterType = "ide"
"""


def vmdk(text: str = DESCRIPTION, footer: bytes = b"", **changed: int) -> bytes:
    """A VMDK of 4 MiB, as far as it is looked at here; *footer* stands where the second header may be."""
    fields = {"version": 3, "flags": 0x30001, "capacity": 8192, "grain": 128, "place": 1, "sectors": 20}
    fields.update(entries=512, redundant=0, tables=26, overhead=128, unclean=0)
    fields.update({name: value for name, value in changed.items() if name in fields})
    ends = b"\n \r\n" if changed.get("ends", 1) else b"\n \n\n"
    head = b"KDMV" + struct.pack("<IIQQQQIQQQB4sH", *fields.values(), ends, changed.get("compression", 1))
    return head.ljust(512, b"\0") + text.encode().ljust(64 << 10, b"\0") + (footer or bytes(512)) + bytes(512)


def described(old: str, new: str) -> bytes:
    assert old in DESCRIPTION
    return vmdk(DESCRIPTION.replace(old, new))


MBR = bytes(510) + b"\x55\xaa" + bytes(512)
AT_END = (1 << 64) - 1
BIG = MBR + bytes(1 << 20)
LARGE_SECTORS = bytes(450) + b"\xee" + bytes(59) + b"\x55\xaa" + bytes(4096 - 512) + b"EFI PART" + bytes(20 * 4096 - 8)
OCI = ("blobs", "blobs/sha256", "blobs/sha256/" + "0" * 64, "index.json", "oci-layout")

KINDS = {
    "tar": (tar("./", "./etc", "./etc/passwd"), "tar"),
    "tar.gz": (gzip.compress(tar("etc", "etc/passwd")), "tar"),
    "oci": (tar(*OCI), "oci-archive"),
    "oci.gz": (gzip.compress(tar(*OCI)), "oci-archive"),
    "docker save": (
        tar("0" * 64 + ".json", "0" * 64 + "/", "0" * 64 + "/layer.tar", "manifest.json"),
        "docker-archive",
    ),
    "docker save of podman": (
        tar("0" * 64 + ".tar", "0" * 64 + ".json", "repositories", "manifest.json"),
        "docker-archive",
    ),
    "docker save of crane": (tar("sha256:" + "0" * 64, "1" * 64 + ".tar.gz", "manifest.json"), "docker-archive"),
    "docker save of jib": (tar("0" * 64 + ".tar.gz", "config.json", "manifest.json"), "docker-archive"),
    "oci with files that others put there": (tar("._blobs", *OCI, "README.md"), "oci-archive"),
    "a root that is one file": (tar("./", "init"), "tar"),
    "a root that begins with a file": (tar(".dockerenv", "index.json", "oci-layout", "bin/"), "tar"),
    "a root beside such names": (tar("0" * 64 + ".json", "manifest.json", "etc/passwd"), "tar"),
    "oci of docker save": (tar(*OCI, "manifest.json", "repositories"), "oci-archive"),
    "raw": (MBR, "raw"),
    "raw.gz": (gzip.compress(MBR), "packed-disk"),
    "a disk in a tar": (tar(("disk.raw", BIG)), "packed-disk"),
    "a disk in a tar.gz": (gzip.compress(tar("./", ("./disk.raw", BIG))), "packed-disk"),
    "a disk with a description": (tar(("a.ovf", b"text"), ("a.qcow2", qcow2()), ("a.mf", b"text")), "packed-disk"),
    "a disk in a folder": (tar("./", "./gce/", "./gce/images/", ("./gce/images/disk.raw", BIG)), "packed-disk"),
    "a folder of files": (tar("app/", "app/run", ("app/disk.raw", BIG)), "tar"),
    "a folder beside a disk": (tar("app/", ("disk.raw", BIG)), "tar"),
    "folders and nothing in them": (tar("app/", "app/data/"), "tar"),
    "a small raw disk in a tar": (tar(("boot.img", MBR)), "tar"),
    "a kernel in a tar": (tar(("vmlinuz", BIG[:0x202] + b"HdrS" + BIG[0x206:])), "tar"),
    "a root with a disk in it": (tar("usr/", ("disk.raw", BIG)), "tar"),
    "large sectors beside small ones": (LARGE_SECTORS[:512] + b"EFI PART" + LARGE_SECTORS[520:], "raw"),
    "qcow2": (qcow2(), "qcow2"),
    "old qcow2": (qcow2(version=2), "qcow2"),
    "vmdk": (vmdk(), "vmdk"),
    "vmdk without compression": (
        vmdk(DESCRIPTION.replace("streamOptimized", "monolithicSparse"), flags=3, compression=0),
        "vmdk",
    ),
    "vmdk with its tables at the end": (vmdk(tables=AT_END, footer=vmdk()[:512]), "vmdk"),
    "vmdk with lines of Windows": (vmdk(DESCRIPTION.replace("\n", "\r\n")), "vmdk"),
    "compressed vmdk": (gzip.compress(vmdk()), "packed-disk"),
    "ova": (tar(("d.ovf", b"text"), ("d.vmdk", vmdk() + bytes(1 << 20)), ("d.mf", b"text")), "packed-disk"),
    "small ova": (tar(("d.ovf", b"text"), ("d.vmdk", vmdk())), "packed-disk"),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str, tmp_path: pathlib.Path) -> None:
    data, expected = KINDS[name]
    assert kind(tmp_path, data) == expected


DATA_FILE = struct.pack(">II", 0x44415441, 8) + b"/etc/sec"
OTHER_EXTENSION = struct.pack(">II", 0x6803F857, 8) + bytes(8)

REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"hello world\n" * 1000, "no kind that is known"),
    "zeros": (bytes(1 << 20), "needs a boot sector"),
    "page": (b"<!DOCTYPE html><html>404</html>", "a web page"),
    "empty vmdk": (b"KDMV" + bytes(1000), "damaged VMDK header"),
    "short vmdk": (vmdk()[:300], "cut short"),
    "vmdk of an old kind": (b"COWD" + bytes(1000), "a VMDK disk of an old kind. Convert it"),
    "vmdk that is only a description": (DESCRIPTION.encode(), "whose data is in other files. Convert it"),
    "compressed description of a vmdk": (gzip.compress(DESCRIPTION.encode() * 9), "whose data is in other files"),
    "vmdk of version 4": (vmdk(version=4), "damaged VMDK header"),
    "vmdk of no size, which qemu-img takes for a description": (vmdk(capacity=0), "damaged VMDK header"),
    "huge vmdk": (vmdk(capacity=(64 << 40) // 512 + 1), "damaged VMDK header"),
    "vmdk with odd grains": (vmdk(grain=129), "damaged VMDK header"),
    "vmdk with huge grains": (vmdk(grain=1 << 40), "damaged VMDK header"),
    "vmdk with odd tables": (vmdk(entries=1 << 31), "damaged VMDK header"),
    "vmdk through a text mode": (vmdk(ends=0), "damaged VMDK header"),
    "vmdk compressed by nobody knows what": (vmdk(compression=2), "damaged VMDK header"),
    "vmdk that says twice how it is compressed": (vmdk(compression=0), "damaged VMDK header"),
    "vmdk without a description": (vmdk(place=0, sectors=0), "a part of a VMDK disk"),
    "vmdk with its description elsewhere": (vmdk(place=30), "a part of a VMDK disk"),
    "vmdk without its end": (vmdk(tables=AT_END), "cut short"),
    "vmdk with a larger end": (vmdk(tables=AT_END, footer=vmdk(capacity=1 << 40)[:512]), "cut short"),
    "vmdk with a parent": (described("=ffffffff", "=38c4cf39"), "a difference to another disk"),
    "vmdk with a parent's name": (described("ddb", 'parentFileNameHint="/etc/shadow"\nddb'), "a difference to another"),
    "vmdk with a parent's name behind its description": (
        vmdk(DESCRIPTION + '\0parentFileNameHint="/etc/shadow"'),
        "a difference to another",
    ),
    "vmdk of another type": (described("streamOptimized", "twoGbMaxExtentSparse"), "the type 'twogbmaxextentsparse'"),
    "vmdk of two types": (described("\n\n#", '\ncreateType="vmfs"\n\n#'), "the type 'streamoptimized, vmfs'"),
    "vmdk of no type": (described("createType", "created"), "of the type 'unknown'"),
    "encrypted vmdk": (described("ddb", 'encryption.keySafe = "vmware:key"\nddb'), "is encrypted"),
    "vmdk with another file": (described('SPARSE "d.vmdk"', 'FLAT "/etc/shadow" 0'), "in another file of the host"),
    "vmdk with a file elsewhere": (described('"d.vmdk"', '"/etc/shadow"'), "in another file of the host"),
    "vmdk with a device": (described('SPARSE "d.vmdk"', 'VMFSRDM "disk"'), "in another file of the host"),
    "vmdk in two files": (described("\n\nddb", '\nRW 8192 SPARSE "e.vmdk"\n\nddb'), "its data in 2 files"),
    "vmdk in no file": (described("RW 8192", "8192"), "its data in 0 files"),
    "vhdx": (b"vhdxfile" + bytes(1000), "a VHDX disk"),
    "compressed text": (gzip.compress(b"x" * 9000), "with gzip, and what is in it is neither a tar nor a disk"),
    "compressed twice": (gzip.compress(gzip.compress(MBR)), "is compressed twice"),
    "compressed vhdx": (gzip.compress(b"vhdxfile" + bytes(1000)), "in it is a VHDX disk. Unpack the disk"),
    "tar of a vdi": (tar(("d.ovf", b"text"), ("d.vdi", b"<<< " + bytes(1 << 20))), "d.vdi in it is a VDI disk. Unpack"),
    "large sectors": (LARGE_SECTORS, "for sectors of 4096 bytes"),
    "odd size": (MBR + b"x", "no kind that is known"),
    "half a docker save": (tar("0" * 64 + ".json", "0" * 64 + "/layer.tar"), "nor an archive of images"),
    "half a layout": (tar("index.json"), "neither a root file system nor an archive of images"),
    "nothing in it": (gzip.compress(b""), "neither a tar nor a disk"),
    "backing file": (qcow2(backing=512), "has a backing file"),
    "data file": (qcow2(features=4), "keeps its data in another file"),
    "data file name": (qcow2(extension=OTHER_EXTENSION + DATA_FILE), "keeps its data in another file"),
    "data file name, old": (qcow2(version=2, extension=DATA_FILE), "keeps its data in another file"),
    "encrypted": (qcow2(crypt=1), "is encrypted"),
    "corrupt": (qcow2(features=2), "marked corrupt"),
    "from the future": (qcow2(features=1 << 40), "needs a newer qemu-img"),
    "version 1": (qcow2(version=1), "damaged qcow2 header"),
    "size 0": (qcow2(size=0), "damaged qcow2 header"),
    "huge": (qcow2(size=1 << 60), "damaged qcow2 header"),
    "clusters": (qcow2(bits=60), "damaged qcow2 header"),
    "short": (b"QFI\xfb\0\0\0\3", "cut short"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: pathlib.Path) -> None:
    data, message = REFUSED[name]
    with pytest.raises(CocoonError, match=message) as caught:
        kind(tmp_path, data)
    assert caught.value.option == "source"
    assert caught.value.remedy


def test_harmless_extensions_are_fine(tmp_path: pathlib.Path) -> None:
    assert kind(tmp_path, qcow2(extension=OTHER_EXTENSION)) == "qcow2"


@pytest.fixture(name="paths")
def fixture_paths(tmp_path: pathlib.Path) -> Paths:
    paths = Paths(str(tmp_path / "root"), str(tmp_path / "run"), str(tmp_path / "log"))
    images.make_directories(Store.open(paths).paths)
    return paths


def settled(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the file had been there for a second."""
    later = path.stat().st_ctime_ns + 1_000_000_000
    monkeypatch.setattr(source.time, "time_ns", lambda: later)


def examine(paths: Paths, path: pathlib.Path, **options: object) -> source.Sources:
    arguments = {"kernel": None, "initrd": None, "checksum": None, "tag": None, "remember": True, **options}
    return source.examine(paths, str(path), **arguments)  # type: ignore[arg-type]


def test_a_source_is_read_once(paths: Paths, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(tar("etc"))
    settled(path, monkeypatch)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert examine(paths, path).image_id == f"sha256:{digest}"
    reads = []
    real = streams.file_digest
    monkeypatch.setattr(streams, "file_digest", lambda fd, *told: reads.append(fd) or real(fd, *told))
    assert examine(paths, path).main == kinds.RootTar(str(path), digest, digest)
    assert not reads
    examine(paths, path, force=True)
    assert len(reads) == 1
    path.write_bytes(tar("usr"))
    assert examine(paths, path).image_id != f"sha256:{digest}"
    assert len(reads) == 2


def test_same_size_and_time_but_another_file(
    paths: Paths, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(tar("etc"))
    settled(path, monkeypatch)
    first = examine(paths, path)
    times = path.stat()
    other.write_bytes(tar("usr"))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    assert examine(paths, path).image_id != first.image_id


def test_a_file_just_written_is_not_trusted(
    paths: Paths, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(tar("etc"))
    monkeypatch.setattr(source.time, "time_ns", lambda: path.stat().st_ctime_ns + 1000)
    examine(paths, path)
    assert os.listdir(images.directory(paths, "sources")) == []


def test_check_mode_remembers_nothing(paths: Paths, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(tar("etc"))
    settled(path, monkeypatch)
    examine(paths, path, remember=False)
    assert os.listdir(images.directory(paths, "sources")) == []


def test_kernel_and_initrd_make_another_image(paths: Paths, tmp_path: pathlib.Path) -> None:
    path, kernel, initrd = tmp_path / "a", tmp_path / "k", tmp_path / "i"
    path.write_bytes(tar("etc"))
    kernel.write_bytes(b"kernel")
    initrd.write_bytes(b"initrd")
    plain = examine(paths, path)
    both = examine(paths, path, kernel=str(kernel), initrd=str(initrd))
    swapped = examine(paths, path, kernel=str(initrd), initrd=str(kernel))
    assert len({plain.image_id, both.image_id, swapped.image_id}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "k"}, "initrd: kernel and initrd belong together"),
        ({"initrd": "k"}, "kernel: kernel and initrd belong together"),
        ({"kernel": "missing", "initrd": "k"}, "kernel: .*missing does not exist"),
        ({"kernel": "k", "initrd": "empty"}, "initrd: .*empty is empty"),
        ({"kernel": "folder", "initrd": "k"}, "kernel: .*folder is not a regular file"),
        ({"checksum": "md5:1234"}, "checksum: 'md5:1234' is not a checksum"),
        ({"checksum": "sha256:" + "0" * 64}, "checksum: .* has sha256:"),
    ],
)
def test_bad_options(paths: Paths, tmp_path: pathlib.Path, options: dict[str, str], message: str) -> None:
    (tmp_path / "a").write_bytes(tar("etc"))
    (tmp_path / "k").write_bytes(b"kernel")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    absolute = {key: str(tmp_path / value) if key != "checksum" else value for key, value in options.items()}
    with pytest.raises(CocoonError, match=message):
        examine(paths, tmp_path / "a", **absolute)


def test_a_checksum_that_fits(paths: Paths, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_bytes(tar("etc"))
    digest = hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    assert examine(paths, tmp_path / "a", checksum=f"SHA256:{digest.upper()}").main.digest == digest


def test_a_disk_takes_no_kernel(paths: Paths, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_bytes(MBR)
    (tmp_path / "k").write_bytes(b"kernel")
    with pytest.raises(CocoonError, match="kernel: a disk image boots from its own disk"):
        examine(paths, tmp_path / "a", kernel=str(tmp_path / "k"), initrd=str(tmp_path / "k"))


def test_missing_and_odd_sources(paths: Paths, tmp_path: pathlib.Path) -> None:
    with pytest.raises(CocoonError, match="source: .*nothing does not exist"):
        examine(paths, tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CocoonError, match="not an OCI layout"):
        examine(paths, tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CocoonError, match="not a regular file"):
        examine(paths, tmp_path / "pipe")


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_store_below_a_closed_folder(tmp_path: pathlib.Path, check_mode: bool) -> None:
    """The folder is blamed, as by the host's doctor, and not the first tool that does not get there."""
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    (tmp_path / "a").write_bytes(tar("etc"))
    paths = Paths(*(str(closed / "deep" / name) for name in ("root", "run", "log")))
    wanted = Wanted("web", source=str(tmp_path / "a"))
    with pytest.raises(InputError, match="root_dir: .* is closed to other users. Run chmod o.x") as caught:
        converging.converge(paths, wanted, check_mode)
    assert caught.value.option == "root_dir"
