//! Checkpoints as bytes, and on disk.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use distributary_model::{Mark, ObjectKind, Protocol, Revision, testing as t};
use prometheus_client::metrics::counter::Counter;
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::form::{Unusable, decode, encode};
use super::store::Store;
use super::*;

fn own() -> Name {
    t::CLUSTER.into()
}

fn checkpoint(services: Vec<Service>) -> Checkpoint {
    let mut checkpoint = Checkpoint {
        cluster: own(),
        node: "n1".into(),
        cursor: Some(Cursor { epoch: Epoch([3; 16]), through: Revision(17) }),
        parked: vec![pb::Rejection { message: "no".into(), ..Default::default() }],
        node_view: Some(NodeView { zone: "a".into(), ..Default::default() }),
        candidates: vec![Candidate { address: "10.0.0.1:7400".into(), zone: "b".into(), capacity: 2 }],
        ..Default::default()
    };
    checkpoint.marks.set(Mark { cluster: own(), kind: ObjectKind::Service, resource_version: 41 });
    for (number, service) in services.into_iter().enumerate() {
        let key = t::key(&format!("shop/s{number}"));
        let held = t::held(&key, service);
        checkpoint.table.set(&key, Some(held));
    }
    let service = t::service(&["10.96.9.9"]).endpoint(t::endpoint("10.9.0.1", "http", 80));
    let (key, service) = (t::key("shop/vanished"), Arc::new(service));
    checkpoint.kept = vec![Kept { key, service, left: Duration::from_secs(42), epoch: Epoch([4; 16]) }];
    checkpoint
}

fn some() -> Checkpoint {
    let service = |last: u8| {
        let service = t::service(&[&format!("10.96.0.{last}")]).port("http", Protocol::Tcp, 80, 0);
        service.endpoint(t::endpoint(&format!("10.0.0.{last}"), "http", 8080).on("n1").zones(&["a"]))
    };
    checkpoint((1..6).map(service).collect())
}

fn load(store: &Store) -> anyhow::Result<Option<Checkpoint>> {
    store.load(&own(), &"n1".into())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn rule_4_5_what_is_saved_is_what_is_loaded(services in proptest::collection::vec(t::any_service(), 0..20)) {
        let checkpoint = checkpoint(services);
        prop_assert_eq!(decode(&encode(&checkpoint), &own(), &"n1".into()), Ok(checkpoint));
    }
}

#[test]
fn rule_4_5_many_records_and_records_larger_than_a_frame() {
    let mut large = t::service(&["10.96.1.1"]);
    for i in 0..20_000_u16 {
        let [high, low] = i.to_be_bytes();
        large
            .endpoints
            .push(t::endpoint(&format!("10.1.{high}.{low}"), "http", 8080).on("a-node-with-a-name"));
    }
    let small = (0..2_000_u16).map(|i| {
        let [high, low] = i.to_be_bytes();
        t::service(&[&format!("10.97.{high}.{low}")])
    });
    let checkpoint = checkpoint(small.chain([large]).collect());
    assert!(decode(&encode(&checkpoint), &own(), &"n1".into()) == Ok(checkpoint));
}

#[test]
fn rule_4_5_another_nodes_or_clusters_is_refused() {
    let bytes = encode(&some());
    let error = decode(&bytes, &own(), &"n2".into()).unwrap_err();
    assert_eq!(error.to_string(), "it is of the node n1 in the cluster default, this is n2 in default");
    assert!(matches!(decode(&bytes, &"other".into(), &"n1".into()), Err(Unusable::Another { .. })));
}

#[test]
fn rule_4_5_whatever_is_torn_cut_or_changed_is_not_used() {
    let bytes = encode(&some());
    for length in 0..bytes.len() {
        assert!(decode(&bytes[..length], &own(), &"n1".into()).is_err(), "cut at {length}");
    }
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        assert!(decode(&bytes, &own(), &"n1".into()).is_err(), "changed at {at}");
    }
    let cut_and_signed = |length: usize| {
        let mut bytes = bytes[..length].to_vec();
        let crc = crc32fast::hash(&bytes);
        bytes.extend(crc.to_be_bytes());
        decode(&bytes, &own(), &"n1".into())
    };
    let whole = bytes.len() - 4;
    let fine = (8..whole).filter(|length| cut_and_signed(*length).is_ok());
    assert_eq!(fine.count(), 1, "at the End of the table alone");
}

#[test]
fn rule_4_5_of_another_schema_the_cursor_is_void_and_the_records_are_used() {
    // The numbers of the schema in Hello, and a record's hash, as an older agent would have had them.
    let mut old = some();
    let key = t::key("shop/s0");
    let mut held = old.table.get(&key).unwrap().clone();
    let right = held.hash;
    held.hash = distributary_model::Hash(7);
    old.table.set(&key, Some(held));
    let refused = decode(&encode(&old), &own(), &"n1".into()).unwrap_err();
    assert!(refused.to_string().contains("shop/s0 has not the hash"), "{refused}");
    let loaded = decode(&form::encode_as(&old, 0), &own(), &"n1".into()).unwrap();
    assert_eq!(loaded.cursor, None);
    assert_eq!(loaded.table.get(&key).unwrap().hash, right);
    assert_eq!(loaded.table.root(t::CLUSTER), some().table.root(t::CLUSTER), "buckets of this schema");
    assert_eq!((loaded.marks, loaded.kept.len()), (some().marks, 1));
}

#[test]
fn rule_4_5_a_file_is_the_owners_alone_and_replaced_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("state/agent")).unwrap();
    assert_eq!(load(&store).unwrap(), None);
    store.save(&some()).unwrap();
    let first = fs::metadata(store.path()).unwrap();
    assert_eq!(first.permissions().mode() & 0o777, 0o600);
    let mut later = some();
    later.cursor = None;
    store.save(&later).unwrap();
    assert_ne!(fs::metadata(store.path()).unwrap().ino(), first.ino());
    assert_eq!(load(&store).unwrap(), Some(later));
    assert_eq!(fs::read_dir(store.path().parent().unwrap()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn rule_4_5_what_cannot_be_read_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    fs::write(store.path(), b"nonsense").unwrap();
    assert!(load(&store).is_err() && store.load_or_not(&own(), &"n1".into()).is_none());
    let file = fs::File::create(store.path()).unwrap();
    file.set_len(1 << 31).unwrap();
    let error = load(&store).unwrap_err().to_string();
    assert!(error.starts_with("it has 2147483648 bytes, no checkpoint has more than"), "{error}");
    fs::remove_file(store.path()).unwrap();
    fs::create_dir(store.path()).unwrap();
    assert!(store.load_or_not(&own(), &"n1".into()).is_none());
}

#[tokio::test]
async fn rule_4_5_a_full_disk_is_counted_and_leaves_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.save(&some()).unwrap();
    // What is in the way of the new file stands for a disk that takes none; the test of the processes has a full one.
    fs::create_dir(folder.path().join(".checkpoint.new")).unwrap();
    let (saves, checkpoints) = mpsc::channel(1);
    let failed = Counter::default();
    let running = tokio::spawn(store.clone().run(checkpoints, failed.clone()));
    saves.send(Box::new(checkpoint(Vec::new()))).await.unwrap();
    drop(saves);
    running.await.unwrap();
    assert_eq!(failed.get(), 1);
    assert_eq!(load(&store).unwrap(), Some(some()));
}
