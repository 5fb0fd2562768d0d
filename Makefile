# SPDX-License-Identifier: GPL-2.0
# The project's own commands. In a kernel tree the file Kbuild beside this one
# is what builds the driver.
#
## make run       boot a machine with this driver: what it owns, DMA with checksums
## make test      every check and test, with a summary
## make kselftest the kernel's selftests of VFIO and iommufd, and our own
##                (COMPARE=1: also with the C driver, side by side)
## make bench     what map, unmap and flush cost, beside the C driver
##                (ONLY=throughput: what devices move, by fio and iperf3)
## make passthrough  give drives to a guest inside the guest, over VFIO and iommufd
## make torture   all suites on a kernel that finds mistakes, and what may happen to a
##                machine many times (ONLY= one of its boots, SEED= does it again)
## make mutants   break the code on purpose: do the tests notice?
##                (ONLY= takes those with this in their names)
## make kernel    build the kernel only; ends with image=, source=, objects=
## make matrix    build the kernel in other configurations: a table of what builds
##                (ONLY= takes those with this in their names; ONLY=steps builds it
##                after each patch of the series)
## make machine   build an emulator that can do what Debian's cannot; ends with machine=
## make guest     boot to a shell (APPEND= adds to the kernel's command line)
## make modules   KDIR=<prepared tree>: build the driver as an external module
## make modules_install  KDIR=...: install it
## make integrate put the driver into a kernel tree (KDIR=, or the one in the cache)
## make series    KDIR=<released tree>: the driver, and fixes of the kernel's selftests, as
##                patches in build/series/, ready to send
## make fmt       format all Rust
## make clippy    clippy on all Rust, the driver included
## make checkpatch  the kernel's checkpatch on all C
## make rustdoc   the driver's documentation
## make htmldocs  the pages of Documentation/ as HTML
## make bare      SUITE=bookworm|trixie TARGET=test: run a command in a bare Debian
## make clean     remove what was built; downloads stay in the cache
##
## Variables: KDIR= kernel tree, KOUT= objects folder, MODULE=1 the driver as a
## module, CONFIG=a,b fragments of tools/config, PART=a,b parts of make test,
## BOOT= one boot of PART=machine,
## UPDATE=1 look for a newer kernel,
## JOBS= processes, S390_IOMMU_CACHE= downloads and objects (~/.cache/s390-iommu),
## RUSTC= CARGO= BINDGEN= LLVM= QEMU= tools other than Debian's

CARGO ?= /usr/bin/cargo
RUSTC ?= /usr/bin/rustc
export CARGO RUSTC

COMMANDS := run test kselftest bench passthrough torture mutants kernel matrix machine guest integrate series modules modules_install fmt clippy checkpatch rustdoc htmldocs bare clean
.PHONY: help $(COMMANDS)

help:
	@sed -n 's/^## \?//p' Makefile

$(COMMANDS):
	@sh tools/bootstrap.sh
	@$(CARGO) run --quiet --release --locked --target-dir build/target/tools \
		--manifest-path tools/Cargo.toml -- $(subst _,-,$@)
