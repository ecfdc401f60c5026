# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests with real guests, and the check that a session gives back all that it took.

netns         a network namespace of the session; make_netns makes more.
store_dirs    root_dir, run_dir and log_dir of a store that the session shares; make_store makes fresh ones.
module        runs one module in the session's namespace and store; modules makes runners for others.
playbook      runs ansible-playbook in the session's namespace.
newer         an mkfs.erofs that takes tars.
tiny_image    the tar of the small guest image, built once by the role image without a network; also debian_image.
lab           a store of the file's own with the small image, to run guests in.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._images import erofs
from ansible_collections.cocoon.microvm.tests.integration.support import images, leaks
from ansible_collections.cocoon.microvm.tests.integration.support.lab import Lab, make_lab
from ansible_collections.cocoon.microvm.tests.integration.support.machine import (
    PREFIX,
    TOKEN,
    WORK,
    Netns,
    command,
)
from ansible_collections.cocoon.microvm.tests.integration.support.machine import (
    make_netns as add_netns,
)
from ansible_collections.cocoon.microvm.tests.integration.support.running import Modules, Playbooks

HERE = Path(__file__).resolve().parent
NEEDS_TAR = "needs erofs-utils 1.8 or newer, as older ones take no tar: run `make setup`"
NEEDS_ROOT = "needs root: it makes network namespaces, TAPs and processes of other users"


# Few tests that take long: begun first, so that no worker is left alone with them at the end.
LONG = ("rollouts", "cloud_images", "cloud_init", "systemd", "roles_guests", "ways_out", "installed", "guest_images")


def pytest_configure(config: pytest.Config) -> None:
    """Mark this session's processes, so that what they leave can be told apart.

    Where several workers share the tests, each looks after its own, and who leads them after the whole machine.
    """
    os.environ[TOKEN[0]] = TOKEN[1]
    if os.geteuid() == 0 and getattr(config.option, "numprocesses", None):
        config.pluginmanager.register(WholeMachine(), "cocoon-leaks")


class WholeMachine:
    """Compares the machine before the first and after the last worker."""

    def __init__(self) -> None:
        self.before = leaks.snapshot()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """The workers have ended by now."""
        found = leaks.left(self.before, strict=strict())
        if found:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            print("\nERROR: the tests left behind:\n  " + "\n  ".join(found))


def strict() -> bool:
    """Whether nothing but these tests changes the machine, so that all that is new was left by them."""
    return os.environ.get("COCOON_LEAKS") == "strict"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files, and say plainly why nothing runs for an ordinary user."""
    order = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))
    if os.geteuid() == 0:
        return
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.skip(reason=NEEDS_ROOT))


@pytest.fixture(scope="session", autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare the machine before the first and after the last test. Made first, so it is the last to end."""
    if os.geteuid():
        yield
        return
    before = leaks.snapshot()
    yield
    alone = not hasattr(request.config, "workerinput")
    found = leaks.left(before, strict=strict() and alone)
    leaks.clean()
    assert not found, "the tests left behind:\n  " + "\n  ".join(found)


@pytest.fixture(scope="session")
def scratch(nothing_left: None) -> Iterator[Path]:
    """A folder on disk, not in memory, that other users can pass through and that goes with the session."""
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-", dir="/var/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def make_netns(nothing_left: None) -> Iterator[Callable[[], Netns]]:
    """Makes network namespaces, which go with the session."""
    made: list[Netns] = []

    def make() -> Netns:
        # A few characters: interface and bridge names are derived from it in some tests.
        made.append(add_netns(PREFIX if not made else f"{PREFIX}-{len(made)}"))
        return made[-1]

    yield make
    for netns in made:
        command("ip", "netns", "del", netns.name, check=False)


@pytest.fixture(scope="session")
def netns(make_netns: Callable[[], Netns]) -> Netns:
    """The session's own network namespace."""
    return make_netns()


@pytest.fixture(scope="session")
def make_store(scratch: Path) -> Iterator[Callable[[], dict[str, str]]]:
    """Makes the three folders of a new store."""
    made: list[Path] = []

    def make() -> dict[str, str]:
        # Short: the path of a unix socket ends after 107 characters.
        folder = Path(tempfile.mkdtemp(prefix="s", dir=scratch))
        folder.chmod(0o711)
        made.append(folder)
        return {f"{name}_dir": str(folder / name) for name in ("root", "run", "log")}

    yield make
    for folder in made:
        # The memory of a store's guests is a mount that stays as long as the store. With a guest's file in it, it has
        # been left behind.
        ram = folder / "run" / "ram"
        if ram.is_mount() and not any(ram.iterdir()):
            command("umount", ram)


@pytest.fixture(scope="session")
def store_dirs(make_store: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The store that the session shares: root_dir, run_dir and log_dir, ready to be passed to a module."""
    return make_store()


@pytest.fixture(scope="session")
def modules(scratch: Path) -> Callable[..., Modules]:
    """Makes module runners: modules(netns, store_dirs)."""

    def make(netns: Netns | None, defaults: dict[str, str]) -> Modules:
        return Modules(netns, defaults, scratch)

    return make


@pytest.fixture(scope="session")
def module(modules: Callable[..., Modules], netns: Netns, store_dirs: dict[str, str]) -> Modules:
    """Runs one module in the session's namespace and store."""
    return modules(netns, store_dirs)


@pytest.fixture(scope="session")
def playbook(netns: Netns, scratch: Path, store_dirs: dict[str, str]) -> Playbooks:
    """Runs ansible-playbook in the session's namespace; the store's folders are the variables cocoon_root_dir, ..."""
    return Playbooks(netns, scratch, {f"cocoon_{name}": path for name, path in store_dirs.items()})


@pytest.fixture(scope="session")
def tiny_image(scratch: Path) -> Path:
    """The tar of the tiny guest image. Kept in .work/ under a digest of the role that builds it."""
    return images.built("tiny", scratch)


@pytest.fixture(scope="session")
def debian_image(scratch: Path) -> Path:
    """The tar of the Debian guest image: systemd, sshd, Python."""
    return images.built("debian", scratch)


@pytest.fixture(scope="module")
def lab(
    make_netns: Callable[[], Netns],
    make_store: Callable[[], dict[str, str]],
    modules: Callable[..., Modules],
    tiny_image: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    """A file's own store with the tiny image; those of other images make theirs."""
    with make_lab(make_netns(), make_store(), modules, tiny_image, tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="session", name="newer")
def fixture_newer(scratch: Path) -> str:
    """An mkfs.erofs that takes tars, where the user without rights may go that runs it."""
    fetched, place = WORK / "tools", scratch / "newer"
    found = shutil.which("mkfs.erofs")
    if (fetched / "mkfs.erofs").exists():
        shutil.copytree(fetched / "erofs" / "usr", place / "erofs" / "usr", symlinks=True)
        found = str(shutil.copy(fetched / "mkfs.erofs", place))
    if not found or not erofs.takes_tar(found):
        pytest.skip(NEEDS_TAR)
    return found
