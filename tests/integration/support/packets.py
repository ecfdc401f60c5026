# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests put on the wire: every frame that comes out of a TAP of a network namespace, with its source."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import threading

from ansible_collections.cocoon.microvm.tests.integration.support.machine import Netns

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 0x0003
TAP = "cm"
SOL_SOCKET_BUFFER = 8 << 20


class Wire:
    """Collects (interface, source MAC) of what guests send, on a thread of its own, while it is entered."""

    def __init__(self, netns: Netns) -> None:
        self.seen: set[tuple[str, str]] = set()
        self.frames = 0
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(netns,), daemon=True)

    def __enter__(self) -> Wire:
        self._thread.start()
        assert self._ready.wait(10), "the capture did not begin"
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self, netns: Netns) -> None:
        # A namespace is a thread's, and a socket stays in the one that it was made in.
        fd = os.open(netns.path, os.O_RDONLY | os.O_CLOEXEC)
        assert ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) == 0
        os.close(fd)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOL_SOCKET_BUFFER)
            self._ready.set()
            while not self._ended.is_set():
                if not select.select([sock], [], [], 0.05)[0]:
                    continue
                frame, (interface, _protocol, kind, *_rest) = sock.recvfrom(65536)
                if kind != socket.PACKET_OUTGOING and interface.startswith(TAP) and "-" in interface[-3:]:
                    self.frames += 1
                    self.seen.add((interface, frame[6:12].hex(":")))


def arp_request(mac: str, sender: str, wanted: str) -> bytes:
    """An Ethernet frame, behind the header that a TAP with IFF_VNET_HDR has."""
    source = bytes.fromhex(mac.replace(":", ""))
    arp = struct.pack(
        "!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, source, socket.inet_aton(sender), bytes(6), socket.inet_aton(wanted)
    )
    return bytes(10) + b"\xff" * 6 + source + b"\x08\x06" + arp


# A hypervisor that opens its TAP by name, as the VM's user, and then sends each line that it is given as a frame.
OPENER = """
import fcntl, os, select, struct, sys
fd = os.open("/dev/net/tun", os.O_RDWR)  # not on every machine everybody may
os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x5002))
print("open", flush=True)
for line in sys.stdin:
    os.write(fd, bytes.fromhex(line.strip()))
    print(os.read(fd, 4096).hex() if select.select([fd], [], [], 0.2)[0] else "", flush=True)
"""
