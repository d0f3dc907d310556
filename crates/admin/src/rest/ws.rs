//! `/ws/v2` and `/ws/v3`: produce, consume and read over WebSockets, with Pulsar's paths and JSON.
//!
//! Owns the handshake: path, parameters, whether the caller may, and the place that a session takes.
//! The sessions use a client of this process, which the broker trusts, so everything that a caller
//! names is authorized here first. What must hold: what can't be opened is answered with an HTTP
//! status, before the connection becomes a WebSocket; a session holds a bounded number of bytes.

mod consume;
mod json;
mod params;
mod pass;
mod produce;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Extension, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use axum::routing::get;
use geminga_broker::auth::Session;
use geminga_client::{Client, Error, ServerError, Topics};
use geminga_model::{NamespaceName, TopicDomain, TopicName};
use geminga_stdx::Tasks;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Admin;
use super::extract::Params;
use super::rules::{CONSUME, PRODUCE, Rule, decode};
use crate::error::{Answer, ApiError};

use consume::{DeadLetters, Receiver, Source};
use params::{ConsumerParams, ProducerParams, ReaderParams};
use pass::Pass;
use wire::Wire;

/// Sessions at once; a further one is refused.
const SESSIONS_MAX: usize = 1024;

/// What the sessions share.
#[derive(Clone)]
pub(crate) struct Sockets {
    client: Client,
    tasks: Tasks,
    places: Arc<Semaphore>,
}

impl Sockets {
    pub(crate) fn new(client: Client, tasks: Tasks) -> Self {
        Self {
            client,
            tasks,
            places: Arc::new(Semaphore::new(SESSIONS_MAX)),
        }
    }
}

pub(super) fn router() -> Router<Admin> {
    let topic = "{domain}/{tenant}/{namespace}/{*topic}";
    Router::new()
        .route(&format!("/ws/v2/producer/{topic}"), get(producer))
        .route(&format!("/ws/v2/consumer/{topic}"), get(consumer))
        .route(&format!("/ws/v2/reader/{topic}"), get(reader))
        .route("/ws/v3/consumer/{subscription}", get(consumer_of_many))
}

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// A caller who may come in once what he wants is open.
struct Door {
    upgrade: WebSocketUpgrade,
    sockets: Sockets,
    place: OwnedSemaphorePermit,
    limits: wire::Limits,
    pass: Pass,
}

impl Door {
    fn find(admin: &Admin, upgrade: Upgrade, uri: &Uri, session: Session) -> Answer<Self> {
        let config = admin.broker().config();
        let sockets = admin
            .sockets()
            .filter(|_| config.web_socket_service_enabled)
            .ok_or_else(|| ApiError::not_found("`webSocketServiceEnabled` is false"))?;
        let upgrade = upgrade.map_err(|rejection| {
            ApiError::not_allowed(format!("this is a WebSocket: {}", rejection.body_text()))
        })?;
        let place = Arc::clone(&sockets.places).try_acquire_owned();
        let size = config.web_socket_max_text_frame_size;
        Ok(Self {
            upgrade: upgrade.max_message_size(size).max_frame_size(size),
            place: place.map_err(|_| {
                ApiError::unavailable(format!("there are {SESSIONS_MAX} WebSockets already"))
            })?,
            sockets: sockets.clone(),
            limits: wire::Limits::of(config),
            pass: Pass::new(admin.broker().clone(), session, uri.path()),
        })
    }

    fn enter<F>(self, session: impl FnOnce(Wire) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Self {
            upgrade,
            sockets,
            place,
            limits,
            pass,
        } = self;
        upgrade.on_upgrade(move |socket| async move {
            session(Wire::new(socket, limits, sockets.tasks, pass)).await;
            drop(place);
        })
    }
}

/// A topic, and the subscription where one follows it. As `rules` reads the path.
fn address(uri: &Uri, has_subscription: bool) -> Answer<(TopicName, String)> {
    let invalid = |what: &str| ApiError::bad_request(format!("`{}` {what}", uri.path()));
    let segments: Option<Vec<String>> = uri
        .path()
        .trim_end_matches('/')
        .split('/')
        .skip(4)
        .map(decode)
        .collect();
    let mut segments = segments.ok_or_else(|| invalid("is not percent-encoded text"))?;
    let subscription = match has_subscription {
        true => segments.pop().unwrap_or_default(),
        false => String::new(),
    };
    if has_subscription && subscription.is_empty() {
        return Err(ApiError::bad_request("Empty subscription name"));
    }
    let [domain, tenant, namespace, name @ ..] = segments.as_slice() else {
        return Err(invalid("names no topic"));
    };
    let domain = match domain.as_str() {
        "persistent" => TopicDomain::Persistent,
        "non-persistent" => TopicDomain::NonPersistent,
        _ => return Err(invalid("names no topic domain")),
    };
    let topic = NamespaceName::new(tenant, namespace)
        .and_then(|namespace| TopicName::new(domain, &namespace, &name.join("/")));
    Ok((
        topic.map_err(|e| invalid(&format!("names no topic: {e}")))?,
        subscription,
    ))
}

fn invalid(reason: impl std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!("Invalid query params: {reason}"))
}

/// The status that Pulsar gives.
fn refused(error: &Error) -> ApiError {
    let status = match error.server_error() {
        Some(ServerError::AuthenticationError) => StatusCode::UNAUTHORIZED,
        Some(ServerError::AuthorizationError) => StatusCode::FORBIDDEN,
        Some(ServerError::TopicNotFound | ServerError::SubscriptionNotFound) => {
            StatusCode::NOT_FOUND
        }
        Some(
            ServerError::ProducerBusy
            | ServerError::ConsumerBusy
            | ServerError::ProducerFenced
            | ServerError::IncompatibleSchema,
        ) => StatusCode::CONFLICT,
        Some(ServerError::TooManyRequests) => StatusCode::TOO_MANY_REQUESTS,
        Some(
            ServerError::ProducerBlockedQuotaExceededError
            | ServerError::ProducerBlockedQuotaExceededException
            | ServerError::TopicTerminatedError,
        ) => StatusCode::SERVICE_UNAVAILABLE,
        _ => match error {
            Error::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Error::Setting { .. } | Error::Topic { .. } | Error::Pattern { .. } => {
                StatusCode::BAD_REQUEST
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
    };
    ApiError {
        status,
        reason: format!("Failed to create producer/consumer: {error}"),
    }
}

async fn producer(
    State(admin): State<Admin>,
    uri: Uri,
    Extension(session): Extension<Session>,
    Params(params): Params<ProducerParams>,
    upgrade: Upgrade,
) -> Answer {
    let door = Door::find(&admin, upgrade, &uri, session)?;
    let (topic, _) = address(&uri, false)?;
    let window = params.window()?;
    let builder = params.apply(door.sockets.client.producer(topic.as_str()))?;
    let producer = builder.build().await.map_err(|error| refused(&error))?;
    Ok(door.enter(move |wire| produce::run(wire, producer, window)))
}

async fn consumer(
    State(admin): State<Admin>,
    uri: Uri,
    Extension(session): Extension<Session>,
    Params(params): Params<ConsumerParams>,
    upgrade: Upgrade,
) -> Answer {
    let door = Door::find(&admin, upgrade, &uri, session)?;
    let (topic, subscription) = address(&uri, true)?;
    if params.topics.is_some() || params.topics_pattern.is_some() {
        return Err(invalid(
            "`topics` and `topicsPattern` belong to `/ws/v3/consumer/SUBSCRIPTION`",
        ));
    }
    let topics = Topics::from(&topic);
    subscribe(&admin, door, params, (topics, topic), subscription).await
}

async fn consumer_of_many(
    State(admin): State<Admin>,
    uri: Uri,
    Extension(session): Extension<Session>,
    Params(params): Params<ConsumerParams>,
    upgrade: Upgrade,
) -> Answer {
    let mut door = Door::find(&admin, upgrade, &uri, session)?;
    let subscription = uri
        .path()
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .and_then(decode);
    let subscription = subscription.filter(|name| !name.is_empty());
    let subscription =
        subscription.ok_or_else(|| ApiError::bad_request("Empty subscription name"))?;
    let parse = |name: &str| name.trim().parse::<TopicName>().map_err(invalid);
    let (topics, first) = match (&params.topics, &params.topics_pattern) {
        (Some(names), None) => {
            let names: Vec<TopicName> = names.split(',').map(parse).collect::<Result<_, _>>()?;
            for topic in &names {
                let rule = Rule::Subscription(topic.clone(), subscription.clone());
                door.pass.require(rule)?;
            }
            let first = names[0].clone();
            (
                Topics::from(names.iter().map(TopicName::to_string).collect::<Vec<_>>()),
                first,
            )
        }
        (None, Some(pattern)) => {
            let first = parse(pattern)?;
            // Whatever the namespace will hold may match. The subscription may be for some roles
            // alone.
            let namespace = first.namespace_str().to_owned();
            door.pass.require(Rule::Namespace(namespace, CONSUME))?;
            let rule = Rule::Subscription(first.clone(), subscription.clone());
            door.pass.require(rule)?;
            (Topics::pattern(pattern.clone()), first)
        }
        (Some(_), Some(_)) => return Err(invalid("Topics must be null when use topicsPattern")),
        (None, None) => return Err(invalid("Should set topics or topicsPattern")),
    };
    subscribe(&admin, door, params, (topics, first), subscription).await
}

async fn subscribe(
    admin: &Admin,
    mut door: Door,
    params: ConsumerParams,
    (topics, first): (Topics, TopicName),
    subscription: String,
) -> Answer {
    let plan = params.plan(admin.broker().config())?;
    let mut dead_letters = None;
    if let Some(max) = plan.max_redeliver_count {
        let name = params.dead_letter_topic.clone();
        let name = name.unwrap_or_else(|| format!("{first}-{subscription}-DLQ"));
        let topic: TopicName = name.parse().map_err(invalid)?;
        door.pass.require(Rule::Topic(topic.clone(), PRODUCE))?;
        let client = door.sockets.client.clone();
        dead_letters = Some(DeadLetters::new(client, topic, subscription.clone(), max));
    }
    let builder = door
        .sockets
        .client
        .consumer(topics)
        .subscription(subscription);
    let consumer = params.apply(builder, &plan).build().await;
    let consumer = consumer.map_err(|error| refused(&error))?;
    let receiver = Receiver::new(Source::Consumer(consumer), plan, dead_letters);
    Ok(door.enter(move |wire| receiver.run(wire)))
}

async fn reader(
    State(admin): State<Admin>,
    uri: Uri,
    Extension(session): Extension<Session>,
    Params(params): Params<ReaderParams>,
    upgrade: Upgrade,
) -> Answer {
    let door = Door::find(&admin, upgrade, &uri, session)?;
    let (topic, _) = address(&uri, false)?;
    let plan = params.plan()?;
    let builder = params.apply(door.sockets.client.reader(topic.as_str()), &plan)?;
    let reader = builder.build().await.map_err(|error| refused(&error))?;
    let receiver = Receiver::new(Source::Reader(reader), plan, None);
    Ok(door.enter(move |wire| receiver.run(wire)))
}
