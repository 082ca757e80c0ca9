//! distributary-server: watches Services, EndpointSlices, Nodes and ServiceCIDRs, and streams what changes to agents.

pub mod source;
