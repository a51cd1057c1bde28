//! What operators may order about CAs.

use std::sync::Arc;

use hallmark_core::rotation::Stage;
use hallmark_core::tier::Hierarchy;
use hallmark_proto::admin as wire;
use tonic::Status;

use super::Operator;
use super::service::MAX_REASON;
use super::show::{cas, shown};
use crate::authority::{self, OrderError};
use crate::config::Roots;
use crate::issuer::Issuer;
use crate::status;
use crate::store::Authority;

pub(super) async fn list(issuer: &Issuer, all: bool) -> Result<wire::CasResponse, Status> {
    let cas = cas(issuer, all).await.map_err(|e| status::admin(&e))?;
    let notes = missing(issuer);
    Ok(wire::CasResponse { cas, notes })
}

pub(super) async fn rotate(
    issuer: &Arc<Issuer>,
    operator: Operator,
    request: wire::RotateCaRequest,
) -> Result<wire::CasResponse, Status> {
    let hierarchies = match request.hierarchy.as_str() {
        "" => Hierarchy::ALL.to_vec(),
        named => vec![hierarchy(named)?],
    };
    to_the_end(issuer, move |issuer| async move {
        let mut stored = Vec::new();
        for hierarchy in hierarchies {
            stored = authority::rotate(&issuer, &operator, hierarchy, request.root).await?;
        }
        Ok(answer(&issuer, &stored))
    })
    .await
}

pub(super) async fn taint(
    issuer: &Arc<Issuer>,
    operator: Operator,
    request: wire::TaintCaRequest,
) -> Result<wire::CasResponse, Status> {
    let hierarchy = hierarchy(&request.hierarchy)?;
    let reason = request.reason.trim().to_owned();
    if reason.is_empty() || reason.len() > MAX_REASON {
        return Err(Status::invalid_argument(format!(
            "a CA is tainted with a reason of 1 to {MAX_REASON} bytes; it stands in the record"
        )));
    }
    let generation = (request.generation != 0).then_some(request.generation);
    to_the_end(issuer, move |issuer| async move {
        let stored =
            authority::taint(&issuer, &operator, hierarchy, request.root, generation, &reason).await?;
        Ok(answer(&issuer, &stored))
    })
    .await
}

pub(super) async fn request(
    issuer: &Arc<Issuer>,
    operator: Operator,
    named: &str,
) -> Result<wire::RequestCaResponse, Status> {
    let hierarchy = hierarchy(named)?;
    to_the_end(issuer, move |issuer| async move {
        let authority::Request { csr, authority } = authority::request(&issuer, &operator, hierarchy).await?;
        let (generation, key) = (authority.generation, authority.key_label);
        Ok(wire::RequestCaResponse { csr: csr.into(), generation, key })
    })
    .await
}

pub(super) async fn install(
    issuer: &Arc<Issuer>,
    operator: Operator,
    request: wire::InstallCaRequest,
) -> Result<wire::InstallCaResponse, Status> {
    let hierarchy = hierarchy(&request.hierarchy)?;
    let root = (!request.root.is_empty()).then(|| request.root.to_vec());
    let certificate = request.certificate.to_vec();
    to_the_end(issuer, move |issuer| async move {
        let installed = authority::install(&issuer, &operator, hierarchy, certificate, root).await?;
        Ok(match installed {
            Ok(stored) => wire::InstallCaResponse { cas: shown(&issuer, &stored, false), faults: Vec::new() },
            Err(faults) => wire::InstallCaResponse { faults, cas: Vec::new() },
        })
    })
    .await
}

/// An order that has begun is carried out, whether or not anybody waits for its answer.
async fn to_the_end<T: Send + 'static, F>(
    issuer: &Arc<Issuer>,
    order: impl FnOnce(Arc<Issuer>) -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<T, OrderError>> + Send + 'static,
{
    let done = tokio::spawn(order(issuer.clone())).await;
    issuer.ca_is_due();
    done.map_err(|_| Status::internal("the order ended in the middle; see the issuer's log"))?.map_err(
        |error| match error {
            OrderError::Dev | OrderError::Refused(_) => Status::failed_precondition(error.to_string()),
            OrderError::Failed(_) => {
                tracing::error!(%error, "an order about a CA failed");
                Status::internal(error.to_string())
            }
        },
    )
}

fn hierarchy(text: &str) -> Result<Hierarchy, Status> {
    text.parse().map_err(|e: hallmark_core::tier::UnknownWord| Status::invalid_argument(e.to_string()))
}

fn answer(issuer: &Issuer, stored: &[Authority]) -> wire::CasResponse {
    let waits = stored.iter().filter(|a| a.stage == Stage::Published).map(|root| {
        let overlap = humantime::format_duration(issuer.config().rotation.overlap);
        format!(
            "{} is in the bundle and signs from {overlap} after that, once every connected host has it",
            root.name()
        )
    });
    let tainted = stored.iter().filter(|a| a.stage == Stage::Tainted && a.withdrawn_at.is_none()).map(|a| {
        let grace = issuer.config().rotation.taint_grace.as_secs();
        format!(
            "{} is tainted: its holders renew within {} s; what they have not renewed is revoked {grace} s later",
            a.name(),
            a.renew_within
        )
    });
    let notes = waits.chain(tainted).chain(missing(issuer)).collect();
    wire::CasResponse { cas: shown(issuer, stored, false), notes }
}

/// Hierarchies that cannot sign, with what is to be done.
fn missing(issuer: &Issuer) -> Vec<String> {
    let in_force = issuer.ca().in_force();
    let without = Hierarchy::ALL.into_iter().filter(|h| in_force.active(*h).is_none());
    let remedy = |h: Hierarchy| match issuer.config().roots {
        Roots::Offline => format!(
            "no {h} issuing CA signs: `hallmark ca csr {h}`, have the root sign it, `hallmark ca install {h} FILE`"
        ),
        _ => format!("no {h} issuing CA signs: see the issuer's log"),
    };
    without.map(remedy).collect()
}
