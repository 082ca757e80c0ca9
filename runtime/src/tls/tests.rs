//! Both sides with certificates made on the spot.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use super::*;

struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    /// A certificate and its key.
    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

struct Files(TempDir);

impl Files {
    fn new(authority: &str, leaf: &(String, String)) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.put(authority, leaf);
        files
    }

    fn put(&self, authority: &str, (certificate, key): &(String, String)) {
        for (name, text) in [("ca", authority), ("crt", certificate), ("key", key)] {
            std::fs::write(self.path(name), text).unwrap();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, flag: &'static str, name: &str) -> PemFile {
        PemFile { flag, path: self.path(name) }
    }

    fn identity(&self) -> Identity {
        Identity { certificate: self.file("--cert", "crt"), key: self.file("--key", "key") }
    }

    fn acceptor(&self) -> Acceptor {
        Acceptor::new(self.identity(), Clients::Certified(self.file("--client-ca", "ca"))).unwrap()
    }

    fn connector(&self) -> Connector {
        Connector { authorities: self.file("--ca", "ca"), identity: Some(self.identity()) }
    }
}

/// What each side says of the other; nothing where it is content.
async fn meet(acceptor: &Acceptor, connector: &Connector, name: &str) -> (String, String) {
    let (here, there) = tokio::io::duplex(64 << 10);
    let accepting = async {
        match acceptor.accept(here).await {
            Ok(mut stream) => {
                stream.write_all(b"settings").await.unwrap();
                stream.flush().await.unwrap();
                (String::new(), Some(stream))
            }
            Err(why) => (why, None),
        }
    };
    let ((server, _open), client) = tokio::join!(accepting, connector.connect(there, name));
    (server, client.err().map(|e| format!("{e:#}")).unwrap_or_default())
}

fn content() -> (String, String) {
    (String::new(), String::new())
}

#[tokio::test]
async fn each_side_says_what_is_wrong_with_the_other() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let server = Files::new(&ours.1, &ours.leaf(|_| {}));
    let good = Files::new(&ours.1, &ours.leaf(|_| {}));
    assert_eq!(meet(&server.acceptor(), &good.connector(), "localhost").await, content());

    let (by_server, by_client) = meet(&server.acceptor(), &good.connector(), "other").await;
    assert_eq!(by_server, "it does not accept this server (BadCertificate)");
    assert!(by_client.starts_with("the server's certificate is not for other: dial a name"), "{by_client}");

    let expired = ours.leaf(|leaf| leaf.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let expired = Files::new(&ours.1, &expired);
    let shown = expired.path("crt").display().to_string();
    let (by_server, by_client) = meet(&server.acceptor(), &expired.connector(), "localhost").await;
    assert_eq!(by_server, "its certificate has expired");
    assert_eq!(by_client, format!("the server refused --cert {shown}: it has expired"));
    let (_, by_client) = meet(&expired.acceptor(), &good.connector(), "localhost").await;
    assert_eq!(by_client, "the server's certificate has expired");

    let foreign = Files::new(&ours.1, &theirs.leaf(|_| {}));
    let (by_server, by_client) = meet(&server.acceptor(), &foreign.connector(), "localhost").await;
    assert!(by_server.starts_with("its certificate is signed by none of the authorities in --client-ca /"));
    assert!(by_client.ends_with("it does not know the authority that signed it"), "{by_client}");
    let deceived = Files::new(&theirs.1, &ours.leaf(|_| {}));
    let (_, by_client) = meet(&server.acceptor(), &deceived.connector(), "localhost").await;
    assert!(by_client.starts_with("the server's certificate is signed by none of the authorities in --ca /"));

    let nameless = Connector { identity: None, ..good.connector() };
    let (by_server, by_client) = meet(&server.acceptor(), &nameless, "localhost").await;
    assert_eq!(by_server, "it shows no certificate");
    assert_eq!(by_client, "the server wants a certificate of this node: give --cert and --key");

    let for_servers = |leaf: &mut CertificateParams| {
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let wrong_use = Files::new(&ours.1, &ours.leaf(for_servers));
    let (by_server, _) = meet(&server.acceptor(), &wrong_use.connector(), "localhost").await;
    assert_eq!(by_server, "its certificate is not for this use");
}

#[tokio::test]
async fn who_does_not_speak_tls_is_told_from_who_is_not_trusted() {
    let ours = Authority::new("ours");
    let files = Files::new(&ours.1, &ours.leaf(|_| {}));
    let (here, mut there) = tokio::io::duplex(64 << 10);
    there.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    assert_eq!(files.acceptor().accept(here).await.unwrap_err(), "it does not speak TLS");

    let (here, mut there) = tokio::io::duplex(64 << 10);
    there.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let error = files.connector().connect(here, "localhost").await.unwrap_err();
    assert_eq!(error.to_string(), "the server does not speak TLS");
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_and_no_key_is_shown() {
    let ours = Authority::new("ours");
    let (one, other) = (ours.leaf(|_| {}), ours.leaf(|_| {}));
    let files = Files::new(&ours.1, &one);
    let error = |files: &Files| format!("{:#}", files.connector().check().unwrap_err());
    let at = |name: &str| files.path(name).display().to_string();

    files.put(&ours.1, &(one.0.clone(), other.1.clone()));
    assert_eq!(error(&files), format!("--key {} is not the key of --cert {}", at("key"), at("crt")));
    files.put(&ours.1, &(one.1.clone(), one.1.clone()));
    assert_eq!(error(&files), format!("--cert {}: there is no certificate in PEM form in it", at("crt")));
    files.put(&ours.1, &(one.0.clone(), one.0.clone()));
    assert_eq!(error(&files), format!("--key {}: there is no private key in PEM form in it", at("key")));
    files.put("", &one);
    assert_eq!(error(&files), format!("--ca {}: there is no certificate in PEM form in it", at("ca")));
    std::fs::remove_file(files.path("ca")).unwrap();
    assert_eq!(error(&files), format!("--ca {}: No such file or directory (os error 2)", at("ca")));
    std::fs::remove_file(files.path("crt")).unwrap();
    let error = Acceptor::new(files.identity(), Clients::Unproven).unwrap_err();
    assert!(format!("{error:#}").starts_with(&format!("--cert {}: No such file", at("crt"))), "{error:#}");
}

#[tokio::test(start_paused = true)]
async fn files_that_are_replaced_are_used_without_a_restart() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let server = Files::new(&old.1, &old.leaf(|_| {}));
    let agent = Files::new(&old.1, &old.leaf(|_| {}));
    let (acceptor, connector) = (Arc::new(server.acceptor()), agent.connector());
    assert_eq!(meet(&acceptor, &connector, "localhost").await, content());
    let _following = tokio::spawn(acceptor.clone().follow());
    tokio::time::sleep(Duration::from_secs(1)).await;

    // The key has not been written yet: what was there stays in use.
    let (leaf, agents) = (new.leaf(|_| {}), new.leaf(|_| {}));
    replace(&server.path("crt"), &leaf.0);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(meet(&acceptor, &connector, "localhost").await, content());

    server.put(&new.1, &leaf);
    agent.put(&new.1, &agents);
    // Reading is done by another thread, whose time does not stand still.
    for _ in 0..1000 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        if meet(&acceptor, &connector, "localhost").await == content() {
            return;
        }
    }
    panic!("the new certificates are not in use");
}

fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}
