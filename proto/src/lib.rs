//! The wire contract between distributary-server and distributary-agent, generated from
//! `distributary/v1/distribution.proto`, whose comments are the specification.
#![allow(missing_docs, unreachable_pub, clippy::all)]

/// Version 1 of the contract.
pub mod v1 {
    tonic::include_proto!("distributary.v1");

    /// Whatever is printed, a token is not.
    impl std::fmt::Debug for Credential {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Credential(…)")
        }
    }
}
