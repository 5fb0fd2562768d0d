#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Runs tests on functions that a real machine can spare, as root, in a checkout there:
#	tests/hardware.sh 0001:00:00.0 [FUNCTION...] [guest.suite=SUITE,...]
# What is on these NVMe drives is lost. The running kernel has the driver; its tree is
# where its build link points to, or KDIR=. What to send is build/hardware/report.txt.
set -e
cd "$(dirname "$0")/.."
folder=$PWD/build/hardware
kdir=${KDIR:-/lib/modules/$(uname -r)/build}
mkdir -p "$folder/modules"
cargo build --release --locked --manifest-path tests/guest/Cargo.toml --target-dir "$folder"
make -C "$kdir" M="$PWD/tests/modules" MO="$folder/objects" modules
cp "$folder"/objects/*.ko "$folder/modules"
cp "$folder/release/guest" "$folder/guest"
"$folder/guest" "$@" | tee "$folder/report.txt"
echo "Please send $folder/report.txt, and the output of dmesg."
