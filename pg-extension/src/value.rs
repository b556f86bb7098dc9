//! A column's value as JSON, the same as `to_jsonb` gives it, and as text for a topic.
//!
//! The type is looked at once, when the watch is compiled; writing a value is then a match and a copy. What is rare
//! (composites, arrays of several dimensions, types with a cast to `json`) goes through `to_json`, which says the same as
//! `to_jsonb` but never fails: a `json` may hold what a `jsonb` cannot, such as `\u0000`.

use std::ffi::{CStr, c_char, c_int};

use pgrx::prelude::*;

use crate::errors::attempt;
use crate::foreign::datum_image_eq;
use crate::time::Time;

/// How to write the values of one column.
pub struct Writer {
    kind: Kind,
    /// The type's output function, or `to_json` where `kind` says so.
    json: FunctionCall,
    text: FunctionCall,
    by_value: bool,
    length: i16,
    /// How to write the elements, if it is an array.
    element: Option<Box<Element>>,
    time: Time,
}

/// The elements of an array.
struct Element {
    type_oid: pg_sys::Oid,
    align: c_char,
    writer: Writer,
}

/// The families of types that JSON tells apart, after `json_categorize_type` in Postgres.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    /// A number unless it is NaN or infinite, which JSON can only say as a string.
    Number,
    Text,
    Uuid,
    Jsonb,
    /// Dates and times, in ISO 8601 whatever `DateStyle` says.
    Time(pg_sys::Oid),
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

/// A value of a type that is not all text may have a text this many times shorter: a point in a polygon has 16 bytes and
/// at least five characters.
const SHRINK: usize = 16;

/// No text of Postgres is longer than 1 GiB, and JSON may need six bytes for one: from here on not even Postgres can be asked
/// for it.
const UNWRITABLE: usize = 160 * 1024 * 1024;

/// Postgres cannot write all that it can store: `1e131071` takes ten bytes, and some thousands of it in one value are longer than any
/// text. A value up to this size it can write, whatever is in it.
const WRITABLE: usize = 16 * 1024;

/// No value of more bytes has a text so short that a topic could hold it.
const NO_TOPIC: usize = WRITABLE;

/// A function of Postgres with one argument, looked up once. Lives in the memory context that it was made in.
struct FunctionCall(*mut pg_sys::FmgrInfo);

impl FunctionCall {
    /// `context` outlives the result.
    fn new(function: pg_sys::Oid, argument: pg_sys::Oid, context: pg_sys::MemoryContext) -> Self {
        // SAFETY: called inside a transaction; everything is allocated in `context`, which becomes current meanwhile.
        unsafe {
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
            Self(info)
        }
    }

    fn call(&self, value: pg_sys::Datum) -> pg_sys::Datum {
        // SAFETY: the function takes one argument of the column's type and gives no NULL for a value.
        unsafe { pg_sys::FunctionCall1Coll(self.0, pg_sys::InvalidOid, value) }
    }

    /// Lends out the result of an output function.
    fn output(&self, value: pg_sys::Datum, read: impl FnOnce(&[u8])) {
        // SAFETY: an output function returns a C string, allocated in the current context: the trigger's, which
        // Postgres empties after each row, and not while `read` runs.
        read(unsafe { CStr::from_ptr(pg_sys::OutputFunctionCall(self.0, value)).to_bytes() });
    }
}

impl Writer {
    /// Compiles the writer for a column of the type. `context` outlives it.
    pub fn new(type_oid: pg_sys::Oid, by_value: bool, length: i16, context: pg_sys::MemoryContext) -> Self {
        // SAFETY: plain look-ups in the system caches, inside a transaction.
        let (base, output) = unsafe {
            let (mut output, mut is_varlena) = (pg_sys::InvalidOid, false);
            pg_sys::getTypeOutputInfo(type_oid, &mut output, &mut is_varlena);
            (pg_sys::getBaseType(type_oid), output)
        };
        let kind = Kind::of(base);
        let text = FunctionCall::new(output, type_oid, context);
        let json = match kind {
            Kind::Composed => FunctionCall::new(pg_sys::Oid::from(pg_sys::F_TO_JSON), type_oid, context),
            _ => FunctionCall(text.0),
        };
        let element = Element::of(base, context).map(Box::new);
        Self { kind, json, text, by_value, length, element, time: Time::default() }
    }

    /// Writes a value as JSON, unless that alone is longer than `most` bytes: then nothing is even fetched.
    pub fn json(&self, out: &mut Vec<u8>, value: pg_sys::Datum, most: usize) -> Result<(), TooLong> {
        if self.length == -1 {
            let most = match self.kind {
                Kind::Text | Kind::Bytes => most,
                _ => most.saturating_mul(SHRINK).min(UNWRITABLE),
            };
            // SAFETY: a value of a type of variable length.
            if unsafe { size(value) } > most {
                return Err(TooLong);
            }
        }
        let may_grow = self.length == -1 && matches!(self.kind, Kind::Jsonb | Kind::Composed | Kind::Quoted);
        // SAFETY: as above.
        let may_grow = may_grow && unsafe { size(value) } > WRITABLE;
        if !may_grow {
            return self.write_json(out, value, most);
        }
        let limit = PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED;
        attempt(limit, || self.write_json(out, value, most)).unwrap_or(Err(TooLong))
    }

    fn write_json(&self, out: &mut Vec<u8>, value: pg_sys::Datum, most: usize) -> Result<(), TooLong> {
        match self.kind {
            Kind::Bool => out.extend_from_slice(if value.value() as u8 != 0 { b"true" } else { b"false" }),
            Kind::Int2 | Kind::Int4 | Kind::Int8 => self.integer(out, value),
            Kind::Number => self.json.output(value, |text| match text.last() {
                Some(last) if last.is_ascii_digit() => out.extend_from_slice(text),
                _ => string(out, text),
            }),
            Kind::Text => with_text(value, |text| string(out, text)),
            Kind::Uuid => {
                out.push(b'"');
                uuid(out, value);
                out.push(b'"');
            }
            Kind::Jsonb => jsonb(out, value),
            Kind::Json => with_text(value, |text| normal_json(out, text)),
            Kind::Composed => match &self.element {
                Some(element) => element.array(out, value, most, &self.json)?,
                None => composed(out, value, &self.json),
            },
            Kind::Time(type_oid) => {
                out.push(b'"');
                self.time.write(out, type_oid, value);
                out.push(b'"');
            }
            Kind::Quoted | Kind::Bytes => self.json.output(value, |text| string(out, text)),
        }
        Ok(())
    }

    /// Writes a value as text, as the type's output function does; dates and times as in JSON, so that the name of a topic
    /// does not depend on the session's `DateStyle`. Nothing is even fetched of a value that makes no topic.
    pub fn text(&self, out: &mut Vec<u8>, value: pg_sys::Datum) -> Result<(), TooLong> {
        // SAFETY: a value of a type of variable length.
        if self.length == -1 && unsafe { size(value) } > NO_TOPIC {
            return Err(TooLong);
        }
        match self.kind {
            Kind::Int2 | Kind::Int4 | Kind::Int8 => self.integer(out, value),
            Kind::Text => with_text(value, |text| out.extend_from_slice(text)),
            Kind::Uuid => uuid(out, value),
            Kind::Time(type_oid) => self.time.write(out, type_oid, value),
            _ => self.text.output(value, |text| out.extend_from_slice(text)),
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
            datum_image_eq(a, b, false, self.length.into())
        }
    }

    fn integer(&self, out: &mut Vec<u8>, value: pg_sys::Datum) {
        let value = match self.kind {
            Kind::Int2 => i64::from(value.value() as i16),
            Kind::Int4 => i64::from(value.value() as i32),
            _ => value.value() as i64,
        };
        out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }
}

impl Element {
    /// The elements of a type, if it is one of arrays. `context` outlives the result.
    fn of(base: pg_sys::Oid, context: pg_sys::MemoryContext) -> Option<Self> {
        let (mut length, mut by_value, mut align) = (0, false, 0);
        // SAFETY: plain look-ups in the system caches, inside a transaction.
        let type_oid = unsafe {
            let type_oid = pg_sys::get_element_type(base);
            if type_oid == pg_sys::InvalidOid {
                return None;
            }
            pg_sys::get_typlenbyvalalign(type_oid, &mut length, &mut by_value, &mut align);
            type_oid
        };
        Some(Self { type_oid, align, writer: Writer::new(type_oid, by_value, length, context) })
    }

    /// Writes an array. If it has one dimension, element by element: `to_json` would look up anew, for each array, how they
    /// are written.
    fn array(
        &self,
        out: &mut Vec<u8>,
        value: pg_sys::Datum,
        most: usize,
        to_json: &FunctionCall,
    ) -> Result<(), TooLong> {
        // SAFETY: the value is an array; a copy made here lies in the trigger's context.
        let array = unsafe { pg_sys::pg_detoast_datum(value.cast_mut_ptr()).cast::<pg_sys::ArrayType>() };
        // SAFETY: as above.
        if unsafe { (*array).ndim } > 1 {
            composed(out, pg_sys::Datum::from(array), to_json);
            return Ok(());
        }
        let Writer { by_value, length, .. } = self.writer;
        let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        // SAFETY: it is an array of these elements; what is made here lies in the trigger's context, and both lists have
        // `count` members. Those of an empty array are not null either.
        let (values, nulls) = unsafe {
            pg_sys::deconstruct_array(
                array,
                self.type_oid,
                length.into(),
                by_value,
                self.align,
                &mut values,
                &mut nulls,
                &mut count,
            );
            (std::slice::from_raw_parts(values, count as usize), std::slice::from_raw_parts(nulls, count as usize))
        };
        out.push(b'[');
        for (i, (value, null)) in values.iter().zip(nulls).enumerate() {
            if i > 0 {
                out.push(b',');
            }
            if *null {
                out.extend_from_slice(b"null");
            } else {
                self.writer.json(out, *value, most)?;
            }
            if out.len() > most {
                return Err(TooLong);
            }
        }
        out.push(b']');
        Ok(())
    }
}

impl Kind {
    fn of(base: pg_sys::Oid) -> Self {
        match base {
            pg_sys::BOOLOID => Self::Bool,
            pg_sys::INT2OID => Self::Int2,
            pg_sys::INT4OID => Self::Int4,
            pg_sys::INT8OID => Self::Int8,
            pg_sys::FLOAT4OID | pg_sys::FLOAT8OID | pg_sys::NUMERICOID => Self::Number,
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Self::Text,
            pg_sys::UUIDOID => Self::Uuid,
            pg_sys::JSONBOID => Self::Jsonb,
            pg_sys::DATEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => Self::Time(base),
            pg_sys::JSONOID => Self::Json,
            pg_sys::BYTEAOID | pg_sys::XMLOID => Self::Bytes,
            _ if is_composed(base) => Self::Composed,
            _ => Self::Quoted,
        }
    }
}

/// Arrays, rows, and types that someone gave a cast to `json`: `to_jsonb` looks at all of these.
fn is_composed(base: pg_sys::Oid) -> bool {
    // SAFETY: plain look-ups in the system caches, inside a transaction.
    unsafe {
        if pg_sys::get_element_type(base) != pg_sys::InvalidOid || pg_sys::type_is_rowtype(base) {
            return true;
        }
        let mut cast = pg_sys::InvalidOid;
        base.to_u32() >= pg_sys::FirstNormalObjectId
            && pg_sys::find_coercion_pathway(
                pg_sys::JSONOID,
                base,
                pg_sys::CoercionContext::COERCION_EXPLICIT,
                &mut cast,
            ) == pg_sys::CoercionPathType::COERCION_PATH_FUNC
    }
}

/// Writes what Postgres's own `to_json` says.
fn composed(out: &mut Vec<u8>, value: pg_sys::Datum, to_json: &FunctionCall) {
    with_text(to_json.call(value), |text| normal_json(out, text));
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes a JSON string, escaped as Postgres's `escape_json` does.
pub fn string(out: &mut Vec<u8>, text: &[u8]) {
    let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    out.push(b'"');
    let mut rest = text;
    while !rest.is_empty() {
        // Sixteen at a time as long as all are plain: without a way out of the loop, the compiler looks at all of them at once.
        let blocks =
            rest.chunks_exact(16).take_while(|block| block.iter().fold(true, |all, byte| all & is_plain(*byte)));
        let plain = 16 * blocks.count();
        let plain = plain + rest[plain..].iter().take_while(|byte| is_plain(**byte)).count();
        out.extend_from_slice(&rest[..plain]);
        let Some(&byte) = rest.get(plain) else { break };
        rest = &rest[plain + 1..];
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
    }
    out.push(b'"');
}

/// A text as a JSON string.
pub fn quoted(text: &str) -> String {
    let mut json = Vec::new();
    string(&mut json, text.as_bytes());
    String::from_utf8_lossy(&json).into_owned()
}

fn uuid(out: &mut Vec<u8>, value: pg_sys::Datum) {
    // SAFETY: the value is a uuid: 16 bytes.
    let bytes = unsafe { &*value.cast_mut_ptr::<[u8; 16]>() };
    for (i, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&i) {
            out.push(b'-');
        }
        out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
}

/// Lends out the bytes of a `text` value, fetched and decompressed if need be.
fn with_text(value: pg_sys::Datum, read: impl FnOnce(&[u8])) {
    // SAFETY: the column's type is text or one with the same layout; a copy made here lies in the trigger's context, and is
    // plain.
    unsafe {
        let bytes = plain(value).or_else(|| {
            let fetched = pg_sys::pg_detoast_datum_packed(value.cast_mut_ptr());
            plain(pg_sys::Datum::from(fetched))
        });
        read(bytes.unwrap_or_default());
    }
}

/// The bytes of a value of variable length, unless it is compressed or lies elsewhere. Most don't, and then no function of
/// Postgres needs to be called, each of which costs a `sigsetjmp`.
///
/// # Safety
/// The value is one of a type of variable length and stays as it is for as long as the result is used.
unsafe fn plain<'a>(value: pg_sys::Datum) -> Option<&'a [u8]> {
    let varlena = value.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: as the caller promises.
    unsafe {
        if pgrx::varatt_is_1b_e(varlena) || pgrx::varatt_is_4b_c(varlena) {
            return None;
        }
        Some(std::slice::from_raw_parts(pgrx::vardata_any(varlena).cast(), pgrx::varsize_any_exhdr(varlena)))
    }
}

/// How many bytes a value of variable length has, decompressed.
///
/// # Safety
/// The value is one of a type of variable length.
unsafe fn size(value: pg_sys::Datum) -> usize {
    // SAFETY: as the caller promises.
    unsafe { plain(value).map_or_else(|| pg_sys::toast_raw_datum_size(value) - pg_sys::VARHDRSZ, <[u8]>::len) }
}

/// Writes JSON that was kept as it was typed. `to_jsonb` drops white space and all but the last of repeated keys, and so
/// must we; what it cannot hold (see above) is written as it stands.
fn normal_json(out: &mut Vec<u8>, text: &[u8]) {
    // The parser's own mark for a number: an object with this key would not survive it.
    const MARK: &[u8] = b"$serde_json::private::";
    let marked = text.windows(MARK.len()).any(|window| window == MARK);
    match serde_json::from_slice::<serde_json::Value>(text).ok().filter(|_| !marked) {
        Some(value) => out.extend_from_slice(value.to_string().as_bytes()),
        None => out.extend_from_slice(text),
    }
}

fn jsonb(out: &mut Vec<u8>, value: pg_sys::Datum) {
    // SAFETY: the value is a jsonb; what is allocated lies in the trigger's context.
    unsafe {
        let varlena = pg_sys::pg_detoast_datum(value.cast_mut_ptr());
        let root = &raw mut (*varlena.cast::<pg_sys::Jsonb>()).root;
        let text = pg_sys::JsonbToCString(std::ptr::null_mut(), root, pgrx::varsize(varlena) as c_int);
        out.extend_from_slice(CStr::from_ptr(text).to_bytes());
    }
}
