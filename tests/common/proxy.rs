//! A TCP proxy that counts, delays, cuts and corrupts.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Forwards connections to one address; stops with this guard.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    upstream: Mutex<u16>,
    streams: Mutex<Vec<TcpStream>>,
    connections: AtomicU64,
    accepted: Mutex<Option<Instant>>,
    bytes_down: AtomicU64,
    bytes_up: AtomicU64,
    flips_left: AtomicU64,
    flip_seed: AtomicU64,
    delay_ms: AtomicU64,
    bytes_per_s: AtomicU64,
    refusing: AtomicBool,
    stalled: AtomicBool,
    closed: AtomicBool,
}

impl Proxy {
    /// Listens on a free port and forwards to `upstream` on loopback.
    pub fn start(upstream: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let shared = Arc::new(Shared { upstream: Mutex::new(upstream), ..Shared::default() });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.closed.load(Relaxed) {
                    return;
                }
                if let Ok(client) = client {
                    accepting.accept(client);
                }
            }
        });
        Proxy { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Closes every connection; new ones are accepted.
    pub fn cut(&self) {
        for stream in self.shared.streams.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Forwards to another port on loopback from now on; what is connected stays so.
    pub fn redirect(&self, upstream: u16) {
        *self.shared.upstream.lock().expect("no panic") = upstream;
    }

    /// Turns new connections away, or no longer.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refusing.store(refuse, Relaxed);
        if refuse {
            self.cut();
        }
    }

    /// Lets nothing through while connections stay open, or goes on.
    pub fn stall(&self, stall: bool) {
        self.shared.stalled.store(stall, Relaxed);
    }

    /// Flips one bit in each of the next `count` chunks from upstream.
    pub fn flip(&self, count: u64, seed: u64) {
        self.shared.flip_seed.store(seed, Relaxed);
        self.shared.flips_left.store(count, Relaxed);
    }

    /// Returns how many flips are still to come.
    pub fn flips_left(&self) -> u64 {
        self.shared.flips_left.load(Relaxed)
    }

    /// Holds each chunk back for this long.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_ms.store(delay.as_millis() as u64, Relaxed);
    }

    /// Lets so many bytes a second through from upstream, zero for any number.
    pub fn throttle(&self, bytes_per_s: u64) {
        self.shared.bytes_per_s.store(bytes_per_s, Relaxed);
    }

    /// Returns how many connections were made so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }

    /// Returns when the last connection was accepted.
    pub fn accepted(&self) -> Option<Instant> {
        *self.shared.accepted.lock().expect("no panic")
    }

    /// Returns bytes from upstream and to upstream so far.
    pub fn bytes(&self) -> (u64, u64) {
        (self.shared.bytes_down.load(Relaxed), self.shared.bytes_up.load(Relaxed))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Relaxed);
        self.cut();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, client: TcpStream) {
        let upstream = *self.upstream.lock().expect("no panic");
        if self.refusing.load(Relaxed) {
            return;
        }
        *self.accepted.lock().expect("no panic") = Some(Instant::now());
        let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)) else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        self.connections.fetch_add(1, Relaxed);
        let mut streams = self.streams.lock().expect("no panic");
        for (from, to, down) in [(&server, &client, true), (&client, &server, false)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.pump(from, to, down));
        }
        streams.extend([client, server]);
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, down: bool) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let throttle = if down { self.bytes_per_s.load(Relaxed) as usize } else { 0 };
            let piece = if throttle > 0 { (throttle / 10).clamp(1, 64 << 10) } else { 64 << 10 };
            let Ok(count @ 1..) = from.read(&mut buffer[..piece]) else { break };
            if throttle > 0 {
                std::thread::sleep(Duration::from_secs_f64(count as f64 / throttle as f64));
            }
            while self.stalled.load(Relaxed) && !self.closed.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let delay = self.delay_ms.load(Relaxed);
            if delay > 0 {
                std::thread::sleep(Duration::from_millis(delay));
            }
            let counter = if down { &self.bytes_down } else { &self.bytes_up };
            counter.fetch_add(count as u64, Relaxed);
            // Only what comes from upstream is damaged: the other way counts for nothing.
            let take = |left: u64| left.checked_sub(1);
            if down && self.flips_left.fetch_update(Relaxed, Relaxed, take).is_ok() {
                let seed = self.flip_seed.fetch_add(1, Relaxed);
                let bit = fastrand::Rng::with_seed(seed).usize(..count * 8);
                buffer[bit / 8] ^= 1 << (bit % 8);
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}
