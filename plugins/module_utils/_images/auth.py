# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a registry is spoken to: credentials, certificates, TLS. Nothing of it is ever in a command line or on a disk."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import stat
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError

MAX_FILE = 4 << 20
CERTIFICATE_RE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Access:
    """Options of a task about its registry; secrets do not show in a ``repr``."""

    user: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    auth_file: str | None = None
    ca_path: str | None = None
    validate_certs: bool = True
    mirror: str | None = None

    @property
    def option(self) -> str:
        """The option to blame if the registry says no."""
        return "auth_file" if self.auth_file else "registry_user"

    @property
    def anonymous(self) -> bool:
        return self.user is None and self.auth_file is None

    def credentials(self, host: str) -> bytes:
        """An auth file as Docker and Podman know it, with no more in it than needed.

        :param host: of the registry or mirror that is asked.
        :raises InputError: the options or the user's own auth file are of no use.
        """
        auths: dict[str, t.Any] = {}
        if self.auth_file is not None:
            auths = _auths(self.auth_file)
        elif self.user is not None:
            if self.password is None:
                raise InputError("a user without a password", "registry_password", "Give both.")
            if ":" in self.user or not self.user:
                raise InputError("is empty or has a colon in it", "registry_user", "Correct the name.")
            pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            auths = {host: {"auth": pair}}
        return json.dumps({"auths": auths}).encode()

    def certificates(self) -> bytes | None:
        """The certificates of ``ca_path``: a PEM file, or a directory of such.

        :raises InputError: there are none.
        """
        if self.ca_path is None:
            return None
        paths = [self.ca_path]
        if os.path.isdir(self.ca_path):
            names = sorted(os.listdir(self.ca_path))
            paths = [os.path.join(self.ca_path, name) for name in names if name.endswith((".crt", ".pem"))]
        found = [piece for path in paths for piece in CERTIFICATE_RE.findall(_read(path, "ca_path"))]
        if not found:
            raise InputError(
                f"{self.ca_path} has no certificate", "ca_path", "Give a PEM file, or a directory of them."
            )
        return b"\n".join(found) + b"\n"


def _read(path: str, option: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}", option, "Give a path on the target host.") from exc
    with open(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InputError(f"{path} is not a regular file", option)
        data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise InputError(f"{path} is too large", option)
    return data


def _auths(path: str) -> dict[str, t.Any]:
    """The credentials in an auth file; helpers that it names are programs, and are not run."""
    try:
        auths = json.loads(_read(path, "auth_file")).get("auths", {})
        good = isinstance(auths, dict) and all(isinstance(item, dict) for item in auths.values())
    except (ValueError, AttributeError, RecursionError):
        good = False
    if not good:
        raise InputError(f"{path} is not an auth file", "auth_file", "Make one with 'podman login --authfile'.")
    found = {host: {"auth": item["auth"]} for host, item in auths.items() if isinstance(item.get("auth"), str)}
    if not found:
        raise InputError(
            f"{path} has no credentials in it",
            "auth_file",
            "Those in a credential helper are out of reach: use 'podman login --authfile', or registry_user.",
        )
    return found
