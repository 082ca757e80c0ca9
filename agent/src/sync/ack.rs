//! What the agent tells the server of its kernel, and when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributary_model::codec::messages;
use distributary_model::{Cursor, Hash, Key, Name};
use distributary_proto::v1 as pb;

/// Acks come at most this often, but for rejections.
const PERIOD: Duration = Duration::from_secs(1);

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Programmed {
    /// Everything up to here, but for the rejected records.
    pub cursor: Option<Cursor>,
    /// Receive to kernel, of the newest batch.
    pub took: Duration,
    /// The records whose newest content is not in the kernel.
    pub rejected: Arc<BTreeMap<Arc<Key>, Rejected>>,
    /// What happened on the node, with a number that grows.
    pub event: Option<(u64, Event)>,
}

/// A record that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// What was refused; zero for a removal.
    pub hash: Hash,
    /// What the tool said.
    pub message: String,
}

/// Something about the node that its operators should see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The rules were lost and have been written again.
    RulesRestored(String),
}

/// The rejected records, as they travel.
pub fn rejections(rejected: &BTreeMap<Arc<Key>, Rejected>, own: &Name) -> Vec<pb::Rejection> {
    let rejection = |(key, rejected): (&Arc<Key>, &Rejected)| pb::Rejection {
        key: Some(messages::key(key, own)),
        content_hash: rejected.hash.to_bytes().to_vec().into(),
        reason: pb::rejection::Reason::Content.into(),
        message: rejected.message.chars().take(200).collect(),
    };
    rejected.iter().take(distributary_model::limits::LIST).map(rejection).collect()
}

/// Decides when an Ack is due on one stream.
#[derive(Debug, Default)]
pub struct Acks {
    sent: Programmed,
    sent_at: Option<Instant>,
}

impl Acks {
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
        let news = now.event.as_ref().filter(|event| self.sent.event.as_ref() != Some(event));
        let events = news.map(|(_, Event::RulesRestored(message))| pb::NodeEvent {
            r#type: pb::node_event::Type::RulesRestored.into(),
            message: message.clone(),
        });
        let ack = pb::Ack {
            through: programmed.through.0,
            programming_micros: u64::try_from(now.took.as_micros()).unwrap_or(u64::MAX),
            rejected: rejections(&now.rejected, own),
            events: events.into_iter().collect(),
        };
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
        let rejected = Rejected { hash: Hash(1), message: "no".into() };
        let key = Arc::new(Key::service("c", "ns", "name"));
        let refused = Programmed { rejected: Arc::new([(key, rejected)].into()), ..programmed(2) };
        assert_eq!(through(&acks.due(&refused, stream, &own, soon)), 2);
        let later = Programmed { cursor: programmed(3).cursor, ..refused };
        assert_eq!(through(&acks.due(&later, stream, &own, soon + PERIOD)), 3);
    }

    #[test]
    fn another_process_is_not_told_what_was_the_first_ones() {
        let other = Cursor { epoch: Epoch([2; 16]), through: Revision(9) };
        let due = Acks::default().due(&programmed(1), Some(other), &"c".into(), Instant::now());
        assert_eq!(due, Due::Nothing);
    }
}
