//! A column's value, packed for the log ([`tidings_wire::value`]): what its reader makes of it is what `to_jsonb`
//! gives. And as text for a topic.
//!
//! The type is looked at once, when the watch is compiled; packing a value is then a match and a copy: of most types go
//! the bytes that Postgres stores, without a call into it. What is rare (composites, arrays of several dimensions,
//! types with a cast to `json`) goes through `to_json`, which says the same as `to_jsonb` but never fails: a `json` may
//! hold what a `jsonb` cannot, such as `\u0000`.

use std::cell::OnceCell;
use std::ffi::{CStr, c_int};

use pgrx::prelude::*;
use tidings_wire::interval::Interval;
use tidings_wire::value::{self, Stop};
use tidings_wire::{jsonb, numeric};

use crate::capture::buffer;
use crate::errors::attempt;
use crate::foreign::datum_image_eq;
use crate::value::array::Elements;
use crate::value::varlena::{fetched, plain, size};
use crate::value::{float, time, user_code};

/// How to pack the values of one column.
pub struct Writer {
    kind: Kind,
    /// The type's output function.
    output: Function,
    /// `to_json`, for where `kind` says so.
    to_json: Function,
    /// Whether these functions call code of users.
    needs_user_code: bool,
    by_value: bool,
    length: i16,
    /// How to pack the elements, if it is an array.
    elements: Option<Box<Elements>>,
}

/// The families of types that JSON tells apart, after `json_categorize_type` in Postgres.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Real,
    Double,
    Numeric,
    Text,
    Uuid,
    Jsonb,
    /// Dates and times, in ISO 8601 whatever `DateStyle` says.
    Time(pg_sys::Oid),
    Interval,
    /// Whatever the output function writes, as a string.
    Quoted,
    /// As `Quoted`, of a type whose text is at least as long as the value.
    Bytes,
    Json,
    Composed,
}

/// A value that would make a payload too long, whatever else is in it.
#[derive(Debug)]
pub struct TooLong;

/// Why a value has no text for a topic.
#[derive(Debug, thiserror::Error)]
pub enum NoText {
    #[error("it is too long")]
    TooLong,
    #[error("the output function of a column's type failed")]
    Fails,
}

/// Fails if what has been packed, of so many bytes, has JSON of more than `most` bytes.
pub fn check_packed(size: usize, most: usize) -> Result<(), TooLong> {
    if size > most.saturating_mul(value::SPARSEST).min(LARGEST) { Err(TooLong) } else { Ok(()) }
}

/// No stored value is more than this many times its JSON: a `jsonb` that is 0 has 14 bytes, and a point in a polygon
/// has 16 bytes and at least five characters.
const SHRINK: usize = 16;

/// No values of more bytes are packed, however short their JSON: they must fit into a value of Postgres together with
/// others.
const LARGEST: usize = 512 * 1024 * 1024;

/// No text of Postgres is longer than 1 GiB, and JSON may need six bytes for one: from here on not even Postgres can be
/// asked for it.
const UNWRITABLE: usize = 160 * 1024 * 1024;

/// Postgres cannot write all that it can store: `1e131071` takes ten bytes, and some thousands of it in one value are
/// longer than any text. A value up to this size it can write, whatever is in it.
const WRITABLE: usize = 16 * 1024;

/// No value of more bytes has a text so short that a topic could hold it.
const NO_TOPIC: usize = WRITABLE;

/// A function of Postgres with one argument, looked up when it is first needed: most types need none.
struct Function {
    /// Which one; none for the output function of the argument's type.
    function: Option<pg_sys::Oid>,
    /// The argument's type.
    argument: pg_sys::Oid,
    /// Where it lives.
    context: pg_sys::MemoryContext,
    info: OnceCell<*mut pg_sys::FmgrInfo>,
}

impl Function {
    /// `context` outlives the result.
    fn new(function: Option<pg_sys::Oid>, argument: pg_sys::Oid, context: pg_sys::MemoryContext) -> Self {
        Self { function, argument, context, info: OnceCell::new() }
    }

    fn info(&self) -> *mut pg_sys::FmgrInfo {
        *self.info.get_or_init(|| {
            let Self { argument, context, .. } = *self;
            // SAFETY: called inside a transaction; everything is allocated in `context`, which becomes current
            // meanwhile.
            unsafe {
                let function = self.function.unwrap_or_else(|| output_function(argument));
                let info =
                    pg_sys::MemoryContextAllocZero(context, size_of::<pg_sys::FmgrInfo>()).cast::<pg_sys::FmgrInfo>();
                pg_sys::fmgr_info_cxt(function, info, context);
                let before = pg_sys::MemoryContextSwitchTo(context);
                // A polymorphic function asks the expression it is called from for the type of its argument.
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

    fn call(&self, value: pg_sys::Datum) -> pg_sys::Datum {
        // SAFETY: the function takes one argument of the column's type and gives no NULL for a value.
        unsafe { pg_sys::FunctionCall1Coll(self.info(), pg_sys::InvalidOid, value) }
    }

    /// Lends out the result of an output function.
    fn output(&self, value: pg_sys::Datum, read: impl FnOnce(&[u8])) {
        // SAFETY: an output function returns a C string, allocated in the current context: the trigger's, which
        // Postgres empties after each row, and not while `read` runs.
        read(unsafe { CStr::from_ptr(pg_sys::OutputFunctionCall(self.info(), value)).to_bytes() });
    }
}

fn output_function(type_oid: pg_sys::Oid) -> pg_sys::Oid {
    let (mut output, mut is_varlena) = (pg_sys::InvalidOid, false);
    // SAFETY: a look-up in the system caches, inside a transaction.
    unsafe { pg_sys::getTypeOutputInfo(type_oid, &mut output, &mut is_varlena) };
    output
}

impl Writer {
    /// Compiles the writer for a column of the type. `context` outlives it.
    pub fn new(type_oid: pg_sys::Oid, by_value: bool, length: i16, context: pg_sys::MemoryContext) -> Self {
        // A session's first write of a table waits for this: what can be known without the catalog is.
        let (kind, needs_user_code, elements) = match Kind::known(type_oid) {
            Some(kind) => (kind, false, None),
            None => {
                // SAFETY: a look-up in the system caches, inside a transaction.
                let base = unsafe { pg_sys::getBaseType(type_oid) };
                (Kind::of(base), user_code::is_needed_for(base), Elements::of(base, context).map(Box::new))
            }
        };
        let output = Function::new(None, type_oid, context);
        let to_json = Function::new(Some(pg_sys::Oid::from(pg_sys::F_TO_JSON)), type_oid, context);
        Self { kind, output, to_json, needs_user_code, by_value, length, elements }
    }

    /// Whether values that lie anywhere in memory can be written: never a function of Postgres gets to see them.
    pub fn needs_no_alignment(&self) -> bool {
        self.by_value || matches!(self.kind, Kind::Numeric | Kind::Text | Kind::Uuid | Kind::Json)
    }

    /// Packs a value. Gives up where its size alone says that its JSON is longer than `most` bytes: then nothing is
    /// even fetched.
    pub fn pack(&self, out: &mut Vec<u8>, value: pg_sys::Datum, most: usize) -> Result<(), TooLong> {
        let before = out.len();
        let packed = match self.kind {
            _ if self.length != -1 => self.pack_fixed(out, value),
            // SAFETY: a value of a type of variable length.
            _ => match unsafe { plain(value) }.filter(|bytes| bytes.len() <= WRITABLE) {
                Some(bytes) => self.pack_bytes(out, bytes, most),
                None => return self.pack_large(out, value, most),
            },
        };
        match packed {
            Ok(()) => Ok(()),
            Err(Stop::TooLong) => Err(TooLong),
            Err(Stop::Unknown) => {
                out.truncate(before);
                self.pack_by_postgres(out, value)
            }
        }
    }

    /// As [`Self::pack`], for an element of an array. One that is an array itself, by a domain, becomes JSON: no reader
    /// is to be led into any depth.
    pub fn pack_element(&self, out: &mut Vec<u8>, value: pg_sys::Datum, most: usize) -> Result<(), TooLong> {
        if self.elements.is_none() {
            return self.pack(out, value, most);
        }
        let mut packed = Vec::new();
        self.pack(&mut packed, value, most)?;
        value::pack_json_with(out, |out| value::write(out, &packed)).map_err(|_| TooLong)
    }

    /// The same for a value that is long, compressed or lies elsewhere.
    fn pack_large(&self, out: &mut Vec<u8>, value: pg_sys::Datum, most: usize) -> Result<(), TooLong> {
        let limit = match self.kind {
            Kind::Text | Kind::Bytes => most,
            _ => most.saturating_mul(SHRINK).min(UNWRITABLE),
        };
        // SAFETY: a value of a type of variable length.
        if unsafe { size(value) } > limit {
            return Err(TooLong);
        }
        if matches!(self.kind, Kind::Text | Kind::Numeric | Kind::Jsonb | Kind::Json) || self.elements.is_some() {
            let before = out.len();
            // SAFETY: as above; what is fetched lies in the trigger's context.
            match self.pack_bytes(out, unsafe { fetched(value) }, most) {
                Ok(()) => return Ok(()),
                Err(Stop::TooLong) => return Err(TooLong),
                Err(Stop::Unknown) => out.truncate(before),
            }
        }
        // SAFETY: as above.
        if self.kind == Kind::Bytes || unsafe { size(value) } <= WRITABLE {
            return self.pack_by_postgres(out, value);
        }
        let pack = || self.pack_by_postgres(out, value);
        attempt(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, pack).unwrap_or(Err(TooLong))
    }

    /// Packs a value of a type of one length.
    fn pack_fixed(&self, out: &mut Vec<u8>, value: pg_sys::Datum) -> Result<(), Stop> {
        match self.kind {
            Kind::Bool => value::pack_bool(out, value.value() as u8 != 0),
            Kind::Int2 | Kind::Int4 | Kind::Int8 => value::pack_integer(out, self.integer(value)),
            Kind::Real => {
                value::pack_json_with(out, |out| float::write_real(out, f32::from_bits(value.value() as u32)))?;
            }
            Kind::Double => {
                value::pack_json_with(out, |out| float::write_double(out, f64::from_bits(value.value() as u64)))?;
            }
            Kind::Uuid => value::pack_uuid(out, uuid(value)),
            Kind::Time(type_oid) => time::pack(out, type_oid, value),
            // SAFETY: the value is an interval.
            Kind::Interval => pack_interval(out, unsafe { &*value.cast_mut_ptr::<pg_sys::Interval>() })?,
            _ => return Err(Stop::Unknown),
        }
        Ok(())
    }

    /// Packs a value of a type of variable length, from its bytes.
    fn pack_bytes(&self, out: &mut Vec<u8>, bytes: &[u8], most: usize) -> Result<(), Stop> {
        // What cannot be packed as it is stored becomes JSON here. Its tag does not count.
        let end = most.saturating_add(out.len() + 1);
        let numeric = |out: &mut Vec<u8>| value::pack_json_with(out, |out| numeric::write(out, bytes, end));
        let jsonb = |out: &mut Vec<u8>| value::pack_json_with(out, |out| jsonb::write(out, bytes, end));
        match (self.kind, &self.elements) {
            (Kind::Text, _) => value::pack_text(out, bytes),
            (Kind::Numeric, _) => value::pack_numeric(out, bytes).or_else(|_| numeric(out))?,
            // Only who writes it can stop at `most`.
            (Kind::Jsonb, _) if bytes.len() > WRITABLE => jsonb(out)?,
            (Kind::Jsonb, _) => value::pack_jsonb(out, bytes).or_else(|_| jsonb(out))?,
            (Kind::Json, _) => {
                pack_json(out, bytes);
            }
            (_, Some(elements)) => elements.pack(out, bytes, most)?,
            _ => return Err(Stop::Unknown),
        }
        Ok(())
    }

    fn pack_by_postgres(&self, out: &mut Vec<u8>, value: pg_sys::Datum) -> Result<(), TooLong> {
        match self.kind {
            _ if self.needs_user_code => return self.pack_by_user_code(out, value),
            // SAFETY: what `to_json` gives is a `json`, in the trigger's context.
            Kind::Composed => {
                pack_json(out, unsafe { fetched(self.to_json.call(value)) });
            }
            Kind::Jsonb => pack_jsonb_by_postgres(out, value),
            Kind::Real | Kind::Double | Kind::Numeric => self.output.output(value, |text| {
                let _: Result<(), Stop> = value::pack_json_with(out, |out| {
                    float::number(out, text);
                    Ok(())
                });
            }),
            _ => self.output.output(value, |text| value::pack_text(out, text)),
        }
        Ok(())
    }

    /// Writes the value as JSON if its type has a cast to it that works, otherwise as text, or as NULL if that fails
    /// too.
    fn pack_by_user_code(&self, out: &mut Vec<u8>, value: pg_sys::Datum) -> Result<(), TooLong> {
        let before = out.len();
        let as_json = |out: &mut Vec<u8>| {
            // SAFETY: what `to_json` gives is a `json`, in the trigger's context.
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
            buffer::warn_of_value("A cast to json failed or did not return JSON, so the value is sent as text.");
        }
        match user_code::run(|| as_text(out)) {
            Ok(()) => return Ok(()),
            Err(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED) => return Err(TooLong),
            Err(_) => out.truncate(before),
        }
        buffer::warn_of_value("The output function of a type failed, so the value is sent as null.");
        Ok(())
    }

    /// Writes a value as text, as the type's output function does; dates and times as in JSON, so that the name of a
    /// topic does not depend on the session's `DateStyle`. Nothing is even fetched of a value that makes no topic.
    pub fn text(&self, out: &mut Vec<u8>, value: pg_sys::Datum) -> Result<(), NoText> {
        // SAFETY: a value of a type of variable length.
        if self.length == -1 && unsafe { size(value) } > NO_TOPIC {
            return Err(NoText::TooLong);
        }
        match self.kind {
            Kind::Int2 | Kind::Int4 | Kind::Int8 => {
                out.extend_from_slice(itoa::Buffer::new().format(self.integer(value)).as_bytes());
            }
            // SAFETY: as above; what is fetched lies in the trigger's context.
            Kind::Text => out.extend_from_slice(unsafe { fetched(value) }),
            Kind::Uuid => value::write_uuid(out, uuid(value)),
            Kind::Time(type_oid) => {
                let (mut packed, mut json) = (Vec::new(), Vec::new());
                time::pack(&mut packed, type_oid, value);
                value::write(&mut json, &packed).map_err(|_| NoText::TooLong)?;
                // A string with nothing in it to escape.
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

    /// Whether two values are the same to the byte.
    pub fn same(&self, a: pg_sys::Datum, b: pg_sys::Datum) -> bool {
        if self.by_value {
            return a.value() == b.value();
        }
        // SAFETY: both are values of this column's type, alive during the trigger.
        unsafe {
            if self.length == -1
                && let (Some(a), Some(b)) = (plain(a), plain(b))
            {
                return a == b;
            }
            if let Ok(length) = usize::try_from(self.length) {
                let [a, b] = [a, b].map(|value| std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), length));
                return a == b;
            }
            datum_image_eq(a, b, false, self.length.into())
        }
    }

    fn integer(&self, value: pg_sys::Datum) -> i64 {
        match self.kind {
            Kind::Int2 => i64::from(value.value() as i16),
            Kind::Int4 => i64::from(value.value() as i32),
            _ => value.value() as i64,
        }
    }
}

impl Kind {
    /// Of one of Postgres's own types that need no look into the catalog.
    fn known(type_oid: pg_sys::Oid) -> Option<Self> {
        Some(match type_oid {
            pg_sys::BOOLOID => Self::Bool,
            pg_sys::INT2OID => Self::Int2,
            pg_sys::INT4OID => Self::Int4,
            pg_sys::INT8OID => Self::Int8,
            pg_sys::FLOAT4OID => Self::Real,
            pg_sys::FLOAT8OID => Self::Double,
            pg_sys::NUMERICOID => Self::Numeric,
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Self::Text,
            pg_sys::UUIDOID => Self::Uuid,
            pg_sys::JSONBOID => Self::Jsonb,
            pg_sys::DATEOID | pg_sys::TIMEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => Self::Time(type_oid),
            pg_sys::INTERVALOID => Self::Interval,
            pg_sys::JSONOID => Self::Json,
            pg_sys::BYTEAOID | pg_sys::XMLOID => Self::Bytes,
            _ => return None,
        })
    }

    /// Of a type that is no domain.
    fn of(base: pg_sys::Oid) -> Self {
        Self::known(base).unwrap_or_else(|| if is_composed(base) { Self::Composed } else { Self::Quoted })
    }
}

/// Arrays, rows, and types that someone gave a cast to `json`: `to_jsonb` looks at all of these.
fn is_composed(base: pg_sys::Oid) -> bool {
    // SAFETY: plain look-ups in the system caches, inside a transaction.
    unsafe {
        pg_sys::get_element_type(base) != pg_sys::InvalidOid
            || pg_sys::type_is_rowtype(base)
            || user_code::has_cast_to_json(base)
    }
}

fn uuid<'a>(value: pg_sys::Datum) -> &'a [u8; 16] {
    // SAFETY: the value is a uuid, 16 bytes, and alive during the trigger.
    unsafe { &*value.cast_mut_ptr::<[u8; 16]>() }
}

/// Packs an interval, if `IntervalStyle` is the default.
fn pack_interval(out: &mut Vec<u8>, interval: &pg_sys::Interval) -> Result<(), Stop> {
    let pg_sys::Interval { time: micros, day: days, month: months } = *interval;
    // SAFETY: a plain variable of this backend.
    let style = unsafe { pg_sys::IntervalStyle };
    // The ends of the range stand for infinity, from PostgreSQL 17 on.
    if style != pg_sys::INTSTYLE_POSTGRES as i32 || [i64::MIN, i64::MAX].contains(&micros) {
        return Err(Stop::Unknown);
    }
    value::pack_interval(out, Interval { months, days, micros });
    Ok(())
}

/// Packs JSON that was stored as text. `to_jsonb` drops white space and all but the last of repeated keys, and so must
/// this function. What `to_jsonb` cannot hold (see above) stays as it is. Returns whether the whole text was examined
/// and so is certainly JSON.
fn pack_json(out: &mut Vec<u8>, text: &[u8]) -> bool {
    // The parser's own mark for a number: an object with this key would not survive it.
    const MARK: &[u8] = b"$serde_json::private::";
    let marked = text.windows(MARK.len()).any(|window| window == MARK);
    let json = serde_json::from_slice::<serde_json::Value>(text).ok().filter(|_| !marked);
    match &json {
        Some(json) => value::pack_json(out, json.to_string().as_bytes()),
        None => value::pack_json(out, text),
    }
    json.is_some()
}

/// Packs the text of a `jsonb` of any depth.
fn pack_jsonb_by_postgres(out: &mut Vec<u8>, value: pg_sys::Datum) {
    // SAFETY: the value is a jsonb; what is allocated lies in the trigger's context.
    unsafe {
        let varlena = pg_sys::pg_detoast_datum(value.cast_mut_ptr());
        let root = &raw mut (*varlena.cast::<pg_sys::Jsonb>()).root;
        let text = pg_sys::JsonbToCString(std::ptr::null_mut(), root, pgrx::varsize(varlena) as c_int);
        value::pack_json(out, CStr::from_ptr(text).to_bytes());
    }
}
