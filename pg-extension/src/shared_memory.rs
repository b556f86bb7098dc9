//! Pieces of shared memory whose size depends on the settings of the server. What has a fixed size is in
//! [`crate::shared`].

use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst};

use pgrx::prelude::*;

/// The lock under which libraries initialize their shared memory: its place among Postgres's own locks
/// (`AddinShmemInitLock` in storage/lwlocknames.h).
const ADDIN_SHMEM_INIT_LOCK: usize = 21;

/// A piece of shared memory, and a lock for it. It starts with zeros, also after a crash of the server.
pub struct Piece {
    /// The name of the memory and of the lock.
    name: &'static CStr,
    /// Returns the size in bytes; 0 if the settings want no such memory. Called when the settings are known.
    wanted: fn() -> usize,
    /// Where it is. Null until shared memory exists. The postmaster sets this and what follows before any other process
    /// starts, and again after a crash.
    memory: AtomicPtr<u8>,
    /// Its size in bytes.
    size: AtomicUsize,
    lock: AtomicPtr<pg_sys::LWLock>,
}

impl Piece {
    pub const fn new(name: &'static CStr, wanted: fn() -> usize) -> Self {
        let (memory, lock) = (AtomicPtr::new(std::ptr::null_mut()), AtomicPtr::new(std::ptr::null_mut()));
        Self { name, wanted, memory, size: AtomicUsize::new(0), lock }
    }

    /// The memory as values of a type. None before shared memory exists, and without such memory.
    ///
    /// # Safety
    ///
    /// The type must consist of atomics, zeros must be a value of it, and all processes must use the same type.
    pub unsafe fn values<T>(&self) -> &'static [T] {
        let memory = self.memory.load(SeqCst);
        if memory.is_null() {
            return &[];
        }
        // SAFETY: `start` has initialized this many bytes, aligned for any type. They outlive the process.
        unsafe { std::slice::from_raw_parts(memory.cast(), self.size.load(SeqCst) / size_of::<T>()) }
    }

    /// The lock. Null if there is no memory.
    pub fn lock(&self) -> *mut pg_sys::LWLock {
        self.lock.load(SeqCst)
    }

    /// # Safety
    ///
    /// Called in the postmaster, when memory may be requested.
    unsafe fn request(&self) {
        let size = (self.wanted)();
        if size > 0 {
            // SAFETY: see above.
            unsafe {
                pg_sys::RequestAddinShmemSpace(size);
                pg_sys::RequestNamedLWLockTranche(self.name.as_ptr(), 1);
            }
        }
    }

    /// # Safety
    ///
    /// Called when shared memory exists, with the lock under which libraries initialize theirs.
    unsafe fn start(&self) {
        let size = (self.wanted)();
        if size == 0 {
            return;
        }
        // SAFETY: the memory and the lock were requested, with this size and name.
        unsafe {
            let mut found = false;
            let memory = pg_sys::ShmemInitStruct(self.name.as_ptr(), size, &mut found).cast::<u8>();
            if !found {
                memory.write_bytes(0, size);
            }
            self.lock.store(&raw mut (*pg_sys::GetNamedLWLockTranche(self.name.as_ptr())).lock, SeqCst);
            self.size.store(size, SeqCst);
            self.memory.store(memory, SeqCst);
        }
    }
}

type Hook = Option<unsafe extern "C-unwind" fn()>;

static PIECES: OnceLock<&[&Piece]> = OnceLock::new();
static mut FORMER_REQUEST: Hook = None;
static mut FORMER_STARTUP: Hook = None;

/// Registers the hooks that request the pieces from Postgres. Called from `_PG_init`, after the settings are defined.
pub fn init(pieces: &'static [&'static Piece]) {
    if PIECES.set(pieces).is_err() {
        return;
    }
    // SAFETY: called in the postmaster, which has one thread. The new hooks call the former ones.
    unsafe {
        FORMER_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        FORMER_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(start);
    }
}

fn pieces() -> impl Iterator<Item = &'static Piece> {
    PIECES.get().into_iter().flat_map(|pieces| pieces.iter().copied())
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: Postgres calls this hook in the postmaster, once, when memory may be requested.
    unsafe {
        if let Some(former) = FORMER_REQUEST {
            pg_sys::ffi::pg_guard_ffi_boundary(|| former());
        }
        pieces().for_each(|piece| piece.request());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn start() {
    // SAFETY: Postgres calls this hook when shared memory exists, also after a crash. The lock is that of its header.
    unsafe {
        if let Some(former) = FORMER_STARTUP {
            pg_sys::ffi::pg_guard_ffi_boundary(|| former());
        }
        let lock = &raw mut (*pg_sys::MainLWLockArray.add(ADDIN_SHMEM_INIT_LOCK)).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        pieces().for_each(|piece| piece.start());
        pg_sys::LWLockRelease(lock);
    }
}
