//! Agents that prove their node by tokens of a real kube-apiserver.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use distributary_e2e::certificates::{Authority, Files};
use distributary_e2e::controlplane::ControlPlane;
use distributary_e2e::deployed::{self, logged, wait_for, wait_ok};
use distributary_e2e::forward::Forward;
use distributary_e2e::netns::Namespace;
use distributary_e2e::objects;
use distributary_e2e::process::{Running, scratch};
use distributary_e2e::tokens::{Bound, ending, forged};
use kube::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

const NODE: &str = "node-a";
const LOST: &str = "no stream; the rules stay as they are";

struct World {
    namespace: Arc<Namespace>,
    client: Client,
    cluster: &'static ControlPlane,
    kubernetes: String,
    /// A pod of the agents' account on the node.
    bound: Bound,
    server: Running,
    files: Files,
    folder: TempDir,
    _door: Forward,
}

impl World {
    /// A server that takes the tokens of one account, and nothing else.
    async fn start(node: &str, more: &dyn Fn(&TempDir) -> Result<Vec<String>>) -> Result<Self> {
        let cluster = ControlPlane::shared();
        let namespace = Arc::new(Namespace::new()?);
        let door = cluster.reach_from(&namespace)?;
        let (client, folder) = (cluster.client().await?, scratch("tokens")?);
        let kubernetes = objects::unique_namespace(&client).await?;
        objects::register_node(&client, node, &json!({}), &["192.0.2.1".parse()?]).await?;
        let bound = Bound::new(&client, &kubernetes, "agent", node).await?;
        let ours = Authority::new("ours")?;
        let files = ours.files(folder.path(), "server", &ours.server(&["127.0.0.1"])?)?;
        let (kubeconfig, account) =
            (cluster.kubeconfig().display().to_string(), format!("{kubernetes}/agent"));
        let path = |path: &PathBuf| path.display().to_string();
        let flags = [
            ["--source", "kubernetes"].map(str::to_owned),
            ["--kubeconfig".to_owned(), kubeconfig],
            ["--tls-cert".to_owned(), path(&files.certificate)],
            ["--tls-key".to_owned(), path(&files.key)],
            ["--token-account".to_owned(), account],
        ];
        let flags = [flags.concat(), more(&folder)?].concat();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let server = deployed::server_at(&namespace, "0.0.0.0:7400", &flags)?;
        let _ = wait_ok(&namespace, SocketAddr::from(([127, 0, 0, 1], 7401)), "/readyz");
        Ok(Self { namespace, client, cluster, kubernetes, bound, server, files, folder, _door: door })
    }

    async fn token(&self) -> Result<String> {
        self.bound.token(&self.client, "distributary").await
    }

    fn show(&self, token: &str) -> Result<String> {
        let (path, beside) = (self.folder.path().join("token"), self.folder.path().join("token.new"));
        fs::write(&beside, token)?;
        fs::rename(beside, &path)?;
        Ok(path.display().to_string())
    }

    fn agent(&self, node: &str, token: &str) -> Result<Running> {
        let (token, ca) = (self.show(token)?, self.files.authority.display().to_string());
        deployed::agent(&self.namespace, node, &["--ca", &ca, "--token", &token])
    }

    /// Starts an agent that is refused; gives what the server says of it.
    fn refused(&self, node: &str, token: &str) -> Result<String> {
        let before = logged(&self.server, "agent refused").len();
        let agent = self.agent(node, token)?;
        let (lost, said) = (wait_for(&agent, LOST, 0), wait_for(&self.server, "agent refused", before));
        let reason = said["reason"].as_str().context("a reason")?.to_owned();
        assert_eq!(lost["error"], format!("this agent is refused: {}", plain(&reason)));
        self.shows_nothing_of(token, &agent);
        Ok(reason)
    }

    /// A secret is in no log.
    fn shows_nothing_of(&self, token: &str, agent: &Running) {
        for part in token.split('.').skip(1).filter(|part| part.len() > 16) {
            for process in [&self.server, agent] {
                assert!(!process.log().contains(part), "a token is in a log");
            }
        }
    }
}

/// As gRPC's messages have it.
fn plain(reason: &str) -> String {
    reason.chars().map(|c| if c.is_ascii_graphic() && c != '%' || c == ' ' { c } else { '?' }).collect()
}

#[tokio::test]
async fn an_agent_is_let_in_by_the_token_of_a_pod_on_its_node_and_by_no_other() -> Result<()> {
    let world = World::start(NODE, &|_| Ok(Vec::new())).await?;
    let good = world.token().await?;
    let agent = world.agent(NODE, &good)?;
    let _ = wait_for(&agent, "in step with the server", 0);
    world.shows_nothing_of(&good, &agent);
    drop(agent);

    let audience = world.bound.token(&world.client, "https://kubernetes.default.svc").await?;
    assert_eq!(
        world.refused(NODE, &audience)?,
        "its token is for the audience https://kubernetes.default.svc, wanted is distributary"
    );
    // Any tenant may ask for a token with our audience.
    let tenant = Bound::new(&world.client, &world.kubernetes, "tenant", NODE).await?;
    let tenant = tenant.token(&world.client, "distributary").await?;
    assert_eq!(
        world.refused(NODE, &tenant)?,
        format!(
            "its token is of system:serviceaccount:{}:tenant, which --token-account does not name",
            world.kubernetes
        )
    );
    let why = "the agent says that it is of node node-b, its token is of node node-a";
    assert_eq!(world.refused("node-b", &good)?, why);
    let old = world.refused(NODE, &ending(world.cluster, &good, -61)?)?;
    assert!(old.starts_with("its token ran out 6"), "{old}");
    let foreign = world.refused(NODE, &forged(&good)?)?;
    assert!(
        foreign.starts_with(
            r#"its token is signed by "forged", which is no key of the issuer; the API server "#
        ),
        "{foreign}"
    );
    assert_eq!(world.refused(NODE, "nonsense")?, "what it shows is no token");

    let before = logged(&world.server, "agent refused").len();
    let ca = world.files.authority.display().to_string();
    let agent = deployed::agent(&world.namespace, NODE, &["--ca", &ca])?;
    assert_eq!(wait_for(&world.server, "agent refused", before)["reason"], "it shows no token");
    let _ = wait_for(&agent, LOST, 0);
    Ok(())
}

#[tokio::test]
async fn a_token_is_worth_no_more_than_the_node_that_it_was_made_for() -> Result<()> {
    let node = "node-gone";
    let world = World::start(node, &|_| Ok(Vec::new())).await?;
    let token = world.token().await?;
    let agent = world.agent(node, &token)?;
    let _ = wait_for(&agent, "in step with the server", 0);
    objects::delete(&world.client, "Node", None, node).await?;
    let gone = wait_for(&world.server, "agent refused", 0);
    assert_eq!(gone["reason"], "its token is of the Node node-gone, which is not there");
    let _ = wait_for(&agent, LOST, 0);
    drop(agent);
    objects::register_node(&world.client, node, &json!({}), &["192.0.2.1".parse()?]).await?;
    let uid = |node: &Value| node.pointer("/metadata/uid").cloned();
    assert!(uid(&objects::get(&world.client, "Node", None, node).await?).is_some());
    let before = logged(&world.server, "agent refused").len();
    let agent = world.agent(node, &token)?;
    let wanted = "its token is of an earlier Node node-gone: that one was deleted, and another has its name";
    deployed_until(&world.server, wanted, before);
    drop(agent);
    Ok(())
}

/// Waits until the server has refused for that reason: it may hear of a Node later than we do.
fn deployed_until(server: &Running, reason: &str, before: usize) {
    distributary_e2e::wait::until(reason, deployed::PATIENCE, || {
        logged(server, "agent refused").iter().skip(before).any(|line| line["reason"] == reason).then_some(())
    });
}

#[tokio::test]
async fn a_token_that_runs_out_ends_the_stream_and_a_newer_one_goes_on_with_it() -> Result<()> {
    let node = "node-late";
    let world = World::start(node, &|_| Ok(Vec::new())).await?;
    let token = world.token().await?;
    // It has run out, and its grace of a minute is nearly over.
    let agent = world.agent(node, &ending(world.cluster, &token, -45)?)?;
    let _ = wait_for(&agent, "in step with the server", 0);
    let refused = wait_for(&world.server, "agent refused", 0);
    assert_eq!(refused["reason"], "its token has run out, and it has shown no newer one");
    let lost = wait_for(&agent, LOST, 0);
    assert_eq!(lost["error"], "this agent is refused: its token has run out, and it has shown no newer one");
    // The kubelet writes another one, and the agent shows it with the next connection.
    world.show(&ending(world.cluster, &token, 20)?)?;
    let _ = wait_for(&agent, "in step with the server", 1);
    // This one runs out in a moment; the next goes through the stream.
    let before = logged(&world.server, "token renewed").len();
    world.show(&token)?;
    let renewed = wait_for(&world.server, "token renewed", before);
    assert_eq!(renewed["node"], node);
    world.shows_nothing_of(&token, &agent);
    Ok(())
}

#[tokio::test]
async fn the_api_is_asked_about_a_token_whose_key_is_not_there() -> Result<()> {
    let node = "node-review";
    let elsewhere = |folder: &TempDir| -> Result<Vec<String>> {
        let keys = folder.path().join("jwks");
        fs::write(&keys, include_str!("../data/other-jwks.json"))?;
        let issuer = "https://kubernetes.default.svc";
        Ok(["--token-keys", &keys.display().to_string(), "--token-issuer", issuer]
            .map(str::to_owned)
            .to_vec())
    };
    let world = World::start(node, &elsewhere).await?;
    let agent = world.agent(node, &world.token().await?)?;
    let _ = wait_for(&agent, "in step with the server", 0);
    drop(agent);
    let audience = world.bound.token(&world.client, "other").await?;
    let reason = world.refused(node, &audience)?;
    assert!(reason.contains("which is no key of the issuer; the API server refuses it"), "{reason}");
    Ok(())
}
