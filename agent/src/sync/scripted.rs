//! A server for tests: says what the test wants, in messages that went through their encoding.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use distributary_model::codec::{Frames, message, messages};
use distributary_model::{
    Change, Epoch, Held, Key, Mark, Marks, Name, ObjectKind, Op, Revision, Service, Table, delta, hash,
    testing as t,
};
use distributary_proto::v1 as pb;
use pb::begin::Mode;
use pb::server_message::Message as FromServer;
use prost::Message;

/// A server process with its table.
#[derive(Clone, Debug)]
pub(crate) struct Scripted {
    pub(crate) epoch: Epoch,
    pub(crate) revision: u64,
    pub(crate) table: Table,
    pub(crate) marks: Marks,
    pub(crate) staleness_millis: u64,
    pub(crate) candidates: Vec<pb::Candidate>,
    pub(crate) zone: &'static str,
}

fn sent(bytes: &Bytes) -> pb::ServerMessage {
    pb::ServerMessage::decode(&bytes[5..]).unwrap()
}

impl Scripted {
    pub(crate) fn new(epoch: u8) -> Self {
        Self {
            epoch: Epoch([epoch; 16]),
            revision: 1,
            table: Table::default(),
            marks: Marks::default(),
            staleness_millis: 0,
            candidates: Vec::new(),
            zone: "a",
        }
    }

    /// With these services already there.
    pub(crate) fn with(mut self, services: &[(&str, Service)]) -> Self {
        services.iter().for_each(|(name, service)| _ = self.put(name, service.clone()));
        self
    }

    /// Another process that has the same.
    pub(crate) fn again(&self, epoch: u8) -> Self {
        Self { epoch: Epoch([epoch; 16]), revision: 7, ..self.clone() }
    }

    /// How far EndpointSlices are included.
    pub(crate) fn mark(&mut self, resource_version: u64) {
        let kind = ObjectKind::EndpointSlice;
        self.marks.set(Mark { cluster: t::CLUSTER.into(), kind, resource_version });
    }

    /// Commits a service; gives the frame.
    pub(crate) fn put(&mut self, name: &str, service: Service) -> pb::ServerMessage {
        let key = t::key(name);
        let held = t::held(&key, service);
        self.commit(&key, Some(held))
    }

    /// Commits that a service is gone; gives the frame.
    pub(crate) fn remove(&mut self, name: &str) -> pb::ServerMessage {
        self.commit(&t::key(name), None)
    }

    fn commit(&mut self, key: &Arc<Key>, after: Option<Held>) -> pb::ServerMessage {
        self.revision += 1;
        let change = delta::diff(key, self.table.get(key), after.as_ref()).unwrap();
        let mut frames = Frames::new(t::CLUSTER);
        frames.push(&change, after.as_ref());
        self.table.set(key, after);
        let marks: Vec<Mark> = self.marks.iter().collect();
        sent(&frames.finish(Revision(self.revision), &marks)[0])
    }

    pub(crate) fn begin(&self, mode: Mode) -> pb::ServerMessage {
        sent(&message(FromServer::Begin(pb::Begin {
            epoch: self.epoch.0.to_vec().into(),
            mode: mode.into(),
            cluster: t::CLUSTER.into(),
            schema: hash::SCHEMA,
            candidates: self.candidates.clone(),
            ..Default::default()
        })))
    }

    pub(crate) fn node(&self) -> pb::ServerMessage {
        let node = pb::Node { known: true, zone: self.zone.into(), ..Default::default() };
        sent(&message(FromServer::Node(node)))
    }

    fn sources(&self) -> Vec<pb::SourceState> {
        vec![pb::SourceState {
            complete: true,
            root: self.table.root(t::CLUSTER).to_bytes().to_vec().into(),
            staleness_millis: self.staleness_millis,
            ..Default::default()
        }]
    }

    pub(crate) fn end(&self) -> pb::ServerMessage {
        let marks = messages::marks(&self.marks, t::CLUSTER);
        let (revision, sources) = (self.revision, self.sources());
        sent(&message(FromServer::End(pb::End { revision, marks, sources })))
    }

    pub(crate) fn heartbeat(&self) -> pb::ServerMessage {
        sent(&message(FromServer::Heartbeat(pb::Heartbeat {
            revision: self.revision,
            marks: messages::marks(&self.marks, t::CLUSTER),
            sources: self.sources(),
            sent: 0,
        })))
    }

    fn puts(&self, keys: impl Iterator<Item = Arc<Key>>) -> Vec<pb::ServerMessage> {
        let mut frames = Frames::compressed(t::CLUSTER);
        for key in keys {
            let held = self.table.get(&key).unwrap();
            frames.push(&Change { key, op: Op::Put(held.clone()) }, Some(held));
        }
        frames.finish(Revision(0), &[]).iter().map(sent).collect()
    }

    /// Begin to End, with everything.
    pub(crate) fn snapshot(&self) -> Vec<pb::ServerMessage> {
        let puts = self.puts(self.table.iter().map(|(key, _)| key.clone()));
        [vec![self.begin(Mode::Snapshot), self.node()], puts, vec![self.end()]].concat()
    }

    /// Begin, and the lists of the buckets that are not those of a Hello or Repair.
    pub(crate) fn lists(&self, theirs: &[pb::Buckets]) -> Vec<pb::ServerMessage> {
        let nothing = vec![0; 256 * 16];
        let theirs = theirs.first().map_or(&nothing[..], |buckets| &buckets.sums);
        let ours = self.table.digest(t::CLUSTER).map(|digest| *digest.sums()).unwrap_or([hash::Hash(0); 256]);
        let mut entries: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
        for (bucket, ours) in (0..=255).zip(&ours) {
            if ours.to_bytes() != theirs[usize::from(bucket) * 16..][..16] {
                entries.insert(bucket, Vec::new());
            }
        }
        for (key, held) in self.table.iter() {
            let key = hash::key(key);
            if let Some(list) = entries.get_mut(&key.to_bytes()[0]) {
                list.extend([key.first64(), held.hash.first64()]);
            }
        }
        let list = |(bucket, entries): (u8, Vec<u64>)| pb::BucketList {
            cluster: String::new(),
            bucket: bucket.into(),
            entries,
        };
        let lists = pb::BucketLists { lists: entries.into_iter().map(list).collect() };
        vec![self.begin(Mode::Repair), self.node(), sent(&message(FromServer::BucketLists(lists)))]
    }

    /// What a Want asks for, and End.
    pub(crate) fn answer(&self, want: &pb::AgentMessage) -> Vec<pb::ServerMessage> {
        let wanted = wanted(want);
        let keys = self.table.iter().map(|(key, _)| key.clone());
        let keys = keys.filter(|key| wanted.contains(&hash::key(key).first64()));
        [self.puts(keys), vec![self.end()]].concat()
    }

    pub(crate) fn throttle(&self, retry_after_millis: u64, behind: bool) -> pb::ServerMessage {
        let candidates = self.candidates.clone();
        let throttle =
            pb::Throttle { retry_after_millis, candidates, behind, reason: "a test says so".into() };
        sent(&message(FromServer::Throttle(throttle)))
    }

    pub(crate) fn drain(&self, slot_millis: u64) -> pb::ServerMessage {
        let candidates = self.candidates.clone();
        sent(&message(FromServer::Drain(pb::Drain { slot_millis, candidates, reason: "a test".into() })))
    }
}

pub(crate) fn hello(message: &pb::AgentMessage) -> &pb::Hello {
    match &message.message {
        Some(pb::agent_message::Message::Hello(hello)) => hello,
        other => panic!("{other:?} is no Hello"),
    }
}

pub(crate) fn wanted(message: &pb::AgentMessage) -> Vec<u64> {
    match &message.message {
        Some(pb::agent_message::Message::Want(want)) => {
            want.wanted.iter().flat_map(|wanted| wanted.key_hashes.clone()).collect()
        }
        other => panic!("{other:?} is no Want"),
    }
}

/// A service with so many endpoints, `10.NUMBER.0.1` and so on.
pub(crate) fn service(number: u8, endpoints: u8) -> Service {
    let mut service =
        t::service(&[&format!("10.96.0.{number}")]).port("http", distributary_model::Protocol::Tcp, 80, 0);
    for last in 1..=endpoints {
        service = service.endpoint(t::endpoint(&format!("10.{number}.0.{last}"), "http", 8080));
    }
    service
}

/// `shop/sNUMBER` with so many endpoints each.
pub(crate) fn shop(numbers: std::ops::Range<u8>, endpoints: u8) -> Vec<(String, Service)> {
    numbers.map(|number| (format!("shop/s{number}"), service(number, endpoints))).collect()
}

pub(crate) fn named(services: &[(String, Service)]) -> Vec<(&str, Service)> {
    services.iter().map(|(name, service)| (&**name, service.clone())).collect()
}

pub(crate) fn cluster() -> Name {
    t::CLUSTER.into()
}
