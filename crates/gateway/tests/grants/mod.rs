//! What devices are answered over HTTP: tokens, by their id.

use std::time::Duration;

use countersign_gateway::{AdmittedDevice, Clock, DeviceHttp, TokenWish};
use countersign_registry::SystemClock;

/// Answers `/SECONDS` with the id of a token of that lifetime.
pub(crate) struct Grants;

type Answer = hyper::Response<http_body_util::Full<hyper::body::Bytes>>;

impl DeviceHttp for Grants {
    fn answer(
        &self,
        device: AdmittedDevice,
        request: hyper::Request<hyper::body::Incoming>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Answer> + Send>> {
        Box::pin(async move {
            let seconds = request.uri().path()[1..].parse().unwrap();
            let wish = TokenWish {
                scope: None,
                lifetime: Duration::from_secs(seconds),
                now: Clock::now(&SystemClock),
            };
            let (status, text) = match device.session.grant_token(wish) {
                Ok(view) => (200, view.id.to_string()),
                Err(_) => (403, String::new()),
            };
            let mut answer = hyper::Response::new(http_body_util::Full::from(text));
            *answer.status_mut() = hyper::StatusCode::from_u16(status).unwrap();
            answer
        })
    }
}
