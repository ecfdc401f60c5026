# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clients of guests' agents, with our own agent run here, doubles of others, and agents that lie."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import socket
import subprocess
import threading
import time
import types
import typing as t
from pathlib import Path

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._config import Paths
from ansible_collections.cocoon.microvm.plugins.module_utils._engine import readiness
from ansible_collections.cocoon.microvm.plugins.module_utils._errors import BusyError, HypervisorError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest import agent as agents
from ansible_collections.cocoon.microvm.plugins.module_utils._guest import facts, standard_agent, wait
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.agent import Access, Agent, Command
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.line import AgentError
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.standard_agent import StandardAgent
from ansible_collections.cocoon.microvm.plugins.module_utils._hypervisors.base import Channel
from ansible_collections.cocoon.microvm.plugins.module_utils._process import Process
from ansible_collections.cocoon.microvm.tests.unit.agents import AGENT, OUR_AGENT, Cocoon, Port, Serve, Server, Vsock

NEEDS_PERL = pytest.mark.skipif(not shutil.which("perl"), reason="needs perl")
BYTES = bytes(range(256))


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def access(folder: Path, kind: t.Literal["virtio-serial", "vsock"] = "virtio-serial") -> Access:
    return Access(Channel(kind, str(folder / "agent.sock"), 1024 if kind == "vsock" else None), str(folder))


@pytest.fixture(name="ours")
def fixture_ours(tmp_path: Path) -> t.Iterator[StandardAgent]:
    """Our own agent, behind a port."""
    port = Port()
    with Server(tmp_path / "agent.sock", port.serve):
        yield t.cast(StandardAgent, agents.find(access(tmp_path), soon()))
    port.close()


@pytest.fixture(name="ours_by_vsock")
def fixture_ours_by_vsock(tmp_path: Path) -> t.Iterator[StandardAgent]:
    """Our own agent, behind what listens at a guest's vsock."""
    with Vsock(tmp_path, OUR_AGENT) as guest, Server(tmp_path / "agent.sock", guest.serve, parallel=True):
        yield t.cast(StandardAgent, agents.find(access(tmp_path, "vsock"), soon()))


@pytest.fixture(name="any_agent", params=["ours", "ours_by_vsock", "theirs"])
def fixture_any_agent(request: pytest.FixtureRequest, tmp_path: Path) -> t.Iterator[Agent]:
    """Ours, by each of the ways to it, and Cocoon's: what holds of all."""
    if request.param != "theirs":
        if not shutil.which("perl"):
            pytest.skip("needs perl")
        yield request.getfixturevalue(request.param)
        return
    with Server(tmp_path / "agent.sock", Cocoon().serve, parallel=True):
        yield agents.find(access(tmp_path, "vsock"), soon())


def run(agent: Agent, *argv: str, seconds: float = 20.0, **more: t.Any) -> agents.Outcome:
    return agent.run(Command(argv, **more), seconds)


def test_which_one_it_is_is_found_out(any_agent: Agent) -> None:
    assert any_agent.kind == ("qemu-guest-agent" if isinstance(any_agent, StandardAgent) else "cocoon-agent")


def test_a_command(any_agent: Agent) -> None:
    script = 'cat; printf "%s|" "$@" "$SECRET" "$HOME" >&2; exit 7'
    words = ["a b", "", "\N{SNOWMAN}\n\"\\'", "-n"]
    found = run(any_agent, "sh", "-c", script, "sh", *words, env={"SECRET": "s=\n\N{SNOWMAN}"}, stdin=BYTES * 500)
    assert (found.code, found.stdout, found.cut) == (7, BYTES * 500, False)
    assert found.stderr.decode() == "|".join([*words, "s=\n\N{SNOWMAN}", "/root", ""])


def test_a_command_without_input_reads_the_end(any_agent: Agent) -> None:
    assert run(any_agent, "cat") == agents.Outcome(0, b"", b"")


def test_what_does_not_exist_is_told(any_agent: Agent) -> None:
    with pytest.raises(AgentError, match="refused exec: .*(?i:no such file)"):
        run(any_agent, "/not/there")


def test_files_there_and_back(any_agent: Agent, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(3 << 20) if hasattr(random.Random, "randbytes") else os.urandom(3 << 20)
    target = tmp_path / "a file \N{SNOWMAN}"
    any_agent.put(str(target), io.BytesIO(content), soon())
    assert target.read_bytes() == content
    back = io.BytesIO()
    any_agent.fetch(str(target), back, soon())
    assert back.getvalue() == content
    for attempt in (any_agent.put, any_agent.fetch):
        with pytest.raises(AgentError, match="(?i)no such file|nonexistent"):
            attempt(str(tmp_path / "not" / "there"), io.BytesIO(), soon())


def test_many_at_once_do_not_mix(any_agent: Agent) -> None:
    def one(number: int) -> bytes:
        script = f"for i in 1 2 3; do echo {number}; sleep 0.05; done; cat"
        return run(any_agent, "sh", "-c", script, stdin=BYTES).stdout

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [f"{number}\n".encode() * 3 + BYTES for number in range(8)]


@NEEDS_PERL
def test_a_command_that_takes_too_long_is_ended(ours: StandardAgent, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    begun = time.monotonic()
    with pytest.raises(agents.CommandTimeoutError, match="killed"):
        run(ours, "sh", "-c", f"sleep 60 & echo $! > {pid_file}; echo $$ > {tmp_path}/own; wait", seconds=0.8)
    assert time.monotonic() - begun < 10
    stat = Path(f"/proc/{pid_file.read_text().strip()}/stat")
    deadline = soon(5)
    while stat.exists() and " Z " not in stat.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not stat.exists() or " Z " in stat.read_text()
    # It has been asked about, so that the agent keeps nothing of it.
    with pytest.raises(AgentError, match="Invalid parameter 'pid'"):
        ours.ask("guest-exec-status", soon(), pid=int(pid_file.with_name("own").read_text()))
    assert run(ours, "echo", "on").stdout == b"on\n"


@NEEDS_PERL
def test_files_that_nobody_closes_do_not_stay_open(ours: StandardAgent, tmp_path: Path) -> None:
    """Clients were killed; the file that is used all along is not the one that is given up."""
    kept = ours.ask("guest-file-open", soon(), path=str(tmp_path / "kept"), mode="w")
    for _turn in range(70):
        lost = ours.ask("guest-file-open", soon(), path="/dev/null")
        assert ours.ask("guest-file-write", soon(), handle=kept, **{"buf-b64": "eA=="})["count"] == 1
    assert lost - kept == 70
    with pytest.raises(AgentError, match="has not been found"):
        ours.ask("guest-file-read", soon(), handle=kept + 1)
    ours.ask("guest-file-read", soon(), handle=lost)
    ours.ask("guest-file-close", soon(), handle=kept)
    assert (tmp_path / "kept").read_text() == "x" * 70


@NEEDS_PERL
def test_a_signal_and_too_much_output(ours: StandardAgent) -> None:
    assert run(ours, "sh", "-c", "kill -TERM $$").code == 128 + 15
    found = run(ours, "sh", "-c", "head -c 6000000 /dev/zero; echo all >&2")
    assert (len(found.stdout), found.stderr, found.cut) == (4 << 20, b"all\n", True)
    with pytest.raises(AgentError, match="takes 4 MiB of standard input"):
        run(ours, "cat", stdin=bytes(standard_agent.MOST_STDIN + 1))
    found = run(ours, "wc", "-c", stdin=bytes(standard_agent.MOST_STDIN))
    assert int(found.stdout) == standard_agent.MOST_STDIN


@NEEDS_PERL
def test_what_ours_tells_of_the_machine(ours: StandardAgent) -> None:
    with open("/proc/sys/kernel/hostname", encoding="ascii") as stream:
        assert ours.ask("guest-get-host-name", soon()) == {"host-name": stream.read().strip()}
    assert ours.ask("guest-get-osinfo", soon())["kernel-release"] == os.uname().release
    loopback = next(item for item in ours.ask("guest-network-get-interfaces", soon()) if item["name"] == "lo")
    if "ip-addresses" in loopback:  # there may be none where the tests have no network
        assert {"ip-address-type": "ipv4", "ip-address": "127.0.0.1", "prefix": 8} in loopback["ip-addresses"]
    assert abs(ours.ask("guest-get-time", soon()) / 1e9 - time.time()) < 60
    assert ours.ask("guest-ping", soon()) == {}
    about = ours.ask("guest-info", soon())
    assert {"name": "guest-exec", "enabled": True, "success-response": True} in about["supported_commands"]


def test_what_any_tells_of_itself(any_agent: Agent) -> None:
    found = facts.gather(any_agent, soon())
    with open("/proc/sys/kernel/hostname", encoding="ascii") as stream:
        assert (found["agent"], found["hostname"]) == (any_agent.kind, stream.read().strip())
    assert set(found["os"]) >= {"id", "kernel_release"}
    assert (found["interfaces"] is None) is (found["users"] is None) is (any_agent.kind == agents.COCOON)


def test_what_a_guest_claims_is_bounded(tmp_path: Path) -> None:
    claims = {
        "guest-get-host-name": {"host-name": "\x1b[2J" + "h" * 5000},
        "guest-get-osinfo": {"id": 5, "name": ["x"], "pretty-name": "a\nb"},
        "guest-network-get-interfaces": [{"name": "e0", "ip-addresses": [{"ip-address": "1", "prefix": -3}, 7]}] * 500,
        "guest-get-users": {"user": "root"},
        "guest-get-fsinfo": [5, {"name": "vda", "total-bytes": 1e300, "used-bytes": True}],
    }

    def answer(asked: dict[str, t.Any]) -> bytes:
        return json.dumps({"return": claims[asked["execute"]]}).encode() + b"\n"

    with Server(tmp_path / "agent.sock", scripted(answer)):
        found = facts.gather(agents.find(access(tmp_path), soon()), soon())
    assert found["hostname"] == "[2J" + "h" * 252
    assert (found["os"]["id"], found["os"]["name"], found["os"]["pretty_name"]) == (None, None, "a b")
    assert found["interfaces"] == [{"name": "e0", "mac": None, "addresses": [{"address": "1", "prefix": None}]}] * 256
    assert found["users"] is None
    assert found["file_systems"] == [{"device": "vda", "mountpoint": None, "fstype": None, "size": None, "used": None}]


@NEEDS_PERL
@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        ("guest-suspend-ram", {}, "suspend: not known to the guest's agent"),
        ("guest-exec-status", {"pid": 1}, "refused exec-status: Invalid parameter"),
        ("guest-file-read", {"handle": 7}, "refused file-read: handle '7'"),
        ("guest-file-read", {"handle": 7, "count": -1}, "invalid for argument count"),
        ("guest-file-open", {"path": "/x", "mode": "z"}, "invalid file open mode"),
        ("guest-file-write", {"handle": 7, "buf-b64": "!"}, "refused file-write"),
        ("guest-shutdown", {"mode": "halt"}, "refused shutdown"),
        ("guest-set-time", {"time": 5}, "no time in nanoseconds"),
    ],
)
def test_what_ours_refuses(ours: StandardAgent, command: str, arguments: dict[str, t.Any], text: str) -> None:
    with pytest.raises(AgentError, match=text):
        ours.ask(command, soon(), **arguments)


@NEEDS_PERL
@pytest.mark.parametrize(
    "before",
    [
        b"",
        b'{"execute": "guest-ping"',
        b"\x00\x01garbage\n\n\n[1, 2]\n",
        b'{"execute": "guest-ping"}\n' * 3,
        b'{"execute": {"a": [' + b"[" * 1000 + b"\n",
        b"x" * (9 << 20),
        b'"\\ud83d\\u2603 \\q\n',
    ],
    ids=range(7),
)
def test_what_clients_before_us_left_is_not_mistaken(tmp_path: Path, before: bytes) -> None:
    """They died in the middle of a word, or before they read their answers."""
    port = Port()
    try:
        with Server(tmp_path / "agent.sock", port.serve):
            way = access(tmp_path)
            with contextlib.closing(way.connect()) as line:
                line.setblocking(True)
                line.sendall(before)
            agent = agents.find(way, soon())
            assert run(agent, "echo", "clean").stdout == b"clean\n"
    finally:
        port.close()


@NEEDS_PERL
def test_ours_keeps_an_answer_until_the_host_is_there() -> None:
    """A guest's kernel may pass on what a client says before it knows of the client; the next one's is another's."""
    steps = r"""
        $place = 'port';
        pipe $line, my $client;
        unblock($line);
        for my $turn (1, 2) {
            syswrite $client, qq(\xff{"execute": "guest-sync-delimited", "arguments": {"id": $turn}}\n);
            hear();
            hang_up();
            print $answer;
        }
    """
    source = AGENT.read_text(encoding="utf-8").replace("\nmain();\n", "\n")
    done = subprocess.run(["perl", "-e", source + steps], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b'\xff{"return": 1}\n\xff{"return": 2}\n'


# --- Agents that are none ---------------------------------------------------------------------------------------------


def scripted(answer: t.Callable[[dict[str, t.Any]], bytes], greets: bool = True) -> Serve:
    """An agent that answers the first question as it should, and all others by *answer*."""

    def serve(client: socket.socket) -> None:
        for line in client.makefile("rb"):
            asked = json.loads(line.rpartition(b"\xff")[2])
            if greets and asked["execute"] == "guest-sync-delimited":
                client.sendall(b"\xff" + json.dumps({"return": asked["arguments"]["id"]}).encode() + b"\n")
            else:
                client.sendall(answer(asked))

    return serve


def refusal(kind: str, words: str) -> bytes:
    return json.dumps({"error": {"class": kind, "desc": words}}).encode() + b"\n"


DISABLED = "Command guest-exec has been disabled: the command is not allowed"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (refusal("CommandNotFound", DISABLED), "^exec: not allowed by the guest's agent. Allow guest-exec"),
        (refusal("GenericError", "The command guest-exec has been disabled for this instance"), "^exec: not allowed"),
        (refusal("CommandNotFound", "The command guest-exec has not been found"), "^exec: not known to the guest's"),
        (refusal("GenericError", "\x1b[31mred\n" + "x" * 500), r"refused exec:  ?\[31mred x{180,200}$"),
        (b"{}\n", "an answer that is none"),
        (b'{"error": 5}\n', "an answer that is none"),
        (b"[]\n", "no JSON object"),
        (b"\x00\xfe\n", "no JSON"),
        (b"[" * 40_000 + b"\n", "no JSON"),
        (b'{"return": {"pid": ' + b"9" * 5000 + b"}}\n", "no JSON"),
        (b'{"return": [' + b"[]," * 60_000 + b"[]]}\n", "more than 50000 values"),
        (b'{"return": [' + b"[" * 60_000 + b"\n", "more than 50000 values"),
        (b'{"return": "' + b"x" * (1 << 20) + b'"}\n', "a line of more than 1048576 bytes"),
        (b'{"return": {"pid": -1}}\n', "no such number"),
        (b'{"return": {"pid": true}}\n', "no such number"),
        (b'{"return": {"pid": 1e300}}\n', "no such number"),
        (b'{"return": [1]}\n', "no such number"),
    ],
    ids=range(17),
)
def test_answers_that_are_none(tmp_path: Path, answer: bytes, text: str) -> None:
    with Server(tmp_path / "agent.sock", scripted(lambda _asked: answer)):
        agent = agents.find(access(tmp_path), soon())
        with pytest.raises(AgentError) as caught:
            run(agent, "true")
        assert caught.match(text)


@pytest.mark.parametrize(
    "status",
    [
        {"exited": "yes"},
        {"exited": True},
        {"exited": True, "exitcode": 999},
        {"exited": True, "signal": "TERM"},
        {"exited": True, "exitcode": 0, "out-data": "%%%"},
        {"exited": True, "exitcode": 0, "out-data": {"a": 1}},
        [],
    ],
)
def test_ends_that_are_none(tmp_path: Path, status: t.Any) -> None:
    def answer(asked: dict[str, t.Any]) -> bytes:
        found = {"pid": 5} if asked["execute"] == "guest-exec" else status
        return json.dumps({"return": found}).encode() + b"\n"

    with Server(tmp_path / "agent.sock", scripted(answer)):
        agent = agents.find(access(tmp_path), soon())
        with pytest.raises(AgentError, match="the guest's agent"):
            run(agent, "true")


def test_a_line_without_end_is_given_up(tmp_path: Path) -> None:
    with Server(tmp_path / "agent.sock", scripted(lambda _asked: b"x" * (2 << 20))):
        agent = agents.find(access(tmp_path), soon())
        with pytest.raises(AgentError, match="line of more than 1048576 bytes"):
            run(agent, "true")


@pytest.mark.parametrize("kind", ["virtio-serial", "vsock"])
@pytest.mark.parametrize("says", [b"", b"noise\n" * 1000, b'\xff{"return": 1}\n' * 9], ids=range(3))
def test_nobody_answers(
    tmp_path: Path, kind: t.Literal["virtio-serial", "vsock"], says: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listens and says nothing, or nothing that was asked for."""
    monkeypatch.setattr(standard_agent, "ASK_AGAIN", 0.1)

    def serve(client: socket.socket) -> None:
        if kind == "vsock":
            client.recv(13)
            client.sendall(b"OK 5\n")
        client.sendall(says)
        while client.recv(1 << 16):
            pass

    begun = time.monotonic()
    with Server(tmp_path / "agent.sock", serve), pytest.raises(agents.NoAgentError) as caught:
        run(agents.find(access(tmp_path, kind), soon(0.4)), "true")
    assert time.monotonic() - begun < 5
    assert "no agent answers in the guest" in str(caught.value) and caught.value.remedy


def test_one_that_is_slow_is_asked_again_and_not_misunderstood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It objects to each mark between the questions, and answers all of them at last, and what is asked then."""
    monkeypatch.setattr(standard_agent, "ASK_AGAIN", 0.1)

    def serve(client: socket.socket) -> None:
        held, questions = b"", 0
        while data := client.recv(1 << 16):
            held += data
            questions += data.count(b"guest-sync-delimited")
            if questions < 3:
                continue
            *lines, held = held.split(b"\n")
            for line in lines:
                client.sendall(b'{"error": {"class": "GenericError", "desc": "stray"}}\n' * line.count(b"\xff"))
                asked = json.loads(line.rpartition(b"\xff")[2])
                number = asked.get("arguments", {}).get("id")
                client.sendall(b'{"return": "pong"}\n' if number is None else b'\xff{"return": %d}\n' % number)
                time.sleep(0.2)  # longer than it has until it is asked again

    with Server(tmp_path / "agent.sock", serve):
        agent = t.cast(standard_agent.StandardAgent, agents.find(access(tmp_path), soon()))
        assert [agent.ask("guest-ping", soon()) for _turn in range(3)] == ["pong"] * 3


@pytest.mark.parametrize("hangs_up", [False, True])
def test_nobody_listens_in_the_guest(tmp_path: Path, hangs_up: bool) -> None:
    """The hypervisor says nothing, or hangs up."""
    with Server(tmp_path / "agent.sock", lambda client: t.cast(None, hangs_up or client.recv(100) and time.sleep(1))):
        with pytest.raises(agents.NoAgentError, match="nobody listens.*may have no agent"):
            agents.find(access(tmp_path, "vsock"), soon(0.3))


@pytest.mark.parametrize("kind", ["virtio-serial", "vsock"])
def test_a_vm_that_does_not_run(tmp_path: Path, kind: t.Literal["virtio-serial", "vsock"]) -> None:
    """Nobody waits for it: its socket is gone, or nobody listens there any more, or all of it is gone."""
    begun = time.monotonic()
    for path in (tmp_path, tmp_path, tmp_path / "gone"):
        with pytest.raises(AgentError, match="does not run any more"):
            run(agents.find(access(path, kind), soon()), "true")
        if not (tmp_path / "agent.sock").exists():
            Server(tmp_path / "agent.sock", lambda _client: None).close()
    assert time.monotonic() - begun < 5


def test_what_is_not_the_hypervisors(tmp_path: Path) -> None:
    """A socket that another user listens at, or something else; who waits for it does not wait for others in vain."""
    way = access(tmp_path, "vsock")
    strange = Access(dataclasses.replace(way.channel, uid=os.getuid() + 1), way.run_dir)
    with Server(tmp_path / "agent.sock", Cocoon().serve):
        with pytest.raises(HypervisorError, match="is of user"):
            run(agents.find(strange, soon(0.2)), "true")
        one, other = target(strange, 5), target(way, 5)
        wait.wait_all([one, other])
        for each in (one, other):
            each.process.close()
    assert one.error and "is of user" in one.error and other.error is None and other.seconds is not None
    (tmp_path / "agent.sock").unlink()
    (tmp_path / "agent.sock").symlink_to("/dev/null")
    with pytest.raises(HypervisorError, match="is not a socket"):
        run(agents.find(way, soon(0.2)), "true")


def test_a_client_that_hangs_is_waited_for_so_long(tmp_path: Path) -> None:
    way = access(tmp_path)
    with way.turn(soon()), pytest.raises(BusyError, match="Another task talks to it") as caught:
        run(agents.find(way, soon(0.2)), "true")
    assert caught.value.option == "agent_timeout"
    assert os.listdir(tmp_path) == []


def begun_and_then(tmp_path: Path, then: Serve) -> Server:
    """An agent that has begun a command, which goes on, and of whose later clients each is served by *then*."""
    clients: list[socket.socket] = []

    def answer(asked: dict[str, t.Any]) -> bytes:
        found = {"pid": 5} if asked["execute"] == "guest-exec" else {"exited": False}
        return json.dumps({"return": found}).encode() + b"\n"

    def serve(client: socket.socket) -> None:
        clients.append(client)
        (scripted(answer) if len(clients) == 1 else then)(client)

    return Server(tmp_path / "agent.sock", serve)


def test_one_that_falls_silent_costs_its_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the command's own time."""
    monkeypatch.setattr(standard_agent, "ANSWER", 0.3)
    begun = time.monotonic()
    with begun_and_then(tmp_path, lambda client: t.cast(None, client.recv(1) and time.sleep(1))):
        with pytest.raises(agents.NoAgentError):
            run(agents.find(access(tmp_path), soon(0.3)), "sleep", "20", seconds=20.0)
    assert time.monotonic() - begun < 10


def test_a_vm_that_ends_ends_its_commands(tmp_path: Path) -> None:
    begun = time.monotonic()
    with begun_and_then(tmp_path, lambda _client: None) as server:
        threading.Timer(0.2, server.listener.close).start()
        with pytest.raises(AgentError, match="does not run any more"):
            run(agents.find(access(tmp_path), soon()), "sleep", "20", seconds=20.0)
    assert time.monotonic() - begun < 10


def test_standard_agents_are_found_behind_vsock(tmp_path: Path) -> None:
    inner = scripted(lambda asked: json.dumps({"return": asked["execute"]}).encode() + b"\n")

    def serve(client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\n"):
            head += client.recv(1)
        assert head == b"CONNECT 1024\n"
        client.sendall(b"OK 1073741824\n")
        inner(client)

    with Server(tmp_path / "agent.sock", serve):
        agent = agents.find(access(tmp_path, "vsock"), soon())
        assert isinstance(agent, StandardAgent)
        assert agent.ask("guest-ping", soon()) == "guest-ping"


# --- Waiting ----------------------------------------------------------------------------------------------------------


def target(way: Access, seconds: float) -> wait.Target:
    now = time.monotonic()
    process = Process(os.getpid(), os.pidfd_open(os.getpid()))
    return wait.Target("web1", "id", "agent", now, now + seconds, process, agent=way)


@NEEDS_PERL
def test_it_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From before its socket is there, and though another client has its turn first."""
    monkeypatch.setattr(agents, "ASK_AGAIN", 0.2)
    port, way = Port(), access(tmp_path)
    servers: list[Server] = []

    held = contextlib.ExitStack()
    held.enter_context(way.turn(soon()))

    def appear() -> None:
        time.sleep(0.2)
        servers.append(Server(tmp_path / "agent.sock", port.serve))
        time.sleep(0.2)
        held.close()

    starter = threading.Thread(target=appear)
    starter.start()
    one = target(way, 20)
    try:
        wait.wait_all([one])
        assert one.error is None and one.seconds is not None and one.seconds >= 0.3
        assert run(agents.find(way, soon()), "echo", "free").stdout == b"free\n"
    finally:
        starter.join()
        one.process.close()
        servers[0].close()
        port.close()


def test_one_that_stays_silent_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with Server(tmp_path / "agent.sock", lambda client: t.cast(None, client.recv(1) and time.sleep(1))):
        one = target(access(tmp_path), 0.3)
        wait.wait_all([one])
        one.process.close()
    assert one.error and "waited 0 s for the agent in the guest" in one.error
    run: t.Any = types.SimpleNamespace(store=types.SimpleNamespace(paths=Paths()))
    item: t.Any = types.SimpleNamespace(name="web1", record={"id": "a" * 26})
    assert readiness._silence(run, item, one).remedy == agents.REMEDY
    one.condition = "ping"
    assert readiness._silence(run, item, one).remedy is None
