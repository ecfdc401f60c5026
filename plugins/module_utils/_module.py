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


def run_module(module: AnsibleModule, call: t.Callable[[t.Mapping[str, t.Any], bool], dict[str, t.Any]]) -> None:
    """Exit with the answer of a *call* of ``_api``, to which the parameters go, and whether only to look.

    Its ``warnings`` and ``failed`` are seen to; an error of ours fails with its message.

    What was left to a run that is watched is answered with ``deferred``.
    """
    if os.geteuid() != 0:
        module.fail_json(msg="this module manages hypervisors and needs root on the target: set become: true")
    try:
        check_paths(module.params, module.argument_spec)
        result = call(module.params, module.check_mode)
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
        inner = spec.get(option, {}).get("options")
        if inner and isinstance(given, dict):
            try:
                check_paths(given, inner)
            except InputError as exc:
                raise InputError(exc.message, f"{option}.{exc.option}", exc.remedy) from None
            continue
        for number, item in enumerate(given or () if inner else ()):
            try:
                check_paths(item, inner)
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
