//! How a command reaches the platform: over the admin API if a server runs on the data directory, otherwise through
//! the same router in this process.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tower::ServiceExt;

use crate::api::{self, Token};
use crate::config::Config;
use crate::failure::Failure;
use crate::service::Service;

/// Where the running server's admin listener is, as it left it in the data directory.
pub const ADDRESS_FILE: &str = "admin.addr";

/// A way to the API.
pub struct Client {
    way: Way,
    token: Token,
}

enum Way {
    Server(SocketAddr),
    Here(Router),
}

impl Client {
    /// Finds the server of a data directory, or opens the directory itself.
    ///
    /// # Errors
    /// [`Failure`] if there is neither.
    pub async fn connect(data: &Path, config: Config) -> Result<Self, Failure> {
        if let Some(address) = running(data).await {
            return Ok(Self {
                way: Way::Server(address),
                token: Token::load(data)?,
            });
        }
        let service = Arc::new(Service::open(data, config)?);
        let token = Token::load(data)?;
        Ok(Self {
            way: Way::Here(api::router(service, token.clone())),
            token,
        })
    }

    /// Calls an endpoint below `/api/v1`.
    ///
    /// # Errors
    /// The problem that the API tells, or that it cannot be reached.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, Failure> {
        self.call_with_key(method, path, body, None).await
    }

    /// The same with an idempotency key.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub async fn call_with_key(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        key: Option<&str>,
    ) -> Result<Value, Failure> {
        let user = std::env::var("USER").unwrap_or_else(|_| "unknown".into());
        let mut request = Request::builder();
        if let Some(key) = key {
            let value = header::HeaderValue::from_str(key).map_err(|_| {
                Failure::invalid("the idempotency key has control characters; hint: take a UUID")
            })?;
            request = request.header("idempotency-key", value);
        }
        let request = request
            .method(method)
            .uri(format!("/api/v1{path}"))
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, self.token.header())
            .header("x-countersign-actor", format!("cli:{user}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.map(|b| b.to_string()).unwrap_or_default()))
            .map_err(|e| Failure::internal(e.to_string()))?;
        let (status, bytes) = match &self.way {
            Way::Here(router) => {
                let answer = router
                    .clone()
                    .oneshot(request)
                    .await
                    .map_err(|e| Failure::internal(e.to_string()))?;
                let status = answer.status();
                let bytes = answer
                    .into_body()
                    .collect()
                    .await
                    .map_err(|e| Failure::internal(e.to_string()))?;
                (status, bytes.to_bytes())
            }
            Way::Server(address) => remote(*address, request).await?,
        };
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Failure::internal(format!("the server's answer cannot be read: {e}")))?;
        if status.is_success() {
            return Ok(value);
        }
        Err(Failure {
            status: status.as_u16(),
            message: value["detail"]
                .as_str()
                .unwrap_or("the server refused")
                .to_owned(),
            hint: value["hint"].as_str().map(str::to_owned),
            state: None,
        })
    }
}

async fn remote(address: SocketAddr, request: Request<Body>) -> Result<(StatusCode, bytes::Bytes), Failure> {
    let lost = |e: &dyn std::fmt::Display| {
        Failure::unavailable(
            format!("the server at {address} does not answer: {e}"),
            "look at its log",
        )
    };
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .map_err(|e| lost(&e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| lost(&e))?;
    let driving = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|e| lost(&e))?;
    let status = answer.status();
    let bytes = answer
        .into_body()
        .collect()
        .await
        .map_err(|e| lost(&e))?
        .to_bytes();
    driving.abort();
    Ok((status, bytes))
}

/// The admin address of the server that runs on a data directory, if one answers.
async fn running(data: &Path) -> Option<SocketAddr> {
    let text = std::fs::read_to_string(data.join(ADDRESS_FILE)).ok()?;
    let address: SocketAddr = text.trim().parse().ok()?;
    let connected =
        tokio::time::timeout(Duration::from_secs(2), tokio::net::TcpStream::connect(address)).await;
    connected.ok()?.ok()?;
    Some(address)
}
