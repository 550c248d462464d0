//! HTTP on the device listeners: an admitted device renews its certificate, fetches the CA certificates, takes tokens and
//! publishes over the connection that it has a session on. When the session ends, so does this. A device whose certificate is
//! for enrolment alone has no session, and enrols over such a connection all the same.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use countersign_factory::est::{BASE, Extra};
use countersign_gateway::{AdmittedDevice, DeviceHttp, EnrollingDevice};
use hyper::Request;
use hyper::body::Incoming;

use super::client::Peer;
use super::est;
use crate::service::Service;
use crate::tokens::{discovery, endpoints, publish};

/// Answers admitted devices.
pub struct DevicePort(Arc<Service>);

impl DevicePort {
    /// On an open data directory.
    pub fn new(service: Arc<Service>) -> Self {
        Self(service)
    }
}

impl DeviceHttp for DevicePort {
    fn answer(
        &self,
        device: AdmittedDevice,
        request: Request<Incoming>,
    ) -> Pin<Box<dyn Future<Output = countersign_gateway::http::Answer> + Send>> {
        let service = self.0.clone();
        Box::pin(async move {
            let path = request.uri().path();
            match path {
                "/oauth2/token" => return endpoints::token(&service, &device, request).await,
                "/oauth2/revoke" => return endpoints::revoke(&service, &device, request).await,
                _ if path.starts_with(publish::PREFIX) => {
                    return publish::publish(&service, &device, request).await;
                }
                _ => {}
            }
            if let Some(answer) = discovery::answer(&service, request.method(), path) {
                return answer;
            }
            let peer = Peer {
                source: device.source,
                // The session is bound to the certificate already.
                binding: None,
                chain: Some(device.chain.to_vec()),
            };
            est::answer(&service, &peer, request).await
        })
    }

    fn is_enrolment(&self, path: &str) -> bool {
        path.starts_with(BASE) || path.starts_with(Extra::BASE)
    }

    /// As on an enrolment listener: [`Peer::identify`] judges the certificate anew at each request.
    fn enrol(
        &self,
        device: EnrollingDevice,
        request: Request<Incoming>,
    ) -> Pin<Box<dyn Future<Output = countersign_gateway::http::Answer> + Send>> {
        let service = self.0.clone();
        Box::pin(async move {
            let peer = Peer {
                source: device.source,
                binding: None,
                chain: Some(device.chain.to_vec()),
            };
            est::answer(&service, &peer, request).await
        })
    }
}
