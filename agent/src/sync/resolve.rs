//! The servers of the command line, with their names resolved to all their addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use distributary_runtime::backoff::Backoff;
use tokio::sync::watch;

use super::dial::Server;

/// How often names are looked up again.
const PERIOD: Duration = Duration::from_secs(30);

/// Tells the servers whenever they are others than before. Those that are told by address are known at once; a name that
/// cannot be resolved is what it was when it could.
pub async fn resolve(servers: Vec<String>, tell: watch::Sender<Vec<Server>>) {
    let mut known: BTreeMap<usize, Vec<Server>> = BTreeMap::new();
    let mut names = Vec::new();
    for (place, server) in servers.into_iter().enumerate() {
        let one = Server::new(server);
        match one.host.parse::<IpAddr>() {
            Ok(_) => _ = known.insert(place, vec![one]),
            Err(_) => names.push((place, one)),
        }
    }
    let mut backoff = Backoff::new(Duration::from_secs(1), PERIOD);
    loop {
        let all: Vec<Server> = known.values().flatten().cloned().collect();
        tell.send_if_modified(|told| {
            let news = *told != all;
            *told = all;
            news
        });
        if names.is_empty() {
            return std::future::pending().await;
        }
        let mut failed = false;
        for (place, name) in &names {
            match tokio::net::lookup_host(&name.address).await {
                Ok(addresses) => {
                    let host = &name.host;
                    let server = |address: std::net::SocketAddr| Server {
                        address: address.to_string(),
                        host: host.clone(),
                    };
                    let mut found: Vec<Server> = addresses.map(server).collect();
                    found.sort();
                    found.dedup();
                    known.insert(*place, found);
                }
                Err(e) => {
                    failed = true;
                    tracing::warn!(server = name.address, error = %e, "the server's name cannot be resolved");
                }
            }
        }
        let news = known.values().flatten().ne(tell.borrow().iter());
        if news {
            continue;
        }
        if failed {
            tokio::time::sleep(backoff.next_delay()).await;
        } else {
            backoff.reset();
            tokio::time::sleep(PERIOD).await;
        }
    }
}
