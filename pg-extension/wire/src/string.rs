//! Texts as JSON strings: quotes and escapes.

/// The hexadecimal digits.
pub const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends a text as a JSON string, escaped as Postgres's `escape_json` does it.
pub fn write(out: &mut Vec<u8>, text: &[u8]) {
    let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    out.push(b'"');
    let mut rest = text;
    while !rest.is_empty() {
        // Sixteen bytes at a time while none needs an escape. The inner loop has no early exit, so that the compiler
        // can vectorize it.
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
    write(&mut json, text.as_bytes());
    String::from_utf8_lossy(&json).into_owned()
}
