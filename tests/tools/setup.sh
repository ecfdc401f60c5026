#!/usr/bin/env bash
# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# `make setup`: everything that the demo and the tests need. Safe to repeat; without anything to do it takes a second
# and makes no network call. This part needs only a shell: it gets Python; prepare.py does the rest.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Python for the tools, git to list the files, the rest for lint and for tests with real guests and disks.
packages=(ca-certificates curl fdisk git iproute2 iputils-ping make mount openssh-client procps python3 python3-venv)
packages+=(shellcheck umoci util-linux xz-utils)
# Plays a hypervisor's in tests. Nobody's own machine gets a service that listens because of them.
[ -z "${CI:-}" ] || packages+=(openssh-server)

have() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null || true)" = installed ]
}

if command -v dpkg-query >/dev/null; then
    missing=()
    for package in "${packages[@]}"; do
        have "$package" || missing+=("$package")
    done
    if [ "${#missing[@]}" -gt 0 ]; then
        if [ "$(id -u)" -ne 0 ]; then
            echo "error: these packages are missing: ${missing[*]}. Install them, or run make as root." >&2
            exit 1
        fi
        echo "== Installing distribution packages: ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then # nothing is started because it was installed
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 0755 "$policy"
            trap 'rm -f "$policy"' EXIT
        fi
        apt-get -o DPkg::Lock::Timeout=300 -qq update </dev/null
        apt-get -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -qq install -y --no-install-recommends "${missing[@]}" </dev/null
        [ -z "$(trap -p EXIT)" ] || rm -f "$policy"
        trap - EXIT
    fi
else
    echo "note: this is neither Debian nor Ubuntu: install the equivalents of ${packages[*]} yourself." >&2
fi

python=/usr/bin/python3
[ -x "$python" ] || python=$(command -v python3) || {
    echo "error: python3 was not found." >&2
    exit 1
}
exec "$python" -I tests/tools/prepare.py "$@"
