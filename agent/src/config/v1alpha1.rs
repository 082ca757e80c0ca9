//! A configuration in the shape that kube-proxy's has.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::file::{API_VERSION, KIND};
use super::{Backend, Config, DetectLocal, DetectLocalMode, NodePortAddresses, duration};

impl Config {
    /// As `/configz` serves it.
    pub fn to_configz(&self) -> Value {
        json!({ "kubeproxy.config.k8s.io": self.to_v1alpha1() })
    }

    /// As a file has it; everything that applies, and nothing else.
    pub fn to_v1alpha1(&self) -> Value {
        let (mode, bridge, prefix) = match &self.detect_local {
            DetectLocal::ClusterCidr => (DetectLocalMode::ClusterCidr, "", ""),
            DetectLocal::NodeCidr => (DetectLocalMode::NodeCidr, "", ""),
            DetectLocal::Bridge(name) => (DetectLocalMode::BridgeInterface, &**name, ""),
            DetectLocal::Prefix(prefix) => (DetectLocalMode::InterfaceNamePrefix, "", &**prefix),
        };
        let mode = mode.to_possible_value().map(|value| value.get_name().to_owned());
        let listen = |at: Option<std::net::SocketAddr>| at.map_or("off".to_owned(), |at| at.to_string());
        let texts = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        let node_ports = match &self.node_ports {
            NodePortAddresses::Primary => vec!["primary".to_owned()],
            NodePortAddresses::Within(nets) => texts(nets),
        };
        let conntrack = &self.conntrack;
        let section = if self.backend == Backend::Nftables { "nftables" } else { "iptables" };
        json!({
            "apiVersion": API_VERSION,
            "kind": KIND,
            "mode": self.backend.as_str(),
            "hostnameOverride": &*self.node,
            "bindAddress": self.bind_address,
            "bindAddressHardFail": self.bind_address_hard_fail,
            "healthzBindAddress": listen(self.healthz),
            "metricsBindAddress": listen(self.metrics),
            "detectLocalMode": mode,
            "detectLocal": { "bridgeInterface": bridge, "interfaceNamePrefix": prefix },
            "clusterCIDR": texts(&self.cluster_cidr).join(","),
            "nodePortAddresses": node_ports,
            (section): {
                "masqueradeBit": self.masquerade_bit,
                "masqueradeAll": self.masquerade_all,
                "localhostNodePorts": self.localhost_node_ports,
                "syncPeriod": duration::text(self.sync_period),
                "minSyncPeriod": duration::text(self.min_sync_period),
            },
            "conntrack": {
                "maxPerCore": conntrack.max_per_core,
                "min": conntrack.min,
                "tcpEstablishedTimeout": duration::text(conntrack.tcp_established),
                "tcpCloseWaitTimeout": duration::text(conntrack.tcp_close_wait),
                "tcpBeLiberal": conntrack.tcp_be_liberal,
                "udpTimeout": duration::text(conntrack.udp),
                "udpStreamTimeout": duration::text(conntrack.udp_stream),
            },
            "oomScoreAdj": self.oom_score_adj,
        })
    }
}
