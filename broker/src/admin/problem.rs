//! Errors as RFC 9457 problem documents, with the code and reason that every other hop uses.

use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use weir_protocol::error_code::ErrorCode;

/// A refusal over HTTP.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) code: ErrorCode,
    pub(super) detail: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::BadRequest, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "type": format!("urn:weir:error:{:04x}", self.code.number()),
            "title": self.code.name(),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": format!("{:04x}", self.code.number()),
            "reason": self.code.reason(),
        });
        let content_type = (header::CONTENT_TYPE, "application/problem+json");
        let mut response = (self.status, [content_type], body.to_string()).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

pub(super) async fn no_route(uri: Uri) -> Problem {
    let detail =
        format!("{} is not served; see /v1/topics, /v1/cluster, /v1/flow, /metrics", uri.path());
    Problem::new(StatusCode::NOT_FOUND, ErrorCode::BadRequest, detail)
}

pub(super) async fn no_method(method: Method) -> Problem {
    let detail =
        format!("{method} is not served here; what shows takes GET, what changes POST or DELETE");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::BadRequest, detail)
}
