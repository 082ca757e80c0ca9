//! One connection: bytes to messages, and back.

use std::time::Instant;

use anyhow::bail;
use distributary_model::limits::FRAME_BYTES;
use distributary_proto::v1 as pb;
use pb::distribution_client::DistributionClient;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::metadata::AsciiMetadataValue;

use super::dial::{Dialer, Server};

/// Messages that wait for a server to read them. Acks are one a second at most.
const SAID: usize = 16;

/// What happened to a connection.
#[derive(Debug)]
pub(super) enum Told {
    /// It was made.
    Connected,
    /// Its server said this, received at that moment.
    Message(Box<pb::ServerMessage>, Instant),
    /// It is gone.
    Lost(String),
}

/// A connection. It is closed when this is dropped.
#[derive(Debug)]
pub(super) struct Link {
    said: mpsc::Sender<pb::AgentMessage>,
    /// Of one message: what is not read here is not read from the network either.
    pub(super) told: mpsc::Receiver<Told>,
    task: JoinHandle<()>,
}

impl Link {
    /// Begins to connect.
    pub(super) fn dial(dialer: Dialer, server: Server) -> Self {
        let (said, outbound) = mpsc::channel(SAID);
        let (tell, told) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            if let Err(e) = talk(&dialer, &server, outbound, &tell).await {
                let _ = tell.send(Told::Lost(format!("{e:#}"))).await;
            }
        });
        Self { said, told, task }
    }

    /// Sends a message. False: the server has not read the last ones.
    pub(super) fn say(&self, message: pb::AgentMessage) -> bool {
        self.said.try_send(message).is_ok()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn talk(
    dialer: &Dialer,
    server: &Server,
    outbound: mpsc::Receiver<pb::AgentMessage>,
    tell: &mpsc::Sender<Told>,
) -> anyhow::Result<()> {
    let channel = dialer.dial(server).await?;
    tell.send(Told::Connected).await?;
    let mut client = DistributionClient::new(channel).max_decoding_message_size(FRAME_BYTES + (64 << 10));
    let mut request = Request::new(ReceiverStream::new(outbound));
    if let Some(token) = dialer.token() {
        let mut bearer = AsciiMetadataValue::try_from(format!("Bearer {}", token.read()?.reveal()))?;
        bearer.set_sensitive(true);
        request.metadata_mut().insert("authorization", bearer);
    }
    let mut inbound = client.subscribe(request).await.map_err(clear)?.into_inner();
    while let Some(message) = inbound.message().await.map_err(clear)? {
        tell.send(Told::Message(Box::new(message), Instant::now())).await?;
    }
    bail!("the server ended the stream")
}

/// A status without the parts that only a debugger wants.
fn clear(status: tonic::Status) -> anyhow::Error {
    match status.message() {
        "" => anyhow::anyhow!("the stream broke ({:?})", status.code()),
        message => anyhow::anyhow!("{message}"),
    }
}
