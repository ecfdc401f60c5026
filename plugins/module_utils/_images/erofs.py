# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""EROFS blobs made of layers.

erofs-utils 1.8 or newer read a tar. Older ones (Debian 12 has 1.5) know none, and 1.7 damages what it reads from one:
there the layer is unpacked first, and the tree is converted.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
import tempfile
import threading
import typing as t
import uuid

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import ToolError
from ansible_collections.cocoon.microvm.plugins.module_utils._process import run_tool

MKFS = "mkfs.erofs"
PACKAGE = "erofs-utils"
TAR_VERSION = (1, 8)
OPTIONS = ("-zlz4hc", "-C4096", "-T0")
TIMEOUT = 3600.0
REMEDY = "Nothing of it was kept. Run the task again; if it stays, update erofs-utils or build the image again."
# It works for minutes: if we are killed, so is it.
WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def layer_uuid(digest: str) -> str:
    """The volume's UUID, made of the layer's digest so that two conversions are equal byte for byte."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"sha256:{digest}"))


@functools.cache
def takes_tar(mkfs: str) -> bool:
    """Whether the installed erofs-utils converts a tar rightly.

    :raises ToolError: there is none.
    """
    if not shutil.which(mkfs):
        raise ToolError(f"{mkfs} is not installed", remedy=f"Install {PACKAGE}, or run the role cocoon.microvm.host.")
    # Old ones know no --version, complain, and name their version all the same.
    text = run_tool([mkfs, "--version"], package=PACKAGE, ok=range(256)).decode(errors="replace")
    match = re.search(r"([0-9]+)\.([0-9]+)", text)
    if not match:
        said = " ".join(text[:80].split())
        raise ToolError(f"{mkfs} tells no version: '{said}'", remedy=f"Install {PACKAGE} 1.5 or newer.")
    return (int(match.group(1)), int(match.group(2))) >= TAR_VERSION


def convert_tree(tree: str, target: str, digest: str) -> None:
    """An EROFS file made of an unpacked tree."""
    try:
        run_tool([*WITH_US, MKFS, *OPTIONS, f"-U{layer_uuid(digest)}", target, tree], timeout=TIMEOUT, package=PACKAGE)
    except ToolError as exc:
        exc.remedy = exc.remedy or REMEDY
        raise


@contextlib.contextmanager
def convert_stream(target: str, scratch: str, digest: str, uid: int) -> t.Iterator[t.Callable[[bytes], object]]:
    """Gives a function that takes the bytes of a tar; when the block ends well they are an EROFS file.

    :param target: an empty file of *uid*.
    :param scratch: a directory of *uid*; mkfs.erofs keeps the data there until it has seen it all.
    :param uid: who parses the tar, somebody without any rights.
    """
    command = [*WITH_US, MKFS, "--tar=f", "--aufs", *OPTIONS, f"-U{layer_uuid(digest)}", target]
    environment = {"PATH": SEARCH, "LC_ALL": "C", "TMPDIR": scratch}
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(  # pylint: disable=ansible-bad-function  # it is fed a stream
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            user=uid,
            group=uid,
            extra_groups=[],
        ) as process:
            gave_up = False
            with _limited(process), _quietly_closed(t.cast(t.IO[bytes], process.stdin)) as feed:
                try:
                    yield feed.write
                except BrokenPipeError:
                    gave_up = True  # whatever its return code says: not all of the tar was read
        if process.returncode or gave_up:
            output.seek(0)
            tail = output.read(65536).decode(errors="replace").strip().splitlines()[-5:]
            raise ToolError(f"mkfs.erofs failed ({process.returncode}): {' | '.join(tail)}", remedy=REMEDY)


@contextlib.contextmanager
def _limited(process: subprocess.Popen[bytes]) -> t.Iterator[None]:
    """Wait for *process*, not for ever; kill it if the block fails."""
    watchdog = threading.Timer(TIMEOUT, process.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
        process.wait()
    except BaseException:
        process.kill()
        raise
    finally:
        watchdog.cancel()


@contextlib.contextmanager
def _quietly_closed(feed: t.IO[bytes]) -> t.Iterator[t.IO[bytes]]:
    """What is still buffered for a process that is gone is nobody's concern."""
    try:
        yield feed
    finally:
        with contextlib.suppress(BrokenPipeError):
            feed.close()
