//! Several servers and one agent: what happens to a node when one of them goes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Result;
use distributary_cluster::{Cluster, Event, Object};
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::netns::Namespace;
use distributary_e2e::node::{AGENT_ADMIN, Node, cluster_ips, service, slices};
use distributary_e2e::topology::Topology;
use distributary_e2e::traffic::Protocol;
use distributary_e2e::wait::until;
use distributary_model::codec::{Frames, message, messages};
use distributary_model::{Change, ObjectKind, Op, Revision, Table, hash};
use distributary_proto::v1 as pb;
use futures::{Stream, StreamExt};
use pb::distribution_server::{Distribution, DistributionServer};
use pb::server_message::Message as FromServer;
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

const OTHER: &str = "127.0.0.1:7410";
const LOST: &str = "no stream; the rules stay as they are";

fn web(world: &Topology, pods: usize) -> Vec<Value> {
    let pods: Vec<_> = world.pods.iter().chain(&world.remote_pods).take(pods).collect();
    [vec![service("web", 1, 30080, &json!({}))], slices("web", &pods)].concat()
}

/// Which server the agent is in step with.
fn followed(node: &Node) -> Option<String> {
    let (_, status) = deployed::get(&node.world.node, AGENT_ADMIN, "/debug/stream")?;
    let status: Value = serde_json::from_str(&status).ok()?;
    (status["inStep"] == true).then(|| status["server"].as_str().map(str::to_owned))?
}

#[test]
fn kill_9_of_one_of_two_servers_under_churn_loses_nothing() -> Result<()> {
    let mut node = Node::prepare(&["--server", OTHER])?;
    node.manifests.put("all.json", &web(&node.world, 2))?;
    let source = node.manifests.source();
    let other = ["--source", &source, "--admin-listen", "127.0.0.1:7411"];
    let mut servers: BTreeMap<String, _> = BTreeMap::new();
    node.start_server()?;
    servers.insert(deployed::SERVER.to_owned(), node.server.take().expect("it runs"));
    servers.insert(OTHER.to_owned(), deployed::server_at(&node.world.node, OTHER, &other)?);
    node.start_agent()?;
    let target = cluster_ips(1)[0];
    let client = node.world.pods[0].client_for(target.ip());
    // Two pods are there all the time, and the third comes and goes.
    let mut turn = 0;
    let mut churn = |node: &Node| -> Result<()> {
        turn += 1;
        node.manifests.put("all.json", &web(&node.world, 2 + turn % 2))?;
        let answer = client.ask(Protocol::Tcp, target);
        assert!(answer.is_ok(), "{answer:?} in turn {turn}");
        Ok(())
    };
    let before = node.programmed();
    until("changes to be programmed", PATIENCE, || {
        churn(&node).expect("a turn");
        (node.programmed() > before + 3).then_some(())
    });
    let first = until("a server to be followed", PATIENCE, || followed(&node));
    servers.remove(&first).expect("one of the two").kill9();
    let second = until("the other server to be followed", PATIENCE, || {
        churn(&node).expect("a turn");
        followed(&node).filter(|server| *server != first)
    });
    assert!(servers.contains_key(&second));
    let before = node.programmed();
    until("changes to be programmed", PATIENCE, || {
        churn(&node).expect("a turn");
        (node.programmed() > before + 3).then_some(())
    });
    node.manifests.put("all.json", &web(&node.world, 1))?;
    node.expect_only("the last word", &client, Protocol::Tcp, target, &["pod-0"]);
    Ok(())
}

/// A server whose words are the test's.
#[derive(Clone, Default)]
struct Spoken(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    says: Option<mpsc::UnboundedSender<Result<pb::ServerMessage, Status>>>,
    heard: Vec<pb::agent_message::Message>,
    /// The agent has closed its stream.
    left: bool,
}

impl Spoken {
    fn listen(namespace: &Arc<Namespace>, address: SocketAddr) -> Self {
        let spoken = Self::default();
        let (namespace, serving) = (namespace.clone(), spoken.clone());
        thread::spawn(move || {
            namespace.within(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let service = DistributionServer::new(serving);
                runtime.block_on(tonic::transport::Server::builder().add_service(service).serve(address))?;
                anyhow::Ok(())
            })
        });
        spoken
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn say(&self, messages: Vec<pb::ServerMessage>) {
        self.with(|state| {
            let says = state.says.as_ref().expect("an agent is there");
            messages.into_iter().for_each(|message| says.send(Ok(message)).expect("it listens"));
        });
    }

    fn hello(&self) -> pb::Hello {
        until("a Hello", PATIENCE, || {
            self.with(|state| match state.heard.first() {
                Some(pb::agent_message::Message::Hello(hello)) => Some(hello.clone()),
                _ => None,
            })
        })
    }

    fn acked(&self) -> Option<u64> {
        self.with(|state| match state.heard.last() {
            Some(pb::agent_message::Message::Ack(ack)) => Some(ack.through),
            _ => None,
        })
    }
}

#[tonic::async_trait]
impl Distribution for Spoken {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<pb::ServerMessage, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (says, said) = mpsc::unbounded_channel();
        self.with(|state| state.says = Some(says));
        let (mut inbound, this) = (request.into_inner(), self.clone());
        tokio::spawn(async move {
            while let Some(Ok(message)) = inbound.next().await {
                this.with(|state| state.heard.extend(message.message));
            }
            this.with(|state| state.left = true);
        });
        Ok(Response::new(UnboundedReceiverStream::new(said).boxed()))
    }
}

/// The records of objects.
fn table(objects: &[Value]) -> Table {
    let mut cluster = Cluster::new(distributary_model::Name::from("default"));
    let event = |object: &Value| {
        let kind = match object["kind"].as_str() {
            Some("Service") => ObjectKind::Service,
            _ => ObjectKind::EndpointSlice,
        };
        Event::Upsert(Object::from_json(kind, &object.to_string()).expect("an object"))
    };
    cluster.apply(objects.iter().map(event));
    cluster.table().clone()
}

fn told(message: FromServer) -> pb::ServerMessage {
    pb::ServerMessage { message: Some(message) }
}

/// Begin to End. The last of it is End.
fn everything(epoch: u8, table: &Table) -> Vec<pb::ServerMessage> {
    let begin = pb::Begin {
        epoch: vec![epoch; 16].into(),
        mode: pb::begin::Mode::Snapshot.into(),
        cluster: "default".into(),
        schema: hash::SCHEMA,
        ..Default::default()
    };
    let mut frames = Frames::new("default");
    for (key, held) in table.iter() {
        frames.push(&Change { key: key.clone(), op: Op::Put(held.clone()) }, Some(held));
    }
    let source = pb::SourceState {
        complete: true,
        root: table.root("default").to_bytes().to_vec().into(),
        ..Default::default()
    };
    let mut all = vec![told(FromServer::Begin(begin)), told(FromServer::Node(messages::node(None)))];
    let frames = frames.finish(Revision(0), &[]);
    all.extend(frames.iter().map(|frame| pb::ServerMessage::decode(&frame[5..]).expect("a frame")));
    let end = FromServer::End(pb::End { revision: 1, sources: vec![source], ..Default::default() });
    // As it travels, so that what is said is what a server can say.
    all.push(pb::ServerMessage::decode(&message(end)[5..]).expect("an End"));
    all
}

#[test]
fn a_drain_moves_the_agent_to_the_other_server_without_a_gap() -> Result<()> {
    let mut node = Node::prepare(&["--server", OTHER])?;
    let first = Spoken::listen(&node.world.node, deployed::SERVER.parse()?);
    let second = Spoken::listen(&node.world.node, OTHER.parse()?);
    node.agent = Some(deployed::agent(&node.world.node, "node-a", &["--server", OTHER])?);
    // The agent's own hash decides which one it begins with.
    let (from, to, at) = until("an agent to come", PATIENCE, || {
        let came = |spoken: &Spoken| spoken.with(|state| !state.heard.is_empty());
        match (came(&first), came(&second)) {
            (true, _) => Some((&first, &second, OTHER)),
            (_, true) => Some((&second, &first, deployed::SERVER)),
            _ => None,
        }
    });
    let before = table(&web(&node.world, 2));
    from.say(everything(1, &before));
    let _ = deployed::wait_ok(&node.world.node, AGENT_ADMIN, "/readyz");
    let target = cluster_ips(1)[0];
    let client = node.world.pods[0].client_for(target.ip());
    node.expect_only("the first server's word", &client, Protocol::Tcp, target, &["pod-0", "pod-1"]);

    let candidates = vec![pb::Candidate { address: at.to_owned(), zone: String::new(), capacity: 1 }];
    from.say(vec![told(FromServer::Drain(pb::Drain {
        slot_millis: 0,
        candidates,
        reason: "a test".into(),
    }))]);
    let hello = to.hello();
    assert_eq!(hello.cursor.expect("it stands somewhere").epoch.to_vec(), vec![1; 16]);
    assert_eq!(hello.buckets.len(), 1, "it says what it holds");
    let after = table(&web(&node.world, 1));
    let mut messages = everything(2, &after);
    let end = messages.split_off(messages.len() - 1);
    to.say(messages);
    node.expect_only("until End", &client, Protocol::Tcp, target, &["pod-0", "pod-1"]);
    assert!(!from.with(|state| state.left), "the old stream is kept open");
    to.say(end);
    node.expect_only("after End", &client, Protocol::Tcp, target, &["pod-0"]);
    until("the old stream to be closed", PATIENCE, || from.with(|state| state.left).then_some(()));
    until("an ack", PATIENCE, || to.acked().filter(|through| *through == 1));
    assert_eq!(followed(&node).as_deref(), Some(at));
    let agent = node.agent.as_ref().expect("it runs");
    assert_eq!(deployed::logged(agent, LOST), Vec::<Value>::new(), "there was a stream all the time");
    Ok(())
}

#[test]
fn a_move_to_a_server_that_dies_before_its_end_is_none() -> Result<()> {
    let mut node = Node::prepare(&[])?;
    let from = Spoken::listen(&node.world.node, deployed::SERVER.parse()?);
    let to = Spoken::listen(&node.world.node, OTHER.parse()?);
    node.agent = Some(deployed::agent(&node.world.node, "node-a", &[])?);
    from.hello();
    let before = table(&web(&node.world, 2));
    from.say(everything(1, &before));
    let _ = deployed::wait_ok(&node.world.node, AGENT_ADMIN, "/readyz");
    let candidates = vec![pb::Candidate { address: OTHER.to_owned(), zone: String::new(), capacity: 1 }];
    from.say(vec![told(FromServer::Drain(pb::Drain {
        slot_millis: 0,
        candidates,
        reason: "a test".into(),
    }))]);
    to.hello();
    let mut messages = everything(2, &table(&web(&node.world, 1)));
    messages.pop();
    to.say(messages);
    // What the old one says meanwhile waits to be read.
    let key = before.iter().next().map(|(key, _)| key.clone()).expect("a service");
    let three = table(&web(&node.world, 3));
    let held = three.get(&key).expect("the same service").clone();
    let mut frames = Frames::new("default");
    frames.push(&Change { key, op: Op::Put(held.clone()) }, Some(&held));
    let frames = frames.finish(Revision(2), &[]);
    from.say(frames.iter().map(|frame| pb::ServerMessage::decode(&frame[5..]).expect("a frame")).collect());
    to.with(|state| state.says = None);
    let target = cluster_ips(1)[0];
    let client = node.world.pods[0].client_for(target.ip());
    node.expect_only("the old one's word", &client, Protocol::Tcp, target, &["pod-0", "pod-1", "remote-0"]);
    until("an ack of it", PATIENCE, || from.acked().filter(|through| *through == 2));
    let agent = node.agent.as_ref().expect("it runs");
    assert_eq!(deployed::logged(agent, LOST), Vec::<Value>::new());
    Ok(())
}
