//! The world that distributary's end-to-end tests, demo and benches run in: network namespaces with real packets, a
//! real kube-apiserver, and the programs under test as child processes. Nothing of distributary itself lives here.
//!
//! Everything is taken down when its owner is dropped. What is still there when the test process ends, in whatever way
//! (a shared control plane, a test that was killed), is taken down by [`janitor`].

pub mod api;
pub mod certificates;
pub mod controlplane;
mod credentials;
pub mod deployed;
mod etcd;
pub mod figures;
pub mod fleet;
pub mod forward;
pub mod janitor;
pub mod kube_proxy;
pub mod manifests;
pub mod netns;
pub mod node;
pub mod objects;
pub mod process;
pub mod shapes;
pub mod sim;
pub mod tokens;
pub mod topology;
pub mod traffic;
pub mod wait;
pub mod wire;
