//! Packs the values of one column for the log ([`tidings_wire::value`]): a reader renders them as the JSON that
//! `to_jsonb` returns. Also renders them as text for a topic.
//!
//! The type is examined once, when the watch is compiled. Packing a value is then a match and a copy: for most types
//! the bytes that Postgres stores, without a call into Postgres. Rare types (composites, arrays of several dimensions,
//! types with a cast to `json`) go through `to_json`, which renders the same as `to_jsonb` but never fails: a `json`
//! may contain what a `jsonb` cannot, such as `\u0000`.

use std::convert::Infallible;
use std::ffi::{CStr, c_int};

use pgrx::prelude::*;
use tidings_wire::interval::Interval;
use tidings_wire::limit::SPARSEST;
use tidings_wire::{Limit, PackError, TooLong, jsonb, numeric, value};

use super::array::Elements;
use super::column_value::ColumnValue;
use super::function::Function;
use super::kind::Kind;
use super::varlena::{fetched, plain, size};
use super::{float, time, user_code};
use crate::foreign::datum_image_eq;
use crate::subtransaction::attempt;
use crate::warnings;

/// How to pack the values of one column.
pub struct Writer {
    kind: Kind,
    /// The type's output function.
    output: Function,
    /// `to_json`, for the kinds that need it.
    to_json: Function,
    /// Whether these functions run code of users.
    needs_user_code: bool,
    by_value: bool,
    length: i16,
    /// How to pack the elements, if the type is an array.
    elements: Option<Box<Elements>>,
}

/// Why a value has no text for a topic.
#[derive(Debug, thiserror::Error)]
pub enum NoText {
    #[error("it is too long")]
    TooLong,
    #[error("the output function of a column's type failed")]
    Fails,
}

/// Fails if the JSON of packed values of this many bytes is certainly longer than the limit.
pub fn check_packed(size: usize, limit: Limit) -> Result<(), TooLong> {
    Limit::new(limit.bytes().saturating_mul(SPARSEST).min(LARGEST)).check(size)
}

/// No stored value has more than this many times the bytes of its JSON: a `jsonb` that is 0 has 14 bytes, and a point
/// in a polygon has 16 bytes and at least five characters.
const SHRINK: usize = 16;

/// Values of more bytes are not packed, however short their JSON is: they must fit into a value of Postgres together
/// with others.
const LARGEST: usize = 512 * 1024 * 1024;

/// A text in Postgres has at most 1 GiB, and JSON may take six bytes for one. Postgres is not asked to render values of
/// this size or more.
const UNWRITABLE: usize = 160 * 1024 * 1024;

/// Postgres cannot render everything that it can store: `1e131071` takes ten bytes, and some thousands of these in one
/// value are longer than the longest text. It can render any value of up to this size.
const WRITABLE: usize = 16 * 1024;

/// A value of more bytes never has a text short enough for a topic.
const NO_TOPIC: usize = WRITABLE;

impl Writer {
    /// Compiles the writer for a column of the type. `context` outlives it.
    pub fn new(type_oid: pg_sys::Oid, by_value: bool, length: i16, context: pg_sys::MemoryContext) -> Self {
        // The first write of a session to a table waits for this, so the catalog is asked only about unknown types.
        let (kind, needs_user_code, elements) = match Kind::known(type_oid) {
            Some(kind) => (kind, false, None),
            None => {
                // SAFETY: a look-up in the system caches, inside a transaction.
                let base = unsafe { pg_sys::getBaseType(type_oid) };
                (Kind::of(base), user_code::is_needed_for(base), Elements::of(base, context).map(Box::new))
            }
        };
        let (output, to_json) = (Function::output_of(type_oid, context), Function::to_json_of(type_oid, context));
        Self { kind, output, to_json, needs_user_code, by_value, length, elements }
    }

    /// Whether values at any address can be packed, because they are never passed to a function of Postgres.
    pub fn needs_no_alignment(&self) -> bool {
        self.by_value || matches!(self.kind, Kind::Numeric | Kind::Text | Kind::Uuid | Kind::Json)
    }

    /// Packs a value. Fails if its size shows that its JSON is longer than the limit; then the value is not even
    /// fetched.
    pub fn pack(&self, out: &mut Vec<u8>, value: ColumnValue<'_>, limit: Limit) -> Result<(), TooLong> {
        let before = out.len();
        let packed = match self.kind {
            _ if self.length != -1 => self.pack_fixed(out, value),
            // SAFETY: a length of -1 means a type of variable length.
            _ => match unsafe { plain(value) }.filter(|bytes| bytes.len() <= WRITABLE) {
                // SAFETY: these are the bytes of the value.
                Some(bytes) => unsafe { self.pack_bytes(out, bytes, limit) },
                None => return self.pack_large(out, value, limit),
            },
        };
        match packed {
            Ok(()) => Ok(()),
            Err(PackError::TooLong) => Err(TooLong),
            Err(PackError::Unsupported) => {
                out.truncate(before);
                self.pack_by_postgres(out, value)
            }
        }
    }

    /// As [`Self::pack`], for an element of an array. An element that is an array itself, through a domain, becomes
    /// JSON, so that readers need not follow any depth of nesting.
    pub fn pack_element(&self, out: &mut Vec<u8>, value: ColumnValue<'_>, limit: Limit) -> Result<(), TooLong> {
        if self.elements.is_none() {
            return self.pack(out, value, limit);
        }
        let mut packed = Vec::new();
        self.pack(&mut packed, value, limit)?;
        value::pack_json_with(out, |out| value::write(out, &packed)).map_err(|_| TooLong)
    }

    /// As [`Self::pack`], for a value that is long, compressed or stored out of line.
    fn pack_large(&self, out: &mut Vec<u8>, value: ColumnValue<'_>, limit: Limit) -> Result<(), TooLong> {
        let most = match self.kind {
            Kind::Text | Kind::Bytes => limit.bytes(),
            _ => limit.bytes().saturating_mul(SHRINK).min(UNWRITABLE),
        };
        // SAFETY: `pack` calls this for types of variable length only.
        let stored = unsafe { size(value) };
        Limit::new(most).check(stored)?;
        if matches!(self.kind, Kind::Text | Kind::Numeric | Kind::Jsonb | Kind::Json) || self.elements.is_some() {
            let before = out.len();
            // SAFETY: a type of variable length; what is fetched lies in the trigger's memory context, which is not
            // reset meanwhile, and is the value.
            match unsafe { self.pack_bytes(out, fetched(value), limit) } {
                Ok(()) => return Ok(()),
                Err(PackError::TooLong) => return Err(TooLong),
                Err(PackError::Unsupported) => out.truncate(before),
            }
        }
        if self.kind == Kind::Bytes || stored <= WRITABLE {
            return self.pack_by_postgres(out, value);
        }
        let pack = || self.pack_by_postgres(out, value);
        attempt(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, pack).unwrap_or(Err(TooLong))
    }

    /// Packs a value of a type of fixed length.
    fn pack_fixed(&self, out: &mut Vec<u8>, value: ColumnValue<'_>) -> Result<(), PackError> {
        let datum = value.datum();
        match self.kind {
            Kind::Bool => value::pack_bool(out, datum.value() as u8 != 0),
            Kind::Int2 | Kind::Int4 | Kind::Int8 => value::pack_integer(out, self.integer(value)),
            Kind::Real => {
                value::pack_json_with(out, |out| float::write_real(out, f32::from_bits(datum.value() as u32)))?;
            }
            Kind::Double => {
                value::pack_json_with(out, |out| float::write_double(out, f64::from_bits(datum.value() as u64)))?;
            }
            // SAFETY: this kind is the type uuid.
            Kind::Uuid => value::pack_uuid(out, unsafe { uuid(value) }),
            Kind::Time(type_oid) => time::pack(out, type_oid, value),
            // SAFETY: this kind is the type interval, whose values are passed as a pointer.
            Kind::Interval => pack_interval(out, unsafe { &*datum.cast_mut_ptr::<pg_sys::Interval>() })?,
            _ => return Err(PackError::Unsupported),
        }
        Ok(())
    }

    /// Packs a value of a type of variable length, from its bytes.
    ///
    /// # Safety
    /// The bytes are those of a value of the type.
    unsafe fn pack_bytes(&self, out: &mut Vec<u8>, bytes: &[u8], limit: Limit) -> Result<(), PackError> {
        // A value that cannot be packed in its stored form becomes JSON here.
        let numeric = |out: &mut Vec<u8>| -> Result<(), PackError> {
            value::pack_json_with(out, |out| Ok(numeric::write(out, bytes, limit.after(out))?))
        };
        let jsonb = |out: &mut Vec<u8>| -> Result<(), PackError> {
            value::pack_json_with(out, |out| Ok(jsonb::write(out, bytes, limit.after(out))?))
        };
        match (self.kind, &self.elements) {
            (Kind::Text, _) => value::pack_text(out, bytes),
            (Kind::Numeric, _) => value::pack_numeric(out, bytes).or_else(|_| numeric(out))?,
            // Rendering stops at the limit. Packing the stored bytes would not.
            (Kind::Jsonb, _) if bytes.len() > WRITABLE => jsonb(out)?,
            (Kind::Jsonb, _) => value::pack_jsonb(out, bytes).or_else(|_| jsonb(out))?,
            (Kind::Json, _) => {
                pack_json(out, bytes);
            }
            // SAFETY: the bytes are those of an array, as the caller promises, because only arrays have elements.
            (_, Some(elements)) => unsafe { elements.pack(out, bytes, limit) }?,
            _ => return Err(PackError::Unsupported),
        }
        Ok(())
    }

    fn pack_by_postgres(&self, out: &mut Vec<u8>, value: ColumnValue<'_>) -> Result<(), TooLong> {
        match self.kind {
            _ if self.needs_user_code => return self.pack_by_user_code(out, value),
            Kind::Composed => {
                // SAFETY: `to_json` returns a `json`, which is of variable length, in the trigger's memory context.
                pack_json(out, unsafe { fetched(self.to_json.call(value)) });
            }
            // SAFETY: this kind is the type jsonb.
            Kind::Jsonb => unsafe { pack_jsonb_by_postgres(out, value) },
            Kind::Real | Kind::Double | Kind::Numeric => self.output.output(value, |text| {
                let Ok(()) = value::pack_json_with(out, |out| {
                    float::number(out, text);
                    Ok::<_, Infallible>(())
                });
            }),
            _ => self.output.output(value, |text| value::pack_text(out, text)),
        }
        Ok(())
    }

    /// Packs the value as JSON if its type has a cast to `json` that succeeds, otherwise as text, or as NULL if the
    /// output function fails too.
    fn pack_by_user_code(&self, out: &mut Vec<u8>, value: ColumnValue<'_>) -> Result<(), TooLong> {
        let before = out.len();
        let as_json = |out: &mut Vec<u8>| {
            // SAFETY: `to_json` returns a `json`, which is of variable length, in the trigger's memory context.
            let json = unsafe { fetched(self.to_json.call(value)) };
            if !pack_json(out, json) {
                user_code::check_json(json);
            }
        };
        let as_text = |out: &mut Vec<u8>| self.output.output(value, |text| value::pack_text(out, text));
        if self.kind == Kind::Composed {
            match user_code::run(|| as_json(out)) {
                Ok(()) => return Ok(()),
                Err(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED) => return Err(TooLong),
                Err(_) => out.truncate(before),
            }
            warnings::value_in_other_form(
                "A cast to json failed or did not return JSON, so the value is sent as text.",
            );
        }
        match user_code::run(|| as_text(out)) {
            Ok(()) => return Ok(()),
            Err(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED) => return Err(TooLong),
            Err(_) => out.truncate(before),
        }
        warnings::value_in_other_form("The output function of a type failed, so the value is sent as null.");
        Ok(())
    }

    /// Appends a value as the text that the type's output function returns, but dates and times as in JSON, so that a
    /// topic does not depend on the session's `DateStyle`. A value that is too long for a topic is not even fetched.
    pub fn text(&self, out: &mut Vec<u8>, value: ColumnValue<'_>) -> Result<(), NoText> {
        // SAFETY: a length of -1 means a type of variable length.
        if self.length == -1 && unsafe { size(value) } > NO_TOPIC {
            return Err(NoText::TooLong);
        }
        match self.kind {
            Kind::Int2 | Kind::Int4 | Kind::Int8 => {
                out.extend_from_slice(itoa::Buffer::new().format(self.integer(value)).as_bytes());
            }
            // SAFETY: this kind is of variable length; what is fetched lies in the trigger's memory context.
            Kind::Text => out.extend_from_slice(unsafe { fetched(value) }),
            // SAFETY: this kind is the type uuid.
            Kind::Uuid => value::write_uuid(out, unsafe { uuid(value) }),
            Kind::Time(type_oid) => {
                let (mut packed, mut json) = (Vec::new(), Vec::new());
                time::pack(&mut packed, type_oid, value);
                value::write(&mut json, &packed).map_err(|_| NoText::TooLong)?;
                // It is a string without escapes.
                let text = json.strip_prefix(b"\"").and_then(|json| json.strip_suffix(b"\""));
                out.extend_from_slice(text.unwrap_or_default());
            }
            _ if self.needs_user_code => {
                let write = || self.output.output(value, |text| out.extend_from_slice(text));
                user_code::run(write).map_err(|_| NoText::Fails)?;
            }
            _ => self.output.output(value, |text| out.extend_from_slice(text)),
        }
        Ok(())
    }

    /// Whether two values are equal byte for byte.
    #[inline]
    pub fn same(&self, a: ColumnValue<'_>, b: ColumnValue<'_>) -> bool {
        if self.by_value { a.datum().value() == b.datum().value() } else { self.same_bytes(a, b) }
    }

    /// Whether two values that are passed as pointers are equal byte for byte.
    #[inline(never)]
    fn same_bytes(&self, a: ColumnValue<'_>, b: ColumnValue<'_>) -> bool {
        // SAFETY: both are values of this column's type. A length of -1 means variable length; a positive one is the
        // number of bytes that a value points to.
        unsafe {
            if self.length == -1
                && let (Some(a), Some(b)) = (plain(a), plain(b))
            {
                return a == b;
            }
            let (a, b) = (a.datum(), b.datum());
            if let Ok(length) = usize::try_from(self.length) {
                let [a, b] = [a, b].map(|value| std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), length));
                return a == b;
            }
            datum_image_eq(a, b, false, self.length.into())
        }
    }

    fn integer(&self, value: ColumnValue<'_>) -> i64 {
        let value = value.datum().value();
        match self.kind {
            Kind::Int2 => i64::from(value as i16),
            Kind::Int4 => i64::from(value as i32),
            _ => value as i64,
        }
    }
}

/// # Safety
/// The value is a uuid.
unsafe fn uuid<'row>(value: ColumnValue<'row>) -> &'row [u8; 16] {
    // SAFETY: a uuid is passed as a pointer to 16 bytes, which live as long as the value.
    unsafe { &*value.datum().cast_mut_ptr::<[u8; 16]>() }
}

/// Packs an interval, if `IntervalStyle` is the default.
fn pack_interval(out: &mut Vec<u8>, interval: &pg_sys::Interval) -> Result<(), PackError> {
    let pg_sys::Interval { time: micros, day: days, month: months } = *interval;
    // SAFETY: reads a variable of this backend.
    let style = unsafe { pg_sys::IntervalStyle };
    // From PostgreSQL 17 on, the ends of the range mean infinity.
    if style != pg_sys::INTSTYLE_POSTGRES as i32 || [i64::MIN, i64::MAX].contains(&micros) {
        return Err(PackError::Unsupported);
    }
    value::pack_interval(out, Interval { months, days, micros });
    Ok(())
}

/// Packs JSON that is stored as text. Like `to_jsonb`, this drops white space and all but the last of repeated keys. A
/// text that can't be parsed here is packed unchanged. Returns whether the text was parsed, so that it is certainly
/// JSON.
fn pack_json(out: &mut Vec<u8>, text: &[u8]) -> bool {
    // serde_json represents a number as an object with this key, so it can't represent an object that has this key.
    const MARK: &[u8] = b"$serde_json::private::";
    let marked = text.windows(MARK.len()).any(|window| window == MARK);
    let json = serde_json::from_slice::<serde_json::Value>(text).ok().filter(|_| !marked);
    match &json {
        Some(json) => value::pack_json(out, json.to_string().as_bytes()),
        None => value::pack_json(out, text),
    }
    json.is_some()
}

/// Packs a `jsonb` of any depth as JSON.
///
/// # Safety
/// The value is a jsonb.
unsafe fn pack_jsonb_by_postgres(out: &mut Vec<u8>, value: ColumnValue<'_>) {
    // SAFETY: the value is a jsonb, as the caller promises. What is allocated lies in the trigger's memory context.
    unsafe {
        let varlena = pg_sys::pg_detoast_datum(value.datum().cast_mut_ptr());
        let root = &raw mut (*varlena.cast::<pg_sys::Jsonb>()).root;
        let text = pg_sys::JsonbToCString(std::ptr::null_mut(), root, pgrx::varsize(varlena) as c_int);
        value::pack_json(out, CStr::from_ptr(text).to_bytes());
    }
}
