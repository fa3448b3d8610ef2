use super::*;
use axum::body::Body;
use axum::http::{HeaderValue, Method};
use axum::routing::put;
use tower::ServiceExt as _;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Weights {
    locators: Vec<Locator>,
}

#[derive(Debug, Deserialize)]
struct Locator {
    weight: u8,
}

#[derive(Debug, Deserialize)]
struct Limit {
    limit: Option<u8>,
}

fn api() -> Router {
    let put_weights = |JsonBody(w): JsonBody<Weights>| async move {
        w.locators.iter().map(|l| u32::from(l.weight)).sum::<u32>().to_string()
    };
    let list = |Params(p): Params<Limit>| async move { p.limit.unwrap_or(7).to_string() };
    Router::new().route("/v1/weights", put(put_weights).get(list))
}

fn server(token: Option<&str>, readiness: &Readiness) -> (Router, Counters) {
    let mut registry = metrics::registry("a");
    let counters = Counters::register(&mut registry);
    let token = token.map(config::Secret::new);
    (router(api(), token, registry, readiness.clone(), counters.clone()), counters)
}

async fn answer(router: &Router, request: Request) -> (StatusCode, String) {
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn request(method: Method, path: &str, authorization: Option<&[u8]>, body: &str) -> Request {
    let mut request = Request::new(Body::from(body.to_owned()));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap();
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(value) = authorization {
        request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
    }
    request
}

const TOKEN: &str = "0123456789abcdef";

#[tokio::test]
async fn who_may_ask_what() {
    let (with, _) = server(Some(TOKEN), &Readiness::default());
    let (without, _) = server(None, &Readiness::default());
    let cases: [(&str, Option<&[u8]>, u16, u16); 12] = [
        ("/metrics", None, 200, 200),
        ("/healthz", None, 200, 200),
        ("/readyz", None, 200, 200),
        ("/v1/weights", None, 401, 200),
        ("/v1/weights", Some(b"Bearer 0123456789abcdef"), 200, 200),
        ("/v1/weights", Some(b"bearer  0123456789abcdef "), 200, 200),
        ("/v1/weights", Some(b"Bearer 0123456789abcdeX"), 401, 200),
        ("/v1/weights", Some(b"Bearer 0123456789abcdef0"), 401, 200),
        ("/v1/weights", Some(b"Bearer "), 401, 200),
        ("/v1/weights", Some(b"Basic 0123456789abcdef"), 401, 200),
        ("/v1/weights", Some(b"\xff\xfe"), 401, 200),
        ("/v1/absent", None, 401, 404),
    ];
    for (path, authorization, expected_with, expected_without) in cases {
        for (router, expected) in [(&with, expected_with), (&without, expected_without)] {
            let (status, body) = answer(router, request(Method::GET, path, authorization, "")).await;
            assert_eq!(status.as_u16(), expected, "{path} {authorization:?}: {body}");
            assert!(!body.contains(TOKEN));
        }
    }
}

#[tokio::test]
async fn two_tokens_are_none() {
    let (router, _) = server(Some(TOKEN), &Readiness::default());
    let mut twice = request(Method::GET, "/v1/weights", Some(b"Bearer 0123456789abcdef"), "");
    twice.headers_mut().append(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
    assert_eq!(answer(&router, twice).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn refusals_are_typed_and_counted() {
    let (router, counters) = server(None, &Readiness::default());
    let long = " ".repeat(limits::MAX_BODY + 1);
    let cases = [
        (Method::PUT, "/v1/weights", r#"{"locators":[{"weight":1},{"weight":2}]}"#, 200, ""),
        (
            Method::PUT,
            "/v1/weights",
            r#"{"locators":[{"weight":1},{"weight":256}]}"#,
            400,
            "locators[1].weight",
        ),
        (Method::PUT, "/v1/weights", r#"{"locators":[{"weight":-1}]}"#, 400, "locators[0].weight"),
        (Method::PUT, "/v1/weights", r#"{"locators":[],"x":1}"#, 400, "\"field\":\"x\""),
        (Method::PUT, "/v1/weights", r#"{"locators":[]"#, 400, "invalid_body"),
        (Method::PUT, "/v1/weights", r#"{"locators":[]} 1"#, 400, "invalid_body"),
        (Method::PUT, "/v1/weights", "", 400, "invalid_body"),
        (Method::PUT, "/v1/weights", &long, 413, "65536"),
        (Method::POST, "/v1/weights", "{}", 405, "method_not_allowed"),
        (Method::GET, "/v1/weights?limit=256", "", 400, "limit"),
        (Method::GET, "/v2", "", 404, "not_found"),
    ];
    for (method, path, body, expected, words) in cases {
        let (status, text) = answer(&router, request(method.clone(), path, None, body)).await;
        assert_eq!(status.as_u16(), expected, "{method} {path}: {text}");
        assert!(text.contains(words), "{method} {path}: {text}");
        if expected != 200 {
            serde_json::from_str::<ErrorBody>(&text).unwrap();
        }
    }
    let mut plain = request(Method::PUT, "/v1/weights", None, "{}");
    plain.headers_mut().remove(header::CONTENT_TYPE);
    assert_eq!(answer(&router, plain).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let refused = |reason| counters.refusals.get_or_create(&RefusalLabels { reason }).get();
    assert_eq!(refused("invalid_field"), 4);
    assert_eq!(refused("invalid_body"), 3);
    assert_eq!(refused("body_too_large"), 1);
    assert_eq!(refused("unsupported_media_type"), 1);
    let (_, text) = answer(&router, request(Method::GET, "/metrics", None, "")).await;
    assert!(text.contains("weir_http_refusals_total{reason=\"invalid_field\"} 4"), "{text}");
}

#[tokio::test]
async fn readiness_gives_reasons() {
    let readiness = Readiness::default();
    let (router, _) = server(None, &readiness);
    let condition = readiness.condition("mapserver", "not bound yet");
    let (status, body) = answer(&router, request(Method::GET, "/readyz", None, "")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let body: ReadinessBody = serde_json::from_str(&body).unwrap();
    assert_eq!(body.conditions[0].reason.as_deref(), Some("not bound yet"));
    condition.ready();
    assert_eq!(answer(&router, request(Method::GET, "/readyz", None, "")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_stopping_server_finishes_what_it_began() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let http = config::Http { listen: "127.0.0.1:0".parse().unwrap(), token: None };
    let mut registry = metrics::registry("a");
    let server = Server::bind(http, &mut registry).await.unwrap();
    let address = server.local_addr().unwrap();
    let (trigger, shutdown) = crate::signal::shutdown();
    let (started, mut began) = tokio::sync::mpsc::channel::<()>(1);
    let (release, go) = tokio::sync::watch::channel(false);
    let slow = move || {
        let (started, mut go) = (started.clone(), go.clone());
        async move {
            started.send(()).await.unwrap();
            go.wait_for(|go| *go).await.unwrap();
            "done"
        }
    };
    let api = Router::new().route("/v1/slow", get(slow));
    let serving = tokio::spawn(server.serve(api, registry, Readiness::default(), shutdown));
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /v1/slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    began.recv().await.unwrap();
    trigger.request();
    release.send_replace(true);
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    assert!(text.ends_with("done"), "{text}");
    serving.await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
