# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The suites that have a runner of their own: ansible-test sanity, and pytest for unit and integration tests."""

from __future__ import annotations

import concurrent.futures
import functools
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import (
    MATRIX,
    OUTPUT,
    PYTHONS,
    RESULTS,
    STAGE,
    TEST_HOME,
    VENV,
    WORK,
    ToolError,
    environment,
    heading,
    load_json,
    say,
)
from report import Report, from_junit

TARGET_TESTS = ("tests/unit/plugins/module_utils", "tests/unit/plugins/modules", "tests/unit/roles")
# What pytest says of a run that somebody ended.
INTERRUPTED = 2
SCREEN = threading.Lock()
RUNNING: set[subprocess.Popen[str]] = set()
SANITY_RUN = re.compile(r'Running sanity test "([^"]+)"(?: on Python (\S+))?')
SANITY_SKIP = re.compile(r'WARNING: Skipping sanity test "([^"]+)"(?: on Python ([0-9.]+))? (because .*|due to .*)')


def matrix() -> dict[str, Any]:
    """What `make setup` found."""
    found = load_json(MATRIX)
    if not found:
        raise ToolError("nothing is set up yet: run `make setup`.")
    return dict(found)


def follow(
    command: Sequence[str | Path],
    env: dict[str, str],
    cwd: Path,
    limit: float,
    seen: Callable[[str], None] | None = None,
) -> int:
    """Run a command in its own process group, showing its output as it comes.

    :param limit: seconds after which it is interrupted, and killed a minute later.
    :param seen: called with each line.
    """
    child = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def stop(number: signal.Signals) -> None:
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            pass

    def interrupt() -> None:
        say(f"error: still running after {limit:.0f} s: interrupted")
        stop(signal.SIGINT)

    RUNNING.add(child)
    timers = [threading.Timer(limit, interrupt), threading.Timer(limit + 60, lambda: stop(signal.SIGKILL))]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        assert child.stdout is not None
        for line in child.stdout:
            say(line.rstrip("\n").replace(f"{STAGE}/", ""))
            if seen:
                seen(line.rstrip("\n"))
        return child.wait()
    except BaseException:
        stop(signal.SIGINT)
        child.wait()
        raise
    finally:
        RUNNING.discard(child)
        for timer in timers:
            timer.cancel()


def side_by_side(jobs: Sequence[Callable[[], Report]]) -> list[Report]:
    """Run jobs that leave a processor idle at once; each one's output is shown as a whole, when it has ended."""

    def shown(job: Callable[[], Report]) -> Report:
        kept = io.StringIO()
        OUTPUT.set(kept)
        try:
            return job()
        finally:
            with SCREEN:
                sys.stdout.write(kept.getvalue())
                sys.stdout.flush()

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        futures = [pool.submit(shown, job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(RUNNING):
                os.killpg(child.pid, signal.SIGINT)
            raise


def sanity() -> list[Report]:
    """ansible-test sanity with each core, over every Python that the machine has. There is no ignore file."""
    return side_by_side([functools.partial(sanity_with, cell) for cell in matrix()["cores"]])


def sanity_with(cell: dict[str, Any]) -> Report:
    """One core's, in a copy of its own: ansible-test keeps notes in the tree."""
    report = Report(f"sanity (ansible-core {cell['core']})", missing=list(matrix()["skipped"]))
    heading(f"ansible-test sanity, ansible-core {cell['core']}")
    report.failures += [f"ignore files are not allowed: {path.name}" for path in STAGE.glob("tests/sanity/ignore*")]
    base = WORK / f"sanity-{cell['core']}"
    shutil.rmtree(base, ignore_errors=True)
    try:
        run_sanity(cell, report, Path(shutil.copytree(STAGE, base / STAGE.relative_to(WORK), symlinks=True)))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return report


def run_sanity(cell: dict[str, Any], report: Report, tree: Path) -> None:
    """One run of ansible-test; its tests are counted from what it says."""
    ran: list[str] = []
    failed: dict[str, None] = {}

    def seen(line: str) -> None:
        line = re.sub(r"\x1b\[[0-9;]*m", "", line)
        if match := SANITY_RUN.match(line):
            ran.append(" on Python ".join(filter(None, match.groups())))
        elif match := SANITY_SKIP.match(line):
            name = " on Python ".join(filter(None, match.groups()[:2]))
            report.skipped.append(f"sanity::{name}: {match.group(3)}")
        elif line.startswith(("ERROR: ", "FATAL: ")) and ran and "sanity test(s) listed below" not in line:
            failed[ran[-1]] = None

    env = environment({"HOME": str(TEST_HOME), "PIP_NO_INDEX": "1"}, path=[PYTHONS])
    began = time.monotonic()
    command = [Path(cell["venv"]) / "bin" / "ansible-test", "sanity", "--color", "no"]
    status = follow(command, env, tree, 1200, seen)
    report.spent = time.monotonic() - began
    report.failures += failed
    if status and not failed:
        report.failures.append(f"ansible-test sanity stopped with status {status}")
    if not ran:
        report.failures.append("ansible-test ran nothing")
    report.passed = len(ran) - len(failed) if ran else 0


def pytest(
    name: str, python: Path, options: Sequence[str], env: dict[str, str], limit: float, slow: str | None = None
) -> Report:
    """One run of pytest in the staged tree.

    :param limit: seconds after which it is interrupted.
    :param slow: what to say that was left out then, where that is no failure.
    """
    report = Report(name)
    result = RESULTS / f"{re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-')}.xml"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    heading(name)
    began = time.monotonic()
    command = [python, "-m", "pytest", "-rs", "--tb=short", "--durations=10", f"--junit-xml={result}", *options]
    status = follow(command, env, STAGE, limit)
    report.spent = time.monotonic() - began
    if slow and status == INTERRUPTED and report.spent >= limit:
        report.missing.append(slow)
        if result.exists() and "<testcase" in result.read_text(encoding="utf-8"):
            from_junit(report, result)
            report.passed = max(0, report.passed - 1)  # the one that was interrupted, which has no outcome
        return report
    from_junit(report, result)
    if status and not report.failures:
        report.failures.append(f"pytest stopped with status {status}")
    return report


def unit() -> list[Report]:
    """The unit tests with each core, and with the oldest Python of a target."""
    extra = wanted()
    jobs = [functools.partial(unit_with, cell, extra) for cell in matrix()["cores"]]
    jobs += [functools.partial(unit_on_target, cell, extra) for cell in matrix()["targets"]]
    reports = side_by_side(jobs)
    reports[0].missing += matrix()["skipped"]
    return reports


def unit_on_target(cell: dict[str, Any], options: Sequence[str]) -> Report:
    """The unit tests of what runs on targets; the rest runs on the controller, whose Python is newer."""
    env = environment({"PYTHONPATH": f"{WORK}{os.pathsep}{module_side()}"})
    title = f"unit (target side, Python {cell['python']})"
    folders = [name for name in TARGET_TESTS if (STAGE / name).is_dir()]
    return pytest(title, Path(cell["venv"]) / "bin" / "python", [*folders, "-q", *options], env, 900)


def unit_with(cell: dict[str, Any], options: Sequence[str]) -> Report:
    """The unit tests with one core."""
    title = f"unit (ansible-core {cell['core']}, Python {cell['python']})"
    env = environment({"PYTHONPATH": str(WORK)})
    return pytest(title, Path(cell["venv"]) / "bin" / "python", ["tests/unit", "-q", *options], env, 900)


def quick() -> list[Report]:
    """For between commits: the unit tests with the newest core, and the few guests that prove the main job."""
    cell = matrix()["cores"][0]
    return [unit_with(cell, wanted()), run_integration(cell, "", ["-v", "-m", "smoke", *wanted()], 600)]


def module_side() -> Path:
    """A folder with the part of ansible that reaches a target: its module_utils, and nothing else."""
    folder = WORK / "module-side" / "ansible"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text("", encoding="utf-8")
    source = next(VENV.glob("lib/python3*/site-packages/ansible"))
    for name in ("module_utils", "release.py"):
        link = folder / name
        if not link.is_symlink() or os.readlink(link) != str(source / name):
            link.unlink(missing_ok=True)
            link.symlink_to(source / name)
    return folder.parent


def integration() -> list[Report]:
    """Real guests, bridges and processes: everything with the newest core, the smoke tests again with the oldest."""
    extra = wanted()
    cells = matrix()["cores"]
    # One worker a processor: most of a test's time its guest boots, on one processor. A file's tests share guests.
    workers = ["-n", str(os.cpu_count() or 1), "--dist", "loadfile", "--no-loadscope-reorder"]
    reports = [run_integration(cells[0], "", ["-v", *workers, *extra], 4500)]
    for cell in cells[1:]:
        system = target_python()
        reports.append(run_integration(cell, system, ["-v", "-m", "smoke", *workers, *extra], 1800))
    reports[0].missing += matrix()["skipped"]
    return reports


def run_integration(cell: dict[str, Any], target: str, options: Sequence[str], limit: float) -> Report:
    """One run with one core. `target` is the interpreter of the modules, by default the core's own."""
    python = Path(cell["venv"]) / "bin" / "python"
    variables = {
        "PYTHONPATH": str(WORK),
        "COCOON_TARGET_PYTHON": target or str(python),
        # Thousands of processes run the same modules: a third of what those cost is compiling them.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(WORK / "bytecode"),
    }
    env = environment(variables, path=[python.parent])
    # Nothing else changes the machine during `make test`, so whatever is new at the end was left by a test.
    env.setdefault("COCOON_LEAKS", "strict")
    side = f"modules on {target}" if target else f"Python {cell['python']}"
    title = f"integration (ansible-core {cell['core']}, {side})"
    return pytest(title, python, ["tests/integration", *options], env, limit)


def lab() -> list[Report]:
    """Other hypervisors than QEMU, on the real programs in a machine with KVM; where there are none, none of it.

    The tests themselves skip, and say so, what does not fit into twenty minutes.
    """
    return run_lab("lab", {}, 1500)


def brief_lab() -> list[Report]:
    """The same within twelve minutes, in which the machine is made and boots: what tells most on each hypervisor."""
    return run_lab("lab (brief)", {"COCOON_LAB_BRIEF": "yes", "COCOON_LAB_MINUTES": "10"}, 840)


def run_lab(title: str, variables: dict[str, str], limit: float) -> list[Report]:
    """One run of the lab. :param variables: for its tests."""
    folder = Path(os.environ.get("COCOON_LAB_BIN") or "/opt/cocoon-lab/bin")
    if not folder.is_dir() or not any(folder.iterdir()):
        return [Report(title, missing=[f"the lab: there are no hypervisors in {folder} (COCOON_LAB_BIN)"])]
    cell = matrix()["cores"][0]
    python = Path(cell["venv"]) / "bin" / "python"
    own = {"PYTHONPATH": str(WORK), "COCOON_TARGET_PYTHON": str(python)}
    env = environment({**own, **variables}, path=[python.parent])
    slow = f"the end of {title}: it was interrupted after {limit / 60:.0f} minutes"
    return [pytest(title, python, ["tests/lab", "-v", *wanted()], env, limit, slow)]


def target_python() -> str:
    """The distribution's own Python, where it has what the modules import; empty when not."""
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", "import pyroute2, jsonschema, requests_unixsocket"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return "" if done.returncode else "/usr/bin/python3"


def wanted() -> list[str]:
    """Options for pytest from the command line: make unit ARGS='-k name'."""
    return os.environ.get("ARGS", "").split()
