//! A function of Postgres with one argument, such as a type's output function. It is looked up when it is first needed:
//! the values of most types need none.

use std::cell::OnceCell;
use std::ffi::CStr;

use pgrx::prelude::*;

use super::column_value::ColumnValue;

/// A function that is called with values of one column.
pub struct Function {
    /// The function; None for the output function of the argument's type.
    function: Option<pg_sys::Oid>,
    /// The argument's type.
    argument: pg_sys::Oid,
    /// Where the look-up is kept.
    context: pg_sys::MemoryContext,
    info: OnceCell<*mut pg_sys::FmgrInfo>,
}

impl Function {
    /// The output function of a type. `context` outlives the result.
    pub fn output_of(argument: pg_sys::Oid, context: pg_sys::MemoryContext) -> Self {
        Self { function: None, argument, context, info: OnceCell::new() }
    }

    /// `to_json` for values of a type. `context` outlives the result.
    pub fn to_json_of(argument: pg_sys::Oid, context: pg_sys::MemoryContext) -> Self {
        let function = Some(pg_sys::Oid::from(pg_sys::F_TO_JSON));
        Self { function, argument, context, info: OnceCell::new() }
    }

    fn info(&self) -> *mut pg_sys::FmgrInfo {
        *self.info.get_or_init(|| {
            let Self { argument, context, .. } = *self;
            // SAFETY: called inside a transaction. Everything is allocated in `context`, which outlives `self` and is
            // the current one meanwhile.
            unsafe {
                let function = self.function.unwrap_or_else(|| output_function(argument));
                let info =
                    pg_sys::MemoryContextAllocZero(context, size_of::<pg_sys::FmgrInfo>()).cast::<pg_sys::FmgrInfo>();
                pg_sys::fmgr_info_cxt(function, info, context);
                let before = pg_sys::MemoryContextSwitchTo(context);
                // A polymorphic function takes the type of its argument from the expression that it is called in.
                let null = pg_sys::makeNullConst(argument, -1, pg_sys::InvalidOid);
                let arguments = pg_sys::lappend(std::ptr::null_mut(), null.cast());
                let call = pg_sys::makeFuncExpr(
                    function,
                    pg_sys::JSONOID,
                    arguments,
                    pg_sys::InvalidOid,
                    pg_sys::InvalidOid,
                    pg_sys::CoercionForm::COERCE_EXPLICIT_CALL,
                );
                (*info).fn_expr = call.cast();
                pg_sys::MemoryContextSwitchTo(before);
                info
            }
        })
    }

    /// The function's result.
    pub fn call<'row>(&self, value: ColumnValue<'row>) -> ColumnValue<'row> {
        // SAFETY: the function takes one argument, of the column's type, and returns NULL for NULL only. Its result is
        // allocated in the trigger's memory context, which Postgres resets after the row.
        unsafe { ColumnValue::new(pg_sys::FunctionCall1Coll(self.info(), pg_sys::InvalidOid, value.datum())) }
    }

    /// Passes the result of an output function to `read`.
    pub fn output(&self, value: ColumnValue<'_>, read: impl FnOnce(&[u8])) {
        // SAFETY: an output function takes a value of its type and returns a C string. The string is allocated in the
        // trigger's memory context, which Postgres resets after the row, so not while `read` runs.
        read(unsafe { CStr::from_ptr(pg_sys::OutputFunctionCall(self.info(), value.datum())).to_bytes() });
    }
}

/// The output function of a type.
pub fn output_function(type_oid: pg_sys::Oid) -> pg_sys::Oid {
    let (mut output, mut is_varlena) = (pg_sys::InvalidOid, false);
    // SAFETY: a look-up in the system caches, inside a transaction; both results are written to local variables.
    unsafe { pg_sys::getTypeOutputInfo(type_oid, &mut output, &mut is_varlena) };
    output
}
