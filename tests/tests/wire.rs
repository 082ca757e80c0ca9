//! What goes over the wire, byte for byte, between the real server and a peer that reads.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use distributary_e2e::deployed::{self, PATIENCE, SERVER};
use distributary_e2e::manifests::Manifests;
use distributary_e2e::netns::Namespace;
use distributary_e2e::objects;
use distributary_e2e::process::Running;
use distributary_e2e::wire::{Heard, Reader};
use distributary_proto::v1 as pb;
use jiff::Timestamp;
use pb::server_message::Message;
use serde_json::{Value, json};
use std::sync::Arc;

struct World {
    namespace: Arc<Namespace>,
    manifests: Manifests,
    _server: Running,
}

/// 31 bytes of names, as the budget has it: at most 32 for namespace and name, 24 for the node.
const NAMESPACE: &str = "shopping-cart";
const NAME: &str = "checkout-service-v";
const NODE: &str = "worker-pool-a-0123456789";

fn endpoint(last: u8) -> Value {
    json!({
        "addresses": [format!("10.244.7.{last}")], "nodeName": NODE, "conditions": {"ready": true},
        "zone": "eu-west-1a", "hints": {"forZones": [{"name": "eu-west-1a"}]},
    })
}

fn objects(endpoints: &[Value], labels: &Value) -> Vec<Value> {
    let spec = json!({
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"],
        "ports": [{"name": "http", "port": 80}],
    });
    let ports = json!([{"name": "http", "protocol": "TCP", "port": 8080}]);
    let mut slice = objects::endpoint_slice(NAMESPACE, "slice-1", NAME, &ports, &json!(endpoints));
    slice["metadata"]["annotations"] = json!({ objects::TRIGGERED: Timestamp::now().to_string() });
    for (key, value) in labels.as_object().into_iter().flatten() {
        slice["metadata"]["labels"][key] = value.clone();
    }
    vec![objects::service(NAMESPACE, NAME, &spec), slice]
}

fn start(endpoints: &[Value]) -> Result<World> {
    let namespace = Arc::new(Namespace::new()?);
    let manifests = Manifests::new()?;
    manifests.put("all.json", &objects(endpoints, &json!({})))?;
    let server = deployed::server(&namespace, &["--source", &manifests.source()])?;
    let admin = SocketAddr::from(([127, 0, 0, 1], 7401));
    let _ = deployed::wait_ok(&namespace, admin, "/readyz");
    Ok(World { namespace, manifests, _server: server })
}

#[test]
fn one_changed_endpoint_of_a_hundred_is_at_most_150_bytes_to_each_agent() -> Result<()> {
    let mut endpoints: Vec<Value> = (1..=100).map(endpoint).collect();
    let world = start(&endpoints)?;
    let readers = [NODE, "another-node"].map(|node| Reader::start(&world.namespace, SERVER, node));
    let readers = readers.into_iter().collect::<Result<Vec<_>>>()?;
    for reader in &readers {
        reader.until_end(PATIENCE)?;
    }
    let mut change = |what: &str, index: usize, to: Value| -> Result<()> {
        endpoints[index] = to;
        world.manifests.put("all.json", &objects(&endpoints, &json!({})))?;
        let heard = readers.iter().map(|reader| reader.next_frame(PATIENCE)).collect::<Result<Vec<_>>>()?;
        assert_eq!(heard[0].0, heard[1].0, "{what}: the same bytes go to everybody");
        let (frame, bytes) = &heard[0];
        assert_eq!(frame.changes.len(), 1, "{what}: {frame:?}");
        assert!(*bytes <= 150, "{what} costs {bytes} bytes");
        let [age] = frame.changes[0].age_millis_v4[..] else { panic!("{what}: {frame:?}") };
        assert!(age < 20_000 && frame.sent > 0, "{what}: {frame:?}");
        Ok(())
    };
    change("an endpoint that is replaced", 40, endpoint(200))?;
    let mut unready = endpoint(200);
    unready["conditions"]["ready"] = json!(false);
    change("an endpoint that is no longer ready", 40, unready)?;
    Ok(())
}

#[test]
fn a_changed_label_on_a_slice_sends_nothing() -> Result<()> {
    let endpoints: Vec<Value> = (1..=3).map(endpoint).collect();
    let world = start(&endpoints)?;
    let reader = Reader::start(&world.namespace, SERVER, NODE)?;
    reader.until_end(PATIENCE)?;
    world.manifests.put("all.json", &objects(&endpoints, &json!({"team": "shop"})))?;
    // A change after it shows that it was seen: what comes first is that one.
    let more: Vec<Value> = (1..=4).map(endpoint).collect();
    world.manifests.put("more.json", &[])?;
    world.manifests.put("all.json", &objects(&more, &json!({"team": "cart"})))?;
    let (frame, _) = reader.next_frame(PATIENCE)?;
    let Some(pb::change::Change::Patch(patch)) = &frame.changes[0].change else { panic!("{frame:?}") };
    assert_eq!((patch.upserts.len(), patch.removals.len(), frame.through), (1, 0, 2));
    world.manifests.put("all.json", &objects(&more, &json!({"team": "none"})))?;
    let next = reader.next(Duration::from_secs(8))?.message;
    let Message::Heartbeat(heartbeat) = next else { panic!("a label sent {next:?}") };
    assert_eq!(heartbeat.revision, 2);
    Ok(())
}

#[test]
fn a_stream_opens_with_begin_and_node_and_closes_with_end_whatever_it_was_told() -> Result<()> {
    let world = start(&[endpoint(1)])?;
    let hello = |cursor: Option<pb::Cursor>| pb::Hello {
        cluster: "default".into(),
        node: "n".into(),
        schema: 1,
        cursor,
        ..Default::default()
    };
    let kinds = |heard: &[Heard]| -> Vec<&'static str> {
        heard
            .iter()
            .map(|heard| match &heard.message {
                Message::Begin(begin) if begin.mode() == pb::begin::Mode::Resume => "resume",
                Message::Begin(_) => "snapshot",
                Message::Node(_) => "node",
                Message::Frame(_) => "frame",
                _ => "other",
            })
            .collect()
    };
    let first = Reader::start_with(&world.namespace, SERVER, hello(None))?.until_end(PATIENCE)?;
    assert_eq!(kinds(&first), ["snapshot", "node", "frame"]);
    let Message::Begin(begin) = &first[0].message else { panic!("{first:?}") };
    let here = pb::Cursor { epoch: begin.epoch.clone(), through: 1 };
    let resumed = Reader::start_with(&world.namespace, SERVER, hello(Some(here)))?.until_end(PATIENCE)?;
    assert_eq!(kinds(&resumed), ["resume", "node"]);
    let ahead = pb::Cursor { epoch: begin.epoch.clone(), through: 99 };
    let foreign = pb::Cursor { epoch: vec![9; 16].into(), through: 1 };
    for odd in [ahead, foreign] {
        let again = Reader::start_with(&world.namespace, SERVER, hello(Some(odd)))?.until_end(PATIENCE)?;
        assert_eq!(kinds(&again), ["snapshot", "node", "frame"]);
    }
    let broken = pb::Cursor { epoch: vec![1; 3].into(), through: 1 };
    let refused = Reader::start_with(&world.namespace, SERVER, hello(Some(broken)))?.until_end(PATIENCE);
    assert!(refused.is_err(), "an epoch of three bytes ends the stream");
    Ok(())
}
