//! What the light agents of a process have in common: frames are the same bytes for all of them, and who holds the same
//! records and hears the same bytes holds the same records after. So each frame is decoded once, each step from one state
//! to the next is made once, and a state that thousands are in is there once.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::rc::{Rc, Weak};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use distributary_model::limits::FRAME_BYTES;
use distributary_model::{Digest, Hash, Key, Kind, Name, hash};
use distributary_proto::v1 as pb;
use pb::server_message::Message;
use prost::Message as _;

/// A record's place in every state.
type Slot = u32;

/// What tells most messages apart: how long they are, and a hash of how they begin.
type Looks = (usize, u64);

/// Bytes of decoded messages that are remembered.
const REMEMBERED_BYTES: usize = 64 << 20;
/// Steps between states that are remembered.
const REMEMBERED_STEPS: usize = 128;

/// What a message says, as far as a light agent looks.
#[derive(Debug)]
pub(crate) struct Told {
    /// Of this decoding, in this process.
    id: u64,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Frame(Frame),
    Lists(Vec<List>),
    Other(Message),
}

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) through: u64,
    /// The newest slice that is included; 0: it does not say.
    pub(crate) mark: u64,
    /// What each record's content hash is now; zero: it is gone.
    changes: Vec<(Slot, Hash)>,
}

/// What the server has in a bucket: the first 64 bits of the hashes of keys and contents.
#[derive(Debug)]
pub(crate) struct List {
    bucket: u8,
    entries: HashMap<u64, u64>,
}

/// The records that an agent holds, by their content hashes.
#[derive(Debug)]
pub(crate) struct State {
    id: u64,
    held: Vec<Hash>,
    sums: [Hash; 256],
    pub(crate) root: Hash,
}

impl State {
    pub(crate) fn sums(&self) -> &[Hash; 256] {
        &self.sums
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.iter().all(|hash| *hash == Hash::default())
    }
}

/// What differs from the server's lists.
#[derive(Debug)]
pub(crate) struct Difference {
    /// What goes.
    pub(crate) removed: Rc<Told>,
    /// Hashes of the keys to ask for.
    pub(crate) wanted: Rc<[u64]>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Commons {
    own: Name,
    next_id: u64,
    slots: HashMap<Key, Slot>,
    /// Of each slot.
    records: Vec<(u8, u64)>,
    by_hash: HashMap<u64, Slot>,
    told: HashMap<Looks, Vec<(Bytes, Rc<Told>)>>,
    told_order: VecDeque<Looks>,
    told_bytes: usize,
    states: HashMap<Hash, Weak<State>>,
    steps: HashMap<u64, Rc<State>>,
    step_order: VecDeque<u64>,
    differences: HashMap<(u64, u64), Rc<Difference>>,
    pub(crate) nothing: Rc<State>,
}

impl Commons {
    pub(crate) fn new(own: Name) -> Self {
        let sums = [Hash::default(); 256];
        let root = Digest::from_sums(sums).root(&own);
        let nothing = Rc::new(State { id: 0, held: Vec::new(), sums, root });
        Self {
            own,
            next_id: 1,
            slots: HashMap::new(),
            records: Vec::new(),
            by_hash: HashMap::new(),
            told: HashMap::new(),
            told_order: VecDeque::new(),
            told_bytes: 0,
            states: HashMap::from([(root, Rc::downgrade(&nothing))]),
            steps: HashMap::new(),
            step_order: VecDeque::new(),
            differences: HashMap::new(),
            nothing,
        }
    }

    /// How many states there are.
    pub(crate) fn states(&mut self) -> usize {
        self.states.retain(|_, state| state.strong_count() > 0);
        self.states.len()
    }

    /// What the bytes of a message say, without gRPC's prefix.
    pub(crate) fn told(&mut self, bytes: &Bytes) -> Result<Rc<Told>> {
        // Frames and lists are shared, the tags of their fields are these; all else is small.
        let shared = matches!(bytes.first(), Some(0x1a | 0x22));
        if !shared {
            let message = pb::ServerMessage::decode(bytes.clone())?.message.context("an empty message")?;
            return Ok(Rc::new(Told { id: 0, what: What::Other(message) }));
        }
        // Frames differ early, by their revision or by what zstd made of them.
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes[..bytes.len().min(64)]);
        let place = (bytes.len(), hasher.finish());
        if let Some((_, told)) = self.told.get(&place).into_iter().flatten().find(|(known, _)| known == bytes)
        {
            return Ok(Rc::clone(told));
        }
        let what = match pb::ServerMessage::decode(bytes.clone())?.message.context("an empty message")? {
            Message::Frame(frame) => What::Frame(self.frame(frame)?),
            Message::BucketLists(lists) => {
                What::Lists(lists.lists.into_iter().map(list).collect::<Result<_>>()?)
            }
            other => What::Other(other),
        };
        let told = Rc::new(Told { id: self.id(), what });
        self.told_bytes += bytes.len();
        // A copy: the original may be a part of a large buffer.
        let remembered = (Bytes::copy_from_slice(bytes), Rc::clone(&told));
        self.told.entry(place).or_default().push(remembered);
        self.told_order.push_back(place);
        while self.told_bytes > REMEMBERED_BYTES {
            let Some(oldest) = self.told_order.pop_front() else { break };
            let gone = self.told.remove(&oldest).into_iter().flatten();
            self.told_bytes -= gone.map(|(bytes, _)| bytes.len()).sum::<usize>();
        }
        Ok(told)
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn frame(&mut self, frame: pb::Frame) -> Result<Frame> {
        let mark = newest_slice(&frame.marks);
        let changes = match frame.zstd.is_empty() {
            true => frame.changes,
            false => {
                let length = frame.raw_length as usize;
                ensure!(length <= FRAME_BYTES, "a frame of {length} bytes before compression");
                let body = zstd::bulk::decompress(&frame.zstd, length)?;
                pb::FrameBody::decode(Bytes::from(body))?.changes
            }
        };
        let mut told = Vec::with_capacity(changes.len());
        for change in changes {
            let gone = matches!(change.change, Some(pb::change::Change::Removed(_)));
            let hash = match (gone, change.content_hash.is_empty()) {
                (true, _) => Hash::default(),
                // Of a record that is cut, only the last part has one.
                (false, true) => continue,
                (false, false) => {
                    Hash::from_bytes(&change.content_hash).context("a content hash of 16 bytes")?
                }
            };
            ensure!(
                change.cluster.is_empty(),
                "a record of the cluster {:?}: these agents know one",
                change.cluster
            );
            let kind = match change.kind() {
                pb::Kind::Service => Kind::Service,
                pb::Kind::Facts => Kind::Facts,
            };
            let (namespace, name) = (change.namespace.into(), change.name.into());
            told.push((self.slot(Key { kind, cluster: self.own.clone(), namespace, name }), hash));
        }
        Ok(Frame { through: frame.through, mark, changes: told })
    }

    fn slot(&mut self, key: Key) -> Slot {
        if let Some(slot) = self.slots.get(&key) {
            return *slot;
        }
        let slot = Slot::try_from(self.records.len()).unwrap_or(Slot::MAX);
        let start = first_half(hash::key(&key));
        self.records.push(((start >> 56) as u8, start));
        self.by_hash.insert(start, slot);
        self.slots.insert(key, slot);
        slot
    }

    /// What those who hold `from` hold after these frames.
    pub(crate) fn after(&mut self, from: &Rc<State>, frames: &[Rc<Told>]) -> Rc<State> {
        if frames.is_empty() {
            return Rc::clone(from);
        }
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(from.id);
        frames.iter().for_each(|told| hasher.write_u64(told.id));
        let step = hasher.finish();
        if let Some(state) = self.steps.get(&step) {
            return Rc::clone(state);
        }
        let (mut held, mut sums) = (from.held.clone(), from.sums);
        held.resize(self.records.len(), Hash::default());
        for told in frames {
            let What::Frame(frame) = &told.what else { continue };
            for (slot, now) in &frame.changes {
                let was = std::mem::replace(&mut held[*slot as usize], *now);
                let sum = &mut sums[usize::from(self.records[*slot as usize].0)];
                *sum = Hash(sum.0.wrapping_sub(was.0).wrapping_add(now.0));
            }
        }
        let root = Digest::from_sums(sums).root(&self.own);
        let state = match self.states.get(&root).and_then(Weak::upgrade) {
            Some(state) => state,
            None => {
                let state = Rc::new(State { id: self.id(), held, sums, root });
                self.states.insert(root, Rc::downgrade(&state));
                if self.states.len() > 4 * REMEMBERED_STEPS {
                    self.states();
                }
                state
            }
        };
        self.steps.insert(step, Rc::clone(&state));
        self.step_order.push_back(step);
        if self.step_order.len() > REMEMBERED_STEPS {
            self.step_order.pop_front().map(|oldest| self.steps.remove(&oldest));
        }
        state
    }

    /// How what is held in some buckets differs from what the server has there.
    pub(crate) fn compare(&mut self, state: &Rc<State>, told: &Told, lists: &[List]) -> Rc<Difference> {
        if let Some(known) = self.differences.get(&(state.id, told.id)) {
            return Rc::clone(known);
        }
        let (mut removed, mut wanted) = (Vec::new(), Vec::new());
        for List { bucket, entries } in lists {
            let held = |slot: Slot| state.held.get(slot as usize).copied().unwrap_or_default();
            for (slot, (of, key)) in (0..).zip(&self.records) {
                if of == bucket && held(slot) != Hash::default() && !entries.contains_key(key) {
                    removed.push((slot, Hash::default()));
                }
            }
            let differs = |(key, content): &(&u64, &u64)| {
                self.by_hash.get(*key).is_none_or(|slot| first_half(held(*slot)) != **content)
            };
            wanted.extend(entries.iter().filter(differs).map(|(key, _)| *key));
        }
        let frame = What::Frame(Frame { through: 0, mark: 0, changes: removed });
        let removed = Rc::new(Told { id: self.id(), what: frame });
        let difference = Rc::new(Difference { removed, wanted: wanted.into() });
        if self.differences.len() > 4 * REMEMBERED_STEPS {
            self.differences.clear();
        }
        self.differences.insert((state.id, told.id), Rc::clone(&difference));
        difference
    }
}

fn list(list: pb::BucketList) -> Result<List> {
    let bucket = u8::try_from(list.bucket).context("a bucket from 0 to 255")?;
    if !list.entries.len().is_multiple_of(2) {
        bail!("the list of bucket {bucket} has half an entry");
    }
    let entries = list.entries.as_chunks::<2>().0.iter().map(|[key, content]| (*key, *content)).collect();
    Ok(List { bucket, entries })
}

fn first_half(hash: Hash) -> u64 {
    (hash.0 >> 64) as u64
}

/// The newest slice that is included in these marks; 0: they do not say.
pub(crate) fn newest_slice(marks: &[pb::Mark]) -> u64 {
    let slices = marks.iter().filter(|mark| mark.kind() == pb::ObjectKind::EndpointSlice);
    slices.map(|mark| mark.resource_version).max().unwrap_or(0)
}
