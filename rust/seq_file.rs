// SPDX-License-Identifier: GPL-2.0

//! Files in debugfs that show a value, in one piece or piece by piece.
//!
//! The kernel crate's abstraction (`kernel::debugfs`) prints a file in one piece, into a
//! buffer that grows until everything fits. This does not work for a dump of a table in
//! use: each read of such a file has to continue where the last one ended.
//!
//! # Reading beside removal
//!
//! An [`Entry`] owns the value that it shows. Dropping it removes the files and waits for
//! the reads under way; later reads of files that are still open fail (`EIO`) and do not
//! touch the value. An open file keeps only the address of the value. So do not drop an
//! entry under a lock that showing its value takes.
//!
//! Without `CONFIG_DEBUG_FS` there are no files, and an entry only owns its value. A file
//! that cannot be made is no error, because nothing depends on debugfs.
//!
//! C headers: [`include/linux/debugfs.h`](srctree/include/linux/debugfs.h),
//! [`include/linux/seq_file.h`](srctree/include/linux/seq_file.h).

#![cfg_attr(not(CONFIG_DEBUG_FS), allow(dead_code, unused_variables))]

use core::{
    marker::PhantomData,
    ptr, //
};

use kernel::{
    bindings,
    prelude::*,
    seq_file::SeqFile,
    sync::Arc, //
};

/// A value that is shown in one piece.
pub(crate) trait Show: Sync {
    /// Prints it.
    ///
    /// # Context
    ///
    /// May sleep. May be called again for the same read, if the buffer was too small.
    fn show(&self, out: &SeqFile);
}

/// A value that is shown piece by piece.
pub(crate) trait Pieces: Sync {
    /// The position of a reader. Each open file has one; it is not dropped.
    type Reader;

    /// Before the first piece.
    fn start(&self) -> Self::Reader;

    /// Advances to the next piece; `false` if there is none.
    ///
    /// # Errors
    ///
    /// The error that the reader gets.
    ///
    /// # Context
    ///
    /// May sleep.
    fn next(&self, reader: &mut Self::Reader) -> Result<bool>;

    /// Prints the piece at the position of a reader.
    fn show(&self, reader: &Self::Reader, out: &SeqFile);
}

/// A file or a folder, and the value that it shows.
///
/// # Invariants
///
/// `dentry` is null, an error, or a file or folder in debugfs that nobody else
/// removes.
pub(crate) struct Entry<D> {
    dentry: *mut bindings::dentry,
    // Dropped after the files are gone.
    shown: D,
}

// SAFETY: Only debugfs dereferences the dentry, and it locks.
unsafe impl<D: Send> Send for Entry<D> {}
// SAFETY: As above.
unsafe impl<D: Sync> Sync for Entry<D> {}

/// A folder that lives at least as long as everything in it.
///
/// # Invariants
///
/// As that of an [`Entry`].
#[derive(Clone, Copy)]
pub(crate) struct Folder(*mut bindings::dentry);

// SAFETY: As for an `Entry`.
unsafe impl Send for Folder {}
// SAFETY: As for an `Entry`.
unsafe impl Sync for Folder {}

impl Folder {
    /// The root of debugfs.
    pub(crate) const ROOT: Folder = Folder(ptr::null_mut());

    /// A folder in this one, which is removed with it.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn folder(self, name: &CStr) -> Folder {
        // INVARIANT: Just made, in a folder.
        Folder(create_folder(self, name))
    }
}

/// The file operations of a file that shows a `T`.
pub(crate) struct FileOps<T> {
    #[cfg(CONFIG_DEBUG_FS)]
    ops: bindings::file_operations,
    shows: PhantomData<fn(&T)>,
}

// SAFETY: Never written; the functions may be called from any thread.
unsafe impl<T> Send for FileOps<T> {}
// SAFETY: As above.
unsafe impl<T> Sync for FileOps<T> {}

impl<D> Drop for Entry<D> {
    fn drop(&mut self) {
        #[cfg(CONFIG_DEBUG_FS)]
        // SAFETY: By the invariant; null and errors are accepted.
        unsafe {
            bindings::debugfs_remove(self.dentry)
        }
    }
}

impl<D> Entry<D> {
    /// A folder for `shown`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn folder(parent: Folder, name: &CStr, shown: D) -> Self {
        // INVARIANT: Just made.
        Entry {
            dentry: create_folder(parent, name),
            shown,
        }
    }

    /// For what is made in it.
    ///
    /// # Safety
    ///
    /// All of that is dropped before `self`.
    pub(crate) unsafe fn as_folder(&self) -> Folder {
        // INVARIANT: The caller's promise.
        Folder(self.dentry)
    }
}

impl<T: Sync> Entry<Arc<T>> {
    /// Makes a file in this folder that shows what the folder is for.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn file(&self, name: &CStr, ops: &'static FileOps<T>) {
        // SAFETY: The folder is valid, and goes with all that is in it before
        // the share of the value does.
        unsafe { create_file(self.dentry, name, &*self.shown, ops) };
    }
}

impl Entry<()> {
    /// A file that shows `value`.
    ///
    /// # Safety
    ///
    /// The entry is dropped before the value.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) unsafe fn new_file<T: Sync>(
        parent: Folder,
        name: &CStr,
        value: &T,
        ops: &'static FileOps<T>,
    ) -> Self {
        // INVARIANT: Just made.
        Entry {
            // SAFETY: The caller's promise; `parent` is valid by its invariant.
            dentry: unsafe { create_file(parent.0, name, value, ops) },
            shown: (),
        }
    }
}

fn create_folder(parent: Folder, name: &CStr) -> *mut bindings::dentry {
    #[cfg(CONFIG_DEBUG_FS)]
    // SAFETY: `parent` is valid by its invariant.
    return unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), parent.0) };
    #[cfg(not(CONFIG_DEBUG_FS))]
    ptr::null_mut()
}

/// # Safety
///
/// `parent` is a folder, an error or null; the file is removed before `value`
/// goes.
unsafe fn create_file<T: Sync>(
    parent: *mut bindings::dentry,
    name: &CStr,
    value: &T,
    ops: &'static FileOps<T>,
) -> *mut bindings::dentry {
    #[cfg(CONFIG_DEBUG_FS)]
    // SAFETY: The caller's promise. `ops` takes the data for a `T`.
    return unsafe {
        bindings::debugfs_create_file_full(
            name.as_char_ptr(),
            MODE,
            parent,
            ptr::from_ref(value).cast_mut().cast(),
            ptr::null(),
            &raw const ops.ops,
        )
    };
    #[cfg(not(CONFIG_DEBUG_FS))]
    ptr::null_mut()
}

/// What may be done with the files: root reads them, as they show addresses.
const MODE: bindings::umode_t = 0o400;

impl<T: Show> FileOps<T> {
    /// Shows the value in one piece. An open file keeps `owner`.
    pub(crate) const fn in_one_piece(owner: &ThisModule) -> Self {
        FileOps {
            #[cfg(CONFIG_DEBUG_FS)]
            ops: bindings::file_operations {
                owner: owner.as_ptr(),
                open: Some(open_single::<T>),
                read: Some(bindings::seq_read),
                llseek: Some(bindings::seq_lseek),
                release: Some(bindings::single_release),
                ..NO_OPS
            },
            shows: PhantomData,
        }
    }
}

impl<T: Pieces> FileOps<T> {
    /// Shows the value piece by piece. An open file keeps `owner`.
    pub(crate) const fn by_pieces(owner: &ThisModule) -> Self {
        FileOps {
            #[cfg(CONFIG_DEBUG_FS)]
            ops: bindings::file_operations {
                owner: owner.as_ptr(),
                open: Some(open_pieces::<T>),
                read: Some(bindings::seq_read),
                llseek: Some(bindings::seq_lseek),
                release: Some(bindings::seq_release_private),
                ..NO_OPS
            },
            shows: PhantomData,
        }
    }
}

/// No operation at all, to build tables from.
#[cfg(CONFIG_DEBUG_FS)]
const NO_OPS: bindings::file_operations = {
    // SAFETY: All zeroes is no operation.
    unsafe { core::mem::zeroed() }
};

/// # Safety
///
/// debugfs calls it, as `file_operations.open` of a file that was made for a `T`.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn open_single<T: Show>(
    inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: debugfs passes an inode and a new file; the callback is given what
    // the file was made for.
    unsafe { bindings::single_open(file, Some(show_single::<T>), (*inode).i_private) }
}

/// # Safety
///
/// A read calls it, of a file that [`open_single`] opened for a `T`.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn show_single<T: Show>(seq: *mut bindings::seq_file, _: *mut c_void) -> c_int {
    // SAFETY: debugfs holds off the removal of the file while it is read, and so
    // the value stays.
    let value: &T = unsafe { &*(*seq).private.cast() };
    // SAFETY: The read has the file for itself.
    value.show(unsafe { SeqFile::from_raw(seq) });
    0
}

/// An open file that is shown piece by piece.
struct Open<T: Pieces> {
    value: *const T,
    /// The number of the piece that the reader is at.
    at: bindings::loff_t,
    /// Whether there is one.
    there: bool,
    reader: T::Reader,
}

#[cfg(CONFIG_DEBUG_FS)]
impl<T: Pieces> Open<T> {
    const OPERATIONS: &'static bindings::seq_operations = &bindings::seq_operations {
        start: Some(Self::start),
        next: Some(Self::next),
        stop: Some(Self::stop),
        show: Some(Self::show),
    };

    /// The value.
    ///
    /// # Safety
    ///
    /// A read is under way.
    unsafe fn value<'a>(&self) -> &'a T {
        // SAFETY: debugfs holds off the removal of the file while it is read, and
        // so the value stays.
        unsafe { &*self.value }
    }

    /// Goes to the next piece.
    ///
    /// # Safety
    ///
    /// A read is under way.
    unsafe fn advance(&mut self) -> Result {
        // SAFETY: The caller's promise.
        let value = unsafe { self.value() };
        self.there = value.next(&mut self.reader)?;
        self.at += 1;
        Ok(())
    }

    /// Goes to the piece of a number; mostly the reader is there.
    ///
    /// # Safety
    ///
    /// A read is under way.
    unsafe fn go_to(&mut self, number: bindings::loff_t) -> Result {
        if number == 0 || number < self.at {
            // SAFETY: The caller's promise.
            self.reader = unsafe { self.value() }.start();
            self.at = -1;
            self.there = true;
        }
        while self.at < number && self.there {
            // SAFETY: The caller's promise.
            unsafe { self.advance() }?;
        }
        Ok(())
    }

    /// What `start` and `next` return.
    fn answer(&mut self, result: Result) -> *mut c_void {
        match result {
            Ok(()) if self.there => ptr::from_mut(self).cast(),
            Ok(()) => ptr::null_mut(),
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// A read calls it, as `seq_operations.start` of a file that [`open_pieces`]
    /// opened for a `T`.
    unsafe extern "C" fn start(
        seq: *mut bindings::seq_file,
        at: *mut bindings::loff_t,
    ) -> *mut c_void {
        // SAFETY: `open_pieces` put it there; reads of a file take turns.
        let open = unsafe { &mut *(*seq).private.cast::<Self>() };
        // SAFETY: This is a read; it passes its position.
        let result = unsafe { open.go_to(*at) };
        open.answer(result)
    }

    /// # Safety
    ///
    /// As for [`Open::start`], as `seq_operations.next`.
    unsafe extern "C" fn next(
        seq: *mut bindings::seq_file,
        _: *mut c_void,
        at: *mut bindings::loff_t,
    ) -> *mut c_void {
        // SAFETY: As for `start`.
        let open = unsafe { &mut *(*seq).private.cast::<Self>() };
        // SAFETY: As for `start`.
        let result = unsafe {
            *at += 1;
            open.go_to(*at)
        };
        open.answer(result)
    }

    /// # Safety
    ///
    /// As for [`Open::start`], as `seq_operations.show`.
    unsafe extern "C" fn show(seq: *mut bindings::seq_file, _: *mut c_void) -> c_int {
        // SAFETY: As for `start`.
        let open = unsafe { &*(*seq).private.cast::<Self>() };
        // SAFETY: This is a read, which has the file for itself.
        unsafe { open.value().show(&open.reader, SeqFile::from_raw(seq)) };
        0
    }

    /// # Safety
    ///
    /// None: nothing is held from piece to piece.
    unsafe extern "C" fn stop(_seq: *mut bindings::seq_file, _: *mut c_void) {}
}

/// # Safety
///
/// debugfs calls it, as `file_operations.open` of a file that was made for a `T`.
#[cfg(CONFIG_DEBUG_FS)]
unsafe extern "C" fn open_pieces<T: Pieces>(
    inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    const {
        // It is freed with the file, as plain memory.
        assert!(!core::mem::needs_drop::<T::Reader>());
        assert!(align_of::<Open<T>>() <= align_of::<u64>());
    }
    let size = size_of::<Open<T>>() as c_int;
    // SAFETY: debugfs passes a new file.
    let open = unsafe { bindings::__seq_open_private(file, Open::<T>::OPERATIONS, size) };
    if open.is_null() {
        return ENOMEM.to_errno();
    }
    // SAFETY: debugfs passes an inode, and keeps the value while the file is being
    // opened.
    let value: *const T = unsafe { (*inode).i_private }.cast();
    let state = Open {
        value,
        at: -1,
        there: true,
        // SAFETY: As above.
        reader: unsafe { &*value }.start(),
    };
    // SAFETY: It is large enough for one, and aligned for 64 bits.
    unsafe { open.cast::<Open<T>>().write(state) };
    0
}
