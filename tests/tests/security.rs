//! Who is let in, and what both sides say about who is not: the real binaries with real certificates.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use distributary_e2e::certificates::{Authority, Leaf};
use distributary_e2e::deployed::{self, wait_for, wait_ok};
use distributary_e2e::manifests::Manifests;
use distributary_e2e::netns::Namespace;
use distributary_e2e::process::{Running, scratch};
use tempfile::TempDir;

const NODE: &str = "node-a";
const AGENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10249);

struct World {
    namespace: Namespace,
    ours: Authority,
    folder: TempDir,
    server: Running,
    _manifests: Manifests,
}

impl World {
    /// A server on every address, as an operator would have it.
    fn start() -> Result<Self> {
        let namespace = Namespace::new()?;
        let (manifests, folder) = (Manifests::new()?, scratch("certificates")?);
        let ours = Authority::new("ours")?;
        let files =
            ours.files(folder.path(), "server", &ours.server(&["distributary.example", "127.0.0.1"])?)?;
        let source = manifests.source();
        let flags = files.of_server();
        let arguments: Vec<&str> =
            ["--source", &source].into_iter().chain(flags.iter().map(String::as_str)).collect();
        let server = deployed::server_at(&namespace, "0.0.0.0:7400", &arguments)?;
        let _ = wait_ok(&namespace, SocketAddr::from(([127, 0, 0, 1], 7401)), "/readyz");
        Ok(Self { namespace, ours, folder, server, _manifests: manifests })
    }

    /// An agent that trusts an authority and shows a certificate.
    fn agent(&self, trusted: &Authority, leaf: &Leaf, more: &[&str]) -> Result<Running> {
        let flags = trusted.files(self.folder.path(), "agent", leaf)?.of_agent();
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        deployed::agent(&self.namespace, NODE, &flags)
    }

    /// What the agent says of why it has no stream, and the server of why it gave none.
    fn refusal(&self, agent: &Running, said: &str, before: usize) -> Result<(String, String)> {
        let lost = wait_for(agent, "no stream; the rules stay as they are", 0);
        let refused = wait_for(&self.server, said, before);
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned).context("a text");
        Ok((text(&lost["error"])?, text(&refused["reason"])?))
    }
}

#[test]
fn a_node_is_let_in_by_its_own_certificate() -> Result<()> {
    let world = World::start()?;
    for (leaf, more) in [
        (world.ours.node(NODE)?, vec![]),
        (world.ours.spiffe(NODE)?, vec!["--server-name", "distributary.example"]),
    ] {
        let agent = world.agent(&world.ours, &leaf, &more)?;
        let _ = wait_for(&agent, "in step with the server", 0);
        assert_eq!(wait_ok(&world.namespace, AGENT, "/readyz"), "ok");
    }
    Ok(())
}

#[test]
fn who_does_not_prove_to_be_of_the_node_is_refused_and_both_sides_say_why() -> Result<()> {
    let world = World::start()?;
    let (ours, theirs) = (&world.ours, Authority::new("theirs")?);
    let refused = "connection refused";
    let mut before = 0;
    let mut case = |trusted: &Authority, leaf: Leaf, more: &[&str]| {
        let agent = world.agent(trusted, &leaf, more)?;
        let both = world.refusal(&agent, refused, before);
        drop(agent);
        before = deployed::logged(&world.server, refused).len();
        both
    };

    let (agent, server) = case(ours, theirs.node(NODE)?, &[])?;
    assert!(agent.ends_with("it does not know the authority that signed it"), "{agent}");
    assert!(server.contains("is signed by none of the authorities in --client-ca /"), "{server}");

    let (agent, server) = case(ours, ours.expired(NODE)?, &[])?;
    assert!(agent.ends_with("agent.crt: it has expired"), "{agent}");
    assert_eq!(server, "its certificate has expired");

    let (agent, server) = case(&theirs, ours.node(NODE)?, &[])?;
    assert!(
        agent.contains("the server's certificate is signed by none of the authorities in --ca /"),
        "{agent}"
    );
    assert!(server.starts_with("it does not accept this server"), "{server}");

    let (agent, _) = case(ours, ours.node(NODE)?, &["--server-name", "other.example"])?;
    assert!(agent.contains("the server's certificate is not for other.example"), "{agent}");

    let other = world.agent(ours, &ours.node("node-b")?, &[])?;
    let why = "the agent says that it is of node node-a, its certificate is of node node-b";
    let told = format!("this agent is refused: {why}");
    assert_eq!(world.refusal(&other, "agent refused", 0)?, (told, why.to_owned()));
    drop(other);

    // A server's certificate, though by the right authority, names no node.
    let before = deployed::logged(&world.server, "agent refused").len();
    let nobody = world.agent(ours, &ours.server(&["node-a"])?, &[])?;
    let (agent, server) = world.refusal(&nobody, "agent refused", before)?;
    assert!(server.starts_with("its certificate names no node"), "{server}");
    assert!(agent.starts_with("this agent is refused: its certificate names no node"), "{agent}");
    drop(nobody);

    let ca = world.folder.path().join("agent.ca").display().to_string();
    let nameless = deployed::agent(&world.namespace, NODE, &["--ca", &ca])?;
    let said = world.refusal(&nameless, refused, deployed::logged(&world.server, refused).len())?;
    let wanted = "cannot connect: the server wants a certificate of this node: give --cert and --key";
    assert_eq!(said, (wanted.to_owned(), "it shows no certificate".to_owned()));
    drop(nameless);

    let clear = deployed::agent(&world.namespace, NODE, &[])?;
    let (_, server) = world.refusal(&clear, refused, deployed::logged(&world.server, refused).len())?;
    assert_eq!(server, "it does not speak TLS");
    Ok(())
}

#[test]
fn certificates_and_authorities_are_replaced_without_a_restart() -> Result<()> {
    let world = World::start()?;
    let agent = world.agent(&world.ours, &world.ours.node(NODE)?, &[])?;
    let _ = wait_for(&agent, "in step with the server", 0);
    let next = Authority::new("next")?;
    next.files(world.folder.path(), "server", &next.server(&["127.0.0.1"])?)?;
    let _ = wait_for(&world.server, "new certificates are in use", 0);
    assert_eq!(
        deployed::logged(&agent, "no stream; the rules stay as they are").len(),
        0,
        "{}",
        agent.tail()
    );
    drop(agent);
    let agent = world.agent(&next, &next.node(NODE)?, &[])?;
    let _ = wait_for(&agent, "in step with the server", 0);
    Ok(())
}
