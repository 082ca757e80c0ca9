use super::*;
use crate::source::wire;

fn node(what: &str, name: &str, version: u64) -> Line {
    let json = format!(
        r#"{{"type": "{what}", "object": {{"metadata": {{"name": "{name}", "resourceVersion": "{version}"}}}}}}"#
    );
    wire::line(ObjectKind::Node, &json).unwrap()
}

fn bookmark(version: &str, listed: bool) -> Line {
    Line::Bookmark { version: version.to_owned(), listed }
}

fn page(names: &[&str], version: &str, next: Option<&str>) -> Page {
    let events = names
        .iter()
        .map(|name| match node("ADDED", name, 1) {
            Line::Changed { event, .. } => event,
            other => panic!("{other:?}"),
        })
        .collect();
    Page { events, version: version.to_owned(), next: next.map(ToOwned::to_owned) }
}

fn status(code: u16) -> Failure {
    Failure::Status(Status { code, ..Status::default() })
}

fn dropped() -> Failure {
    Failure::Transport("reset".to_owned())
}

/// `+name`, `-name`, `?name` (vanished), then what else is told.
fn told(watch: &mut Watch) -> String {
    let Some(update) = watch.take() else { return String::new() };
    let mut told: Vec<String> = update
        .events
        .iter()
        .map(|event| match event {
            Event::Upsert(object) => format!("+{}", object.key().name),
            Event::Gone { key, inferred: false } => format!("-{}", key.name),
            Event::Gone { key, inferred: true } => format!("?{}", key.name),
            Event::Invalid { key, .. } => format!("!{}", key.name),
        })
        .collect();
    told.extend(update.listed.iter().map(|_| "listed".to_owned()));
    told.extend(update.marks.iter().map(|(_, mark)| format!("@{mark}")));
    told.extend(update.fresh.iter().map(|_| "fresh".to_owned()));
    told.join(" ")
}

fn watching() -> Watch {
    let mut watch = Watch::new(ObjectKind::Node);
    assert_eq!(watch.request(), Request::Stream);
    watch.line(node("ADDED", "a", 7)).unwrap();
    watch.line(node("ADDED", "b", 3)).unwrap();
    assert_eq!(told(&mut watch), "", "a list is held back until it is complete");
    watch.line(bookmark("8", true)).unwrap();
    assert_eq!(told(&mut watch), "+a +b listed @8 fresh");
    watch
}

#[test]
fn a_streaming_list_goes_over_into_a_watch() {
    let mut watch = watching();
    watch.line(node("MODIFIED", "a", 9)).unwrap();
    watch.line(node("DELETED", "b", 10)).unwrap();
    watch.line(bookmark("12", false)).unwrap();
    assert_eq!(told(&mut watch), "+a -b @12 fresh");
    assert_eq!(watch.ended(LASTED), Retry::Now);
    assert_eq!(watch.request(), Request::Watch("12".to_owned()));
    assert_eq!(
        watch.ended(Duration::ZERO),
        Retry::Later,
        "an API server that ends watches at once is not pressed"
    );
}

#[test]
fn a_streaming_list_shows_what_vanished_too() {
    let mut watch = watching();
    assert_eq!(watch.failed(&status(410), LASTED), Retry::Now);
    assert_eq!(watch.request(), Request::Stream);
    watch.line(node("ADDED", "b", 3)).unwrap();
    watch.line(bookmark("20", true)).unwrap();
    assert_eq!(told(&mut watch), "+b ?a listed @20 fresh");
}

#[test]
fn a_watch_that_breaks_off_after_its_list_does_not_list_at_once() {
    let mut watch = watching();
    assert_eq!(watch.failed(&status(410), Duration::from_millis(300)), Retry::Later);
    assert_eq!(watch.request(), Request::Stream);
    watch.line(node("ADDED", "b", 3)).unwrap();
    assert_eq!(watch.failed(&status(410), Duration::ZERO), Retry::Later, "what a list shows is no life");
    let mut watch = watching();
    assert_eq!(watch.ended(Duration::ZERO), Retry::Later);
}

#[test]
fn an_api_server_without_streaming_lists_is_asked_page_by_page() {
    for code in [400, 422] {
        let mut watch = Watch::new(ObjectKind::Node);
        watch.request();
        let Err(refusal) = watch.line(Line::Error(Status { code, ..Status::default() })) else { panic!() };
        assert_eq!(watch.failed(&refusal, Duration::ZERO), Retry::Now);
        assert_eq!(watch.request(), Request::Page(None));
        watch.page(page(&["a"], "5", Some("more")));
        assert_eq!(told(&mut watch), "");
        assert_eq!(watch.request(), Request::Page(Some("more".to_owned())));
        watch.page(page(&["b"], "5", None));
        assert_eq!(told(&mut watch), "+a +b listed @5 fresh");
        assert_eq!(watch.request(), Request::Watch("5".to_owned()));
    }
}

#[test]
fn deletions_are_seen_however_often_listing_fails() {
    let mut watch = watching();
    watch.failed(&status(410), Duration::ZERO);
    for failure in [dropped(), status(500), status(410), dropped()] {
        assert_eq!(watch.request(), Request::Stream);
        watch.line(node("ADDED", "a", 7)).unwrap();
        watch.failed(&failure, Duration::ZERO);
        assert_eq!(told(&mut watch), "");
    }
    watch.request();
    watch.line(node("ADDED", "a", 7)).unwrap();
    watch.line(bookmark("30", true)).unwrap();
    assert_eq!(told(&mut watch), "+a ?b listed @30 fresh");
}

#[test]
fn a_page_token_that_expired_begins_the_list_anew() {
    let mut watch = Watch::new(ObjectKind::Node);
    watch.request();
    watch.failed(&status(400), Duration::ZERO);
    watch.page(page(&["a"], "5", Some("more")));
    watch.request();
    assert_eq!(watch.failed(&status(410), Duration::ZERO), Retry::Later);
    assert_eq!(watch.request(), Request::Page(None));
    watch.page(page(&["b"], "6", None));
    let events = told(&mut watch);
    assert!(events.starts_with("+b") && events.ends_with("listed @6 fresh"), "{events}");
}

#[test]
fn a_dropped_watch_is_taken_up_where_it_was() {
    let mut watch = watching();
    watch.line(node("ADDED", "c", 9)).unwrap();
    assert_eq!(told(&mut watch), "+c @9 fresh");
    for failure in [dropped(), status(500), status(429), status(401)] {
        assert_eq!(watch.failed(&failure, Duration::ZERO), Retry::Later);
        assert_eq!(watch.request(), Request::Watch("9".to_owned()));
    }
    assert_eq!(told(&mut watch), "");
}

#[test]
fn a_rewound_api_server_is_listed_anew_and_the_mark_goes_back() {
    let mut watch = watching();
    watch.rewound();
    assert_eq!(watch.request(), Request::Stream);
    watch.line(bookmark("2", true)).unwrap();
    assert_eq!(told(&mut watch), "?a ?b listed @2 fresh");
}

#[test]
fn versions_that_are_no_numbers_take_a_list() {
    let mut watch = Watch::new(ObjectKind::Node);
    watch.line(bookmark("x7", true)).unwrap();
    assert_eq!(told(&mut watch), "listed @0 fresh");
    watch.ended(LASTED);
    assert_eq!(watch.request(), Request::Watch("x7".to_owned()));
    watch.line(Line::Changed { version: 0, event: page(&["a"], "", None).events.remove(0) }).unwrap();
    watch.ended(LASTED);
    assert_eq!(watch.request(), Request::Stream);
}

#[test]
fn service_cidrs_may_not_be_served() {
    let mut watch = Watch::new(ObjectKind::ServiceCidr);
    watch.request();
    assert_eq!(watch.failed(&status(404), Duration::ZERO), Retry::Now);
    assert_eq!(told(&mut watch), "listed @0 fresh");
    assert_eq!(watch.request(), Request::Nothing);
    watch.recheck();
    assert_eq!(watch.request(), Request::Stream);
    let mut nodes = Watch::new(ObjectKind::Node);
    assert_eq!(nodes.failed(&status(404), Duration::ZERO), Retry::Later);
    assert_eq!(told(&mut nodes), "");
}
