#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Installs what the tools themselves are built with: cargo, rustc, a linker.
# All else is installed by the tools.

recent() { "$1" --version 2>/dev/null | grep -Eq ' 1\.(8[5-9]|9[0-9]|[1-9][0-9][0-9])\.'; }
works() { recent "$CARGO" && recent "$RUSTC" && command -v cc >/dev/null; }

works && exit 0
for tool in "CARGO=$CARGO" "RUSTC=$RUSTC"; do
	case $tool in CARGO=/usr/bin/cargo | RUSTC=/usr/bin/rustc) continue ;; esac
	recent "${tool#*=}" || { echo "error: $tool is no such program of Rust >= 1.85; name another" >&2; exit 1; }
done
packages="cargo-web rustc-web gcc libc6-dev ca-certificates"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "error: no working $CARGO, $RUSTC and cc; as root on Debian 12 or 13 they are installed by" \
		"themselves, elsewhere install Rust >= 1.96 with clippy, rustfmt and the library's source, LLVM >= 15," \
		"bindgen >= 0.71.1 and qemu-system-s390x >= 8.0, and name what is not in its usual place with" \
		"CARGO= RUSTC= LLVM= BINDGEN= QEMU= KDIR= (a Linux >= 7.3)" >&2
	exit 1
fi
mkdir -p build/logs
log=build/logs/bootstrap.log
echo "           bootstrap: apt-get install $packages ..."
export DEBIAN_FRONTEND=noninteractive
if apt-get update >$log 2>&1; apt-get install --yes --no-install-recommends $packages >>$log 2>&1 && works; then
	echo "           bootstrap: installed"
else
	tail -n 15 $log
	echo "error: bootstrap failed; check the network and apt's sources, the whole log is $log" >&2
	exit 1
fi
