//! What can go wrong with one request, and its words.

use crate::StoreError;
use etcd_client as etcd;
use std::error::Error as _;
use std::time::Duration;
use tonic::{Code, ConnectError};

/// Why one request did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client's words.
    Etcd(etcd::Error),
    /// It was not even sent: the login can't be done.
    Refused(String),
    /// No answer within this time.
    Silent(Duration),
}

impl From<etcd::Error> for Failure {
    fn from(error: etcd::Error) -> Self {
        Failure::Etcd(error)
    }
}

impl Failure {
    /// Another member may do better: this one can't be reached, or it has no leader.
    pub(super) fn is_about_member(&self) -> bool {
        match self {
            Failure::Etcd(etcd::Error::GRpcStatus(status)) => {
                status.code() == Code::Unavailable || status.source().is_some()
            }
            Failure::Etcd(etcd::Error::TransportError(_)) | Failure::Silent(_) => true,
            Failure::Etcd(_) | Failure::Refused(_) => false,
        }
    }

    /// There was no connection, so the request surely had no effect.
    pub(super) fn was_not_sent(&self) -> bool {
        let Failure::Etcd(etcd::Error::GRpcStatus(status)) = self else { return false };
        let mut cause = status.source();
        while let Some(error) = cause {
            if error.is::<ConnectError>() {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// The answer has more bytes than a message may have.
    pub(super) fn is_too_large(&self) -> bool {
        self.is_out_of_range("too large")
    }

    /// The revision that was asked for is not kept any more.
    pub(super) fn is_compacted(&self) -> bool {
        self.is_out_of_range("compacted")
    }

    fn is_out_of_range(&self, text: &str) -> bool {
        matches!(self, Failure::Etcd(etcd::Error::GRpcStatus(status))
                 if status.code() == Code::OutOfRange && status.message().contains(text))
    }

    /// As callers of the store see it.
    pub(super) fn told(self, endpoints: &str) -> StoreError {
        let endpoints = endpoints.to_owned();
        let error = match self {
            Failure::Silent(after) => return StoreError::Timeout { endpoints, after },
            Failure::Refused(reason) => return StoreError::Denied { endpoints, reason },
            Failure::Etcd(error) => error,
        };
        let reason = match &error {
            // The status carries headers and details that say nothing to a reader.
            etcd::Error::GRpcStatus(status) if status.message().contains("requested lease not found") => {
                return StoreError::LeaseExpired;
            }
            etcd::Error::GRpcStatus(status) => causes(status.message(), status.source()),
            etcd::Error::TransportError(transport) => causes(&error.to_string(), transport.source()),
            error => causes(&error.to_string(), error.source()),
        };
        if is_denial(&error) {
            return StoreError::Denied { endpoints, reason };
        }
        StoreError::Unavailable { endpoints, reason }
    }
}

fn is_denial(error: &etcd::Error) -> bool {
    let etcd::Error::GRpcStatus(status) = error else { return false };
    let by_text = ["authentication failed", "user name is empty"].iter().any(|text| status.message().contains(text));
    by_text || matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated)
}

/// One line; a cause that is part of what stands there already is not said again.
fn causes(text: &str, mut cause: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut line = text.to_owned();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}
