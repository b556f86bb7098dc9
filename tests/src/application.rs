//! A small HTTP server in the place of the application that the proxy asks about access, or of the publisher of keys.
//! It remembers what it was asked, and answers as a test wants: also with what no application should answer.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// A request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Path and query.
    pub target: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    /// A header, by its name in lower case; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The names of all headers, in lower case.
    pub fn header_names(&self) -> Vec<&str> {
        self.headers.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Whether the query contains this pair.
    pub fn asks_for(&self, pair: &str) -> bool {
        self.target.split_once('?').is_some_and(|(_, query)| query.split('&').any(|known| known == pair))
    }
}

/// What it answers.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status and a body.
    Text(u16, String),
    /// The same with further header lines, each with its line break.
    With(u16, String, String),
    /// Whatever bytes, after which the connection closes.
    Raw(Vec<u8>),
    /// Nothing, while the connection stays open.
    Silence,
    /// A status, and a body of this many bytes.
    Flood(usize),
}

impl Reply {
    /// A status without a body.
    pub fn status(status: u16) -> Self {
        Self::Text(status, String::new())
    }

    /// 200 and a JSON body.
    pub fn json(body: &serde_json::Value) -> Self {
        Self::Text(200, body.to_string())
    }
}

type Answer = Box<dyn Fn(&Asked) -> Reply + Send + Sync>;

/// A running server. Dropping it ends it.
pub struct Application {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    answer: Mutex<Arc<Answer>>,
    asked: Mutex<Vec<Asked>>,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    is_down: bool,
    is_over: bool,
    open: Vec<TcpStream>,
}

impl Application {
    /// Starts a server that answers so.
    pub fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State {
            answer: Mutex::new(Arc::new(Box::new(answer))),
            asked: Mutex::default(),
            connections: Mutex::default(),
        });
        let shared = state.clone();
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let mut connections = lock(&shared.connections);
                if connections.is_over {
                    return;
                }
                // While it is down, the connection closes at once.
                if !connections.is_down
                    && let Ok(copy) = socket.try_clone()
                {
                    connections.open.push(copy);
                    let state = shared.clone();
                    thread::spawn(move || state.serve(socket));
                }
            }
        });
        Self { address, state }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Answers so from now on.
    pub fn answer(&self, answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) {
        *lock(&self.state.answer) = Arc::new(Box::new(answer));
    }

    /// Closes all connections, and every new one, from now on.
    pub fn go_down(&self) {
        lock(&self.state.connections).is_down = true;
        self.cut();
    }

    /// Serves again.
    pub fn come_up(&self) {
        lock(&self.state.connections).is_down = false;
    }

    /// Closes the connections that are open.
    pub fn cut(&self) {
        lock(&self.state.connections).open.drain(..).for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
    }

    /// How many requests have come.
    pub fn count(&self) -> usize {
        lock(&self.state.asked).len()
    }

    /// The requests that have come.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.state.asked).clone()
    }

    /// How many connections have been opened since the last cut.
    pub fn connections(&self) -> usize {
        lock(&self.state.connections).open.len()
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        lock(&self.state.connections).is_over = true;
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn serve(&self, mut socket: TcpStream) {
        let mut buffer = Vec::new();
        while let Some(asked) = next_request(&mut socket, &mut buffer) {
            lock(&self.asked).push(asked.clone());
            let answer = lock(&self.answer).clone();
            let head = |status: u16, length: usize, more: &str| {
                format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {length}\r\n{more}\r\n")
            };
            let (bytes, goes_on) = match answer(&asked) {
                Reply::Text(status, body) => (head(status, body.len(), "") + &body, true),
                Reply::With(status, more, body) => (head(status, body.len(), &more) + &body, true),
                Reply::Flood(length) => (head(200, length, "") + &" ".repeat(length), true),
                Reply::Raw(bytes) => {
                    let _ = socket.write_all(&bytes);
                    return drop(socket.shutdown(Shutdown::Both));
                }
                Reply::Silence => (String::new(), true),
            };
            if socket.write_all(bytes.as_bytes()).is_err() || !goes_on {
                return;
            }
        }
    }
}

/// Reads a request without a body; `None` at the end of the connection.
fn next_request(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Asked> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        let mut block = [0; 4096];
        match socket.read(&mut block) {
            Ok(n) if n > 0 => buffer.extend_from_slice(&block[..n]),
            _ => return None,
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let target = lines.next()?.split(' ').nth(1)?.to_owned();
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    Some(Asked { target, headers: lines.filter_map(header).collect() })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
