//! Doors between namespaces: a TCP port in one that leads to an address in another.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    netns::Namespace,
    traffic::{is_pause, tick_on},
};

/// Where one end of a door is: in a namespace of the test, or (`None`) in the test's own.
pub type Side = Option<Arc<Namespace>>;

/// A loopback port that was free a moment ago.
///
/// # Errors
/// When there is none.
pub fn free_address(side: &Side) -> Result<SocketAddr> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listener = match side {
        Some(namespace) => namespace.within(bind),
        None => bind(),
    }?;
    Ok(listener.local_addr()?)
}

/// A door. It is shut on drop, and connections through it are cut then, or by [`Forward::cut`].
#[derive(Debug)]
pub struct Forward {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    refuse: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Forward {
    /// Opens a door: connections to `listen` in `from` lead to `target` in `to`. Port 0 takes any free port.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn open(from: &Side, listen: SocketAddr, to: &Side, target: SocketAddr) -> Result<Self> {
        let bind = || TcpListener::bind(listen);
        let listener = match from {
            Some(namespace) => namespace.within(bind),
            None => bind(),
        };
        let listener = listener.with_context(|| format!("listen on {listen}"))?;
        tick_on(&listener)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let accepting = thread::Builder::new().name(format!("door {address}")).spawn({
            let (shared, to) = (Arc::clone(&shared), to.clone());
            move || accept(&listener, &shared, &to, target)
        })?;
        Ok(Self { address, shared, accepting: Some(accepting) })
    }

    /// The address to dial on the near side.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection that is open now; new ones are let through.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may have been closed by its ends already.
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// While `true`, new connections are closed at once and old ones are cut.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::Release);
        if refuse {
            self.cut();
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(accepting) = self.accepting.take() {
            // It only panics if we have done so.
            accepting.join().ok();
        }
        self.cut();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, to: &Side, target: SocketAddr) {
    while !shared.stop.load(Ordering::Acquire) {
        match listener.accept() {
            // Dropping the stream closes it; a target that is not there looks the same to the dialler.
            Ok((near, _)) if !shared.refuse.load(Ordering::Acquire) => drop(join(near, shared, to, target)),
            Ok(_) => {}
            Err(error) if is_pause(&error) => {}
            Err(_) => return,
        }
    }
}

/// Connects the far side and lets two threads copy; they end with the connection.
fn join(near: TcpStream, shared: &Shared, to: &Side, target: SocketAddr) -> io::Result<()> {
    let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(2));
    let far = match to {
        Some(namespace) => namespace.within(connect),
        None => connect(),
    }?;
    // Inherited from the listener, which wants to look up now and then; copying does not.
    near.set_read_timeout(None)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    {
        let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|stream| stream.peer_addr().is_ok());
        open.push(near.try_clone()?);
        open.push(far.try_clone()?);
    }
    let (near2, far2) = (near.try_clone()?, far.try_clone()?);
    thread::spawn(move || copy(near, far));
    thread::spawn(move || copy(far2, near2));
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    // How it ended is told by closing the other half.
    io::copy(&mut from, &mut to).ok();
    to.shutdown(Shutdown::Write).ok();
}
