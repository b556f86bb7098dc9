//! Values of each kind, and bytes that are not a value.

use proptest::prelude::*;

use super::*;

fn packed<E: std::fmt::Debug>(pack: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut out = Vec::new();
    pack(&mut out).unwrap();
    out
}

fn json(value: &[u8]) -> String {
    let mut out = Vec::new();
    write(&mut out, value).unwrap();
    String::from_utf8(out).unwrap()
}

/// The bytes from a pack function that cannot fail.
fn sure(pack: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    pack(&mut out);
    out
}

/// A list of these values.
fn list(values: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    pack_list(&mut out);
    for value in values {
        let pack = |out: &mut Vec<u8>| -> Result<(), PackError> {
            out.extend_from_slice(value);
            Ok(())
        };
        pack_part(&mut out, pack).unwrap();
    }
    out
}

#[test]
fn each_kind_is_rendered_as_postgres_renders_it() {
    const HOUR: i64 = 3_600_000_000;
    let uuid = std::array::from_fn(|i| i as u8 * 17);
    let interval = |months, days, micros| sure(|out| pack_interval(out, Interval { months, days, micros }));
    for (value, expected) in [
        (Vec::new(), "null"),
        (sure(|out| pack_bool(out, false)), "false"),
        (sure(|out| pack_bool(out, true)), "true"),
        (sure(|out| pack_text(out, b"")), r#""""#),
        (sure(|out| pack_text(out, b"a \"b\"\n\x01")), r#""a \"b\"\n\u0001""#),
        (sure(|out| pack_json(out, b"[1]")), "[1]"),
        (sure(|out| pack_uuid(out, &uuid)), r#""00112233-4455-6677-8899-aabbccddeeff""#),
        // numeric '-1234.50' and 'NaN', as Postgres stores them.
        (packed(|out| pack_numeric(out, b"\x00\xa1\xd2\x04\x88\x13")), "-1234.50"),
        (packed(|out| pack_numeric(out, b"\x00\xc0")), r#""NaN""#),
        (packed(|out| pack_date(out, -1)), r#""1999-12-31""#),
        (packed(|out| pack_time(out, 24 * HOUR)), r#""24:00:00""#),
        (packed(|out| pack_timestamp(out, -1)), r#""1999-12-31T23:59:59.999999""#),
        (packed(|out| pack_timestamptz(out, 0, 0)), r#""2000-01-01T00:00:00+00:00""#),
        (packed(|out| pack_timestamptz(out, 0, -12_600)), r#""1999-12-31T20:30:00-03:30""#),
        (packed(|out| pack_timestamptz(out, 0, 1_172)), r#""2000-01-01T00:19:32+00:19:32""#),
        (interval(0, 0, 0), r#""00:00:00""#),
        (interval(-14, 1, -HOUR), r#""-1 years -2 mons +1 day -01:00:00""#),
        // jsonb '{"a": [null, 1]}'.
        (
            packed(|out| {
                pack_jsonb(out, b"\x01\0\0\x20\x01\0\0\x80\x17\0\0\x50a\0\0\0\x02\0\0\x40\0\0\0\xc0\x08\0\0\x10\x20\0\0\0\0\x80\x01\0")
            }),
            r#"{"a":[null,1]}"#,
        ),
        (list(&[]), "[]"),
        (
            list(&[Vec::new(), sure(|out| pack_integer(out, 7)), sure(|out| pack_text(out, &[b'x'; 300]))]),
            &*format!("[null,7,\"{}\"]", "x".repeat(300)),
        ),
    ] {
        assert_eq!(json(&value), expected);
    }
    let mut members = Vec::new();
    pack_members(&mut members);
    assert_eq!(json(&members), "{}");
    for part in [&b"\"a\":"[..], &sure(|out| pack_integer(out, -1)), b"\"b\":", &list(&[])] {
        let pack = |out: &mut Vec<u8>| -> Result<(), PackError> {
            out.extend_from_slice(part);
            Ok(())
        };
        pack_part(&mut members, pack).unwrap();
    }
    assert_eq!(json(&members), r#"{"a":-1,"b":[]}"#);
}

#[test]
fn years_of_other_than_four_digits_are_not_packed() {
    let out = &mut Vec::new();
    for packed in [
        pack_date(out, i32::MAX),
        pack_date(out, i32::MIN),
        pack_timestamp(out, i64::MAX),
        pack_timestamp(out, i64::MIN),
        pack_timestamptz(out, i64::MAX, 3600),
        pack_timestamptz(out, i64::MIN, -3600),
        // The last microsecond of the year 9999 in UTC is in the next year one second further to the east.
        pack_timestamptz(out, 252_455_615_999_999_999, 1),
        pack_timestamptz(out, 0, 86_400),
        pack_time(out, -1),
    ] {
        assert_eq!(packed, Err(PackError::Unsupported));
    }
    assert_eq!(out, b"");
    assert_eq!(
        json(&packed(|out| pack_timestamptz(out, 252_455_615_999_999_999, 0))),
        r#""9999-12-31T23:59:59.999999+00:00""#
    );
}

#[test]
fn a_number_of_few_bytes_and_many_digits_is_not_packed() {
    let out = &mut Vec::new();
    // 1e131071 in ten bytes, alone and in a jsonb.
    let wide = b"\x00\x00\xff\x7f\xe8\x03";
    assert_eq!(pack_numeric(out, wide), Err(PackError::TooLong));
    let jsonb = [&b"\x01\0\0\x50\x0a\0\0\x10\x28\0\0\0"[..], wide].concat();
    assert_eq!(pack_jsonb(out, &jsonb), Err(PackError::TooLong));
    assert_eq!(out, b"");
    // Nor is it read if somebody wrote it.
    for (tag, bytes) in [(NUMERIC, &wide[..]), (JSONB, &jsonb)] {
        assert!(write(out, &[&[tag], bytes].concat()).is_err());
    }
}

#[test]
fn a_deeply_nested_value_is_corrupt() {
    let mut value = list(&[]);
    while value.len() < 10_000 {
        let length = value.len();
        let head = [LIST, 0x80 | length as u8, 0x80 | (length >> 7) as u8, (length >> 14) as u8];
        value.splice(0..0, head);
    }
    assert_eq!(write(&mut Vec::new(), &value), Err(ReadError::Corrupt));
}

#[test]
fn a_container_that_contains_itself_many_times_is_too_long() {
    // Each level is an array whose entries refer to the same array again: an entry with an end jumps back to where
    // another one began.
    let mut level = b"\x00\0\0\x40".to_vec();
    for _ in 0..60 {
        let length = level.len() as u32;
        let mut array = (12u32 | 0x4000_0000).to_le_bytes().to_vec();
        for i in 0..12 {
            let entry: u32 = if i % 2 == 0 { 0x8000_0000 | 0x5000_0000 | length } else { 0xc000_0000 };
            array.extend_from_slice(&entry.to_le_bytes());
        }
        array.extend_from_slice(&level);
        level = array;
    }
    let mut out = Vec::new();
    assert_eq!(write(&mut out, &[&[JSONB], &level[..]].concat()), Err(ReadError::TooLong));
    assert_eq!(pack_jsonb(&mut Vec::new(), &level), Err(PackError::TooLong));
    assert!(out.len() <= 2 * WIDEST * level.len());
}

proptest! {
    #[test]
    fn an_integer_comes_out_as_it_went_in(number in any::<i64>(), shift in 0..64u32) {
        for number in [number >> shift, i64::MIN, i64::MAX, 0, -1, 127, 128, -128, -129] {
            prop_assert_eq!(json(&sure(|out| pack_integer(out, number))), number.to_string());
        }
    }

    #[test]
    fn no_bytes_make_more_json_than_the_bound(tag in 0..17u8, bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        let value = [&[tag], &bytes[..]].concat();
        let mut out = Vec::new();
        if write(&mut out, &value).is_ok() {
            prop_assert!(out.len() <= WIDEST * value.len(), "{} of {value:?}", String::from_utf8_lossy(&out));
        }
    }
}

proptest! {
    #[test]
    fn no_numeric_makes_more_json_than_the_bound(header in any::<u16>(), weight in -40..40i16, digits in prop::collection::vec(0..10_000u16, 0..4)) {
        // Few decimal digits: most headers ask for thousands.
        let header = if header & 0x8000 == 0 { header & 0xc01f } else { header };
        let mut value = vec![NUMERIC];
        for word in [header, weight as u16].into_iter().chain(digits) {
            value.extend_from_slice(&word.to_le_bytes());
        }
        let mut out = Vec::new();
        if write(&mut out, &value).is_ok() {
            prop_assert!(out.len() <= WIDEST * value.len(), "{} of {value:?}", String::from_utf8_lossy(&out));
            prop_assert_eq!(pack_numeric(&mut Vec::new(), &value[1..]), Ok(()));
        }
    }
}

#[test]
fn an_offset_of_a_day_or_more_is_corrupt() {
    for offset in [[0x01, 0x51, 0x80], [0x7f, 0xff, 0xff], [0x80, 0, 0], [0xfe, 0xae, 0x80]] {
        let value = [&[TIMESTAMPTZ][..], &offset, &[0; 8]].concat();
        assert_eq!(write(&mut Vec::new(), &value), Err(ReadError::Corrupt));
    }
    assert_eq!(pack_timestamptz(&mut Vec::new(), 0, i32::MIN), Err(PackError::Unsupported));
}

#[test]
fn a_jsonb_that_is_far_longer_than_its_json_is_not_packed() {
    // 0 and [0, 0], in fourteen and twenty-eight bytes.
    for jsonb in [
        &b"\x01\0\0\x50\x06\0\0\x10\x18\0\0\0\0\x80"[..],
        b"\x02\0\0\x40\x08\0\0\x90\x06\0\0\x10\x18\0\0\0\0\x80\0\0\x18\0\0\0\0\x80",
    ] {
        let (mut packed, mut json) = (Vec::new(), Vec::new());
        assert_eq!(pack_jsonb(&mut packed, jsonb), Err(PackError::Unsupported));
        assert_eq!(jsonb::write(&mut json, jsonb, Limit::new(9).after(&[])), Ok(()));
        assert!(packed.is_empty() && json.starts_with(if jsonb[0] == 1 { b"0" } else { b"[0,0]" }));
    }
}
