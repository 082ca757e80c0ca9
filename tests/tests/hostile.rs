//! Peers that mean no good, against the real server: they are cut off, and agents are served all the while.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use distributary_e2e::deployed::{self, PATIENCE, SERVER, metric, wait_for, wait_ok};
use distributary_e2e::manifests::Manifests;
use distributary_e2e::netns::Namespace;
use distributary_e2e::process::Running;
use distributary_e2e::wire::Reader;
use http::{HeaderMap, Request};

/// Not loopback, which may take what it likes.
const SERVER_OUTSIDE: &str = "192.0.2.1:7400";
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7401);
const SUBSCRIBE: &str = "http://server/distributary.v1.Distribution/Subscribe";

struct World {
    namespace: Arc<Namespace>,
    server: Running,
    _manifests: Manifests,
}

impl World {
    fn start(more: &[&str]) -> Result<Self> {
        let namespace = Arc::new(Namespace::new()?);
        namespace.ip(&["addr add 192.0.2.1/32 dev lo".to_owned()])?;
        let manifests = Manifests::new()?;
        let source = manifests.source();
        let arguments = [&["--source", &source, "--insecure"], more].concat();
        let server = deployed::server_at(&namespace, "0.0.0.0:7400", &arguments)?;
        let _ = wait_ok(&namespace, ADMIN, "/readyz");
        Ok(Self { namespace, server, _manifests: manifests })
    }

    fn connect(&self) -> Result<TcpStream> {
        let stream = self.namespace.within(|| TcpStream::connect(SERVER_OUTSIDE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// An agent gets what there is.
    fn serves(&self) -> Result<()> {
        Reader::start(&self.namespace, SERVER, "node-a")?.until_end(PATIENCE).map(drop)
    }

    /// Speaks HTTP/2 as an agent would, up to a stream on which `say` says what it likes; gives the trailers or the error.
    fn stream(&self, say: impl FnOnce(&mut h2::SendStream<Bytes>) -> Result<()> + Send) -> Result<String> {
        self.namespace.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let socket = tokio::net::TcpStream::connect(SERVER_OUTSIDE).await?;
                let (client, connection) = h2::client::handshake(socket).await?;
                let connection = tokio::spawn(connection);
                let mut client = client.ready().await?;
                let request = Request::post(SUBSCRIBE).header("content-type", "application/grpc").body(())?;
                let (response, mut stream) = client.send_request(request, false)?;
                say(&mut stream)?;
                let answer = async {
                    let mut body = response.await?.into_body();
                    while let Some(data) = body.data().await {
                        body.flow_control().release_capacity(data?.len())?;
                    }
                    anyhow::Ok(body.trailers().await?.unwrap_or_default())
                };
                let trailers = tokio::time::timeout(PATIENCE, answer).await.context("nothing came")?;
                connection.abort();
                Ok(match trailers {
                    Ok(trailers) => told(&trailers),
                    Err(e) => format!("{e:#}"),
                })
            })
        })
    }
}

fn told(trailers: &HeaderMap) -> String {
    let text = |name| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    format!("{} {}", text("grpc-status"), text("grpc-message"))
}

/// Waits for the other end to close; what came before does not matter.
fn closed(mut stream: TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}

#[test]
fn who_says_nothing_or_nonsense_or_never_finishes_is_cut_off() -> Result<()> {
    let world = World::start(&["--idle-timeout", "2s"])?;
    let silent = world.connect()?;
    let mut garbage = world.connect()?;
    garbage.write_all(&[0x16; 3000])?;
    let mut begun = world.connect()?;
    begun.write_all(b"PRI * HTTP/2.0\r\n\r\nSM")?;
    // A request whose head has no end: SETTINGS, and HEADERS without END_HEADERS.
    let mut endless = world.connect()?;
    endless.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")?;
    endless.write_all(b"\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82")?;
    world.serves()?;
    for (what, stream) in
        [("silence", silent), ("garbage", garbage), ("a beginning", begun), ("no end", endless)]
    {
        assert!(closed(stream), "{what} is not cut off");
    }
    world.serves()
}

#[test]
fn messages_are_bounded_whatever_they_say_of_themselves() -> Result<()> {
    let world = World::start(&[])?;
    // It says that it has a gigabyte, and begins.
    let huge = world.stream(|stream| {
        let mut head = BytesMut::new();
        head.put_u8(0);
        head.put_u32(1 << 30);
        head.put_bytes(0, 1000);
        Ok(stream.send_data(head.freeze(), false)?)
    })?;
    assert!(huge.starts_with("11 "), "{huge}");
    // It has a hundred bytes, of which one comes.
    let slow =
        world.stream(|stream| Ok(stream.send_data(Bytes::from_static(&[0, 0, 0, 0, 100, 10]), false)?))?;
    assert_eq!(slow, "3 protocol error: no Hello within 5 s");
    // It is no message at all.
    let broken = world.stream(|stream| {
        Ok(stream.send_data(Bytes::from_static(&[0, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]), false)?)
    })?;
    assert!(!broken.starts_with("0 "), "{broken}");
    world.serves()
}

#[test]
fn nobody_takes_all_connections() -> Result<()> {
    let world = World::start(&["--max-connections-per-address", "3", "--max-connections", "5"])?;
    let held = (0..3).map(|_| world.connect()).collect::<Result<Vec<_>>>()?;
    assert!(closed(world.connect()?), "a fourth connection of an address");
    let refused = wait_for(&world.server, "connection refused", 0);
    let why = "its address has 3 connections already (--max-connections-per-address)";
    assert_eq!(refused["reason"], why);
    world.serves()?;
    assert!(metric(&world.namespace, ADMIN, "distributary_server_refused_total") >= Some(1.0));
    drop(held);
    // Their places are free again.
    distributary_e2e::wait::until("a place to be free", PATIENCE, || {
        let stream = world.connect().ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(300))).ok()?;
        let mut stream = stream;
        // The server speaks first, as soon as it hears the preface.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").ok()?;
        matches!(stream.read(&mut [0; 9]), Ok(9)).then_some(())
    });
    Ok(())
}
