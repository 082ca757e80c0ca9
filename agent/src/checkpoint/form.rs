//! A checkpoint as bytes, and back.

use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;
use distributary_model::codec::{Decoder, Frames, Malformed, Told, message, messages, millis};
use distributary_model::limits::FRAME_BYTES;
use distributary_model::{Change, Epoch, Held, Interner, Key, Name, Op, Record, Revision, Table, hash};
use distributary_proto::v1 as pb;
use pb::server_message::Message as FromServer;
use prost::Message;

use super::{Checkpoint, Kept};

const MAGIC: &[u8; 8] = b"distr\x00\x00\x01";
/// Records that are encoded at a time.
const RECORDS: usize = 512;
/// gRPC's: whether it is compressed, and a length.
const PREFIX: usize = 5;
const CRC: usize = 4;

/// Why a checkpoint is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is no checkpoint of this form.
    #[error("it is no checkpoint that this version knows")]
    Foreign,
    /// It was not written to its end, or changed since.
    #[error("it is torn or damaged: its checksum is {ours:08x} and should be {stated:08x}")]
    Torn {
        /// Of what is there.
        ours: u32,
        /// What is said at the end.
        stated: u32,
    },
    /// It is another agent's.
    #[error("it is of the node {node} in the cluster {cluster}, this is {here} in {own}")]
    Another {
        /// Its node.
        node: String,
        /// Its cluster.
        cluster: String,
        /// This agent's node.
        here: Name,
        /// This agent's cluster.
        own: Name,
    },
    /// What is in it makes no sense.
    #[error("what is in it makes no sense: {0}")]
    Malformed(#[from] Malformed),
}

/// A checkpoint as bytes.
pub fn encode(checkpoint: &Checkpoint) -> Vec<u8> {
    encode_as(checkpoint, hash::SCHEMA)
}

/// The same, with the hashes of a schema.
pub(super) fn encode_as(checkpoint: &Checkpoint, schema: u32) -> Vec<u8> {
    let Checkpoint { cluster, node, cursor, marks, parked, node_view, candidates, table, kept } = checkpoint;
    let mut bytes = MAGIC.to_vec();
    let hello = pb::Hello {
        cluster: cluster.to_string(),
        node: node.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        schema,
        cursor: cursor.map(messages::cursor),
        parked: parked.clone(),
        ..Default::default()
    };
    let hello = hello.encode_to_vec();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(hello.len()).unwrap_or(u32::MAX));
    bytes.extend(hello);
    let begin = |epoch: &Epoch, mode: pb::begin::Mode| pb::Begin {
        epoch: epoch.0.to_vec().into(),
        mode: mode.into(),
        cluster: cluster.to_string(),
        schema,
        candidates: messages::candidates(candidates),
        ..Default::default()
    };
    let none = Epoch([0; 16]);
    let epoch = cursor.as_ref().map_or(&none, |cursor| &cursor.epoch);
    bytes.extend(message(FromServer::Begin(begin(epoch, pb::begin::Mode::Snapshot))));
    bytes.extend(message(FromServer::Node(messages::node(node_view.as_ref()))));
    let mut records = table.iter().peekable();
    while records.peek().is_some() {
        let some = records.by_ref().take(RECORDS);
        put(&mut bytes, cluster, some.map(|(key, held)| (key.clone(), held.clone())));
    }
    let source = |(of, digest): (&Name, &distributary_model::Digest)| pb::SourceState {
        cluster: of.to_string(),
        complete: true,
        root: digest.root(of).to_bytes().to_vec().into(),
        ..Default::default()
    };
    bytes.extend(message(FromServer::End(pb::End {
        marks: messages::marks(marks, cluster),
        sources: table.clusters().map(source).collect(),
        ..Default::default()
    })));
    for Kept { key, service, left, epoch } in kept {
        bytes.extend(message(FromServer::Begin(begin(epoch, pb::begin::Mode::Repair))));
        let record = Record::Service(service.clone());
        let held = Held { hash: hash::record(key, &record), record };
        put(&mut bytes, cluster, std::iter::once((key.clone(), held)));
        bytes.extend(message(FromServer::End(pb::End { revision: millis(*left), ..Default::default() })));
    }
    let crc = crc32fast::hash(&bytes);
    bytes.put_u32(crc);
    bytes
}

fn put(bytes: &mut Vec<u8>, own: &str, records: impl Iterator<Item = (Arc<Key>, Held)>) {
    let mut frames = Frames::compressed(own);
    for (key, held) in records {
        frames.push(&Change { key, op: Op::Put(held.clone()) }, Some(&held));
    }
    frames.finish(Revision(0), &[]).into_iter().for_each(|frame| bytes.extend(frame));
}

/// What bytes say that this agent held. Of another schema, the cursor is void and the hashes are made anew.
///
/// # Errors
/// When they are not to be used.
pub fn decode(bytes: &[u8], own: &Name, here: &Name) -> Result<Checkpoint, Unusable> {
    let body = bytes.len().checked_sub(CRC).filter(|body| *body >= MAGIC.len()).ok_or(Unusable::Foreign)?;
    let (body, stated) = bytes.split_at(body);
    if !body.starts_with(MAGIC) {
        return Err(Unusable::Foreign);
    }
    let stated = stated.iter().fold(0, |crc, byte| crc << 8 | u32::from(*byte));
    let ours = crc32fast::hash(body);
    if ours != stated {
        return Err(Unusable::Torn { ours, stated });
    }
    let mut rest = &body[MAGIC.len()..];
    let hello = pb::Hello::decode(framed(&mut rest)?).map_err(no_message)?;
    if *hello.cluster != **own || *hello.node != **here {
        let (node, cluster) = (hello.node, hello.cluster);
        return Err(Unusable::Another { node, cluster, here: here.clone(), own: own.clone() });
    }
    let mut reading = Reading::new(own, hello.schema == hash::SCHEMA);
    let mut checkpoint = Checkpoint {
        cluster: own.clone(),
        node: here.clone(),
        cursor: hello
            .cursor
            .as_ref()
            .filter(|_| reading.same_schema)
            .map(messages::cursor_from)
            .transpose()?,
        parked: hello.parked,
        ..Checkpoint::default()
    };
    while !rest.is_empty() {
        let message = pb::ServerMessage::decode(framed(&mut rest)?).map_err(no_message)?;
        match message.message {
            Some(message) => reading.take_in(message, &mut checkpoint)?,
            None => return Err(Malformed::new("a message of a kind that this version lacks").into()),
        }
    }
    match reading.part {
        Part::Between => Ok(checkpoint),
        _ => Err(Malformed::new("it ends before an End").into()),
    }
}

fn framed<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let (prefix, after) = rest.split_at_checked(PREFIX).ok_or_else(short)?;
    let length = prefix[1..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    if length > FRAME_BYTES {
        return Err(Malformed::new(format!("a message of {length} bytes")));
    }
    let (message, after) = after.split_at_checked(length).ok_or_else(short)?;
    *rest = after;
    Ok(message)
}

fn short() -> Malformed {
    Malformed::new("it ends inside of a message")
}

fn no_message(e: prost::DecodeError) -> Malformed {
    Malformed::new(e.to_string())
}

struct Reading {
    own: Name,
    decoder: Decoder,
    names: Interner,
    same_schema: bool,
    part: Part,
}

enum Part {
    Start,
    Table,
    Between,
    Kept(Epoch, Option<(Arc<Key>, Record)>),
}

impl Reading {
    fn new(own: &Name, same_schema: bool) -> Self {
        let (decoder, names) = (Decoder::new(own.clone()), Interner::default());
        Self { own: own.clone(), decoder, names, same_schema, part: Part::Start }
    }

    fn take_in(&mut self, message: FromServer, into: &mut Checkpoint) -> Result<(), Malformed> {
        match (message, &mut self.part) {
            (FromServer::Begin(begin), Part::Start) => {
                into.candidates = messages::candidates_from(begin.candidates)?;
                self.part = Part::Table;
            }
            (FromServer::Node(node), Part::Table) => into.node_view = messages::node_from(node)?,
            (FromServer::Frame(frame), Part::Table) => {
                for Told { change, ages: _ } in self.decoder.frame(frame)? {
                    let (key, held) = self.put(change)?;
                    into.table.set(&key, Some(held));
                }
            }
            (FromServer::End(end), Part::Table) => {
                for mark in messages::marks_from(&end.marks, &self.own, &mut self.names)? {
                    into.marks.set(mark);
                }
                self.compare(&end.sources, &into.table)?;
                self.part = Part::Between;
            }
            (FromServer::Begin(begin), Part::Between) => {
                self.part = Part::Kept(messages::epoch_from(&begin.epoch)?, None);
            }
            (FromServer::Frame(frame), Part::Kept(..)) => {
                for Told { change, ages: _ } in self.decoder.frame(frame)? {
                    let (key, held) = self.put(change)?;
                    if let Part::Kept(_, kept) = &mut self.part {
                        *kept = Some((key, held.record));
                    }
                }
            }
            (FromServer::End(end), Part::Kept(epoch, kept)) => {
                if let Some((key, Record::Service(service))) = kept.take() {
                    let left = Duration::from_millis(end.revision);
                    into.kept.push(Kept { key, service, left, epoch: *epoch });
                }
                self.part = Part::Between;
            }
            _ => return Err(Malformed::new("a message where none like it is expected")),
        }
        Ok(())
    }

    fn put(&self, change: Change) -> Result<(Arc<Key>, Held), Malformed> {
        let Op::Put(Held { record, hash: stated }) = change.op else {
            return Err(Malformed::new(format!("something else than a put of {}", change.key)));
        };
        let ours = hash::record(&change.key, &record);
        if self.same_schema && ours != stated {
            return Err(Malformed::new(format!("{} has not the hash that is stated", change.key)));
        }
        Ok((change.key, Held { record, hash: ours }))
    }

    fn compare(&self, sources: &[pb::SourceState], table: &Table) -> Result<(), Malformed> {
        for source in sources.iter().filter(|_| self.same_schema) {
            if table.root(&source.cluster) != messages::root_from(&source.root)? {
                return Err(Malformed::new(format!("records of {} are missing", source.cluster)));
            }
        }
        Ok(())
    }
}
