// SPDX-License-Identifier: GPL-2.0

//! Takes the driver's own implementation of a cell out of `dma_table/table.rs`, for the
//! model checks to build with the model checker's atomics: so the orders that they
//! check are those of the driver.

use std::{env, fs, path::Path};

const SOURCE: &str = "../../dma_table/table.rs";
const START: &str = "\nimpl Cell for AtomicU64 {\n";
const END: &str = "\n}\n";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    let source = fs::read_to_string(SOURCE).expect("the driver's tables are there");
    let from = source.find(START).expect("they have cells");
    let length = source[from..].find(END).expect("an end") + END.len();
    let folder = env::var_os("OUT_DIR").expect("cargo says where to write");
    let cell = &source[from..from + length];
    fs::write(Path::new(&folder).join("cell.rs"), cell).expect("it can be written");
}
