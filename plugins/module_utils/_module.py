# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every module does around its call of the engine: be root, catch our errors once, shape the answer."""

from __future__ import annotations

import os
import re
import sys
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import CocoonError, InputError
from ansible_collections.cocoon.microvm.plugins.module_utils._progress import Deferred

URL_RE = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*://")
# Options that are paths on the controller, which its action has made whole.
ELSEWHERE = ("local_path",)


def run_module(module: AnsibleModule, body: t.Callable[[AnsibleModule], dict[str, t.Any]]) -> None:
    """Exit with what *body* gives (``warnings`` and ``failed`` seen to); an error of ours fails with its message.

    What was left to a run that is watched is answered with ``deferred``.
    """
    if os.geteuid() != 0:
        module.fail_json(msg="this module manages hypervisors and needs root on the target: set become: true")
    try:
        check_paths(module.params, module.argument_spec)
        result = body(module)
    except Deferred:
        result = {"changed": False, "deferred": True}
    except CocoonError as exc:
        module.fail_json(msg=str(exc), error=type(exc).__name__, option=exc.option)
    except PermissionError as exc:
        module.fail_json(msg=f"not permitted: {exc.strerror}: {exc.filename}")
    except OSError as exc:
        module.fail_json(msg=f"{exc.strerror}: {exc.filename}")
    except Exception as exc:
        module.fail_json(msg=defect(exc), error=type(exc).__name__)
    for warning in result.pop("warnings", []):
        module.warn(warning)
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


def check_paths(params: t.Mapping[str, t.Any], spec: t.Mapping[str, t.Any]) -> None:
    """Of paths on the target only those are taken that mean the same wherever, and however, the module runs.

    :raises InputError: a path that begins nowhere, or that Python would write in other bytes than the user.
    """
    for option, given in params.items():
        for number, item in enumerate(given or () if "options" in spec.get(option, {}) else ()):
            try:
                check_paths(item, spec[option]["options"])
            except InputError as exc:
                where = f"{option}[{number}] ({item.get('name')}): {exc.option}"
                raise InputError(exc.message, where, exc.remedy) from None
        if not given or spec.get(option, {}).get("type") != "path" or option in ELSEWHERE:
            continue
        path = _path_of(given)
        if path is None:
            continue
        if not os.path.isabs(path):
            raise InputError(
                f"'{path}' is a path from nowhere: modules run in a folder of their own",
                option,
                "Write the whole path on the target, from / on.",
            )
        encoding = sys.getfilesystemencoding()
        if encoding != "utf-8" and not path.isascii():
            raise InputError(
                f"Python writes names of files as {encoding} here, which is not how '{ascii(path)[1:-1]}' is meant",
                option,
                "Set LC_ALL to C.UTF-8 in the task's environment.",
            )


def _path_of(given: str) -> str | None:
    """The path on the target that an option means, which may be a URL; nothing for a URL of another place."""
    if not URL_RE.match(given):
        return given
    scheme, _colon, rest = given.partition(":")
    if scheme.lower() != "file":
        return None
    from urllib.parse import unquote

    return unquote(rest)


def defect(exc: Exception) -> str:
    """What is said of an error that should not have been: what a maintainer needs to know, in one line."""
    import platform
    import traceback

    last = traceback.extract_tb(exc.__traceback__)[-1]
    place = f"{os.path.basename(os.path.dirname(last.filename))}/{os.path.basename(last.filename)}:{last.lineno}"
    return (
        f"unexpected {type(exc).__name__} at {place}, in {last.name}: {exc}. This is a defect of cocoon.microvm, or a"
        f" document of the store that it does not expect: please report this line, the module's options without secrets"
        f" and what the doctor says (cocoon_host_info), with Python {platform.python_version()}."
    )


def bulk_answer(results: list[dict[str, t.Any]]) -> dict[str, t.Any]:
    """One answer from the results of many VMs: what happened to each, and who failed."""
    return site_answer({"networks": [], "images": [], "vms": results}, whole=False)


def site_answer(found: t.Mapping[str, list[dict[str, t.Any]]], whole: bool = True) -> dict[str, t.Any]:
    """One answer from the results of networks, images and VMs.

    :param whole: tell of networks and images, and of what is which in the headers of the diff.
    """
    vms = found["vms"]
    every = [(kind[:-1], result) for kind in ("networks", "images", "vms") for result in found[kind]]
    answer: dict[str, t.Any] = {
        "changed": any(result["changed"] for _kind, result in every),
        "vms": {name: vm for name, vm in ((result["name"], result.pop("vm")) for result in vms) if vm},
        "results": vms,
        "diff": [
            {**diff, "before_header": header, "after_header": header}
            for kind, result in every
            for diff in [result["diff"] if kind == "vm" else result.pop("diff")]
            for header in [f"{kind} {result['name']}" if whole else result["name"]]
            if diff["before"] or diff["after"]
        ],
        "warnings": [warning for _kind, result in every for warning in result.pop("warnings", [])],
    }
    if whole:
        answer.update(networks=found["networks"], images=found["images"])
    return {**answer, **failure(every)}


def exec_answer(results: list[dict[str, t.Any]]) -> dict[str, t.Any]:
    """One answer from what came of a command in many guests; that of one guest stands at the top, too."""
    answer: dict[str, t.Any] = {"changed": any(result["changed"] for result in results), "results": results}
    if len(results) == 1:
        words = ("rc", "stdout", "stderr", "stdout_lines", "stderr_lines")
        answer.update({word: results[0][word] for word in words if word in results[0]})
    return {**answer, **failure([("vm", result) for result in results])}


def failure(every: list[tuple[str, dict[str, t.Any]]]) -> dict[str, t.Any]:
    """What is said of those that failed, if any did."""
    failed = [(kind, result) for kind, result in every if result.get("failed")]
    if not failed:
        return {}
    shown = [
        f"{result['name']}: {result['msg']}" if kind == "vm" else f"{kind} {result['name']}: {result['msg']}"
        for kind, result in failed
    ]
    more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
    counts = [
        f"{[kind for kind, _result in failed].count(one)} of {[kind for kind, _result in every].count(one)} {words}"
        for one, words in (("network", "networks"), ("image", "images"), ("vm", "VMs"))
        if any(kind == one for kind, _result in failed)
    ]
    return {
        "failed": True,
        "failed_vms": [result["name"] for kind, result in failed if kind == "vm"],
        "msg": f"{' and '.join(counts)} failed: {'; '.join(shown[:5])}{more}",
    }
