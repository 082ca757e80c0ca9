//! What a connection may cost, and when it is dead.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

/// What the kernel keeps for a peer that does not read. It doubles what it is told, for its own bookkeeping.
const BUFFER: usize = 128 << 10;

/// Bounds what a peer costs: as soon as it has taken nothing for so long, though there is something for it, the connection
/// breaks. The kernel decides, which alone sees whether TCP makes progress.
pub(super) fn bound(socket: &TcpStream, patience: Duration) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_send_buffer_size(BUFFER)?;
    socket.set_tcp_user_timeout(Some(patience))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn rule_3_5_a_peer_that_takes_nothing_is_cut_and_pins_little() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut socket, _) = listener.accept().await.unwrap();
        bound(&socket, Duration::from_millis(500)).unwrap();
        assert!(SockRef::from(&socket).send_buffer_size().unwrap() <= 256 << 10);
        let error = loop {
            if let Err(e) = socket.write_all(&[0; 1 << 16]).await {
                break e;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
}
