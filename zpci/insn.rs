// SPDX-License-Identifier: GPL-2.0

//! The instructions for translation, and the meaning of their results.
//!
//! *Modify PCI Function Controls* registers, re-registers and deregisters a table. *Store
//! PCI Function Controls* returns what is registered. *Refresh PCI Translations* makes the
//! machine forget the translations of a range, and a hypervisor read them again. This
//! file does not depend on the content of tables.
//!
//! C headers: [`arch/s390/include/asm/pci.h`](srctree/arch/s390/include/asm/pci.h),
//! [`arch/s390/include/asm/pci_insn.h`](srctree/arch/s390/include/asm/pci_insn.h).

use kernel::{
    bindings::{
        self,
        ZPCI_CC_ERR,
        ZPCI_CC_INVAL_HANDLE,
        ZPCI_CC_OK,
        ZPCI_PCI_ST_2ND_OP_IN_INV_AS,
        ZPCI_PCI_ST_ALREADY_IN_RQ_STATE,
        ZPCI_PCI_ST_BLOCKED,
        ZPCI_PCI_ST_DMA_AS_NOT_ENABLED,
        ZPCI_PCI_ST_FUNC_ALREADY_ENABLED,
        ZPCI_PCI_ST_FUNC_IN_ERR,
        ZPCI_PCI_ST_FUNC_NOT_AVAIL,
        ZPCI_PCI_ST_FUNC_NOT_ENABLED,
        ZPCI_PCI_ST_INSUF_RES,
        ZPCI_PCI_ST_INVAL_AS, //
    },
    prelude::*, //
};

use super::{
    Iota,
    Zdev, //
};
use crate::range::Range;

/// Why the machine refused an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The function is gone or disabled: its handle is not valid.
    Gone,
    /// The function is in the error state, until it is reset or recovered.
    InError,
    /// The hypervisor lacks the resources for what is mapped.
    Resources,
    /// Anything else.
    Other,
}

impl Refusal {
    /// From an error of `zpci_refresh_trans()`.
    #[cold]
    fn of_refresh(error: c_int) -> Self {
        match error {
            error if error == ENOMEM.to_errno() => Refusal::Resources,
            error if error == ENODEV.to_errno() => Refusal::Gone,
            error if error == -(bindings::ESHUTDOWN as c_int) => Refusal::InError,
            _ => Refusal::Other,
        }
    }

    /// Whether the function cannot do any DMA, so its table is irrelevant for now. The
    /// recovery of the function registers the table again.
    pub(crate) fn is_harmless(self) -> bool {
        matches!(self, Refusal::Gone | Refusal::InError)
    }

    /// For the log.
    pub(crate) fn as_str(self) -> &'static CStr {
        match self {
            Refusal::Gone => c"it is gone",
            Refusal::InError => c"it is in the error state",
            Refusal::Resources => c"no resources",
            Refusal::Other => c"no reason given",
        }
    }

    /// The condition code for it.
    pub(crate) fn condition_code(self) -> u8 {
        match self {
            Refusal::Gone => 3,
            Refusal::InError | Refusal::Resources | Refusal::Other => 1,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Gone => ENODEV,
            Refusal::Resources => ENOSPC,
            Refusal::InError | Refusal::Other => EIO,
        }
    }
}

/// The condition code and the status of an instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// The condition code: 0 done, 1 refused, 3 handle not valid.
    pub(crate) cc: u8,
    /// The reason, if the condition code is 1.
    pub(crate) status: u8,
}

impl Outcome {
    /// Done.
    pub(crate) const DONE: Outcome = Outcome { cc: 0, status: 0 };

    /// From the return value of a function of `arch/s390/pci`, and the status that it set.
    fn new(cc: c_int, status: u8) -> Self {
        Outcome {
            cc: cc as u8,
            status,
        }
    }

    /// Whether it was refused for lack of resources.
    pub(crate) fn lacks_resources(status: u8) -> bool {
        u32::from(status) == ZPCI_PCI_ST_INSUF_RES
    }

    /// The reason of a refusal, for the log.
    pub(crate) fn as_str(self) -> &'static CStr {
        if u32::from(self.cc) == ZPCI_CC_INVAL_HANDLE {
            return c"it is gone";
        }
        match u32::from(self.status) {
            ZPCI_PCI_ST_FUNC_NOT_ENABLED => c"it is not enabled",
            ZPCI_PCI_ST_FUNC_IN_ERR => c"it is in the error state",
            ZPCI_PCI_ST_BLOCKED => c"its DMA is blocked after an error",
            ZPCI_PCI_ST_INSUF_RES => c"the machine has not enough resources",
            ZPCI_PCI_ST_INVAL_AS
            | ZPCI_PCI_ST_DMA_AS_NOT_ENABLED
            | ZPCI_PCI_ST_2ND_OP_IN_INV_AS => c"the machine does not know the address space",
            ZPCI_PCI_ST_FUNC_NOT_AVAIL => c"it is not available",
            ZPCI_PCI_ST_FUNC_ALREADY_ENABLED => {
                c"it is out of sequence: something is registered, or nothing is"
            }
            ZPCI_PCI_ST_ALREADY_IN_RQ_STATE => c"the machine says that it is in that state already",
            _ => c"no reason given",
        }
    }

    /// As a result.
    pub(crate) fn check(self) -> Result<(), Refusal> {
        match (self.cc.into(), self.status.into()) {
            (ZPCI_CC_OK, _) => Ok(()),
            (ZPCI_CC_INVAL_HANDLE, _) | (ZPCI_CC_ERR, ZPCI_PCI_ST_FUNC_NOT_ENABLED) => {
                Err(Refusal::Gone)
            }
            (
                ZPCI_CC_ERR,
                ZPCI_PCI_ST_FUNC_IN_ERR | ZPCI_PCI_ST_BLOCKED | ZPCI_PCI_ST_FUNC_NOT_AVAIL,
            ) => Err(Refusal::InError),
            _ => Err(Refusal::Other),
        }
    }
}

/// The machine's answer about the translation of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Registered {
    /// No table: DMA is blocked.
    Nothing,
    /// This table, or identity.
    This(Iota),
}

/// `zpci_register_ioat()` or `zpci_reregister_ioat()`.
type Issue = unsafe extern "C" fn(*mut bindings::zpci_dev, u8, u64, u64, u64, *mut u8) -> c_int;

impl Zdev {
    /// Registers a table for IOVAs in `window`. No table may be registered before.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn register(self, window: Range, table: Iota) -> Outcome {
        self.put(bindings::zpci_register_ioat, window, table)
    }

    /// Replaces the registered table, atomically.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn reregister(self, window: Range, table: Iota) -> Outcome {
        self.put(bindings::zpci_reregister_ioat, window, table)
    }

    /// Issues one of the two instructions above.
    fn put(self, issue: Issue, window: Range, table: Iota) -> Outcome {
        let (start, last) = (window.start(), window.last());
        let mut status = 0;
        // SAFETY: By the invariant. The core knows how each function wants it.
        let cc = unsafe { issue(self.as_raw(), 0, start, last, table.0, &mut status) };
        Outcome::new(cc, status)
    }

    /// Deregisters the table: DMA is blocked.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn deregister(self) -> Outcome {
        let mut status = 0;
        // SAFETY: By the invariant.
        let cc = unsafe { bindings::zpci_unregister_ioat(self.as_raw(), 0, &mut status) };
        Outcome::new(cc, status)
    }

    /// Asks the machine what is registered.
    ///
    /// # Errors
    ///
    /// Mostly [`Refusal::Gone`]; a function in the error state is no error.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn registered(self) -> Result<Registered, Refusal> {
        let (mut registered, mut iota, mut status) = (false, 0, 0);
        // SAFETY: By the invariant.
        let cc = unsafe {
            bindings::zpci_query_ioat(self.as_raw(), &mut registered, &mut iota, &mut status)
        };
        Outcome::new(cc, status).check()?;
        Ok(if registered {
            Registered::This(Iota(iota))
        } else {
            Registered::Nothing
        })
    }

    /// Makes the machine forget the translations of a range, which must lie in the
    /// registered window, and a hypervisor read them again.
    ///
    /// # Context
    ///
    /// Any.
    #[inline]
    pub(crate) fn refresh(self, range: Range) -> Result<(), Refusal> {
        if range == Range::ALL {
            return self.refresh_halves();
        }
        let function = u64::from(self.handle()) << 32;
        // SAFETY: No requirements.
        match unsafe { bindings::zpci_refresh_trans(function, range.start(), range.size()) } {
            0 => Ok(()),
            error => Err(Refusal::of_refresh(error)),
        }
    }

    /// One refresh of everything is more than the instruction supports.
    #[cold]
    fn refresh_halves(self) -> Result<(), Refusal> {
        let [low, high] = Range::HALVES;
        let (low, high) = (self.refresh(low), self.refresh(high));
        low.and(high)
    }
}
