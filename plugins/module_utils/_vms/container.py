# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""VMs whose image brings no kernel: what their guest is to run, and how that ended.

The guest reads what to run from an item of guest data (``run``): strings that end with NUL, which none of them
can contain, each a letter and a value: ``a`` a word of the command, ``e`` NAME=value, ``u`` the user, ``d`` the
working directory, ``s`` the signal that asks it to stop.

It writes ``exit <code>`` to a second channel of its own, which goes to a file of the VM's log directory that has room
from the start; and to its console, for machines without such a channel. The guest may write what it likes to either,
and can only lie about itself.
"""

from __future__ import annotations

import os
import re
import stat
import typing as t

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._planning.model import secret_digests
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.plugins.module_utils._state import read_json, remove_file, write_json
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

if t.TYPE_CHECKING:
    from ansible_collections.cocoon.microvm.plugins.module_utils._record_types import ImageRecord, VmRecord

RUN_FILE = "run.bin"
RUN_ITEM = "run"
SECRETS_FILE = "secret_env.json"
STATUS_FILE = "status.log"
KILLED = 128 + 9
# Seconds that who keeps the console of a guest that is gone gets to write the end of it.
LAST_WORD = 1.0
EXIT_RE = re.compile(rb"\s*exit ([0-9]{1,3})\s")
FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def is_container(record: VmRecord) -> bool:
    """Whether the VM was last started with the default kernel."""
    return "exit_code" in record


def encode(config: t.Mapping[str, t.Any]) -> bytes:
    """The item of guest data for an image's config."""
    items = [f"a{word}" for word in [*(config.get("entrypoint") or ()), *(config.get("cmd") or ())]]
    items += [f"e{variable}" for variable in config.get("env") or ()]
    for letter, key in (("u", "user"), ("d", "working_dir"), ("s", "stop_signal")):
        if config.get(key):
            items.append(f"{letter}{config[key]}")
    return b"".join(item.encode() + b"\0" for item in items)


def keep_secrets(paths: Paths, record: VmRecord, values: t.Mapping[str, str]) -> None:
    """Keep the values of ``secret_env`` for the starts to come, in a file of root's alone; the record gets digests."""
    record["secret_env"] = secret_digests(values, os.urandom(16).hex())
    write_json(os.path.join(paths.vm_dir(record["id"]), SECRETS_FILE), dict(values), mode=0o400)


def effective(config: t.Mapping[str, t.Any], record: VmRecord, secrets: t.Mapping[str, str]) -> Record:
    """An image's config as the VM has it: its own words and variables first, as ``docker run`` has them.

    Another entrypoint does not take the words that the image has for its own.
    """
    entrypoint, command = record.get("entrypoint"), record.get("command")
    inherited = () if entrypoint else config.get("cmd")
    variables = dict(variable.partition("=")[::2] for variable in config.get("env") or ())
    variables.update(record.get("env") or {})
    variables.update(secrets)
    return {
        **config,
        "entrypoint": entrypoint or config.get("entrypoint"),
        "cmd": command or inherited,
        "env": [f"{name}={value}" for name, value in variables.items()],
        "working_dir": record.get("working_dir") or config.get("working_dir"),
    }


def run_path(paths: Paths, record: VmRecord) -> str:
    return os.path.join(paths.vm_dir(record["id"]), RUN_FILE)


def prepare(paths: Paths, record: VmRecord, image: ImageRecord) -> None:
    """Before a start: leave what to run for the guest, readable by the VM's uid alone, and forget how it last ended."""
    record["exit_code"] = None
    secrets = read_json(os.path.join(paths.vm_dir(record["id"]), SECRETS_FILE)) or {}
    path = run_path(paths, record)
    remove_file(path)
    with os.fdopen(os.open(path, FLAGS, 0o400), "wb") as stream:
        os.fchown(stream.fileno(), record["uid"], record["uid"])
        stream.write(encode(effective(image.get("config") or {}, record, secrets)))


def guest_data(paths: Paths, record: VmRecord) -> dict[str, str]:
    """The items of guest data of a VM: name and file."""
    return {RUN_ITEM: run_path(paths, record)} if is_container(record) else {}


def status_path(paths: Paths, record: VmRecord) -> str:
    return os.path.join(paths.vm_log(record["id"]), STATUS_FILE)


def make_status(paths: Paths, record: VmRecord) -> None:
    """The file for the guest's last word, with a byte in it: so it has room when the log directory is full."""
    path = status_path(paths, record)
    remove_file(path)
    with os.fdopen(os.open(path, FLAGS, 0o600), "wb") as stream:
        os.fchown(stream.fileno(), record["uid"], record["uid"])
        stream.write(b"\n")


def exit_code(paths: Paths, record: VmRecord) -> int | None:
    """How the command of a VM that does not run any more ended; ``None`` if nobody knows."""
    if not is_container(record):
        return None
    try:
        fd = os.open(status_path(paths, record), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return _said(paths.console_log(record["id"]), record)
    except OSError:
        return None
    try:
        found = EXIT_RE.match(os.pread(fd, 64, 0)) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)
    return int(found.group(1)) if found and int(found.group(1)) < 256 else None


def _said(console_log: str, record: VmRecord) -> int | None:
    """What a guest without a channel for it said on its console, of which the newest is kept."""
    from ansible_collections.cocoon.microvm.plugins.module_utils._guest import console
    from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors import keeping

    process = Process.find(record.get("process"))
    if process is None:  # else there is no end to wait for
        keeping.await_end(console_log, None, LAST_WORD)
    else:
        process.close()
    return console.exit_code(console_log)


def outcome(paths: Paths, record: VmRecord) -> Record:
    """Fields of a VM whose process has been found gone: how its command ended, if it did."""
    code = exit_code(paths, record)
    return {} if code is None else {"exit_code": code, "reason": f"exited with code {code}"}
