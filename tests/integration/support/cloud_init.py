# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's cloud-init of a release, unpacked and not installed, and what it makes of user-data.

As a program: reads a list of user-data from its input, with cloud-init on its path; writes what `Reading` has of each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("cloud-init", "python3-configobj", "python3-json-pointer", "python3-jsonpatch")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MODULES = "usr/lib/python3/dist-packages"


@dataclass
class Reading:
    """What cloud-init makes of user-data: the parts by type and text, its config, and the accounts in that."""

    parts: list[tuple[str, str]]
    config: dict[str, Any]
    users: dict[str, dict[str, Any]]


def fetched(suite: str, target: Path) -> Path:
    """The tree of cloud-init in *suite*, fetched by apt with lists of its own unless it is there.

    :raises OSError, subprocess.SubprocessError: there is no apt, or it cannot fetch.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cloud-init-", dir=target.parent) as name:
        folder = Path(name)
        for path in ("lists/partial", "cache/archives/partial", "parts", "debs", "tree"):
            (folder / path).mkdir(parents=True)
        (folder / "status").touch()
        sources = folder / "sources.list"
        sources.write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {suite} main\n", encoding="utf-8")
        options = {
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": folder / "parts",
            "Dir::State::Lists": folder / "lists",
            "Dir::State::Status": folder / "status",
            "Dir::Cache": folder / "cache",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
        for words in (["update"], ["download", *PACKAGES]):
            subprocess.run([*apt, *words], cwd=folder / "debs", check=True, capture_output=True, timeout=300)
        for deb in (folder / "debs").glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb, folder / "tree"], check=True, capture_output=True, timeout=60)
        shutil.move(folder / "tree", target)
    return target


def read(tree: Path, texts: Sequence[bytes]) -> list[Reading]:
    """What cloud-init of that tree makes of each user-data; in one process, as it takes seconds to load."""
    env = {**os.environ, "PYTHONPATH": str(tree / MODULES)}
    given = json.dumps([text.decode() for text in texts]).encode()
    done = subprocess.run(
        [sys.executable, __file__], input=given, env=env, capture_output=True, check=False, timeout=300
    )
    assert not done.returncode, done.stderr.decode()
    return [
        Reading([tuple(part) for part in found["parts"]], found["config"], found["users"])
        for found in json.loads(done.stdout)
    ]


class Distro:
    """One whose images have an account already."""

    @staticmethod
    def get_default_user() -> dict[str, Any]:
        """As cloud-init asks for it."""
        return {"name": "debian"}


def one(text: str) -> dict[str, Any]:
    """What cloud-init makes of one user-data."""
    from cloudinit import helpers  # type: ignore[import-not-found]
    from cloudinit import user_data as processing
    from cloudinit.distros import ug_util  # type: ignore[import-not-found]
    from cloudinit.handlers.cloud_config import CloudConfigPartHandler  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        paths = helpers.Paths({"cloud_dir": folder, "run_dir": folder})
        handler = CloudConfigPartHandler(paths)
        parts = []
        for part in processing.UserDataProcessor(paths).process(text.encode()).walk():
            if part.get_content_maintype() == "multipart":
                continue
            kind, content = part.get_content_type(), part.get_payload(decode=True).decode()
            parts.append((kind, content))
            if kind in ("text/cloud-config", "text/cloud-config-jsonp"):
                handler.handle_part(None, kind, part.get_filename(), content, "always", part)
    users = ug_util.normalize_users_groups(json.loads(json.dumps(handler.cloud_buf)), Distro())[0]
    return {"parts": parts, "config": handler.cloud_buf, "users": users}


if __name__ == "__main__":
    json.dump([one(text) for text in json.load(sys.stdin)], sys.stdout)
