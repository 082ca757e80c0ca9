//! Against an API server that answers as each test says.

use bytes::Bytes;
use distributary_cluster::{Event, Object};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::BoxError;

use super::*;

type Answer = UnsyncBoxBody<Bytes, BoxError>;

/// What the source asks, and learns.
struct World {
    asked: mpsc::UnboundedReceiver<Asked>,
    updates: mpsc::Receiver<Update>,
}

/// A request that waits for its answer.
struct Asked {
    uri: String,
    accept: String,
    reply: oneshot::Sender<Response<Answer>>,
}

/// A watch that is open. It ends when this is dropped.
struct Feed(mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>);

impl World {
    fn of(kinds: &[ObjectKind]) -> Self {
        let (ask, asked) = mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let ask = ask.clone();
            async move {
                let (reply, answer) = oneshot::channel();
                let accept = request.headers()["accept"].to_str()?.to_owned();
                ask.send(Asked { uri: request.uri().to_string(), accept, reply })?;
                Ok::<_, BoxError>(answer.await?)
            }
        });
        let source = Kubernetes { client: Client::new(service, "default"), kinds: kinds.to_vec() };
        let (sender, updates) = mpsc::channel(8);
        drop(tokio::spawn(source.run(sender)));
        Self { asked, updates }
    }

    /// The next request that is none of a probe.
    async fn next(&mut self) -> Asked {
        loop {
            let asked = self.asked.recv().await.unwrap();
            if !asked.is_probe() {
                return asked;
            }
        }
    }

    /// `+name`, `-name`, `?name` (vanished), then what else is told.
    async fn told(&mut self) -> String {
        let update = self.updates.recv().await.unwrap();
        let name = |event: &Event| match event {
            Event::Upsert(object) => format!("+{}", object.key().name),
            Event::Gone { key, inferred: false } => format!("-{}", key.name),
            Event::Gone { key, inferred: true } => format!("?{}", key.name),
            Event::Invalid { key, .. } => format!("!{}", key.name),
        };
        let mut told: Vec<String> = update.events.iter().map(name).collect();
        told.extend(update.listed.iter().map(|_| "listed".to_owned()));
        told.extend(update.marks.iter().map(|(_, mark)| format!("@{mark}")));
        told.extend(update.fresh.iter().map(|_| "fresh".to_owned()));
        told.join(" ")
    }

    /// A source that has listed these nodes at version 10.
    async fn watching(names: &[&str]) -> (Self, Feed) {
        let mut world = Self::of(&[ObjectKind::Node]);
        let feed = world.next().await.watch();
        names.iter().for_each(|name| feed.line(&node("ADDED", name, 1)));
        feed.line(&bookmark(10, true));
        assert!(world.told().await.ends_with("listed @10 fresh"));
        (world, feed)
    }
}

impl Asked {
    fn is_probe(&self) -> bool {
        self.accept.contains("PartialObjectMetadata")
    }

    fn answer(self, code: u16, body: Answer) {
        let response = Response::builder().status(StatusCode::from_u16(code).unwrap()).body(body).unwrap();
        let _ = self.reply.send(response);
    }

    fn text(self, code: u16, text: &str) {
        self.answer(code, Full::from(text.to_owned()).map_err(BoxError::from).boxed_unsync());
    }

    fn watch(self) -> Feed {
        assert!(self.uri.contains("watch=true"), "{}", self.uri);
        let (sender, frames) = mpsc::unbounded_channel();
        self.answer(200, StreamBody::new(UnboundedReceiverStream::new(frames)).boxed_unsync());
        Feed(sender)
    }
}

impl Feed {
    fn line(&self, line: &str) {
        self.chunk(&format!("{line}\n"));
    }

    fn chunk(&self, text: &str) {
        let _ = self.0.send(Ok(Frame::data(Bytes::from(text.to_owned()))));
    }

    fn break_off(self) {
        let _ = self.0.send(Err("connection reset by peer".into()));
    }
}

fn node(what: &str, name: &str, version: u64) -> String {
    format!(r#"{{"type": "{what}", "object": {}}}"#, meta(name, version))
}

fn meta(name: &str, version: u64) -> String {
    format!(r#"{{"metadata": {{"name": "{name}", "resourceVersion": "{version}"}}}}"#)
}

fn bookmark(version: u64, listed: bool) -> String {
    format!(
        r#"{{"type": "BOOKMARK", "object": {{"metadata": {{"resourceVersion": "{version}", "annotations":
        {{"k8s.io/initial-events-end": "{listed}"}}}}}}}}"#
    )
    .replace('\n', "")
}

fn error(code: u16) -> String {
    format!(r#"{{"type": "ERROR", "object": {{"kind": "Status", "code": {code}, "message": "because"}}}}"#)
}

fn list(names: &[&str], version: u64, next: &str) -> String {
    let items: Vec<String> = names.iter().map(|name| meta(name, 1)).collect();
    let items = items.join(",");
    format!(r#"{{"metadata": {{"resourceVersion": "{version}", "continue": "{next}"}}, "items": [{items}]}}"#)
}

#[tokio::test(start_paused = true)]
async fn everything_comes_as_one_update_and_then_what_changes() {
    let mut world = World::of(&[ObjectKind::Node]);
    let asked = world.next().await;
    for part in [
        "/api/v1/nodes?",
        "sendInitialEvents=true",
        "resourceVersionMatch=NotOlderThan",
        "allowWatchBookmarks=true",
    ] {
        assert!(asked.uri.contains(part), "{}", asked.uri);
    }
    assert!(!asked.uri.contains("resourceVersion="), "{}", asked.uri);
    let feed = asked.watch();
    feed.line(&node("ADDED", "a", 7));
    feed.line(&node("ADDED", "b", 3));
    feed.line(&bookmark(10, true));
    assert_eq!(world.told().await, "+a +b listed @10 fresh");
    let both = format!("{}\n{}\n", node("MODIFIED", "a", 11), node("DELETED", "b", 12));
    feed.chunk(&both[..40]);
    feed.chunk(&both[40..]);
    assert_eq!(world.told().await, "+a -b @12 fresh", "what is there already is one update");
    feed.line(&bookmark(15, false));
    assert_eq!(world.told().await, "@15 fresh");
}

#[tokio::test(start_paused = true)]
async fn selectors_are_part_of_every_request() {
    let mut world = World::of(&[ObjectKind::Service]);
    let asked = world.next().await;
    let selectors =
        "labelSelector=%21service.kubernetes.io%2Fservice-proxy-name&fieldSelector=spec.clusterIP%21%3DNone&";
    assert!(asked.uri.contains(&format!("/api/v1/services?{selectors}")), "{}", asked.uri);
    asked.text(400, "no");
    let asked = world.next().await;
    assert!(asked.uri.ends_with(&format!("{selectors}limit=500")), "{}", asked.uri);
    let mut world = World::of(&[ObjectKind::EndpointSlice]);
    let path = "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21service.kubernetes.io%2Fheadless&watch=true";
    assert!(world.next().await.uri.contains(path));
}

#[tokio::test(start_paused = true)]
async fn without_streaming_lists_it_asks_page_by_page() {
    let mut world = World::of(&[ObjectKind::Node]);
    world
        .next()
        .await
        .text(422, r#"{"kind": "Status", "message": "sendInitialEvents is forbidden", "code": 422}"#);
    let asked = world.next().await;
    assert!(asked.uri.ends_with("/api/v1/nodes?limit=500"), "{}", asked.uri);
    asked.text(200, &list(&["a"], 10, "t+/="));
    let asked = world.next().await;
    assert!(asked.uri.ends_with("limit=500&continue=t%2B%2F%3D"), "{}", asked.uri);
    asked.text(200, &list(&["b"], 10, ""));
    assert_eq!(world.told().await, "+a +b listed @10 fresh");
    let asked = world.next().await;
    assert!(asked.uri.contains("watch=true&resourceVersion=10&allowWatchBookmarks=true"), "{}", asked.uri);
    let feed = asked.watch();
    feed.line(&node("ADDED", "c", 11));
    assert_eq!(world.told().await, "+c @11 fresh");
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_version_is_listed_anew_and_shows_what_vanished() {
    let (mut world, feed) = World::watching(&["a", "b"]).await;
    feed.line(&error(410));
    let asked = world.next().await;
    assert!(asked.uri.contains("sendInitialEvents=true"), "{}", asked.uri);
    let feed = asked.watch();
    feed.line(&node("ADDED", "b", 3));
    feed.line(&bookmark(20, true));
    assert_eq!(world.told().await, "+b ?a listed @20 fresh");
}

#[tokio::test(start_paused = true)]
async fn watches_that_break_off_after_their_list_are_asked_for_ever_less_often() {
    let mut world = World::of(&[ObjectKind::Node]);
    let since = Instant::now();
    for _ in 0..20 {
        let feed = world.next().await.watch();
        feed.line(&node("ADDED", "a", 1));
        feed.line(&bookmark(10, true));
        assert!(world.told().await.ends_with("listed @10 fresh"));
        feed.line(&error(410));
    }
    world.next().await;
    assert!(since.elapsed() > Duration::from_secs(60), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn deletions_are_seen_after_lists_that_failed() {
    let (mut world, feed) = World::watching(&["a", "b"]).await;
    feed.line(&error(410));
    for _ in 0..2 {
        let feed = world.next().await.watch();
        feed.line(&node("ADDED", "a", 1));
        feed.break_off();
    }
    world.next().await.text(500, "etcd is away");
    let feed = world.next().await.watch();
    feed.line(&node("ADDED", "a", 1));
    feed.line(&bookmark(20, true));
    assert_eq!(world.told().await, "+a ?b listed @20 fresh");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_drops_is_taken_up_where_it_was() {
    let (mut world, feed) = World::watching(&["a"]).await;
    feed.line(&node("MODIFIED", "a", 11));
    assert_eq!(world.told().await, "+a @11 fresh");
    feed.break_off();
    let asked = world.next().await;
    assert!(asked.uri.contains("watch=true&resourceVersion=11&"), "{}", asked.uri);
    // Refusals in between change nothing about that.
    asked.text(503, "starting");
    let asked = world.next().await;
    assert!(asked.uri.contains("watch=true&resourceVersion=11&"), "{}", asked.uri);
    let feed = asked.watch();
    feed.line(&bookmark(12, false));
    assert_eq!(world.told().await, "@12 fresh");
    // The API server ends watches by itself after a while.
    drop(feed);
    assert!(world.next().await.uri.contains("watch=true&resourceVersion=12&"));
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_object_is_told_and_not_taken_for_gone() {
    let (mut world, feed) = World::watching(&["a"]).await;
    feed.line(
        r#"{"type": "MODIFIED", "object": {"metadata": {"name": "a", "resourceVersion": "11"}, "spec": 5}}"#,
    );
    assert_eq!(world.told().await, "!a @11 fresh");
    feed.line(&error(410));
    let feed = world.next().await.watch();
    feed.line(
        r#"{"type": "ADDED", "object": {"metadata": {"name": "a", "resourceVersion": "11"}, "spec": 5}}"#,
    );
    feed.line(&bookmark(20, true));
    assert_eq!(world.told().await, "!a listed @20 fresh");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_is_confirmed_by_probes() {
    let (mut world, _feed) = World::watching(&["a"]).await;
    let since = Instant::now();
    let asked = world.asked.recv().await.unwrap();
    assert_eq!(since.elapsed().as_secs(), probe::EVERY.as_secs());
    assert!(asked.is_probe() && asked.uri.ends_with("/api/v1/nodes?limit=1"), "{}", asked.uri);
    asked.text(200, &list(&["a"], 10, ""));
    assert_eq!(world.told().await, "fresh", "nothing at all has happened");
    world.asked.recv().await.unwrap().text(200, &list(&["a"], 500, "more"));
    let asked = world.asked.recv().await.unwrap();
    assert!(asked.is_probe() && asked.uri.contains("watch=true&resourceVersion=10&"), "{}", asked.uri);
    assert!(asked.uri.ends_with("timeoutSeconds=1"), "{}", asked.uri);
    drop(asked.watch());
    assert_eq!(world.told().await, "fresh", "only other kinds have changed");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_withholds_changes_is_opened_anew() {
    let (mut world, feed) = World::watching(&["a"]).await;
    world.asked.recv().await.unwrap().text(200, &list(&["a"], 500, ""));
    let confirm = world.asked.recv().await.unwrap().watch();
    confirm.line(&node("MODIFIED", "a", 400));
    let asked = world.asked.recv().await.unwrap();
    assert!(!asked.is_probe() && asked.uri.contains("watch=true&resourceVersion=10&"), "{}", asked.uri);
    let anew = asked.watch();
    anew.line(&node("MODIFIED", "a", 400));
    assert_eq!(world.told().await, "+a @400 fresh", "before that it was not fresh");
    drop(feed);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_is_not_confirmed() {
    let (mut world, feed) = World::watching(&["a"]).await;
    for _ in 0..3 {
        world.asked.recv().await.unwrap().text(500, "etcd is away");
    }
    assert!(world.updates.try_recv().is_err(), "nothing is said to be fresh");
    // This one is never answered at all.
    let hanging = world.asked.recv().await.unwrap();
    let asked = world.asked.recv().await.unwrap();
    assert!(asked.is_probe() && hanging.is_probe());
    feed.line(&node("MODIFIED", "a", 11));
    assert_eq!(world.told().await, "+a @11 fresh", "the watch itself went on all the time");
}

#[tokio::test(start_paused = true)]
async fn a_restored_store_is_listed_anew() {
    let (mut world, _feed) = World::watching(&["a", "b"]).await;
    world.asked.recv().await.unwrap().text(200, &list(&["a"], 5, ""));
    let asked = world.next().await;
    assert!(asked.uri.contains("sendInitialEvents=true"), "{}", asked.uri);
    let feed = asked.watch();
    feed.line(&node("ADDED", "a", 1));
    feed.line(&bookmark(6, true));
    assert_eq!(world.told().await, "+a ?b listed @6 fresh");
}

#[tokio::test(start_paused = true)]
async fn service_cidrs_that_are_not_served_count_as_listed() {
    let mut world = World::of(&[ObjectKind::ServiceCidr]);
    let since = Instant::now();
    world.next().await.text(404, "404 page not found\n");
    assert_eq!(world.told().await, "listed @0 fresh");
    assert_eq!(world.told().await, "fresh");
    let asked = loop {
        tokio::select! {
            asked = world.asked.recv() => break asked.unwrap(),
            update = world.updates.recv() => assert_eq!(update.unwrap().fresh, [ObjectKind::ServiceCidr]),
        }
    };
    assert!(since.elapsed() >= RECHECK);
    let feed = asked.watch();
    feed.line(&node("ADDED", "kubernetes", 7));
    feed.line(&bookmark(10, true));
    while !world.told().await.starts_with("+kubernetes listed @10") {}
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_nobody_listens() {
    let mut world = World::of(&ObjectKind::ALL);
    for _ in ObjectKind::ALL {
        world.next().await;
    }
    drop(world.updates);
    assert!(world.asked.recv().await.is_none(), "the source and its client are gone");
}

#[tokio::test(start_paused = true)]
async fn whole_objects_reach_their_listener() {
    let mut world = World::of(&[ObjectKind::EndpointSlice]);
    world.next().await.text(400, "{}");
    let slice = r#"{"metadata": {"resourceVersion": "10"}, "items": [{"metadata": {"name": "web-1", "namespace": "shop",
        "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4", "ports": [{"name": "", "port": 80}],
        "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n1", "targetRef": {"kind": "Pod"}}]}]}"#;
    world.next().await.text(200, slice);
    let update = world.updates.recv().await.unwrap();
    let [Event::Upsert(Object::EndpointSlice(slice))] = &update.events[..] else { panic!("{update:?}") };
    assert_eq!((slice.entries.len(), slice.service.as_deref()), (1, Some("web")));
    assert_eq!(update.listed, [ObjectKind::EndpointSlice]);
}
