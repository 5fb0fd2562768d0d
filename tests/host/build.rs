// SPDX-License-Identifier: GPL-2.0

//! Extracts the driver's implementation of `Cell` from `dma_table/table.rs`. The model
//! checks compile it with the model checker's atomics, so they check the memory orderings
//! that the driver uses.

use std::{env, fs, path::Path};

const SOURCE: &str = "../../dma_table/table.rs";
const START: &str = "\nimpl Cell for AtomicU64 {\n";
const END: &str = "\n}\n";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    let source = fs::read_to_string(SOURCE).expect("the driver's tables can be read");
    let from = source.find(START).expect("there is an impl of Cell");
    let length = source[from..].find(END).expect("the impl has an end") + END.len();
    let folder = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let cell = &source[from..from + length];
    fs::write(Path::new(&folder).join("cell.rs"), cell).expect("OUT_DIR is writable");
}
