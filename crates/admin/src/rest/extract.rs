//! Path segments and query parameters, refused with a reason when they do not fit.

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use geminga_model::{NamespaceName, TopicDomain, TopicName};
use serde::de::DeserializeOwned;

use crate::error::ApiError;
use crate::request;

/// The decoded segments of the path.
pub(crate) struct Segments<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(error) => Err(ApiError::bad_request(format!(
                "the path `{}` is not valid: {}",
                parts.uri.path(),
                error.body_text()
            ))),
        }
    }
}

/// The query parameters. Their types deny unknown names, so that a misspelt `force` is not lost.
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => {
                let text = error.body_text();
                // "Failed to deserialize query string: NAME: what is wrong".
                let text = text.split_once(": ").map_or("", |(_, what)| what);
                let reason = match text.split_once(": ") {
                    Some((_, what)) if what.starts_with("unknown field") => {
                        format!(
                            "a query parameter is not valid: {}",
                            request::explain_name(what)
                        )
                    }
                    Some((name, what)) => format!(
                        "the query parameter `{name}` is not valid: {}",
                        request::explain_name(what)
                    ),
                    None => format!(
                        "a query parameter is not valid: {}",
                        request::explain_name(text)
                    ),
                };
                Err(ApiError::bad_request(reason))
            }
        }
    }
}

/// A topic in the path: `/{tenant}/{namespace}/{topic}` behind its domain.
pub(crate) struct InPath(pub(crate) TopicName);

impl<S: Send + Sync> FromRequestParts<S> for InPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        #[derive(serde::Deserialize)]
        struct Named {
            tenant: String,
            namespace: String,
            topic: String,
        }
        let domain = domain_of(parts.uri.path());
        let Segments(Named {
            tenant,
            namespace,
            topic,
        }) = Segments::<Named>::from_request_parts(parts, state).await?;
        request::topic(domain, &tenant, &namespace, &topic).map(Self)
    }
}

/// A namespace in the path: `/{tenant}/{namespace}`.
pub(crate) struct NamespaceInPath(pub(crate) NamespaceName);

impl<S: Send + Sync> FromRequestParts<S> for NamespaceInPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        #[derive(serde::Deserialize)]
        struct Named {
            tenant: String,
            namespace: String,
        }
        let Segments(Named { tenant, namespace }) =
            Segments::<Named>::from_request_parts(parts, state).await?;
        request::namespace_name(&tenant, &namespace).map(Self)
    }
}

/// The domain that a path's resource stands for.
pub(crate) fn domain_of(path: &str) -> TopicDomain {
    if path.contains("/non-persistent/") {
        // A topic of that name cannot reach here: a slash in it is encoded.
        let first = path.find("/non-persistent/");
        if path
            .find("/persistent/")
            .is_none_or(|persistent| first < Some(persistent))
        {
            return TopicDomain::NonPersistent;
        }
    }
    TopicDomain::Persistent
}

/// Parameters that every call may carry and that mean nothing on one broker.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plain {
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
    #[serde(rename = "isGlobal")]
    _is_global: Option<bool>,
}

/// `force`, for deletions.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Force {
    #[serde(default)]
    pub(crate) force: bool,
    /// Still sent by Pulsar's client; a topic's schema goes with it, as in Pulsar.
    #[serde(rename = "deleteSchema")]
    _delete_schema: Option<bool>,
    #[serde(rename = "authoritative")]
    _authoritative: Option<bool>,
}

/// `includeSystemTopic`, for listings. `bundle` is refused: topics are not kept by bundle.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listing {
    #[serde(rename = "includeSystemTopic", default)]
    include_system_topic: bool,
    #[serde(default)]
    pub(crate) mode: Option<String>,
}

impl Listing {
    /// Refuses what the broker cannot list.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        if self.include_system_topic {
            return Err(ApiError::not_implemented(
                "`includeSystemTopic` is not implemented",
            ));
        }
        Ok(())
    }
}

/// The subscription in a path.
#[derive(serde::Deserialize)]
pub(super) struct Named {
    pub(super) subscription: String,
}

/// The topic and the subscription in a path, of a request without parameters.
pub(super) struct On {
    pub(super) topic: TopicName,
    pub(super) subscription: String,
}

impl<S: Send + Sync> FromRequestParts<S> for On {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let InPath(topic) = InPath::from_request_parts(parts, state).await?;
        let Segments(Named { subscription }) = Segments::from_request_parts(parts, state).await?;
        Params::<Plain>::from_request_parts(parts, state).await?;
        Ok(On {
            topic,
            subscription,
        })
    }
}

/// The number behind it.
pub(super) struct Number(pub(super) u64);

impl<S: Send + Sync> FromRequestParts<S> for Number {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        #[derive(serde::Deserialize)]
        struct Numbered {
            number: u64,
        }
        let Segments(Numbered { number }) = Segments::from_request_parts(parts, state).await?;
        Ok(Number(number))
    }
}
