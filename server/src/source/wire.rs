//! What an API server says: lines of a watch, pages of a list, statuses. Objects are read lean, one by one, so that one
//! which cannot be read spoils no other.

use std::borrow::Cow;
use std::fmt;

use distributary_cluster::{Event, Object};
use distributary_model::ObjectKind;
use serde::Deserialize;
use serde_json::value::RawValue;

/// A line of a watch.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// An object changed.
    Changed {
        /// How.
        event: Event,
        /// Its resourceVersion; 0: not numeric.
        version: u64,
    },
    /// Nothing changed up to here.
    Bookmark {
        /// As text, since it is given back.
        version: String,
        /// All that there was at the beginning has been sent.
        listed: bool,
    },
    /// The watch cannot go on.
    Error(Status),
}

/// A page of a list.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    /// Its objects.
    pub(super) events: Vec<Event>,
    /// Of the whole list.
    pub(super) version: String,
    /// Asks for the next page.
    pub(super) next: Option<String>,
}

/// Why the API server refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Status {
    /// As of HTTP.
    #[serde(default)]
    pub(super) code: u16,
    /// One word.
    #[serde(default)]
    pub(super) reason: String,
    /// For people.
    #[serde(default)]
    pub(super) message: String,
}

impl Status {
    /// From the body of a response that is no success; proxies on the way may answer anything.
    pub(super) fn from_body(code: u16, body: &str) -> Self {
        match serde_json::from_str::<Self>(body) {
            Ok(status) if !status.message.is_empty() => Self { code, ..status },
            _ => Self { code, reason: String::new(), message: body.trim().chars().take(200).collect() },
        }
    }

    /// The resourceVersion that was asked for is too old.
    pub(super) fn is_expired(&self) -> bool {
        self.code == 410 || matches!(&*self.reason, "Expired" | "Gone")
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the API server answers {}: {}", self.code, self.message)
    }
}

#[derive(Deserialize)]
struct RawLine<'a> {
    #[serde(rename = "type", borrow)]
    what: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: Option<String>,
    #[serde(default)]
    annotations: Option<Annotations>,
}

#[derive(Default, Deserialize)]
struct Annotations {
    #[serde(rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<String>,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: ListMeta,
}

#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default, borrow)]
    items: Option<Vec<&'a RawValue>>,
}

/// Reads a line of a watch. The error is a connection that does not speak the protocol.
pub(super) fn line(kind: ObjectKind, line: &str) -> Result<Line, String> {
    let unknown = |e: serde_json::Error| format!("a line of the watch cannot be read: {e}");
    let RawLine { what, object } = serde_json::from_str(line).map_err(unknown)?;
    match &*what {
        "ADDED" | "MODIFIED" => {
            let (event, version) = event(kind, object)?;
            Ok(Line::Changed { event, version })
        }
        // Of an object that is gone nothing else matters, not even whether it can be read.
        "DELETED" => match Object::key_from_json(kind, object.get()) {
            Some((key, version)) => {
                Ok(Line::Changed { event: Event::Gone { key, inferred: false }, version })
            }
            None => Err(format!("a deleted {kind} has no name")),
        },
        "BOOKMARK" => {
            let Bookmark { metadata } = serde_json::from_str(object.get()).map_err(unknown)?;
            let end = metadata.annotations.and_then(|annotations| annotations.initial_events_end);
            Ok(Line::Bookmark { version: metadata.resource_version, listed: end.as_deref() == Some("true") })
        }
        "ERROR" => Ok(Line::Error(serde_json::from_str(object.get()).map_err(unknown)?)),
        other => Err(format!("a line of the watch is of the unknown type {other:?}")),
    }
}

/// Reads a page of a list. The error is an answer that is no list.
pub(super) fn page(kind: ObjectKind, body: &str) -> Result<Page, String> {
    let RawPage { metadata, items } =
        serde_json::from_str(body).map_err(|e| format!("a list of {kind}s cannot be read: {e}"))?;
    let items = items.unwrap_or_default();
    let events: Result<Vec<Event>, String> =
        items.into_iter().map(|item| event(kind, item).map(|(event, _)| event)).collect();
    let next = metadata.next.filter(|next| !next.is_empty());
    Ok(Page { events: events?, version: metadata.resource_version, next })
}

/// Only the resourceVersion of a list.
pub(super) fn version(body: &str) -> Result<u64, String> {
    let page: Bookmark = serde_json::from_str(body).map_err(|e| format!("a list cannot be read: {e}"))?;
    let version = page.metadata.resource_version;
    version.parse().map_err(|_| format!("the resourceVersion {version:?} of a list is no number"))
}

fn event(kind: ObjectKind, object: &RawValue) -> Result<(Event, u64), String> {
    match Object::from_json(kind, object.get()) {
        Ok(object) => {
            let version = object.meta().resource_version;
            Ok((Event::Upsert(object), version))
        }
        Err(unreadable) => match unreadable.key {
            Some(key) => Ok((Event::Invalid { key, why: unreadable.why }, unreadable.resource_version)),
            None => Err(format!("a {kind} cannot even be named: {}", unreadable.why)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let kind = ObjectKind::Node;
        let object = r#"{"kind": "Node", "metadata": {"name": "n1", "resourceVersion": "7"}}"#;
        let Ok(Line::Changed { event: Event::Upsert(node), version: 7 }) =
            line(kind, &format!(r#"{{"object": {object}, "type": "ADDED"}}"#))
        else {
            panic!()
        };
        assert_eq!(&*node.key().name, "n1");
        let gone = line(kind, &format!(r#"{{"type": "DELETED", "object": {object}}}"#)).unwrap();
        assert!(matches!(gone, Line::Changed { event: Event::Gone { inferred: false, .. }, version: 7 }));
        let bookmark = r#"{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9",
            "annotations": {"k8s.io/initial-events-end": "true"}}}}"#;
        assert_eq!(line(kind, bookmark), Ok(Line::Bookmark { version: "9".to_owned(), listed: true }));
        let error = r#"{"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired",
            "message": "too old", "details": {}}}"#;
        let Ok(Line::Error(status)) = line(kind, error) else { panic!() };
        assert!(status.is_expired());
        assert_eq!(status.to_string(), "the API server answers 410: too old");
        assert!(line(kind, r#"{"type": "OTHER", "object": {}}"#).is_err());
        assert!(line(kind, "<html>").is_err());
    }

    #[test]
    fn an_unreadable_object_is_told_as_such() {
        let bad = r#"{"type": "MODIFIED", "object": {"metadata": {"name": "n1", "resourceVersion": "8"}, "spec": 5}}"#;
        let Ok(Line::Changed { event: Event::Invalid { key, .. }, version: 8 }) = line(ObjectKind::Node, bad)
        else {
            panic!()
        };
        assert_eq!(&*key.name, "n1");
        let deleted = bad.replace("MODIFIED", "DELETED");
        let Ok(Line::Changed { event: Event::Gone { .. }, .. }) = line(ObjectKind::Node, &deleted) else {
            panic!()
        };
    }

    #[test]
    fn pages_have_a_version_and_maybe_a_next_one() {
        let body = r#"{"kind": "NodeList", "metadata": {"resourceVersion": "5", "continue": "abc"},
            "items": [{"metadata": {"name": "n1"}}]}"#;
        let page = page(ObjectKind::Node, body).unwrap();
        assert_eq!((page.events.len(), &*page.version, page.next.as_deref()), (1, "5", Some("abc")));
        let empty = super::page(ObjectKind::Node, r#"{"metadata": {"resourceVersion": "5"}, "items": null}"#)
            .unwrap();
        assert_eq!((empty.events.len(), empty.next), (0, None));
        assert_eq!(version(body), Ok(5));
        assert!(version("{}").is_err());
    }

    #[test]
    fn statuses_are_read_from_any_answer() {
        let status = Status::from_body(403, r#"{"message": "no", "reason": "Forbidden", "code": 7}"#);
        assert_eq!((status.code, &*status.reason), (403, "Forbidden"));
        assert_eq!(Status::from_body(502, " bad gateway\n").message, "bad gateway");
    }
}
