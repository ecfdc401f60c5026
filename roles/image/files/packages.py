# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What fetching and building share: the manifest of a recipe and the packages that it names."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    value = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            value.update(block)
    return value.hexdigest()


def common_options(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cache", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--key", required=True, help="name of the manifest")
    return parser


def read_manifest(cache: Path, key: str) -> dict:
    return json.loads((cache / f"{key}.json").read_text())


def verified(cache: Path, manifest: dict) -> list[Path]:
    """The manifest's packages, compared with the digests taken when apt had just verified them."""
    paths = []
    for item in manifest["debs"]:
        path = cache / "debs" / item["file"]
        if not path.is_file() or digest(path) != item["sha256"]:
            raise SystemExit(f"{path} is missing or damaged: fetch the packages again (image_refresh: true)")
        paths.append(path)
    return paths
