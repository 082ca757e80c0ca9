use super::*;

fn names(manifest: &Manifest) -> Vec<String> {
    manifest.objects.iter().map(|one| format!("{}@{}", one.object.key(), one.line)).collect()
}

const TWO: &str = "# first\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  namespace: n\nspec:\n  \
    clusterIP: 10.0.0.1\n  ports:\n  - port: 80\n---\n# only a remark\n---\nkind: Node\napiVersion: v1\nmetadata: \
    {name: n1}\n";

#[test]
fn documents_are_placed_in_their_file() {
    let manifest = parse("a.yaml", TWO.as_bytes()).unwrap();
    assert_eq!(names(&manifest), ["Service n/a@3", "Node n1@15"]);
}

#[test]
fn errors_name_file_line_and_what() {
    for (text, line, part) in [
        (
            "kind: Service\napiVersion: v1\nmetadata: {name: a}\nspec:\n  ports: 5\n",
            5,
            "Service default/a: a list is wanted",
        ),
        ("# x\n---\nkind: Node\napiVersion: v1\nmetadata:\n\tname: a\n", 6, "tab"),
        ("apiVersion: v1\nmetadata: {name: a}\n", 1, "kind is missing"),
        ("\nkind: Service\n", 2, "apiVersion is missing"),
        ("kind: EndpointSlice\napiVersion: discovery.k8s.io/v1beta1\n", 1, "discovery.k8s.io/v1 is wanted"),
        ("kind: Node\napiVersion: v1\nmetadata: {}\n", 1, "metadata.name is missing"),
        ("- a\n- b\n", 1, ""),
    ] {
        let text = format!("{TWO}---\n{text}");
        let problem = parse("dir/a.yaml", text.as_bytes()).unwrap_err();
        let message = problem.to_string();
        assert_eq!(problem.line, 18 + line, "{message}");
        assert!(message.starts_with("dir/a.yaml:"), "{message}");
        assert!(message.contains(part), "{message}");
        assert!(!message.contains('\n') && !message.contains(" at line "), "{message}");
    }
    let problem = parse("a.yml", b"kind: a\n\xff").unwrap_err();
    assert_eq!(problem.to_string(), "a.yml:2: this is not UTF-8");
    let problem = parse("a.json", b"{\"kind\": 5,\n").unwrap_err();
    assert!(problem.to_string().starts_with("a.json:1: "), "{problem}");
}

#[test]
fn lists_hold_objects_of_many_kinds() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n\
        - {apiVersion: apps/v1, kind: Deployment, spec: {ports: odd}}\n- apiVersion: discovery.k8s.io/v1\n  kind: \
        EndpointSlice\n  metadata: {name: b}\n  addressType: IPv4\n";
    let manifest = parse("a.yaml", text.as_bytes()).unwrap();
    assert_eq!(names(&manifest), ["Service default/a@4", "EndpointSlice default/b@8"]);
    assert_eq!(manifest.skipped, [(7, "apps/v1 Deployment".to_owned())]);
}

#[test]
fn typed_lists_need_no_kinds_inside() {
    let json = r#"{"items": [{"metadata": {"name": "a"}}], "kind": "ServiceCIDRList",
        "apiVersion": "networking.k8s.io/v1"}"#;
    let manifest = parse("a.json", json.as_bytes()).unwrap();
    assert_eq!(names(&manifest), ["ServiceCIDR a@0"]);
    let yaml = "kind: NodeList\napiVersion: v1\nitems:\n- metadata:\n    name: a\n- metadata: {name: b}\n";
    assert_eq!(names(&parse("a.yaml", yaml.as_bytes()).unwrap()), ["Node a@4", "Node b@6"]);
    let empty = "kind: NodeList\napiVersion: v1\nitems: null\n";
    assert_eq!(names(&parse("a.yaml", empty.as_bytes()).unwrap()), [""; 0]);
}

#[test]
fn the_same_kind_of_another_group_is_another_thing() {
    let text = "kind: Service\napiVersion: serving.knative.dev/v1\nspec: []\n";
    let manifest = parse("a.yaml", text.as_bytes()).unwrap();
    assert_eq!((manifest.objects.len(), manifest.skipped.len()), (0, 1));
}

#[test]
fn a_large_list_is_no_attack() {
    let mut text = "apiVersion: v1\nkind: List\nitems:\n".to_owned();
    for i in 0..20_000 {
        text += &format!(
            "- {{apiVersion: v1, kind: Service, metadata: {{name: s{i}, labels: {{a: b, c: d}}}}, spec: {{ports: \
            [{{port: 80, name: http}}], clusterIP: 10.0.0.1}}}}\n"
        );
    }
    assert_eq!(parse("a.yaml", text.as_bytes()).unwrap().objects.len(), 20_000);
}
