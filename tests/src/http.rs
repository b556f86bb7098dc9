//! One plain HTTP/1.1 request, and the body of its response as it arrives.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::wait::DEADLINE;

/// The time limit for a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// The most bytes that are read at once.
const STEP: usize = 64 * 1024;

/// The head of a response.
#[derive(Clone, Debug)]
pub struct Head {
    /// The status code.
    pub status: u16,
    headers: HashMap<String, String>,
}

impl Head {
    /// A header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// A response whose body is still arriving.
#[derive(Debug)]
pub struct Response {
    /// Status and headers.
    pub head: Head,
    socket: TcpStream,
    step: usize,
    buffer: Vec<u8>,
    left: Left,
}

/// How the end of the body is marked.
#[derive(Debug)]
enum Left {
    Close,
    Bytes(usize),
    Chunk(usize),
    Done,
}

/// Sends a GET request with extra header lines and reads the head of the response.
pub fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> io::Result<Response> {
    send(address, "GET", path, headers)
}

/// The same with any method.
pub fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<Response> {
    send_over(TcpStream::connect_timeout(&address, CONNECT)?, method, path, headers)
}

/// The same over an existing connection, for instance with its own socket options.
pub fn send_over(mut socket: TcpStream, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<Response> {
    socket.set_nodelay(true)?;
    let address = socket.peer_addr()?;
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    socket.write_all(request.as_bytes())?;
    let mut buffer = Vec::new();
    let end = loop {
        if let Some(end) = find(&buffer, b"\r\n\r\n") {
            break end;
        }
        if !fill(&mut socket, STEP, &mut buffer)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = parse_head(std::str::from_utf8(&buffer[..end]).map_err(io::Error::other)?)?;
    buffer.drain(..end + 4);
    let left = match (head.header("transfer-encoding"), head.header("content-length")) {
        _ if method == "HEAD" || head.status == 204 => Left::Done,
        (Some("chunked"), None) => Left::Chunk(0),
        (None, Some(length)) => Left::Bytes(length.parse().map_err(io::Error::other)?),
        (None, None) => Left::Close,
        _ => return Err(io::Error::other("a response with two lengths")),
    };
    Ok(Response { head, socket, step: STEP, buffer, left })
}

/// A complete response: head and body.
pub fn get(address: SocketAddr, path: &str) -> io::Result<(Head, String)> {
    open(address, path, &[("Connection", "close")])?.whole()
}

impl Response {
    /// From now on reads at most `bytes` at once from the kernel.
    pub fn read_in_steps(&mut self, bytes: usize) {
        self.step = bytes.clamp(1, STEP);
    }

    /// Waits for the whole body; returns it with the head.
    pub fn whole(mut self) -> io::Result<(Head, String)> {
        let mut body = Vec::new();
        while self.read(&mut body)? {}
        Ok((self.head, String::from_utf8(body).map_err(io::Error::other)?))
    }

    /// Waits for more of the body and appends it; false at its end.
    pub fn read(&mut self, body: &mut Vec<u8>) -> io::Result<bool> {
        let before = body.len();
        while body.len() == before {
            match self.left {
                Left::Done | Left::Bytes(0) => return Ok(false),
                Left::Close => {
                    if self.buffer.is_empty() && !fill(&mut self.socket, self.step, &mut self.buffer)? {
                        return Ok(false);
                    }
                    body.append(&mut self.buffer);
                }
                Left::Bytes(n) => self.left = Left::Bytes(n - self.take(n, body)?),
                Left::Chunk(0) => match self.chunk_size()? {
                    None => return Ok(false),
                    Some(0) if self.line()?.is_none_or(|line| !line.is_empty()) => {
                        return Err(io::Error::other("a last chunk that doesn't end"));
                    }
                    Some(0) => self.left = Left::Done,
                    Some(n) => self.left = Left::Chunk(n),
                },
                Left::Chunk(n) => {
                    let rest = n - self.take(n, body)?;
                    self.left = Left::Chunk(rest);
                    if rest == 0 && self.line()?.is_none_or(|line| !line.is_empty()) {
                        return Err(io::Error::other("a chunk that doesn't end"));
                    }
                }
            }
        }
        Ok(true)
    }

    /// Moves up to `n` bytes of the body; at least one.
    fn take(&mut self, n: usize, body: &mut Vec<u8>) -> io::Result<usize> {
        if self.buffer.is_empty() && !fill(&mut self.socket, self.step, &mut self.buffer)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let n = n.min(self.buffer.len());
        body.extend(self.buffer.drain(..n));
        Ok(n)
    }

    /// The size of the next chunk; `None` if the connection was closed where a chunk could have begun.
    fn chunk_size(&mut self) -> io::Result<Option<usize>> {
        let Some(line) = self.line()? else { return Ok(None) };
        usize::from_str_radix(&line, 16).map(Some).map_err(io::Error::other)
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line = String::from_utf8(self.buffer[..end].to_vec()).map_err(io::Error::other)?;
                self.buffer.drain(..end + 2);
                return Ok(Some(line));
            }
            if !fill(&mut self.socket, self.step, &mut self.buffer)? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

/// Reads at most `step` bytes, once; false at the end. Silence until the deadline is an error of kind `TimedOut`.
fn fill(socket: &mut TcpStream, step: usize, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let start = Instant::now();
    let mut block = [0; STEP];
    loop {
        let left = DEADLINE.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut block[..step]) {
            Ok(n) => {
                buffer.extend_from_slice(&block[..n]);
                return Ok(n > 0);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn parse_head(text: &str) -> io::Result<Head> {
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no HTTP response: {text:?}")))?;
    let headers = lines
        .map(|line| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())))
        .collect::<Option<_>>()
        .ok_or_else(|| io::Error::other(format!("a header without a colon: {text:?}")))?;
    Ok(Head { status, headers })
}

/// Escapes a text for a query string.
pub fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
