//! What the agent tells the server of its kernel, and when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_model::codec::messages;
use distributary_model::{Cursor, Hash, Key, Name, limits};
use distributary_proto::v1 as pb;
use prost::Message;

/// Acks come at most this often, but for rejections.
const PERIOD: Duration = Duration::from_secs(1);

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Programmed {
    /// Something is.
    pub written: bool,
    /// Everything up to here, but for the rejected records.
    pub cursor: Option<Cursor>,
    /// Receive to kernel, of the newest batch.
    pub took: Duration,
    /// The records whose newest content is not in the kernel.
    pub rejected: Arc<BTreeMap<Arc<Key>, Rejected>>,
    /// What happened on the node lately, each with a number that grows.
    pub events: Vec<(u64, Event)>,
}

/// A record that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// What was refused; zero for a removal.
    pub hash: Hash,
    /// What the tool said.
    pub message: String,
    /// It is the node that lacks something, so it is tried again though the content is the same.
    pub node: bool,
}

/// Something about the node that its operators should see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The rules were lost and have been written again.
    RulesRestored(String),
    /// Another program writes the same rules, so nothing is written.
    SecondWriter(String),
}

impl Event {
    fn to_proto(&self) -> pb::NodeEvent {
        use pb::node_event::Type;
        let (of, message) = match self {
            Self::RulesRestored(message) => (Type::RulesRestored, message),
            Self::SecondWriter(message) => (Type::SecondWriter, message),
        };
        pb::NodeEvent { r#type: of.into(), message: message.clone() }
    }
}

/// The rejected records, as they travel: as many as leave a message room within its limit.
pub fn rejections(rejected: &BTreeMap<Arc<Key>, Rejected>, own: &Name) -> Vec<pb::Rejection> {
    const BYTES: usize = limits::AGENT_MESSAGE_BYTES / 4;
    const MESSAGE: usize = 200;
    let mut left = BYTES;
    let rejection = |(key, rejected): (&Arc<Key>, &Rejected)| pb::Rejection {
        key: Some(messages::key(key, own)),
        content_hash: rejected.hash.to_bytes().to_vec().into(),
        reason: match rejected.node {
            true => pb::rejection::Reason::Node,
            false => pb::rejection::Reason::Content,
        }
        .into(),
        message: rejected.message[..rejected.message.floor_char_boundary(MESSAGE)].to_owned(),
    };
    let fits = |rejection: &pb::Rejection| {
        let bytes = rejection.encoded_len() + 4;
        let fits = bytes <= left;
        left = left.saturating_sub(bytes);
        fits
    };
    rejected.iter().map(rejection).take_while(fits).collect()
}

/// Decides when an Ack is due on one stream.
#[derive(Debug, Default)]
pub struct Acks {
    sent: Programmed,
    sent_at: Option<Instant>,
    /// Number of the newest event that was told to anybody.
    told: u64,
}

impl Acks {
    /// Another stream begins: its server was told nothing yet, but for events, which are told once.
    pub fn next_stream(&mut self) {
        *self = Self { told: self.told, ..Self::default() };
    }

    /// The Ack to send now, or when to ask again. `epoch` is of the stream: what is programmed of another server
    /// process says nothing to this one.
    pub fn due(&mut self, now: &Programmed, stream: Option<Cursor>, own: &Name, at: Instant) -> Due {
        let (Some(programmed), Some(stream)) = (now.cursor, stream) else { return Due::Nothing };
        if programmed.epoch != stream.epoch || *now == self.sent {
            return Due::Nothing;
        }
        let urgent = now.rejected != self.sent.rejected;
        if let Some(next) = self.sent_at.map(|sent| sent + PERIOD)
            && at < next
            && !urgent
        {
            return Due::At(next);
        }
        let news = now.events.iter().filter(|(number, _)| *number > self.told);
        let events = news.map(|(_, event)| event.to_proto());
        let ack = pb::Ack {
            through: programmed.through.0,
            programming_micros: u64::try_from(now.took.as_micros()).unwrap_or(u64::MAX),
            rejected: rejections(&now.rejected, own),
            events: events.collect(),
        };
        self.told = now.events.last().map_or(self.told, |(number, _)| *number);
        self.sent = now.clone();
        self.sent_at = Some(at);
        Due::Now(pb::AgentMessage { message: Some(pb::agent_message::Message::Ack(ack)) })
    }
}

/// What is due.
#[derive(Debug, PartialEq)]
pub enum Due {
    /// Nothing, until something is programmed.
    Nothing,
    /// Not before.
    At(Instant),
    /// This message.
    Now(pb::AgentMessage),
}

#[cfg(test)]
mod tests {
    use super::*;
    use distributary_model::{Epoch, Revision};

    fn programmed(through: u64) -> Programmed {
        let cursor = Cursor { epoch: Epoch([1; 16]), through: Revision(through) };
        Programmed { cursor: Some(cursor), ..Programmed::default() }
    }

    fn through(due: &Due) -> u64 {
        match due {
            Due::Now(pb::AgentMessage { message: Some(pb::agent_message::Message::Ack(ack)) }) => ack.through,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn at_once_after_silence_else_once_a_second_but_rejections_at_once() {
        let (mut acks, own, start) = (Acks::default(), Name::from("c"), Instant::now());
        let stream = programmed(0).cursor;
        assert_eq!(through(&acks.due(&programmed(1), stream, &own, start)), 1);
        assert_eq!(acks.due(&programmed(1), stream, &own, start), Due::Nothing);
        let soon = start + Duration::from_millis(300);
        assert_eq!(acks.due(&programmed(2), stream, &own, soon), Due::At(start + PERIOD));
        let rejected = Rejected { hash: Hash(1), message: "no".into(), node: false };
        let key = Arc::new(Key::service("c", "ns", "name"));
        let refused = Programmed { rejected: Arc::new([(key, rejected)].into()), ..programmed(2) };
        assert_eq!(through(&acks.due(&refused, stream, &own, soon)), 2);
        let later = Programmed { cursor: programmed(3).cursor, ..refused };
        assert_eq!(through(&acks.due(&later, stream, &own, soon + PERIOD)), 3);
    }

    #[test]
    fn an_event_is_told_once_and_rejections_leave_room() {
        let (mut acks, own) = (Acks::default(), Name::from("c"));
        let events = vec![(1, Event::RulesRestored("a".into())), (2, Event::RulesRestored("b".into()))];
        let now = Programmed { events, ..programmed(1) };
        let told = |due: &Due| match due {
            Due::Now(pb::AgentMessage { message: Some(pb::agent_message::Message::Ack(ack)) }) => {
                ack.events.len()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(told(&acks.due(&now, now.cursor, &own, Instant::now())), 2);
        acks.next_stream();
        assert_eq!(told(&acks.due(&now, now.cursor, &own, Instant::now())), 0);

        let many = (0..5_000).map(|i| {
            let rejected = Rejected { hash: Hash(i), message: "ä".repeat(300), node: true };
            (Arc::new(Key::service("c", "ns", format!("service-{i}"))), rejected)
        });
        let hello = pb::Hello { parked: rejections(&many.collect(), &own), ..Default::default() };
        assert!(hello.encoded_len() < limits::AGENT_MESSAGE_BYTES / 2 && hello.parked.len() > 100);
    }

    #[test]
    fn another_process_is_not_told_what_was_the_first_ones() {
        let other = Cursor { epoch: Epoch([2; 16]), through: Revision(9) };
        let due = Acks::default().due(&programmed(1), Some(other), &"c".into(), Instant::now());
        assert_eq!(due, Due::Nothing);
    }
}
