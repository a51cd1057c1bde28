//! The wire: generated gRPC code, TLS as every Hallmark connection uses it, and the only door between
//! wire types and core types.
//!
//! **In scope:** `hallmark.issuer.v1`, `hallmark.agent.v1`, `hallmark.admin.v1`; mutual TLS by SPIFFE ID
//! and tier; conversions. **Not in scope:** deciding anything.
#![forbid(unsafe_code)]

/// `hallmark.issuer.v1`: host daemon to issuer.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod issuer {
    tonic::include_proto!("hallmark.issuer.v1");
}

/// `hallmark.agent.v1`: agent to host daemon.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod agent {
    tonic::include_proto!("hallmark.agent.v1");
}

/// `hallmark.admin.v1`: operator to issuer.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod admin {
    tonic::include_proto!("hallmark.admin.v1");
}

pub mod codec;
pub mod tls;
