//! Helps to read the parse tree of a statement.

use std::ffi::{CStr, c_void};

use pgrx::prelude::*;

/// The pointers in a list.
///
/// # Safety
/// `list` is a list of pointers, or null, and outlives the iterator.
pub unsafe fn elements(list: *mut pg_sys::List) -> impl Iterator<Item = *mut c_void> {
    // SAFETY: a list or null, as the caller promises; no index is beyond the list's length.
    unsafe {
        let length = list.as_ref().map_or(0, |list| list.length as usize);
        (0..length).map(move |i| (*(*list).elements.add(i)).ptr_value)
    }
}

/// The texts in a list.
///
/// # Safety
/// `list` is a list of strings, or null, and outlives the result.
pub unsafe fn strings<'a>(list: *mut pg_sys::List) -> impl Iterator<Item = &'a CStr> {
    // SAFETY: a list of strings or null, as the caller promises; the value of a string node is a C string.
    unsafe { elements(list).map(|string| CStr::from_ptr((*string.cast::<pg_sys::String>()).sval)) }
}

/// The option with this name in a list of options.
///
/// # Safety
/// `options` is a list of DefElem, or null, and outlives the result.
pub unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: a list of options or null, as the caller promises; the name of a parsed option is a C string.
    unsafe {
        elements(options)
            .map(|option| option.cast::<pg_sys::DefElem>())
            .find(|option| CStr::from_ptr((**option).defname) == name)
    }
}

/// The table that a name refers to; `InvalidOid` if there is none. The table is not locked.
///
/// # Safety
/// `name` is the parsed name of a table.
pub unsafe fn table(name: *mut pg_sys::RangeVar) -> pg_sys::Oid {
    let (lock, flags) = (pg_sys::NoLock as i32, pg_sys::RVROption::RVR_MISSING_OK);
    // SAFETY: a parsed name, as the caller promises; a look-up inside a transaction.
    unsafe { pg_sys::RangeVarGetRelidExtended(name, lock, flags, None, std::ptr::null_mut()) }
}
