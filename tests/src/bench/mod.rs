//! What `make bench` measures, and with what.

pub(crate) mod connections;
pub(crate) mod figures;
pub(crate) mod floor;
pub(crate) mod kube_proxy;
pub(crate) mod load;
pub(crate) mod node;
pub(crate) mod wire;
