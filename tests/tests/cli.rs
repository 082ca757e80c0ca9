//! Bad input gets one clear line and a non-zero exit, before anything is touched.

use std::process::{Command, Output};

use anyhow::Result;
use distributary_e2e::deployed::{self, PATIENCE};
use distributary_e2e::manifests::Manifests;
use distributary_e2e::netns::Namespace;
use distributary_e2e::process::{binary, scratch};
use distributary_e2e::wait::until;

fn run(program: &str, arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(binary(program))
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var("PATH")?)
        .output()?)
}

/// What it says when it fails: the one line.
fn fails(program: &str, arguments: &[&str]) -> Result<String> {
    let output = run(program, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{program} {arguments:?} succeeds");
    let complaint: Vec<&str> =
        said.lines().filter(|line| line.starts_with(&format!("{program}: "))).collect();
    assert_eq!(complaint.len(), 1, "{program} {arguments:?} says\n{said}");
    Ok(complaint[0].trim_start_matches(&format!("{program}: ")).to_owned())
}

#[test]
fn the_server_says_what_is_wrong() -> Result<()> {
    let missing = fails(
        "distributary-server",
        &["--source", "dir:/does/not/exist", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
    )?;
    assert!(missing.contains("/does/not/exist"), "{missing}");
    let open = fails("distributary-server", &["--listen", "0.0.0.0:7400"])?;
    assert!(open.contains("--insecure"), "{open}");
    let here = scratch("cli")?;
    let config = here.path().join("config");
    std::fs::write(&config, "not: [a kubeconfig")?;
    let config = config.display().to_string();
    let bad = fails(
        "distributary-server",
        &["--kubeconfig", &config, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
    )?;
    assert!(bad.contains(&config), "{bad}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let taken = fails("distributary-server", &["--listen", &address, "--admin-listen", "127.0.0.1:0"])?;
    assert!(taken.contains(&address), "{taken}");
    let log = fails("distributary-server", &["--log", "=nonsense="])?;
    assert!(log.contains("--log"), "{log}");
    let flag = run("distributary-server", &["--source", "etcd"])?;
    assert!(String::from_utf8_lossy(&flag.stderr).contains("expected kubernetes or dir:PATH"));
    assert_eq!(flag.status.code(), Some(2));
    Ok(())
}

#[test]
fn the_agent_says_what_is_wrong() -> Result<()> {
    let node = ["--node-name", "n1"];
    let agent = |more: &[&str]| fails("distributary-agent", &[&["run"], &node[..], more].concat());
    let server = agent(&["--server", "nonsense"])?;
    assert!(server.contains("HOST:PORT"), "{server}");
    let open = agent(&["--server", "192.0.2.9:7400"])?;
    assert!(open.contains("--insecure"), "{open}");
    let missing =
        fails("distributary-agent", &["render", "--node-name", "n1", "--manifests", "/does/not/exist"])?;
    assert!(missing.contains("/does/not/exist"), "{missing}");
    let flag = run(
        "distributary-agent",
        &["run", "--node-name", "n1", "--server", "127.0.0.1:1", "--cluster-cidr", "10.0.0.0/99"],
    )?;
    assert!(String::from_utf8_lossy(&flag.stderr).contains("10.0.0.0/99"));
    let agent = |more: &[&str]| agent(&[&["--server", "127.0.0.1:1"], more].concat());
    let bridge = agent(&["--detect-local-mode=BridgeInterface"])?;
    assert_eq!(bridge, "--detect-local-mode BridgeInterface needs --pod-bridge-interface");
    let mixed = agent(&["--nodeport-addresses=primary,10.0.0.0/8"])?;
    assert_eq!(mixed, "--nodeport-addresses primary,10.0.0.0/8: primary has to stand alone");
    let periods = agent(&["--iptables-sync-period=1s", "--iptables-min-sync-period=2s"])?;
    assert_eq!(periods, "--iptables-min-sync-period 2s is longer than --iptables-sync-period 1s");
    Ok(())
}

#[test]
fn a_file_of_kube_proxys_is_taken_or_named() -> Result<()> {
    let here = scratch("cli")?;
    let (file, written) = (here.path().join("config.conf"), here.path().join("written.yaml"));
    let paths = [&file, &written].map(|path| path.display().to_string());
    let arguments = ["run", "--config", &paths[0], "--write-config-to", &paths[1]];
    let says = |body: &str| -> Result<String> {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        std::fs::write(&file, format!("{head}{body}\n"))?;
        fails("distributary-agent", &arguments)
    };
    assert!(fails("distributary-agent", &arguments)?.starts_with(&format!("--config {}: ", paths[0])));
    let mode = says("mode: ipvs")?;
    assert_eq!(
        mode,
        format!("--config {}: mode ipvs is not there, only iptables and nftables are", paths[0])
    );
    let kind = says("oomScoreAdj: much")?;
    assert!(kind.ends_with("oomScoreAdj is a text, a whole number is wanted"), "{kind}");
    assert!(!written.exists(), "nothing is written of what is refused");
    says("spelt: wrong\nclusterCIDR: 10.0.0.0/99")?;
    let kubeadm = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/src/config/file/kubeadm.yaml");
    let output = run(
        "distributary-agent",
        &["run", "--node-name", "n1", "--config", kubeadm, "--write-config-to", &paths[1]],
    )?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("clientConnection.kubeconfig do not apply"), "{said}");
    let written = std::fs::read_to_string(&written)?;
    assert!(written.contains("clusterCIDR: 10.244.0.0/16") && written.contains("hostnameOverride: n1"));
    Ok(())
}

#[test]
fn a_host_without_iptables_or_without_the_right_is_told_so() -> Result<()> {
    let namespace = Namespace::new()?;
    let agent = binary("distributary-agent");
    let agent = agent.to_string_lossy();
    let command = format!("{agent} run --node-name n1 --server 127.0.0.1:1 2>&1; echo exit $?");
    let said = namespace.script(&format!("PATH=/nowhere; {command}"))?;
    assert!(said.contains("iptables cannot be run") && said.contains("exit 1"), "{said}");
    // Nobody, without any capability; in a namespace, so that the answer does not depend on this machine.
    let said =
        namespace.script(&format!("setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '{command}'"))?;
    assert!(said.contains("exit 1") && said.to_lowercase().contains("permi"), "{said}");
    Ok(())
}

#[test]
fn an_api_that_cannot_be_reached_is_named_and_tried_again() -> Result<()> {
    let namespace = Namespace::new()?;
    let here = scratch("cli")?;
    let config = here.path().join("config");
    std::fs::write(
        &config,
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n\
         contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n",
    )?;
    let mut server = deployed::server(
        &namespace,
        &["--source", "kubernetes", "--kubeconfig", &config.display().to_string()],
    )?;
    until("the server to name the API", PATIENCE, || server.log().contains("127.0.0.1:1").then_some(()));
    assert!(server.is_running());
    server.terminate(PATIENCE)?;
    Ok(())
}

#[test]
fn a_broken_manifest_is_named_with_its_line() -> Result<()> {
    let manifests = Manifests::new()?;
    manifests.put_text(
        "a.yaml",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  clusterIP: [oops\n",
    )?;
    let directory = manifests.path().display().to_string();
    let said = fails("distributary-agent", &["render", "--node-name", "n1", "--manifests", &directory])?;
    assert!(said.contains("a.yaml:"), "{said}");
    Ok(())
}

#[test]
fn render_is_deterministic_and_what_a_server_gives_is_what_manifests_give() -> Result<()> {
    let examples = format!("{}/../examples", env!("CARGO_MANIFEST_DIR"));
    let render = |more: &[&str]| -> Result<String> {
        let arguments =
            [&["render", "--node-name", "node-a", "--cluster-cidr", "10.244.0.0/16"], more].concat();
        let output = run("distributary-agent", &arguments)?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let first = render(&["--manifests", &examples])?;
    assert_eq!(first, render(&["--manifests", &examples])?);
    assert!(first.contains("shop/web:http cluster IP"), "{first}");
    let namespace = Namespace::new()?;
    let _server = deployed::server(&namespace, &["--source", &format!("dir:{examples}")])?;
    let _ = deployed::wait_ok(&namespace, ([127, 0, 0, 1], 7401).into(), "/readyz");
    let agent = binary("distributary-agent");
    let command =
        ["render", "--node-name", "node-a", "--cluster-cidr", "10.244.0.0/16", "--server", deployed::SERVER];
    let from_server = namespace.run(&agent.to_string_lossy(), &command)?;
    assert_eq!(from_server.trim(), first.trim());
    Ok(())
}
