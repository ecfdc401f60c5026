# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""skopeo, as a process without rights: what registries say is parsed by it first, and verified here afterwards.

It gets credentials and certificates through memory that goes with it (memfd): no file, no argument, no variable.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    NotFoundError,
    ResourceError,
    ToolError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images.auth import Access

ANSWER_TIMEOUT = 60.0
TAGS_TIMEOUT = 10.0
TAGS_SHOWN = 8
# It works for minutes: if we are killed, so is it.
WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What a task sets with `environment` to get through a proxy.
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class RegistryError(ToolError):
    """A registry cannot be reached, refuses, or breaks off; another try may go on where this one ended."""


class SpoiledError(RegistryError):
    """A registry sent other bytes than it promised: whatever else came from it is not worth keeping."""


class Skopeo:
    """Asks one registry, as user *uid*."""

    def __init__(self, access: Access, repository: str, uid: int, name: str) -> None:
        """
        :param repository: ``host/repository``, that of the mirror if there is one.
        :param uid: somebody without any rights.
        :param name: what to call the image in messages.
        """
        self._access = access
        self._repository = repository
        self._host = repository.partition("/")[0]
        self._uid = uid
        self._name = name
        self._asking_for_tags = False

    def raw(self, suffix: str) -> bytes:
        """The manifest or index of ``:tag`` or ``@sha256:…``, byte for byte."""
        return self._ask("inspect", "--raw", *self._tls(""), f"docker://{self._repository}{suffix}")

    def config(self, suffix: str) -> bytes:
        """The config of an image, byte for byte."""
        return self._ask("inspect", "--config", "--raw", *self._tls(""), f"docker://{self._repository}{suffix}")

    @contextlib.contextmanager
    def copying(self, suffix: str, layout: str, blobs: str, largest: int) -> t.Iterator[Copy]:
        """Layers on their way into *blobs*, several at once; each gets its name when its digest is verified.

        :param layout: a directory of the user's, for what is not complete.
        :param largest: bytes that a file may have.
        """
        words = [*WITH_US, "prlimit", f"--fsize={largest}", "--", "skopeo", "copy", "--quiet", "--retry-times=1"]
        words.append("--remove-signatures")  # they are checked if the host's policy says so; a layout has no place
        words += ["--dest-oci-accept-uncompressed-layers", f"--dest-shared-blob-dir={blobs}", *self._tls("src-")]
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(tempfile.TemporaryFile())
            process = stack.enter_context(
                self._start(
                    [*words, f"docker://{self._repository}{suffix}", f"oci:{layout}:image"],
                    stdout=output,
                    stderr=output,
                )
            )
            stack.callback(process.kill)
            yield Copy(process, output, self._failure)

    def _tls(self, prefix: str) -> list[str]:
        return [] if self._access.validate_certs else [f"--{prefix}tls-verify=false"]

    def _ask(self, *words: str, timeout: float = ANSWER_TIMEOUT) -> bytes:
        with self._start(["skopeo", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise RegistryError(
                    f"registry {self._host} does not answer", "source", "See whether the host reaches it."
                ) from None
        if process.returncode:
            raise self._failure(err.decode(errors="replace"))
        return out

    def _start(self, words: list[str], **streams: t.Any) -> subprocess.Popen[bytes]:
        if not shutil.which("skopeo", path=PATH):
            raise ToolError("skopeo is not installed", remedy="Install skopeo, or run the role cocoon.microvm.host.")
        environment = {"PATH": PATH, "LC_ALL": "C", "HOME": "/nonexistent", "TMPDIR": "/var/tmp"}
        environment.update({name: os.environ[name] for name in PROXIES if name in os.environ})
        certificates = self._access.certificates()
        with contextlib.ExitStack() as stack:
            auth = self._secret(stack, self._access.credentials(self._host))
            fds = [auth]
            if certificates is not None:
                fds.append(self._secret(stack, certificates))
                environment["SSL_CERT_FILE"] = f"/proc/self/fd/{fds[-1]}"  # beside those in the system's directories
            place = words.index("skopeo") + 2
            return subprocess.Popen(  # pylint: disable=ansible-bad-function  # there is no AnsibleModule here
                [*words[:place], f"--authfile=/proc/self/fd/{auth}", *words[place:]],
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                pass_fds=fds,
                user=self._uid,
                group=self._uid,
                extra_groups=[],
                **streams,
            )

    def _secret(self, stack: contextlib.ExitStack, data: bytes) -> int:
        """Memory that looks like a file to skopeo, and is gone when it has ended and we have closed it."""
        fd = os.memfd_create("registry", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        os.write(fd, data)
        os.fchmod(fd, 0o400)
        os.fchown(fd, self._uid, self._uid)
        return fd

    def _failure(self, text: str) -> CocoonError:
        """What skopeo complains about, in terms of options."""
        reason = _reason(text)
        for pattern, make in FAILURES:
            if pattern.search(text):
                return make(self, reason)
        return RegistryError(f"{self._name} cannot be fetched: {reason}", "source", "See whether the host reaches it.")

    def unknown(self, _reason: str) -> CocoonError:
        """No such tag, or no such repository: few registries say which, so ask again."""
        gone = NotFoundError(
            f"registry {self._host} has no {self._name}", "source", "Correct the repository or the tag."
        )
        if self._asking_for_tags:
            return gone
        self._asking_for_tags = True
        try:
            words = ("list-tags", *self._tls(""), f"docker://{self._repository}")
            tags = [str(tag) for tag in json.loads(self._ask(*words, timeout=TAGS_TIMEOUT))["Tags"]]
        except NotFoundError:
            repository = re.split(r"[:@][^/]*\Z", self._name)[0]
            return NotFoundError(f"registry {self._host} has no repository {repository}", "source", "Correct the name.")
        except (CocoonError, ValueError, KeyError, TypeError):
            return gone
        shown = ", ".join(tags[-TAGS_SHOWN:]) + (", …" if len(tags) > TAGS_SHOWN else "")
        gone.remedy = f"The repository has: {shown or 'no tags'}."
        return gone

    def refused(self, _reason: str) -> CocoonError:
        where = f"registry {self._host}"
        if self._access.anonymous:
            return RegistryError(
                f"{where} wants credentials for {self._name}, and none are given",
                self._access.option,
                "Give registry_user and registry_password, or auth_file; or correct the name, as some registries say "
                "this of what they do not have.",
            )
        return RegistryError(
            f"{where} does not accept the credentials for {self._name}",
            self._access.option,
            "Correct user and password; they may lack the right to pull this repository, too.",
        )

    def plain(self, _reason: str) -> CocoonError:
        return RegistryError(
            f"registry {self._host} speaks plain HTTP, not HTTPS",
            "validate_certs",
            "Set it to false to allow that, knowing that anybody on the way can read and change what is said.",
        )

    def untrusted(self, reason: str) -> CocoonError:
        known = re.search(r"(?:x509|tls): .*", reason)
        return RegistryError(
            f"the certificate of registry {self._host} is not accepted ({known.group() if known else reason})",
            "ca_path",
            "Give the certificate of its authority if that is your own; else have the registry's put right.",
        )

    def unreachable(self, reason: str) -> CocoonError:
        return RegistryError(
            f"registry {self._host} cannot be reached ({_last(reason)})",
            "mirror" if self._access.mirror else "source",
            "See whether the host reaches it: name, port, proxy, firewall.",
        )

    def mismatch(self, reason: str) -> CocoonError:
        return SpoiledError(
            f"registry {self._host} sent something else than what {self._name} consists of ({_last(reason)})",
            "mirror" if self._access.mirror else "source",
            "Nothing of it was kept. Try again; if it stays, the registry or what lies before it is damaged.",
        )

    def broken_off(self, reason: str) -> CocoonError:
        return RegistryError(
            f"registry {self._host} broke off while {self._name} was fetched ({_last(reason)})",
            "source",
            "Run the task again: layers that are complete are not fetched again.",
        )

    def too_many(self, _reason: str) -> CocoonError:
        return RegistryError(
            f"registry {self._host} allows no more pulls for now", "registry_user", "Log in, wait, or use a mirror."
        )

    def rejected(self, reason: str) -> CocoonError:
        return RegistryError(
            f"this host's policy does not allow {self._name} ({_last(reason)})",
            "source",
            "See /etc/containers/policy.json.",
        )

    def unknown_type(self, reason: str) -> CocoonError:
        return UnsupportedError(
            f"skopeo does not know the type of a layer ({_last(reason)})",
            "source",
            "Push the image again as OCI, or save it and give the archive.",
        )

    def full(self, _reason: str) -> CocoonError:
        return ResourceError(
            f"no space left for the layers of {self._name}",
            "root_dir",
            "Free some, or put root_dir on a larger file system.",
        )


class Copy:
    """A copy under way."""

    def __init__(
        self, process: subprocess.Popen[bytes], output: t.IO[bytes], failure: t.Callable[[str], CocoonError]
    ) -> None:
        self._process = process
        self._output = output
        self._failure = failure

    def ended(self, seconds: float) -> bool:
        """Whether it is over, after a wait of so many seconds at most.

        :raises CocoonError: it failed.
        """
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if self._process.returncode:
            self._output.seek(0)
            raise self._failure(self._output.read(65536).decode(errors="replace"))
        return True


def _reason(text: str) -> str:
    """The complaint itself, out of ``time="…" level=fatal msg="…"``."""
    lines = [line for line in text.strip().splitlines() if line]
    fatal = [line for line in lines if "level=fatal" in line] or lines[-1:]
    found = re.search(r'msg="(.*)"', fatal[-1]) if fatal else None
    return (found.group(1).replace('\\"', '"') if found else "".join(fatal))[:500] or "it says nothing"


def _last(reason: str) -> str:
    """The innermost of nested complaints, with some of what it was about."""
    return ": ".join(reason.split(": ")[-3:])


Failure = t.Callable[[Skopeo, str], CocoonError]


def _table(*rows: tuple[str, Failure]) -> list[tuple[re.Pattern[str], Failure]]:
    return [(re.compile(pattern, re.IGNORECASE), make) for pattern, make in rows]


# The first that fits counts.
FAILURES = _table(
    (r"no space left on device|disk quota exceeded", Skopeo.full),
    (r"unsupported docker v2s2 media type|unknown media type", Skopeo.unknown_type),
    (r"server gave HTTP response to HTTPS client", Skopeo.plain),
    (r"x509:|tls: |certificate", Skopeo.untrusted),
    (r"toomanyrequests|too many requests", Skopeo.too_many),
    (r"Source image rejected|policy\.json", Skopeo.rejected),
    (r"unauthorized|authentication required|access .* is denied|denied:|invalid username/password", Skopeo.refused),
    (r"manifest unknown|name unknown|repository .* not found|404 \(Not Found", Skopeo.unknown),
    (r"did not match|does not match|digest mismatch|file size limit exceeded|file too large", Skopeo.mismatch),
    (
        r"connection refused|no such host|server misbehaving|no route|network is unreachable|dial tcp",
        Skopeo.unreachable,
    ),
    (r"unexpected EOF|\bEOF\b|connection reset|broken pipe|i/o timeout|timeout|closed", Skopeo.broken_off),
)
