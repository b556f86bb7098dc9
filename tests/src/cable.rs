//! The network between a client and a server: forwards bytes, and can be cut and joined again.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A cable to a server. Dropping it closes the cable and all its connections.
#[derive(Debug)]
pub struct Cable {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// The server; `None` while the cable is cut.
    to: Option<SocketAddr>,
    /// The two ends of each connection.
    ends: Vec<TcpStream>,
    over: bool,
}

impl Cable {
    /// A cable that leads to `server`.
    pub fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State { to: Some(server), ends: Vec::new(), over: false }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let mut state = lock(&shared);
                if state.over {
                    return;
                }
                if let (Ok(near), Some(to)) = (near, state.to) {
                    // If nobody listens, the client sees the same as with a cut cable: no connection.
                    let _ = state.connect(near, to);
                }
            }
        });
        Self { address, state }
    }

    /// The address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks all connections and lets nothing through until the cable is joined.
    pub fn cut(&self) {
        let mut state = lock(&self.state);
        state.to = None;
        state.break_off();
    }

    /// Joins the cable to `server` again.
    pub fn join(&self, server: SocketAddr) {
        lock(&self.state).to = Some(server);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.over = true;
        state.break_off();
        drop(state);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn connect(&mut self, near: TcpStream, to: SocketAddr) -> io::Result<()> {
        let far = TcpStream::connect(to)?;
        for end in [&near, &far] {
            end.set_nodelay(true)?;
            self.ends.push(end.try_clone()?);
        }
        carry(near.try_clone()?, far.try_clone()?);
        carry(far, near);
        Ok(())
    }

    fn break_off(&mut self) {
        for end in self.ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// Forwards bytes in one direction until either side ends.
fn carry(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let mut space = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = from.read(&mut space)
            && to.write_all(&space[..n]).is_ok()
        {}
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
