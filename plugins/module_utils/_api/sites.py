# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks, images and VMs of a host in one run."""

from __future__ import annotations

import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._api import vms
from ansible_collections.cocoon.microvm.plugins.module_utils._api.answers import Answer, Params, of_many
from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._engine.opening import open_run, options_of
from ansible_collections.cocoon.microvm.plugins.module_utils._engine.site import Share, Site
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.definition import raise_all, validate_all
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.site import Part, clashes
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record
from ansible_collections.cocoon.microvm.plugins.module_utils._vms.run import Options


def converge(params: Params, check: bool) -> Answer:
    """Make the networks, images and VMs of a host what the options of ``cocoon_site`` say.

    :returns: the answer of :func:`answers.of_many`, with ``unlisted`` where *params* tell what is wanted elsewhere.
    :raises InputError: as of :func:`converge_site`.
    """
    return vms.tell_unlisted(params, of_many(converge_site(params, check), whole=True))


def converge_site(params: Params, check: bool) -> Record:
    """Make the networks, images and VMs of a host what the options of ``cocoon_site`` say.

    :returns: ``networks`` and ``images``, a result each with ``name changed diff warnings``, what their modules
        answer, and ``failed`` and ``msg`` where it went wrong; ``vms`` as of :func:`vms.converge_vms`.
    :raises InputError: bad arguments, all of them in one; nothing has been touched.
    :raises Deferred: an image is to be had, and *params* leave that to another run.
    """
    options, paths = options_of(params), Paths.from_params(params)
    errors: list[InputError] = []
    shares = [
        Share(part, given)
        for kind in ("network", "image")
        for part, given in _parts(kind, _given(kind, params), options, paths, errors)
    ]
    definitions: list[Record] = []
    try:
        definitions = vms.owned(validate_all(params["vms"]), params)
    except InputError as exc:
        errors.append(exc)
    raise_all(errors or clashes([share.part for share in shares], definitions))
    run = open_run(params, check)
    items = vms.items_of(run, definitions, params, bool(params["vms"]))
    Site(run, shares, items, check, params["unprepared"]).converge()
    return {
        **{f"{kind}s": [_share(share) for share in shares if share.part.kind == kind] for kind in ("network", "image")},
        "vms": vms.results_of(run, items, check, params),
    }


def _given(kind: str, params: Params) -> list[Record]:
    """The networks or images, each with what the site says for all of them."""
    common = {key: params[key] for key in ("root_dir", "run_dir", "log_dir", "lock_timeout")}
    return [
        {
            **item,
            **common,
            "owner": item["owner"] if item["owner"] is not None else params["owner"],
            "force": item["force"] if item["force"] is not None else params["force"],
        }
        for item in params[f"{kind}s"]
    ]


def _parts(
    kind: str, items: t.Sequence[Record], options: Options, paths: Paths, errors: list[InputError]
) -> t.Iterator[tuple[Part, Record]]:
    """Each network or image in canonical form, with its options; what is wrong with them goes to *errors*."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._network import converging as networks

    for number, item in enumerate(items):
        part = Part(kind, number, item)
        try:
            if kind == "network":
                part = Part(kind, number, {**networks.checked(item, paths), "state": item["state"]})
            else:
                from ansible_collections.cocoon.microvm.plugins.module_utils._images.wanted import wanted_of

                wanted_of(item, options.lock_timeout, options.progress)
        except InputError as exc:
            errors.append(InputError(exc.message, part.at(exc.option or "name"), exc.remedy))
        yield part, item


def _share(share: Share) -> Record:
    """The result of a network or an image."""
    result: Record = {
        "name": share.part.definition["name"],
        "changed": False,
        "diff": {"before": {}, "after": {}},
        "warnings": [],
        **share.answer,
    }
    if share.error is not None:
        result.update(failed=True, msg=str(share.error))
    return result
