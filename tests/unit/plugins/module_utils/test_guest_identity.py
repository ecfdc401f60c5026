# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Telling guests who they are: the message, and the other side in every mood."""

from __future__ import annotations

import os
import socket
import threading
import time
import types
import typing as t
import uuid

import pytest

from ansible_collections.cocoon.microvm.plugins.module_utils._errors import (
    BusyError,
    CocoonError,
    HypervisorError,
)
from ansible_collections.cocoon.microvm.plugins.module_utils._guest import identity
from ansible_collections.cocoon.microvm.plugins.module_utils._guest.identity import Newcomer, tell_all
from ansible_collections.cocoon.microvm.plugins.module_utils._types import Record

GUEST_UUID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
OLD = ["02:00:00:00:00:0a", "02:00:00:00:00:0b"]
PATIENCE = 20.0  # seconds until a test that hangs is given up


def vm(*nics: Record) -> Record:
    return {"config": {"name": "web1"}, "network_configs": list(nics)}


def nic(mac: str = "02:00:00:00:00:01", **more: t.Any) -> Record:
    return {"mac": mac, **more}


ADDRESS = {"ip": "10.1.0.7", "prefix": 24, "gateway": "10.1.0.1"}


# ------------------------------------------------------------------------------------------------- the message


def lines(record: Record, old: t.Sequence[str] = ()) -> list[str]:
    data = identity.message(record, old, GUEST_UUID)
    assert data.endswith(b"\n") and b"\0" not in data and b"\n\n" not in data
    return data.decode("ascii").splitlines()


def test_message() -> None:
    words = [line.split() for line in lines(vm(nic(network=ADDRESS, dns=["9.9.9.9"])), OLD[:1])]
    assert [word[0] for word in words] == ["cocoon-identity", "time", "seed", "hostname", "machine-id", "nic", "end"]
    assert words[0] == ["cocoon-identity", "1"]
    assert abs(float(words[1][1]) - time.time()) < 60
    assert len(bytes.fromhex(words[2][1])) == identity.SEED_BYTES
    assert words[3] == ["hostname", "web1"]
    assert words[4] == ["machine-id", uuid.UUID(GUEST_UUID).hex]
    assert words[5] == ["nic", OLD[0], "02:00:00:00:00:01", "10.1.0.7/24", "10.1.0.1", "9.9.9.9"]


def test_no_two_guests_are_told_the_same_seed() -> None:
    seeds = {line for _time in range(20) for line in lines(vm()) if line.startswith("seed ")}
    assert len(seeds) == 20


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (nic(), "- - -"),  # the guest asks a DHCP server
        (nic(network={}), "- - -"),
        (nic(dns=["9.9.9.9"]), "- - -"),
        (nic(network={"ip": "10.1.0.7", "prefix": 24}), "10.1.0.7/24 - 8.8.8.8,1.1.1.1"),
        (nic(network={"ip": "10.1.0.7", "prefix": 24, "gateway": ""}), "10.1.0.7/24 - 8.8.8.8,1.1.1.1"),
        (nic(network=ADDRESS, dns=None), "10.1.0.7/24 10.1.0.1 8.8.8.8,1.1.1.1"),
        (nic(network=ADDRESS, dns=[]), "10.1.0.7/24 10.1.0.1 -"),
        (nic(network=ADDRESS, dns=["1.1.1.1", "9.9.9.9", "8.8.4.4"]), "10.1.0.7/24 10.1.0.1 1.1.1.1,9.9.9.9"),
    ],
)
def test_nics_in_the_message(config: Record, words: str) -> None:
    (line,) = [line for line in lines(vm(config), OLD[:1]) if line.startswith("nic ")]
    assert line == f"nic {OLD[0]} {config['mac']} {words}"
    assert len(line.split()) == 6, "every field is there, so that a shell can read them by number"


def test_nics_are_named_by_the_addresses_that_they_have() -> None:
    new = ["02:00:00:00:00:01", "02:00:00:00:00:02"]
    found = [line.split() for line in lines(vm(*map(nic, new)), OLD) if line.startswith("nic ")]
    assert [words[1:3] for words in found] == [[OLD[0], new[0]], [OLD[1], new[1]]]


# ------------------------------------------------------------------------------------------------ the answers


class Guest:
    """The other side: what it says each time that it is told, and a hypervisor that may end.

    :param answers: for each time: bytes to say at once, ``None`` for silence, ``...`` to hang up.
    """

    def __init__(self, *answers: t.Any, admits: str = "", timeout: float = PATIENCE) -> None:
        self.answers = list(answers)
        self.told: list[float] = []
        self.admitted = 0
        self.admits = admits
        self.lines: list[socket.socket] = []
        self.ended, self._end = os.pipe()  # a pidfd becomes readable just so
        process = t.cast(t.Any, types.SimpleNamespace(pidfd=self.ended))
        self.newcomer = Newcomer("web1", process, self.tell, self.admit, time.monotonic() + timeout)

    def _next(self) -> t.Any:
        """What comes next; nothing, once all has been said."""
        if not self.answers:
            return None
        if isinstance(self.answers[0], CocoonError):
            raise t.cast(CocoonError, self.answers.pop(0))
        return self.answers.pop(0)

    def tell(self) -> socket.socket:
        self.told.append(time.monotonic())
        answer = self._next()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        if answer is ...:
            theirs.close()
        else:
            self.lines.append(theirs)
            if answer:
                theirs.sendall(answer)
        return ours

    def admit(self) -> None:
        self.admitted += 1
        if self.admits:
            raise HypervisorError(self.admits)

    def die(self) -> None:
        os.write(self._end, b"x")

    def close(self) -> None:
        for fd in (self.ended, self._end):
            os.close(fd)
        for line in self.lines:
            line.close()


@pytest.fixture
def make() -> t.Iterator[t.Callable[..., Guest]]:
    guests: list[Guest] = []

    def build(*answers: t.Any, **options: t.Any) -> Guest:
        guests.append(Guest(*answers, **options))
        return guests[-1]

    yield build
    for guest in guests:
        assert guest.newcomer.line is None, "a line is left open"
        guest.close()


Make = t.Callable[..., Guest]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told again after a moment, so that no test waits for it."""
    monkeypatch.setattr(identity, "REPEAT", 0.05)


@pytest.mark.parametrize("answer", [b"ok\n", b"ok\r\n", b" ok \n", b"ok\nand more\n"])
def test_ok(make: Make, answer: bytes) -> None:
    guest = make(answer)
    tell_all([guest.newcomer])
    assert guest.newcomer.done and guest.newcomer.error is None
    assert (len(guest.told), guest.admitted) == (1, 1)


def test_nobody_to_tell() -> None:
    tell_all([])


def test_an_answer_in_pieces(make: Make) -> None:
    guest = make(b"o")
    sender = threading.Timer(0.01, lambda: guest.lines[0].sendall(b"k\n"))
    sender.start()
    tell_all([guest.newcomer])
    sender.join()
    assert guest.newcomer.done


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"error no such nic\n", "error no such nic"),
        (b"okay\n", "okay"),
        (b"OK\n", "OK"),
        (b"\n", ""),
        (b"\xff\xfe\x00\n", ""),
        (b"error \x1b[2Jcleared\n", "error  [2Jcleared"),
    ],
)
def test_no(make: Make, answer: bytes, words: str) -> None:
    guest = make(answer)
    tell_all([guest.newcomer])
    error = guest.newcomer.error or ""
    assert "did not take its new identity" in error and words in error
    assert error.isprintable() and not guest.newcomer.done
    assert (len(guest.told), guest.admitted) == (1, 0)


def test_a_guest_that_has_not_seen_its_nic_yet_is_asked_again(make: Make) -> None:
    guest = make(b"error no NIC has the address\n", b"ok\n")
    guest.newcomer.patient = True
    tell_all([guest.newcomer])
    assert guest.newcomer.done and (len(guest.told), guest.admitted) == (2, 1)


def test_until_the_deadline(make: Make) -> None:
    guest = make(b"error no NIC has the address\n")
    guest.newcomer.patient, guest.newcomer.deadline = True, time.monotonic() + 0.2
    tell_all([guest.newcomer])
    assert not guest.newcomer.done and "told of its NICs: error no NIC" in (guest.newcomer.error or "")


def test_a_message_of_nics_alone() -> None:
    record = vm(nic(network=ADDRESS, dns=["9.9.9.9"]), nic("02:00:00:00:00:02", metric=7))
    words = identity.nics_message(record, ["02:00:00:00:00:02"]).decode().splitlines()
    assert words == [
        "cocoon-identity 1",
        "options metric=7",
        "nic 02:00:00:00:00:02 02:00:00:00:00:02 - - -",
        "end",
    ]


def test_a_long_no_is_cut_short(make: Make) -> None:
    guest = make(b"error " + b"x" * 3000 + b"\n")
    tell_all([guest.newcomer])
    assert "error xxx" in (guest.newcomer.error or "") and len(guest.newcomer.error or "") < 300


def test_an_answer_without_end_is_not_listened_to(make: Make) -> None:
    """However much it says, no more than a few KiB are kept, and it is asked again."""
    guest = make(b"x" * 100_000, b"ok\n")
    tell_all([guest.newcomer])
    assert guest.newcomer.done and len(guest.told) == 2
    assert len(guest.newcomer.received) <= 2 * identity.MAX_ANSWER


@pytest.mark.parametrize("first", [None, ..., b"half an answ"])
def test_told_again(make: Make, first: t.Any) -> None:
    """A handler that missed the event, that hung up, or that stopped in between."""
    guest = make(first, b"ok\n")
    tell_all([guest.newcomer])
    assert guest.newcomer.done and (len(guest.told), guest.admitted) == (2, 1)
    # The first is noted when it is told, which on a busy machine is later than when the time began to count.
    assert guest.told[1] - guest.told[0] >= identity.REPEAT / 2


def test_one_that_does_not_listen_yet_is_told_soon(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "ANOTHER_TRY", 0.02)
    monkeypatch.setattr(identity, "REPEAT", PATIENCE)
    guest = make(BusyError("nobody listens"), BusyError("nobody listens"), b'{"type": "identity", "answer": "ok"}\n')
    tell_all([guest.newcomer])
    assert guest.newcomer.done and (len(guest.told), guest.admitted) == (3, 1)
    never = make(*[BusyError("nobody listens")] * 100, timeout=0.1)
    tell_all([never.newcomer])
    assert "did not answer" in str(never.newcomer.error) and not never.admitted


def test_what_was_said_on_an_earlier_line_does_not_count(make: Make) -> None:
    guest = make(b"o", b"k\n", b"ok\n")
    tell_all([guest.newcomer])
    assert "did not take" in (guest.newcomer.error or "") and not guest.admitted


def test_silence(make: Make) -> None:
    guest = make(timeout=0.16)
    begun = time.monotonic()
    tell_all([guest.newcomer])
    assert 0.16 <= time.monotonic() - begun < PATIENCE
    assert "did not answer" in (guest.newcomer.error or "") and "kept off the network" in (guest.newcomer.error or "")
    assert len(guest.told) >= 2 and not guest.admitted


def test_hanging_up_all_the_time(make: Make) -> None:
    """No busy loop: it is told once in a while."""
    guest = make(*[...] * 1000, timeout=0.2)
    tell_all([guest.newcomer])
    assert "did not answer" in (guest.newcomer.error or "") and len(guest.told) <= 6


def test_a_deadline_that_has_passed(make: Make) -> None:
    guest = make(timeout=-1.0)
    tell_all([guest.newcomer])
    assert "did not answer" in (guest.newcomer.error or "")


@pytest.mark.parametrize("answer", [None, ...])
def test_the_hypervisor_ends(make: Make, answer: t.Any) -> None:
    guest = make(answer)
    ender = threading.Timer(0.01, guest.die)
    ender.start()
    begun = time.monotonic()
    tell_all([guest.newcomer])
    ender.join()
    assert "the hypervisor ended" in (guest.newcomer.error or "") and not guest.admitted
    assert time.monotonic() - begun < PATIENCE / 2


def test_the_hypervisor_does_not_pass_it_on(make: Make) -> None:
    guest = make(HypervisorError("no such device"))
    tell_all([guest.newcomer])
    assert guest.newcomer.error == "no such device" and len(guest.told) == 1


def test_a_guest_that_lies(make: Make) -> None:
    """It says ok, and its NICs do not have the addresses: it stays off the network."""
    guest = make(b"ok\n", admits="NIC 0 has the address 02:00:00:00:00:0a")
    tell_all([guest.newcomer])
    assert "has not taken its new identity: NIC 0 has" in (guest.newcomer.error or "") and not guest.newcomer.done


def test_many_at_once_each_for_itself(make: Make) -> None:
    good = [make(b"ok\n") for _one in range(5)]
    late = make(None, b"ok\n")
    bad, silent, dead = make(b"error no\n"), make(timeout=0.2), make()
    dead.die()
    begun = time.monotonic()
    tell_all([guest.newcomer for guest in (silent, dead, *good, bad, late)])
    assert all(guest.newcomer.done and len(guest.told) == 1 for guest in good)
    assert late.newcomer.done and len(late.told) == 2
    assert [bool(guest.newcomer.error) for guest in (bad, silent, dead)] == [True] * 3
    assert time.monotonic() - begun < PATIENCE / 2


def test_those_that_are_done_are_not_asked_again(make: Make) -> None:
    guest = make(b"ok\n")
    tell_all([guest.newcomer])
    tell_all([guest.newcomer])
    assert len(guest.told) == 1
