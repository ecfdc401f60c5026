# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of images in registries, credentials for them, and what skopeo's complaints mean."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import pathlib
import tarfile
from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    CocoonError,
    NotFoundError,
    ResourceError,
    UnsupportedError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._images import layouts, oci, registry_name, skopeo, source
from ansible_collections.cocoon.microvm.plugins.module_utils._images.auth import Access

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("team/app:v1", "docker.io/team/app:v1"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("docker.io/library/nginx:1.27-alpine3.20", "docker.io/library/nginx:1.27-alpine3.20"),
        ("ghcr.io/cocoonstack/cocoon/ubuntu:24.04", "ghcr.io/cocoonstack/cocoon/ubuntu:24.04"),
        ("localhost/app", "localhost/app:latest"),
        ("r.example:5000/a/b__c", "r.example:5000/a/b__c:latest"),
        ("[::1]:5000/app:v1", "[::1]:5000/app:v1"),
        (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
        (f"nginx:1.27@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),  # the digest decides
    ],
)
def test_names(text: str, whole: str) -> None:
    assert str(registry_name.parse(text)) == whole


@pytest.mark.parametrize(
    "text",
    ["", ":v1", "a b", "Upper", "r.example/", "r.example/a:", "r.example/a:b:c", "a@sha256:12", "a@md5:" + "0" * 32]
    + [
        "-x/a.b",
        "r.example:port/a",
        "a//b",
        "../a",
        "r.example/../a",
        "nginx:1.27@",
        "a\nb",
        "--flag",
        "r.example/--x",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(CocoonError, match="is not the name of an image in a registry") as caught:
        registry_name.parse(text)
    assert caught.value.option == "source"


@pytest.mark.parametrize(
    ("name", "given", "reference"),
    [
        ("docker.io/library/nginx:1.27", None, "docker.io/library/nginx:1.27"),
        ("localhost/app", None, "localhost/app"),
        ("localhost:5000/app", None, "localhost:5000/app"),
        ("nginx", None, None),
        ("ubuntu:24.04", None, None),
        ("team/app", None, None),
        ("web", "docker://nginx", "nginx"),
        ("docker.io/library/nginx", "/srv/nginx.tar", None),
    ],
)
def test_which_images_are_in_a_registry(name: str, given: str | None, reference: str | None) -> None:
    assert source.registry_reference(name, given) == reference


def test_mirrors() -> None:
    nginx = registry_name.parse("nginx:1.27")
    assert registry_name.through_mirror(nginx, None) == "docker.io/library/nginx"
    assert registry_name.through_mirror(nginx, "m.example:5000") == "m.example:5000/library/nginx"
    assert registry_name.through_mirror(nginx, "m.example/hub/") == "m.example/hub/library/nginx"
    for mirror in ("https://m.example", "m.example/Hub", "", "m.example/--x", "--x"):
        with pytest.raises(CocoonError, match="is not a mirror"):
            registry_name.through_mirror(nginx, mirror)


def decoded(data: bytes) -> dict[str, str]:
    auths = json.loads(data)["auths"]
    return {host: base64.b64decode(item["auth"]).decode() for host, item in auths.items()}


def test_credentials(tmp_path: pathlib.Path) -> None:
    assert json.loads(Access().credentials("r.example")) == {"auths": {}}
    assert decoded(Access("joe", "a:b \u00e9").credentials("r.example")) == {"r.example": "joe:a:b \u00e9"}
    assert "a:b" not in repr(Access("joe", "a:b"))
    path = tmp_path / "auth.json"
    pair = base64.b64encode(b"joe:secret").decode()
    path.write_text(
        json.dumps({"auths": {"r.example": {"auth": pair, "email": "x"}, "other": {}}, "credsStore": "/bin/sh"})
    )
    given = Access(auth_file=str(path)).credentials("r.example")
    assert decoded(given) == {"r.example": "joe:secret"} and b"creds" not in given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not an auth file"),
        ("[]", "is not an auth file"),
        ('{"auths": []}', "is not an auth file"),
        ('{"auths": {"r.example": "x"}}', "is not an auth file"),
        ('{"auths": {"r.example": {}}, "credsStore": "secretservice"}', "no credentials.*helper"),
        ("{}", "no credentials"),
        (None, "cannot read"),
    ],
)
def test_auth_files_that_are_of_no_use(tmp_path: pathlib.Path, text: str | None, message: str) -> None:
    path = tmp_path / "auth.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CocoonError, match=message) as caught:
        Access(auth_file=str(path)).credentials("r.example")
    assert caught.value.option == "auth_file"


def test_users_that_cannot_be() -> None:
    for access, option in ((Access("a:b", "x"), "registry_user"), (Access("joe"), "registry_password")):
        with pytest.raises(CocoonError) as caught:
            access.credentials("r.example")
        assert caught.value.option == option


def test_certificates(tmp_path: pathlib.Path) -> None:
    pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    folder = tmp_path / "certs"
    folder.mkdir()
    (folder / "a.crt").write_bytes(b"text before\n" + pem + b"\n")
    (folder / "b.pem").write_bytes(pem + b"\n-----BEGIN PRIVATE KEY-----\nBBBB\n-----END PRIVATE KEY-----\n")
    (folder / "README").write_text("no certificate")
    assert Access().certificates() is None
    assert Access(ca_path=str(folder / "a.crt")).certificates() == pem + b"\n"
    both = Access(ca_path=str(folder)).certificates()
    assert both == pem + b"\n" + pem + b"\n"
    with pytest.raises(CocoonError, match="has no certificate") as caught:
        Access(ca_path=str(folder / "README")).certificates()
    assert caught.value.option == "ca_path"


def fatal(message: str) -> str:
    escaped = message.replace('"', '\\"')
    return f'time="2026-01-01" level=warning msg="retrying"\ntime="2026-01-01" level=fatal msg="{escaped}"\n'


COMPLAINTS = {
    # What skopeo 1.9 and 1.18 say.
    'Error parsing image name "docker://r/a:1": reading manifest 1 in r/a: unauthorized: authentication required': (
        skopeo.RegistryError,
        "registry_user",
        "wants credentials",
    ),
    "reading manifest latest in docker.io/library/nope: requested access to the resource is denied": (
        skopeo.RegistryError,
        "registry_user",
        "wants credentials",
    ),
    'pinging container registry r: Get "https://r/v2/": x509: certificate has expired or is not yet valid: now': (
        skopeo.RegistryError,
        "ca_path",
        "x509: certificate has expired",
    ),
    'pinging container registry r: Get "https://r/v2/": tls: failed to verify certificate: x509: certificate is valid'
    " for a, not r": (skopeo.RegistryError, "ca_path", "valid for a, not r"),
    'pinging container registry r: Get "https://r/v2/": http: server gave HTTP response to HTTPS client': (
        skopeo.RegistryError,
        "validate_certs",
        "plain HTTP",
    ),
    'pinging container registry r: Get "https://r/v2/": dial tcp: lookup r: no such host': (
        skopeo.RegistryError,
        "source",
        "cannot be reached",
    ),
    "copying system image from manifest list: writing blob: happened during read: unexpected EOF": (
        skopeo.RegistryError,
        "source",
        "broke off.*unexpected EOF.*not fetched again",
    ),
    "writing blob: Digest did not match, expected sha256:aa, got sha256:bb": (
        skopeo.SpoiledError,
        "source",
        "something else.*Nothing of it was kept. Try again",
    ),
    "writing blob: write /x/oci-put-blob1: no space left on device": (ResourceError, "root_dir", "no space left"),
    "toomanyrequests: You have reached your pull rate limit": (skopeo.RegistryError, "registry_user", "no more pulls"),
    "Source image rejected: A signature was required, but no signature exists": (
        skopeo.RegistryError,
        "source",
        "policy does not allow",
    ),
    'Error parsing manifest for image: unsupported docker v2s2 media type: "application/vnd.x"': (
        UnsupportedError,
        "source",
        "does not know the type of a layer.*vnd.x.*Push the image again as OCI",
    ),
    "something nobody has seen": (skopeo.RegistryError, "source", "cannot be fetched: something nobody has seen"),
}


@pytest.mark.parametrize("text", COMPLAINTS)
def test_complaints(text: str) -> None:
    kind, option, message = COMPLAINTS[text]
    error = skopeo.Skopeo(Access(), "r/a", 1, "r/a:1")._failure(fatal(text))
    assert isinstance(error, kind) and error.option == option and error.remedy
    with pytest.raises(CocoonError, match=message):
        raise error


def test_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = skopeo.Skopeo(Access(), "r/a", 1, "r/a:9")
    answers: dict[str, Any] = {"text": json.dumps({"Tags": [f"v{number}" for number in range(20)]}).encode()}
    monkeypatch.setattr(asking, "_ask", lambda *_words, **_options: answers["text"])
    error = asking.unknown("")
    assert isinstance(error, NotFoundError) and str(error).startswith("source: registry r has no r/a:9. The repository")
    assert "v19, …" in str(error) and "v11" not in str(error)


def archive(path: pathlib.Path, *more: dict[str, Any], **changes: Any) -> pathlib.Path:
    """What docker save writes, with the second layer a link to the first, as older ones do.

    :param more: further images, in the words of its manifest.json.
    """
    data = b"layer" * 1000
    diff = f"sha256:{hashlib.sha256(data).hexdigest()}"
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff, diff]}}
    entry = {"Config": "c.json", "RepoTags": ["app:v1", "app:latest"], "Layers": ["a/layer.tar", "b/layer.tar"]}
    entry.update(changes)
    with tarfile.open(path, "w") as target:
        for name, text in (
            ("a/layer.tar", data),
            ("packed.tar.gz", gzip.compress(data)),
            ("c.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps([entry, *more]).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            target.addfile(info, io.BytesIO(text))
        link = tarfile.TarInfo("b/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../a/layer.tar"
        target.addfile(link)
    return path


def opened(path: pathlib.Path) -> layouts.DockerArchive:
    with path.open("rb") as stream:
        return layouts.DockerArchive(stream, str(path))


def test_docker_save(tmp_path: pathlib.Path) -> None:
    saved = opened(archive(tmp_path / "saved"))
    chosen = oci.select(saved, None, "linux/amd64")
    assert chosen == oci.select(saved, "app:v1", "linux/amd64") == oci.select(saved, "app:latest", "linux/amd64")
    assert [size for _digest, size in chosen.layers] == [5000, 5000]
    with saved.blob(f"sha256:{chosen.layers[1][0]}") as blob:
        assert blob.read() == b"layer" * 1000
    with pytest.raises(CocoonError, match="has no image 'app:v2'. It has: app:latest, app:v1"):
        oci.select(saved, "app:v2", "linux/amd64")
    unnamed = opened(archive(tmp_path / "unnamed", RepoTags=None))
    assert oci.select(unnamed, None, "linux/amd64").digest == chosen.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Layers": ["a/layer.tar", "c/layer.tar"]}, "layer c/layer.tar is not in the archive"),
        ({"Layers": ["a/layer.tar", "../../etc/passwd"]}, "is not in the archive"),
        ({"Layers": ["a/layer.tar"]}, "disagree on the number"),
        ({"Layers": None}, "the image has no layers"),
        ({"Config": "/etc/passwd"}, "is not in the archive"),
        ({"Config": 1}, "not a valid manifest of docker save"),
    ],
)
def test_docker_save_gone_wrong(tmp_path: pathlib.Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CocoonError, match=message):
        oci.select(opened(archive(tmp_path / "saved", **changes)), None, "linux/amd64")


def test_compressed_layers_of_docker_save(tmp_path: pathlib.Path) -> None:
    """As crane, kaniko and jib write them: the config knows only what is in them."""
    saved = opened(archive(tmp_path / "saved", Layers=["a/layer.tar", "packed.tar.gz"]))
    chosen = oci.select(saved, None, "linux/amd64")
    plain, packed = [digest for digest, _size in chosen.layers]
    assert chosen.plain == [plain, plain] and packed != plain
    with saved.blob(f"sha256:{packed}") as blob:
        data = blob.read()
    assert hashlib.sha256(data).hexdigest() == packed and gzip.decompress(data) == b"layer" * 1000


def test_one_tag_for_two_images_of_docker_save(tmp_path: pathlib.Path) -> None:
    other = {"Config": "c.json", "RepoTags": ["redis:latest"], "Layers": ["a/layer.tar", "packed.tar.gz"]}
    saved = opened(archive(tmp_path / "saved", other))
    with pytest.raises(CocoonError, match="several images 'latest'. Choose one of: app:latest, redis:latest"):
        oci.select(saved, "latest", "linux/amd64")
    both = {name: oci.select(saved, name, "linux/amd64") for name in ("app:latest", "redis", "redis:latest")}
    assert both["app:latest"] != both["redis"] == both["redis:latest"]


@pytest.mark.parametrize(
    "beside",
    [
        {"Config": "gone.json", "RepoTags": ["gone:v1"], "Layers": ["a/layer.tar"]},
        {"Config": "c.json", "RepoTags": ["half:v1"], "Layers": ["a/layer.tar", "gone.tar"]},
        {"Config": "c.json", "RepoTags": ["less:v1"], "Layers": ["a/layer.tar"]},
        {"Config": "c.json", "RepoTags": None, "Layers": None},
        {"RepoTags": 5},
    ],
)
def test_what_was_not_saved_beside_an_image_of_docker_save(tmp_path: pathlib.Path, beside: dict[str, Any]) -> None:
    saved = opened(archive(tmp_path / "saved", beside))
    assert oci.select(saved, None, "linux/amd64") == oci.select(saved, "app:v1", "linux/amd64")
