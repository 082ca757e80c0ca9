//! The connection of one agent: HTTP/2 as the real agent's client speaks it, with the same windows, but without a task
//! and a queue of its own: whoever waits for a message drives it.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use distributary_model::limits::FRAME_BYTES;
use distributary_proto::v1 as pb;
use futures::FutureExt;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;

const PATH: &str = "http://distributary/distributary.v1.Distribution/Subscribe";
/// As hyper's client has them, and so the real agent.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 5 << 20;

/// An open stream.
pub(crate) struct Link {
    connection: Pin<Box<dyn Future<Output = Result<(), h2::Error>>>>,
    say: SendStream<Bytes>,
    incoming: Incoming,
    unframed: Unframed,
}

enum Incoming {
    Answer(ResponseFuture),
    Body(RecvStream),
}

impl Link {
    /// Connects from an address of this host, and says the first message.
    pub(crate) async fn open(server: SocketAddr, from: IpAddr, first: &pb::AgentMessage) -> Result<Self> {
        let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind(SocketAddr::new(from, 0)).with_context(|| format!("no port is left at {from}"))?;
        let stream = socket.connect(server).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        Self::over(stream, first).await
    }

    async fn over<S>(stream: S, first: &pb::AgentMessage) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .enable_push(false);
        let (mut requests, connection) = builder.handshake::<_, Bytes>(stream).await?;
        let request = http::Request::post(PATH)
            .header(http::header::CONTENT_TYPE, "application/grpc")
            .header(http::header::TE, "trailers")
            .body(())?;
        let (answer, mut say) = requests.send_request(request, false)?;
        say.send_data(framed(first), false)?;
        Ok(Self {
            connection: Box::pin(connection),
            say,
            incoming: Incoming::Answer(answer),
            unframed: Unframed::default(),
        })
    }

    /// Says something more.
    pub(crate) fn say(&mut self, message: &pb::AgentMessage) -> Result<()> {
        Ok(self.say.send_data(framed(message), false)?)
    }

    /// The bytes of the next message. May be dropped while it waits. Who does not read keeps the connection alive all
    /// the same: its window fills.
    pub(crate) async fn next(&mut self, reads: bool) -> Result<Bytes> {
        loop {
            if reads && let Some(message) = self.unframed.next()? {
                return Ok(message);
            }
            tokio::select! {
                biased;
                data = data(&mut self.incoming), if reads => self.unframed.push(data?),
                ended = self.connection.as_mut() => {
                    ended?;
                    // What had come before may still be there.
                    match data(&mut self.incoming).now_or_never() {
                        Some(Ok(data)) => self.unframed.push(data),
                        Some(Err(e)) => return Err(e),
                        None => bail!("the connection ended"),
                    }
                }
            }
        }
    }
}

async fn data(incoming: &mut Incoming) -> Result<Bytes> {
    if let Incoming::Answer(answer) = incoming {
        let answer = answer.await?;
        ensure!(answer.status() == http::StatusCode::OK, "HTTP status {}", answer.status());
        if let Some(refused) = refused(answer.headers()) {
            return Err(refused);
        }
        *incoming = Incoming::Body(answer.into_body());
    }
    let Incoming::Body(body) = incoming else { bail!("no body") };
    match body.data().await.transpose()? {
        Some(data) => {
            body.flow_control().release_capacity(data.len())?;
            Ok(data)
        }
        None => {
            let trailers = body.trailers().await?.unwrap_or_default();
            Err(refused(&trailers).unwrap_or_else(|| anyhow::anyhow!("the server ended the stream")))
        }
    }
}

fn refused(headers: &http::HeaderMap) -> Option<anyhow::Error> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let status = text("grpc-status")?;
    Some(anyhow::anyhow!("status {status}: {}", text("grpc-message").unwrap_or_default()))
}

fn framed(message: &pb::AgentMessage) -> Bytes {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(5 + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut framed);
    framed.freeze()
}

/// Cuts what comes into messages, without a copy where they come whole.
#[derive(Debug, Default)]
struct Unframed {
    chunk: Bytes,
    /// The beginning of a message.
    partial: BytesMut,
}

impl Unframed {
    fn push(&mut self, data: Bytes) {
        match self.partial.is_empty() {
            true => self.chunk = data,
            false => self.partial.extend_from_slice(&data),
        }
    }

    fn next(&mut self) -> Result<Option<Bytes>> {
        if self.partial.is_empty() {
            if let Some(length) = length(&self.chunk)? {
                self.chunk.advance(5);
                return Ok(Some(self.chunk.split_to(length)));
            }
            self.partial.extend_from_slice(&self.chunk);
            self.chunk = Bytes::new();
        }
        let Some(length) = length(&self.partial)? else { return Ok(None) };
        let mut whole = std::mem::take(&mut self.partial).freeze();
        whole.advance(5);
        let message = whole.split_to(length);
        self.chunk = whole;
        Ok(Some(message))
    }
}

/// Of the first message, if it is there as a whole.
fn length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(([compressed, length @ ..], rest)) = bytes.split_first_chunk::<5>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    ensure!(*compressed == 0, "a compressed message, which was not asked for");
    ensure!(length <= FRAME_BYTES + (64 << 10), "a message of {length} bytes");
    Ok((rest.len() >= length).then_some(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_wherever_the_chunks_are() {
        let mut stream = BytesMut::new();
        for length in [0_usize, 1, 300, 7] {
            stream.put_u8(0);
            stream.put_u32(length as u32);
            stream.put_bytes(length as u8, length);
        }
        for size in 1..=stream.len() {
            let (mut unframed, mut lengths) = (Unframed::default(), Vec::new());
            for chunk in stream.chunks(size) {
                unframed.push(Bytes::copy_from_slice(chunk));
                while let Some(message) = unframed.next().unwrap() {
                    assert!(message.iter().all(|byte| *byte == message.len() as u8));
                    lengths.push(message.len());
                }
            }
            assert_eq!(lengths, [0, 1, 300, 7], "chunks of {size}");
        }
    }
}
