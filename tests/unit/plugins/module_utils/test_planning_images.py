# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans of images: what is there against what is wanted."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, ConflictError, NotFoundError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.image import Found, There, Wanted, plan_image

A, B = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


def record(image: str = A, **fields: Any) -> dict[str, Any]:
    return {"id": image, "names": ["web"], "type": "oci", "owner": "me", "labels": {}, **fields}


def there(image: str | None = A, target: str | None = A, whole: bool = True, **fields: Any) -> There:
    """A store where *image* has the name, and *target* is what is wanted."""
    return There(record(image) if image else None, record(target) if target else None, whole, **fields)


PRESENT: list[tuple[str, dict[str, Any], There, str | None, tuple[str, ...]]] = [
    ("nothing there", {}, There(), A, ("import", "tag")),
    ("all there", {}, there(), A, ()),
    ("all there, and no source named", {}, there(), None, ()),
    ("files lost", {}, there(whole=False), A, ("import",)),
    ("another image", {}, there(target=None, whole=False), B, ("import", "tag")),
    ("another image that is in the store", {}, there(target=B), B, ("tag",)),
    ("another name for it", {"name": "web2"}, there(image=None), A, ("tag",)),
    ("labels", {"labels": {"a": "b"}}, there(), A, ("update",)),
    ("an owner, by force", {"owner": "you", "force": True}, there(), A, ("update",)),
    ("another owner's, unchanged", {"owner": "you"}, there(), A, ()),
]


@pytest.mark.parametrize(("what", "options", "store", "found", "steps"), PRESENT, ids=[row[0] for row in PRESENT])
def test_what_is_to_be_there(
    what: str, options: dict[str, Any], store: There, found: str | None, steps: tuple[str, ...]
) -> None:
    wanted = Wanted(**{"name": "web", **options})
    plan = plan_image(wanted, store, Found(found, "oci") if found else None)
    assert plan.steps == steps and plan.image_id == (found or A)
    after = record(
        plan.image_id,
        names=["web", wanted.name],
        **{key: plan.after[key] for key in ("owner", "labels") if key in plan.after},
    )
    again = plan_image(wanted, There(after, after, True), Found(plan.image_id, "oci"))
    assert again.steps == () and again.before == again.after == plan.after


def test_what_is_to_go() -> None:
    wanted = Wanted("web", "absent")
    assert plan_image(wanted, There(), None).steps == ()
    for others, users, steps in (
        ((), (), ("remove",)),
        (("web2",), (), ("untag",)),
        (("web2",), ("vm a",), ("untag",)),
    ):
        plan = plan_image(wanted, There(record(), others=others, users=users), None)
        assert plan.steps == steps and plan.after == {} and plan.image_id == A
    with pytest.raises(ConflictError, match="name: image 'web' is used by vm a, snapshot b. Remove them first"):
        plan_image(wanted, There(record(), users=("vm a", "snapshot b")), None)


REFUSED: list[tuple[dict[str, Any], There, str | None, type[CocoonError], str]] = [
    ({}, There(), None, NotFoundError, "source: image 'web' is not in the store. Give the file"),
    ({}, there(whole=False), None, NotFoundError, "source: files of image 'web' are missing"),
    ({"owner": "you"}, there(target=B), B, ConflictError, "owner: image 'web' belongs to 'me'"),
    ({"owner": "you", "labels": {"a": "b"}}, there(), A, ConflictError, "belongs to 'me'. Set force"),
    ({"owner": "you", "state": "absent"}, there(), None, ConflictError, "belongs to 'me'"),
]


@pytest.mark.parametrize(("options", "store", "found", "kind", "message"), REFUSED)
def test_what_is_refused(
    options: dict[str, Any], store: There, found: str | None, kind: type[CocoonError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        plan_image(Wanted(**{"name": "web", **options}), store, Found(found, "oci") if found else None)
