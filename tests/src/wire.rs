//! Reads a stream as it is on the wire: every message with the bytes that it had, gRPC's prefix included.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Buf, Bytes};
use distributary_proto::v1 as pb;
use pb::server_message::Message;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status, transport::Endpoint};

use crate::netns::Namespace;

/// A message with its length on the wire, before TLS.
#[derive(Clone, Debug)]
pub struct Heard {
    /// What it says.
    pub message: Message,
    /// Its bytes, gRPC's five of prefix included.
    pub bytes: usize,
}

/// A stream of a peer that holds nothing and never acks.
#[derive(Debug)]
pub struct Reader {
    heard: Receiver<Heard>,
    /// Ends the stream when it is dropped.
    _said: mpsc::Sender<pb::AgentMessage>,
}

impl Reader {
    /// Connects to `server` (HOST:PORT) inside the namespace, as the agent of `node`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(namespace: &Arc<Namespace>, server: &str, node: &str) -> Result<Self> {
        let hello =
            pb::Hello { cluster: "default".into(), node: node.into(), schema: 1, ..Default::default() };
        Self::start_with(namespace, server, hello)
    }

    /// The same with a Hello of the caller's.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start_with(namespace: &Arc<Namespace>, server: &str, hello: pb::Hello) -> Result<Self> {
        let (tell, heard) = channel();
        let (said, outbound) = mpsc::channel(8);
        said.try_send(pb::AgentMessage { message: Some(pb::agent_message::Message::Hello(hello)) })?;
        let (namespace, server) = (Arc::clone(namespace), format!("http://{server}"));
        thread::Builder::new().name("wire".into()).spawn(move || {
            namespace.within(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let channel = Endpoint::from_shared(server)?.connect().await?;
                    let mut grpc = tonic::client::Grpc::new(channel);
                    grpc.ready().await?;
                    let path = "/distributary.v1.Distribution/Subscribe".parse()?;
                    let request = Request::new(ReceiverStream::new(outbound));
                    let mut inbound = grpc.streaming(request, path, Raw).await?.into_inner();
                    while let Some(raw) = inbound.message().await? {
                        let bytes = raw.len() + 5;
                        let Some(message) = pb::ServerMessage::decode(raw)?.message else { continue };
                        if tell.send(Heard { message, bytes }).is_err() {
                            break;
                        }
                    }
                    anyhow::Ok(())
                })
            })
        })?;
        Ok(Self { heard, _said: said })
    }

    /// The next message.
    ///
    /// # Errors
    /// When none comes in time, or the stream has ended.
    pub fn next(&self, timeout: Duration) -> Result<Heard> {
        self.heard.recv_timeout(timeout).context("nothing came on the stream")
    }

    /// Reads up to and including End; gives what came before it.
    ///
    /// # Errors
    /// When it does not come.
    pub fn until_end(&self, timeout: Duration) -> Result<Vec<Heard>> {
        let mut before = Vec::new();
        loop {
            let next = self.next(timeout)?;
            if matches!(next.message, Message::End(_)) {
                return Ok(before);
            }
            before.push(next);
        }
    }

    /// The next frame; heartbeats are passed over.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn next_frame(&self, timeout: Duration) -> Result<(pb::Frame, usize)> {
        loop {
            let Heard { message, bytes } = self.next(timeout)?;
            if let Message::Frame(frame) = message {
                return Ok((frame, bytes));
            }
        }
    }
}

/// Encodes agents' messages, and leaves the server's as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = pb::AgentMessage;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = pb::AgentMessage;
    type Error = Status;

    fn encode(&mut self, message: Self::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(buffer).map_err(|e| Status::internal(e.to_string()))
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
