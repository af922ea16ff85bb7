//! `ui`: one page on this machine, served on 127.0.0.1 under a path that nobody can guess. It only reads.

mod data;

use std::{fmt::Write as _, net::Ipv4Addr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response, Sse, sse::KeepAlive},
    routing::get,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{net::TcpListener, sync::Mutex};

use crate::{
    access::{Access, Controller},
    args::Ui,
    commands::why,
    exit::{Exit, Failure},
    output::text,
};

const PAGE: &str = include_str!("../../../ui/index.html");
const SCRIPT: &str = include_str!("../../../ui/app.js");
const STYLE: &str = include_str!("../../../ui/style.css");
/// Bytes of the token.
const TOKEN: usize = 24;
/// Nothing is loaded from elsewhere, and no other page may show this one.
const POLICY: &str = "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// What all requests share.
#[derive(Clone)]
struct Served {
    access: Access,
    controller: Arc<Mutex<Controller>>,
}

/// One `ImageCache`, as a request names it.
#[derive(Clone, Debug, Deserialize)]
struct Of {
    namespace: String,
    name: String,
}

/// What `why` is asked.
#[derive(Clone, Debug, Deserialize)]
struct Asked {
    node: String,
    image: Option<String>,
}

/// Serves until it is interrupted.
pub async fn run(access: &Access, args: &Ui) -> Result<Exit, Failure> {
    let served = Served {
        access: access.clone(),
        controller: Arc::new(Mutex::new(Controller::connect(access).await?)),
    };
    let failed = |what: &str, error: &std::io::Error| Failure::Failed(format!("{what}: {error}"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await;
    let listener = listener.map_err(|error| failed("cannot listen on 127.0.0.1", &error))?;
    let address = listener.local_addr();
    let address = address.map_err(|error| failed("no address", &error))?;
    let token = token()?;
    text(&format!("http://{address}/{token}/\n"))?;
    let hosts = [address.to_string(), format!("localhost:{}", address.port())];
    let app = routes(&token, served).layer(middleware::from_fn(move |request, next| {
        guarded(hosts.clone(), request, next)
    }));
    let ended = async {
        // Without a signal handler the process ends by the signal itself.
        let _ = tokio::signal::ctrl_c().await;
    };
    tokio::select! {
        served = axum::serve(listener, app).into_future() => {
            served.map_err(|error| failed("cannot serve", &error))?;
        }
        () = ended => {}
    }
    Ok(Exit::Good)
}

fn routes(token: &str, served: Served) -> Router {
    let at = |path: &str| format!("/{token}/{path}");
    let file = |kind: &'static str, text: &'static str| {
        get(async move || ([(header::CONTENT_TYPE, kind)], text))
    };
    Router::new()
        .route(&at(""), file("text/html; charset=utf-8", PAGE))
        .route(
            &at("app.js"),
            file("text/javascript; charset=utf-8", SCRIPT),
        )
        .route(&at("style.css"), file("text/css; charset=utf-8", STYLE))
        .route(&at("api/caches"), get(caches))
        .route(&at("api/matrix"), get(matrix))
        .route(&at("api/registries"), get(registries))
        .route(&at("api/why"), get(explain))
        .route(&at("events"), get(events))
        .with_state(served)
}

/// A name that somebody made point to this machine is not served, and nothing is stored.
async fn guarded(hosts: [String; 2], request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or("");
    if !hosts.iter().any(|known| known == host) {
        return StatusCode::MISDIRECTED_REQUEST.into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let policy = header::HeaderValue::from_static(POLICY);
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    let never = header::HeaderValue::from_static("no-store");
    headers.insert(header::CACHE_CONTROL, never);
    let none = header::HeaderValue::from_static("no-referrer");
    headers.insert(header::REFERRER_POLICY, none);
    response
}

/// A random path.
fn token() -> Result<String, Failure> {
    let mut random = [0_u8; TOKEN];
    let source = rustls::crypto::ring::default_provider().secure_random;
    let filled = source.fill(&mut random);
    filled.map_err(|_| Failure::Failed("there are no random numbers".to_owned()))?;
    Ok(random.iter().fold(String::new(), |mut token, byte| {
        // Writing to a String cannot fail.
        let _ = write!(token, "{byte:02x}");
        token
    }))
}

/// JSON, or what went wrong.
fn answer<T: Serialize>(answer: Result<T, Failure>) -> Response {
    match answer {
        Ok(answer) => Json(answer).into_response(),
        Err(failure) => {
            let error = json!({"error": failure.to_string()});
            (StatusCode::BAD_GATEWAY, Json(error)).into_response()
        }
    }
}

async fn caches(State(served): State<Served>) -> Response {
    let caches = served.controller.lock().await.caches().await;
    answer(caches.map(|caches| data::names(&caches)))
}

async fn matrix(State(served): State<Served>, Query(of): Query<Of>) -> Response {
    let mut controller = served.controller.lock().await;
    let matrix = controller.matrix(&of.namespace, &of.name).await;
    answer(matrix.map(data::Matrix::of))
}

async fn registries(State(served): State<Served>) -> Response {
    let registries = served.controller.lock().await.list_registries().await;
    answer(registries.map(|list| data::Registries::of(&list)))
}

async fn explain(State(served): State<Served>, Query(asked): Query<Asked>) -> Response {
    let mut controller = served.controller.lock().await;
    let (node, image) = (&asked.node, asked.image.as_deref());
    answer(why::ask(&served.access, &mut controller, node, image).await)
}

async fn events(State(served): State<Served>, Query(of): Query<Of>) -> Response {
    let request = data::watched(of.namespace, of.name);
    let stream = served.controller.lock().await.watch(&request).await;
    match stream {
        Ok(stream) => {
            let steps = Sse::new(data::steps(stream));
            steps.keep_alive(KeepAlive::default()).into_response()
        }
        Err(failure) => answer::<()>(Err(failure)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tokens_are_equal_and_none_is_short() {
        let (one, other) = (token().expect("a token"), token().expect("a token"));
        assert_ne!(one, other);
        assert_eq!(one.len(), 2 * TOKEN);
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        for text in [PAGE, SCRIPT, STYLE] {
            assert!(
                !text.contains("//cdn")
                    && !text.contains("https://")
                    && !text.contains("innerHTML")
            );
        }
    }
}
