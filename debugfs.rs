// SPDX-License-Identifier: GPL-2.0

//! The driver's files in debugfs, under `s390_iommu/`.
//!
//! ```text
//! functions/<fid>          a function: its window, what is registered right now
//! domains/<n>/info         an address space: its table, members, counters
//! domains/<n>/translations what it maps, merged into ranges
//! ```
//!
//! The file of a function exists as long as the driver has the function, the folder of a
//! domain until the core frees the domain. A read takes the function's mutex, or walks a
//! table (`dma_table.rs`) some entries at a time. It takes no lock of the core, and only
//! the removal of the file waits for it.

use kernel::{
    current,
    error::code::ERESTARTSYS,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    str::CString,
    sync::{
        Arc,
        SetOnce, //
    }, //
};

use crate::{
    address_space::members::Member,
    atomic::Ordering,
    dma_table::{
        dump::{
            Dump,
            Run,
            Step, //
        },
        Access,
        Depth,
        LARGE_PAGE_SIZE, //
    },
    function::{
        Function,
        Space, //
    },
    seq_file::{
        Entry,
        FileOps,
        Folder,
        Pieces,
        Show, //
    },
    trace::attached,
    zpci::{
        Iota,
        Refusal,
        Registered, //
    }, //
};

/// The most ranges that a dump shows.
const MAX_RANGES: usize = 16384;

/// Where things are shown, and how.
struct Shown {
    functions: Folder,
    domains: Folder,
    function: FileOps<Function>,
    info: FileOps<Space>,
    translations: FileOps<Space>,
}

static SHOWN: SetOnce<Shown> = SetOnce::new();

/// The driver's folder, which is removed with all its content.
pub(crate) struct Tree {
    _top: Entry<()>,
}

impl Tree {
    /// Makes the folder. Called once, before anything is shown. Drop it after everything in
    /// it.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn new(module: &'static ThisModule) -> Self {
        let top = Entry::folder(Folder::ROOT, c"s390_iommu", ());
        // SAFETY: The caller drops it after what is shown.
        let parent = unsafe { top.as_folder() };
        SHOWN.populate(Shown {
            functions: parent.folder(c"functions"),
            domains: parent.folder(c"domains"),
            function: FileOps::in_one_piece(module),
            info: FileOps::in_one_piece(module),
            translations: FileOps::by_pieces(module),
        });
        Tree { _top: top }
    }
}

/// Shows a domain until the result is dropped.
///
/// # Context
///
/// May sleep.
pub(crate) fn show_domain(space: &Arc<Space>) -> Option<Entry<Arc<Space>>> {
    let shown = SHOWN.as_ref()?;
    let name = CString::try_from_fmt(fmt!("{}", space.number())).ok()?;
    let entry = Entry::folder(shown.domains, &name, space.clone());
    entry.file(c"info", &shown.info);
    entry.file(c"translations", &shown.translations);
    Some(entry)
}

/// Shows a function until the result is dropped.
///
/// # Safety
///
/// The result is dropped before the function.
///
/// # Context
///
/// May sleep.
pub(crate) unsafe fn show_function(function: &Function) -> Option<Entry<()>> {
    let shown = SHOWN.as_ref()?;
    let name = CString::try_from_fmt(fmt!("{:08x}", function.zdev().fid())).ok()?;
    // SAFETY: The caller's promise.
    Some(unsafe { Entry::new_file(shown.functions, &name, function, &shown.function) })
}

fn table_name(depth: Depth) -> &'static str {
    match depth {
        Depth::Third => "region third",
        Depth::Second => "region second",
        Depth::First => "region first",
    }
}

const DEPTHS: [Depth; 3] = [Depth::Third, Depth::Second, Depth::First];

impl Show for Space {
    fn show(&self, out: &SeqFile) {
        let depth = self.depth();
        seq_print!(
            out,
            "table:            {}, {} levels\n",
            table_name(depth),
            depth.levels()
        );
        seq_print!(out, "aperture:         0x0-{:#x}\n", depth.reach());
        let large = self.page_sizes() & LARGE_PAGE_SIZE != 0;
        let sizes = if large { "4 KiB, 1 MiB" } else { "4 KiB" };
        seq_print!(out, "page sizes:       {}\n", sizes);
        seq_print!(out, "table memory:     {} bytes\n", self.table_bytes());
        seq_print!(out, "functions:       ");
        self.for_each_member(|member| seq_print!(out, " {:08x}", member.zdev().fid()));
        seq_print!(out, "\n");
        let counters = self.counters();
        for (name, counter) in [
            ("pages mapped:    ", &counters.mapped_pages),
            ("pages unmapped:  ", &counters.unmapped_pages),
            ("RPCITs, all:     ", &counters.global_rpcits),
            ("RPCITs, mapped:  ", &counters.sync_map_rpcits),
            ("RPCITs, unmapped:", &counters.sync_rpcits),
        ] {
            seq_print!(out, "{} {}\n", name, counter.load(Ordering::Relaxed));
        }
    }
}

/// A piece of a dump.
enum Piece {
    Head,
    Run(Run),
    /// There are more ranges than the dump shows; this is the first one left out.
    Limit(u64),
}

/// A reader of a dump.
pub(crate) struct DumpReader {
    dump: Dump,
    /// `None` before the first piece.
    piece: Option<Piece>,
    ranges: usize,
}

impl Pieces for Space {
    type Reader = DumpReader;

    fn start(&self) -> DumpReader {
        DumpReader {
            dump: Dump::new(),
            piece: None,
            ranges: 0,
        }
    }

    fn next(&self, reader: &mut DumpReader) -> Result<bool> {
        if reader.piece.is_none() {
            reader.piece = Some(Piece::Head);
            return Ok(true);
        }
        if matches!(reader.piece, Some(Piece::Limit(_))) {
            return Ok(false);
        }
        let run = loop {
            match self.dump(&mut reader.dump)? {
                Step::Run(run) => break run,
                Step::End => return Ok(false),
                Step::Pause if current!().signal_pending() => return Err(ERESTARTSYS),
                Step::Pause => (),
            }
        };
        reader.piece = Some(if reader.ranges == MAX_RANGES {
            Piece::Limit(run.iova)
        } else {
            reader.ranges += 1;
            Piece::Run(run)
        });
        Ok(true)
    }

    fn show(&self, reader: &DumpReader, out: &SeqFile) {
        match &reader.piece {
            Some(Piece::Run(run)) => show_run(out, run),
            Some(Piece::Limit(iova)) => seq_print!(
                out,
                "# more from {:#018x} on; {} ranges are the limit\n",
                *iova,
                MAX_RANGES
            ),
            Some(Piece::Head) | None => seq_print!(
                out,
                "# {:<35} {:<18} pages access\n",
                "IOVA",
                "physical address"
            ),
        }
    }
}

fn show_run(out: &SeqFile, run: &Run) {
    let large = run.page_size == LARGE_PAGE_SIZE;
    let size = if large { "1 MiB" } else { "4 KiB" };
    let access = match run.access {
        Access::READ_ONLY => "r",
        Access::READ_WRITE => "rw",
        _ => "?",
    };
    seq_print!(
        out,
        "{:#018x}-{:#018x} {:#018x} {} {}\n",
        run.iova,
        run.last,
        run.phys,
        size,
        access
    );
}

impl Show for Function {
    fn show(&self, out: &SeqFile) {
        let (window, zdev) = (self.window(), self.zdev());
        seq_print!(out, "handle:              {:#010x}\n", zdev.handle());
        seq_print!(
            out,
            "window:              {:#018x}-{:#018x}\n",
            window.start(),
            window.last()
        );
        seq_print!(out, "table types:        ");
        let taken = DEPTHS.into_iter().filter(|depth| zdev.takes(*depth));
        for (count, depth) in taken.enumerate() {
            let comma = if count == 0 { "" } else { "," };
            seq_print!(out, "{} {}", comma, table_name(depth));
        }
        seq_print!(out, "\n");
        let refreshed = if self.needs_refresh_to_map() {
            "maps and unmaps"
        } else {
            "unmaps"
        };
        seq_print!(out, "refreshed after:     {}\n", refreshed);
        let status = self.status();
        seq_print!(out, "attached:            ");
        match status.attached {
            attached::BLOCKED => seq_print!(out, "blocked\n"),
            attached::IDENTITY => seq_print!(out, "identity\n"),
            number => seq_print!(out, "domain {}\n", number),
        }
        seq_print!(out, "registered, driver:  ");
        match status.assumed {
            Some(now) => show_registered(out, now),
            None => seq_print!(out, "not known\n"),
        }
        seq_print!(out, "registered, machine: ");
        match status.registered {
            Ok(now) => show_registered(out, now),
            Err(Refusal::Gone) => seq_print!(out, "its handle is not valid\n"),
            Err(_) => seq_print!(out, "the machine does not say\n"),
        }
        seq_print!(out, "last MPCIFC:         ");
        match status.last {
            Some((operation, outcome)) => seq_print!(
                out,
                "{}, condition code {}, status {}\n",
                operation.name(),
                outcome.cc,
                outcome.status
            ),
            None => seq_print!(out, "none\n"),
        }
        seq_print!(out, "refused RPCITs:      {}", status.refused);
        if let Some(cc) = status.refused_cc {
            seq_print!(out, ", the last with condition code {}", cc);
        }
        seq_print!(out, "\n");
    }
}

fn show_registered(out: &SeqFile, registered: Registered) {
    match registered {
        Registered::Nothing => seq_print!(out, "nothing\n"),
        Registered::This(Iota::IDENTITY) => seq_print!(out, "identity\n"),
        Registered::This(table) => seq_print!(
            out,
            "table at {:#018x}, {}\n",
            table.origin(),
            table.depth().map_or("of an unknown type", table_name)
        ),
    }
}
