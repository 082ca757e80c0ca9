//! The chart: what helm makes of it, what a real kube-apiserver makes of that, and both programs with the arguments and
//! the rights that their pods would have.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use distributary_e2e::controlplane::{ControlPlane, Options};
use distributary_e2e::deployed::{PATIENCE, wait_ok};
use distributary_e2e::netns::Namespace;
use distributary_e2e::objects;
use distributary_e2e::process::{Running, binary, control_plane_program, run, scratch};
use distributary_e2e::tokens::Bound;
use distributary_e2e::wait::until;
use http::Request;
use k8s_openapi::ByteString;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What has no default.
const NEEDED: [&str; 4] = [
    "image.server=registry.example/distributary-server:0.1.0",
    "image.agent=registry.example/distributary-agent:0.1.0",
    "api.host=192.0.2.10",
    "agent.servers={192.0.2.11:7400,192.0.2.12:7400}",
];

fn chart(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn helm(arguments: &[&str], values: &[&str]) -> Result<Output> {
    let mut command = Command::new(control_plane_program("helm")?);
    // Without a cluster helm has to be told of which version it is.
    command.args(arguments).arg(chart("charts/distributary")).args(["--kube-version", "1.36.0"]);
    for value in values {
        command.args(["--set", value]);
    }
    Ok(command.output()?)
}

/// What the cluster would be given.
fn template(namespace: &str, values: &[&str]) -> Result<String> {
    let output = helm(&["template", "distributary", "--namespace", namespace], values)?;
    ensure!(output.status.success(), "helm template: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The line in which `helm template` says why it fails.
fn complaint(values: &[&str]) -> Result<String> {
    let output = helm(&["template", "distributary"], values)?;
    assert!(!output.status.success(), "helm template with {values:?} succeeds");
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr)?;
    Ok(said.lines().find(|line| line.starts_with("Error: ")).context("no error")?.to_owned())
}

#[test]
fn helm_lint_has_nothing_to_say() -> Result<()> {
    for values in [&[][..], &NEEDED] {
        let output = helm(&["lint", "--strict"], values)?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

#[test]
fn what_is_rendered_is_what_was_reviewed() -> Result<()> {
    let cidr = "agent.clusterCIDR=10.244.0.0/16\\,fd00:10:244::/48";
    // What helm makes by itself is another certificate each time.
    reviewed("chart.yaml", &[cidr, "tls.source=secret", "tls.secretName=mine", "tls.caConfigMap=mine-ca"])?;
    reviewed(
        "chart-cert-manager.yaml",
        &["tls.source=certManager", "tls.issuerRef.name=cluster-ca", "tls.ca=the authority"],
    )?;
    reviewed("chart-insecure.yaml", &["tls.source=none", "agent.stateDir="])
}

fn reviewed(golden: &str, values: &[&str]) -> Result<()> {
    let rendered = template("kube-system", &[&NEEDED[..], values].concat())?;
    let golden = chart("tests/goldens").join(golden);
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        fs::write(&golden, &rendered)?;
    }
    let wanted = fs::read_to_string(&golden)?;
    let differs = rendered.lines().zip(wanted.lines()).position(|(is, wanted)| is != wanted);
    let line = differs.unwrap_or_else(|| rendered.lines().count().min(wanted.lines().count()));
    assert!(
        rendered == wanted,
        "line {} is {:?} and not {:?}; UPDATE_GOLDENS=1 writes {}",
        line + 1,
        rendered.lines().nth(line),
        wanted.lines().nth(line),
        golden.display()
    );
    Ok(())
}

#[test]
fn what_has_no_default_is_asked_for() -> Result<()> {
    let all = complaint(&[])?;
    assert!(all.ends_with("set image.server, image.agent, api.host, agent.servers"), "{all}");
    let of = |source| complaint(&[&NEEDED[..], &[source]].concat());
    let secret = of("tls.source=secret")?;
    assert!(secret.ends_with("set tls.secretName, tls.ca (or tls.caConfigMap)"), "{secret}");
    let issuer = of("tls.source=certManager")?;
    assert!(issuer.ends_with("set tls.issuerRef.name, tls.ca (or tls.caConfigMap)"), "{issuer}");
    assert!(of("tls.source=elsewhere")?.contains("schema"));
    for missing in NEEDED {
        let others: Vec<&str> = NEEDED.into_iter().filter(|value| *value != missing).collect();
        let said = complaint(&others)?;
        let name = missing.split('=').next().unwrap_or_default();
        assert!(said.contains(&format!(": set {name}")) && !said.contains(", "), "{said}");
    }
    // A value that is misspelt is not passed over.
    assert!(complaint(&[&NEEDED[..], &["server.replica=3"]].concat())?.contains("schema"));
    Ok(())
}

/// Gives the apiserver a manifest as helm printed it: it reads YAML, and here it takes no field that it does not know.
async fn apply(client: &Client, manifest: &str, dry_run: bool) -> Result<Value> {
    let field = |key: &str| manifest.lines().find_map(|line| line.strip_prefix(key));
    let version = field("apiVersion: ").context("a manifest has a version")?;
    let kind = field("kind: ").context("a manifest has a kind")?;
    // metadata's is the first name at this depth, and the only namespace.
    let name = field("  name: ").context("a manifest has a name")?;
    let mut path = String::from(if version.contains('/') { "/apis/" } else { "/api/" });
    path.push_str(version);
    if let Some(namespace) = field("  namespace: ") {
        write!(path, "/namespaces/{namespace}")?;
    }
    write!(path, "/{}s/{name}?fieldManager=helm&fieldValidation=Strict", kind.to_lowercase())?;
    if dry_run {
        path.push_str("&dryRun=All");
    }
    let request = Request::patch(path).header("content-type", "application/apply-patch+yaml");
    let applied = client.request(request.body(manifest.as_bytes().to_vec())?).await;
    applied.with_context(|| format!("apply {kind} {name}"))
}

/// All that was rendered, as the apiserver took it.
async fn apply_all(client: &Client, rendered: &str, dry_run: bool) -> Result<Vec<Value>> {
    let mut applied = Vec::new();
    for manifest in rendered.split("---\n").filter(|manifest| manifest.contains("kind: ")) {
        applied.push(apply(client, manifest, dry_run).await?);
    }
    Ok(applied)
}

fn find<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("a {kind}"))
}

#[tokio::test]
async fn a_real_apiserver_takes_every_object() -> Result<()> {
    let client = ControlPlane::shared().client().await?;
    let namespace = objects::unique_namespace(&client).await?;
    // Each value that leads to other fields.
    let more =
        ["image.pullSecrets[0].name=s", "server.extraArgs={--log=debug}", "agent.extraArgs={--log=debug}"];
    let rendered = template(&namespace, &[&NEEDED[..], &more].concat())?;
    let taken = apply_all(&client, &rendered, true).await?;
    assert_eq!(taken.len(), 9, "{taken:#?}");
    // Admission of priorities and of the host's namespaces looks at pods only.
    for kind in ["Deployment", "DaemonSet"] {
        let template = &find(&taken, kind)["spec"]["template"];
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "pod" }, "spec": template["spec"],
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        let request = Request::post(path).header("content-type", "application/json");
        let pod: Value = client.request(request.body(pod.to_string().into_bytes())?).await?;
        assert!(pod["spec"]["priority"].as_i64() >= Some(2_000_000_000), "{pod:#}");
        assert_eq!(pod["spec"]["hostNetwork"], true);
    }
    Ok(())
}

/// The chart in a control plane that asks RBAC. No controller makes its pods.
struct Installed {
    node: Arc<Namespace>,
    cluster: ControlPlane,
    admin: Client,
    namespace: String,
    objects: Vec<Value>,
    /// Of the server's account.
    token: String,
}

impl Installed {
    async fn new() -> Result<Self> {
        let node = Arc::new(Namespace::new()?);
        let options = Options { rbac: true, namespace: Some(node.clone()), ..Options::default() };
        let cluster = ControlPlane::start_with(&options)?;
        let admin = cluster.client().await?;
        let namespace = objects::unique_namespace(&admin).await?;
        let (host, port) = (cluster.address().ip(), cluster.address().port());
        let (host, port) = (format!("api.host={host}"), format!("api.port={port}"));
        let here = [
            &host,
            &port,
            "agent.servers={127.0.0.1:7400}",
            "agent.clusterCIDR=10.244.0.0/16",
            "agent.stateDir=/run/state",
            // The number of connections is the whole machine's, not the namespace's.
            "agent.extraArgs={--conntrack-max-per-core=0}",
        ];
        let objects =
            apply_all(&admin, &template(&namespace, &[&NEEDED[..], &here].concat())?, false).await?;
        let account = &find(&objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"];
        let account = account.as_str().context("an account")?;
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
        let request = Request::post(path).header("content-type", "application/json");
        let made: Value = admin.request(request.body(body.to_string().into_bytes())?).await?;
        let token = made["status"]["token"].as_str().context("a token")?.to_owned();
        Ok(Self { node, cluster, admin, namespace, objects, token })
    }

    /// A client with the server's rights.
    async fn client(&self) -> Result<Client> {
        let administrator = fs::read_to_string(self.cluster.kubeconfig())?;
        let file = Kubeconfig::from_yaml(&administrator.replace(self.cluster.token(), &self.token))?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// The only container of a workload.
    fn container(&self, kind: &str) -> &Value {
        &find(&self.objects, kind)["spec"]["template"]["spec"]["containers"][0]
    }

    /// Starts the container's program in the node as the kubelet would: its arguments, variables and capabilities, the
    /// account's files and its proofs, and a root that cannot be written to but for the lock of iptables and the state
    /// where these are mounted. Only the user stays who runs the test: nobody else may be able to read our binaries.
    fn start(&self, kind: &str, account: &Path, proofs: &Path) -> Result<Running> {
        let container = self.container(kind);
        let strings = |at: &str| {
            let found = container.pointer(at).and_then(Value::as_array).into_iter().flatten();
            found.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(container.pointer("/securityContext/readOnlyRootFilesystem"), Some(&json!(true)));
        assert_eq!(container.pointer("/securityContext/allowPrivilegeEscalation"), Some(&json!(false)));
        assert_eq!(strings("/securityContext/capabilities/drop"), ["ALL"]);
        let mut bounds = String::from("-all");
        for capability in strings("/securityContext/capabilities/add") {
            write!(bounds, ",+{}", capability.to_lowercase())?;
        }
        let mounted = |name: &str| {
            let mounts = container["volumeMounts"].as_array().into_iter().flatten();
            let path =
                mounts.filter(|mount| mount["name"] == name).find_map(|mount| mount["mountPath"].as_str());
            path.unwrap_or_default().to_owned()
        };
        let (lock, state) = (mounted("xtables-lock"), mounted("state"));
        assert_eq!(mounted("tls") + &mounted("proof"), "/run/secrets/distributary");
        let script = r#"
            set -e
            mount -t tmpfs tmpfs /run
            mkdir -p /run/secrets/kubernetes.io/serviceaccount
            cp "$ACCOUNT"/* /run/secrets/kubernetes.io/serviceaccount
            cp -r "$PROOFS" /run/secrets/distributary
            if [ -n "$STATE" ]; then mkdir "$STATE"; mount -t tmpfs tmpfs "$STATE"; fi
            if [ -n "$LOCK" ]; then touch "$LOCK"; mount --bind "$LOCK" "$LOCK"; fi
            mount -o remount,bind,ro /run
            mount -o remount,bind,ro /
            unset ACCOUNT LOCK PROOFS STATE
            exec "$@"
        "#;
        let command = strings("/command");
        let (program, first) = command.split_first().context("a command")?;
        let mut pod = Command::new("unshare");
        pod.args(["--mount", "sh", "-c", script, "sh", "env", "XTABLES_LOCKFILE=/run/xtables.lock"]);
        pod.args(["setpriv", "--no-new-privs", "--inh-caps=-all", &format!("--bounding-set={bounds}")]);
        pod.arg(binary(program)).args(first).args(strings("/args"));
        pod.env("ACCOUNT", account).env("LOCK", lock).env("PROOFS", proofs).env("STATE", state);
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().context("a variable has a name")?;
            match variable.pointer("/valueFrom/fieldRef/fieldPath") {
                Some(path) => {
                    assert_eq!(path, "spec.nodeName");
                    pod.env(name, "node-a");
                }
                None => {
                    pod.env(name, variable["value"].as_str().context("a variable has a value")?);
                }
            }
        }
        self.node.spawn(program, &pod)
    }

    /// Runs the agent's init container to its end. It is privileged, as the test is.
    fn init(&self) -> Result<()> {
        let container = &find(&self.objects, "DaemonSet")["spec"]["template"]["spec"]["initContainers"][0];
        assert_eq!(container.pointer("/securityContext/privileged"), Some(&json!(true)));
        let words = ["command", "args"].into_iter().flat_map(|part| container[part].as_array()).flatten();
        let words: Vec<&str> = words.filter_map(Value::as_str).collect();
        let (program, arguments) = words.split_first().context("a command")?;
        run(self.node.command(binary(program)).args(arguments).env("NODE_NAME", "node-a")).map(drop)
    }

    /// Waits for a container's readiness where the kubelet would look for it.
    fn wait_ready(&self, kind: &str) -> Result<()> {
        for probe in ["livenessProbe", "readinessProbe"] {
            let container = self.container(kind);
            let get = &container[probe]["httpGet"];
            let named = |port: &&Value| port["name"] == get["port"];
            let port = match container["ports"].as_array().and_then(|ports| ports.iter().find(named)) {
                Some(port) => &port["containerPort"],
                None => &get["port"],
            };
            let port = u16::try_from(port.as_u64().context("a port")?)?;
            // The pod's address is the node's; any is as good here.
            let host = get["host"].as_str().unwrap_or("127.0.0.1").parse()?;
            let address = SocketAddr::new(host, port);
            assert_eq!(wait_ok(&self.node, address, get["path"].as_str().context("a path")?), "ok");
        }
        Ok(())
    }

    /// What a volume of a Secret or a ConfigMap has, as files.
    fn files(&self, kind: &str) -> Result<TempDir> {
        let folder = scratch("proofs")?;
        for (name, value) in find(&self.objects, kind)["data"].as_object().context("it has data")? {
            let content = match kind {
                "Secret" => serde_json::from_value::<ByteString>(value.clone())?.0,
                _ => value.as_str().context("a text")?.as_bytes().to_vec(),
            };
            fs::write(folder.path().join(name), content)?;
        }
        Ok(folder)
    }

    /// The files of the server's account.
    fn account(&self) -> Result<TempDir> {
        let folder = scratch("account")?;
        fs::copy(self.cluster.authority(), folder.path().join("ca.crt"))?;
        fs::write(folder.path().join("token"), &self.token)?;
        fs::write(folder.path().join("namespace"), "any")?;
        Ok(folder)
    }
}

#[tokio::test]
async fn the_servers_account_may_do_what_it_does_and_nothing_else() -> Result<()> {
    let installed = Installed::new().await?;
    let server = installed.client().await?;
    for kind in [
        "/api/v1/services",
        "/api/v1/nodes",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "/apis/networking.k8s.io/v1/servicecidrs",
    ] {
        let list: Value = server.request(Request::get(kind).body(vec![])?).await?;
        assert!(list["items"].is_array(), "{list}");
        let watch = format!("{kind}?watch=true&timeoutSeconds=1");
        server.request_text(Request::get(&watch).body(vec![])?).await.context(watch)?;
    }
    let service = objects::service("default", "new", &json!({ "ports": [{ "port": 80 }] })).to_string();
    for (request, body) in [
        (Request::get("/api/v1/secrets"), ""),
        (Request::get("/api/v1/namespaces/default/secrets/any"), ""),
        (Request::get("/api/v1/namespaces/default/services/kubernetes"), ""),
        (Request::get("/api/v1/pods"), ""),
        (Request::post("/api/v1/namespaces/default/services"), &service),
        (Request::delete("/api/v1/namespaces/default/services/kubernetes"), ""),
        (Request::delete("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"), ""),
        (Request::delete("/api/v1/nodes/any"), ""),
    ] {
        let request = request.header("content-type", "application/json").body(body.as_bytes().to_vec())?;
        let what = format!("{} {}", request.method(), request.uri());
        match server.request::<Value>(request).await {
            Err(kube::Error::Api(status)) => assert_eq!(status.code, 403, "{what}: {status:?}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    // What it needs for agents' tokens.
    let keys = server.request_text(Request::get("/openid/v1/jwks").body(vec![])?).await?;
    assert!(keys.contains("keys"), "{keys}");
    server.request_text(Request::get("/.well-known/openid-configuration").body(vec![])?).await?;
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": "x" },
    });
    let review = Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
        .header("content-type", "application/json")
        .body(review.to_string().into_bytes())?;
    let reviewed: Value = server.request(review).await?;
    assert_ne!(reviewed.pointer("/status/authenticated"), Some(&json!(true)));
    // Agents have an account without rights, and no token for the API.
    let pods = &find(&installed.objects, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pods["automountServiceAccountToken"], false);
    Ok(())
}

#[tokio::test]
async fn both_programs_work_as_the_chart_starts_them() -> Result<()> {
    let installed = Installed::new().await?;
    let account = installed.account()?;
    let nothing = scratch("no-account")?;
    fs::write(nothing.path().join("empty"), "")?;

    objects::register_node(&installed.admin, "node-a", &json!({}), &["192.0.2.1".parse()?]).await?;
    let spec = json!({ "ports": [{ "name": "http", "port": 80 }] });
    let made = objects::apply(&installed.admin, &objects::service("default", "shop", &spec)).await?;
    let address = made.pointer("/spec/clusterIP").and_then(Value::as_str).context("a cluster IP")?;
    let ports = json!([{ "name": "http", "protocol": "TCP", "port": 8080 }]);
    let endpoints = json!([{ "addresses": ["10.244.0.5"], "conditions": { "ready": true } }]);
    let slice = objects::endpoint_slice("default", "shop-1", "shop", &ports, &endpoints);
    objects::apply(&installed.admin, &slice).await?;

    let secrets = installed.files("Secret")?;
    let _server = installed.start("Deployment", account.path(), secrets.path())?;
    installed.wait_ready("Deployment")?;
    let proofs = installed.files("ConfigMap")?;
    let pod = &find(&installed.objects, "DaemonSet")["spec"]["template"]["spec"];
    let name = pod["serviceAccountName"].as_str().context("an account")?;
    let audience = pod.pointer("/volumes/1/projected/sources/1/serviceAccountToken/audience");
    let audience = audience.and_then(Value::as_str).context("an audience")?;
    let bound = Bound::new(&installed.admin, &installed.namespace, name, "node-a").await?;
    fs::write(proofs.path().join("token"), bound.token(&installed.admin, audience).await?)?;
    installed.init()?;
    let _agent = installed.start("DaemonSet", nothing.path(), proofs.path())?;
    installed.wait_ready("DaemonSet")?;
    until("rules for the service", PATIENCE, || {
        let rules = installed.node.shell("iptables-save -t nat").ok()?;
        (rules.contains(&format!("-d {address}/32")) && rules.contains("--to-destination 10.244.0.5:8080"))
            .then_some(())
    });
    Ok(())
}
