//! The demo page and the browser client, embedded in the binary.

use std::sync::Arc;

use http::StatusCode;
use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_FRAME_OPTIONS,
};
use serde::Deserialize;
use warp::Filter;
use warp::filters::BoxedFilter;

use crate::http::answers::{self, Answer, answer};
use crate::http::server::with;
use crate::json;
use crate::names;
use crate::node::Node;

/// How long a sign-in on the demo page lasts.
const DEV_TOKEN_SECONDS: u64 = 12 * 3600;

/// `/client.js` always; the page and its sign-in only with `--dev`.
pub(crate) fn routes(node: &Arc<Node>) -> BoxedFilter<(Answer,)> {
    let client = asset("client.js", "text/javascript; charset=utf-8", include_str!("../../../clients/js/client.js"))
        .map(|mut file: Answer| {
            // Pages of the site are often of another origin, and a module is only imported from there if it may be.
            file.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            file
        })
        .boxed();
    if !node.config.dev {
        return client;
    }
    let index = warp::path::end()
        .and(warp::get())
        .map(|| file("text/html; charset=utf-8", include_str!("../../assets/index.html")))
        .boxed();
    client
        .or(index)
        .unify()
        .or(asset("style.css", "text/css; charset=utf-8", include_str!("../../assets/style.css")))
        .unify()
        .or(asset("app.js", "text/javascript; charset=utf-8", include_str!("../../assets/app.js")))
        .unify()
        .or(asset("icon.svg", "image/svg+xml", include_str!("../../assets/icon.svg")))
        .unify()
        .or(login(node))
        .unify()
        .boxed()
}

fn asset(name: &'static str, content_type: &'static str, text: &'static str) -> BoxedFilter<(Answer,)> {
    warp::path(name).and(warp::path::end()).and(warp::get()).map(move || file(content_type, text)).boxed()
}

fn file(content_type: &'static str, text: &'static str) -> Answer {
    let mut response = answer(StatusCode::OK, content_type, text.to_owned());
    let headers = response.headers_mut();
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'",
        ),
    );
    response
}

#[derive(Deserialize)]
struct Login {
    username: String,
}

fn login(node: &Arc<Node>) -> BoxedFilter<(Answer,)> {
    warp::path!("dev" / "login")
        .and(warp::post())
        .and(with(node))
        .and(warp::body::content_length_limit(4096))
        .and(warp::body::bytes())
        .map(|node: Arc<Node>, body: bytes::Bytes| {
            let Ok(Login { username }) = json::read(&body) else {
                return answers::json(StatusCode::BAD_REQUEST, &serde_json::json!({"detail": "username is missing"}));
            };
            if let Err(detail) = names::check_user(&username) {
                return answers::json(StatusCode::BAD_REQUEST, &serde_json::json!({"detail": detail}));
            }
            match node.sign_in.tokens.auth.sign(&username, None, DEV_TOKEN_SECONDS) {
                Ok(token) => answers::json(StatusCode::OK, &serde_json::json!({"username": username, "token": token})),
                Err(_) => answers::json(StatusCode::INTERNAL_SERVER_ERROR, &serde_json::json!({"detail": "no token"})),
            }
        })
        .boxed()
}
