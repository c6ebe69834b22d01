//! Links: who may be one, what ends one, and that a bad one costs nobody else anything.

use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use testkit::redis::RedisServer;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;

use super::Site;
use super::common::{TestNode, eventually, eventually_within};
use super::worker::{self, ACCEPT, CLOSED, CREDIT, DENY, DRAIN, END, Link, Manner, OPEN, PING, SECRET, TEXT, Worker};

async fn errors(site: &Site, reason: &str) -> f64 {
    site.metric(&format!("gateway_bridge_link_errors_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn node_and_worker_prove_the_secret_to_each_other() {
    let site = Site::start(&[]).await;
    let other = Manner { secret: "another secret of sixteen".to_owned(), ..Manner::default() };
    let stranger = Worker::at(&site.socket(1)).with(other);
    assert!(stranger.try_link().await.is_err(), "the node has hung up");
    eventually("it is counted", || async { errors(&site, "secret").await >= 1.0 }).await;
    drop(stranger);
    std::fs::remove_file(site.socket(1)).unwrap();
    // Who gives back the node's nonce could give back its proof.
    let mirror = Worker::at(&site.socket(2)).with(Manner { mirrors: true, ..Manner::default() });
    assert!(mirror.try_link().await.is_err());
    assert_eq!(site.refused("/ws/orders/", &[]).await, 503, "neither of them is a worker");
    drop(mirror);
    std::fs::remove_file(site.socket(2)).unwrap();
    let good = Worker::at(&site.socket(3));
    let mut link = good.link().await;
    let (sid, mut guest) = site.open(&mut link).await;
    // Another secret is for the links to come.
    let new = "another secret of sixteen";
    let given = [("bridge.path", "/ws/orders/"), ("bridge.workers", "unix:/elsewhere"), ("bridge.secret", new)];
    let given = given.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let collected = gateway::config::collect(&given, &|_| None, None).unwrap();
    site.node.running.reload(&gateway::Config::from_collected(&collected).unwrap()).unwrap();
    link.send(TEXT, sid, b"as before").await;
    assert_eq!(guest.text().await, "as before");
    let newer = Worker::at(&site.socket(4)).with(Manner { secret: new.to_owned(), ..Manner::default() });
    newer.link().await;
}

#[tokio::test]
async fn what_cannot_be_read_ends_the_link_and_nothing_else() {
    let (site, worker, mut link) = Site::linked(&[]).await;
    let mut wanted = std::collections::BTreeMap::<&str, f64>::new();
    let frame = |kind: u8, sid: u64, body: &[u8]| {
        [&((9 + body.len()) as u32).to_le_bytes()[..], &[kind], &sid.to_le_bytes(), body].concat()
    };
    let (sid, _guest) = site.open(&mut link).await;
    for (bytes, reason) in [
        (u32::MAX.to_le_bytes().to_vec(), "too_large"),
        (((16 << 20) + (64 << 10) + 1_u32).to_le_bytes().to_vec(), "too_large"),
        (4_u32.to_le_bytes().to_vec(), "too_large"),
        (frame(99, sid, b""), "unknown_kind"),
        (frame(OPEN, sid, b""), "unknown_kind"),
        (frame(TEXT, 0, b"to whom?"), "malformed"),
        (frame(PING, 0, b"short"), "malformed"),
        (frame(DRAIN, 0, b"\xc0"), "malformed"),
        (frame(ACCEPT, sid, b"\xc1"), "malformed"),
        (frame(DENY, sid, b"\x80"), "malformed"),
        (frame(CREDIT, sid, b"\x01"), "malformed"),
        (frame(END, sid, b""), "malformed"),
        (frame(TEXT, sid, b"\xff"), "malformed"),
    ] {
        link.bytes(&bytes).await;
        link.closed().await;
        *wanted.entry(reason).or_default() += 1.0;
        link = worker.link().await;
        let (again, mut guest) = site.open(&mut link).await;
        assert_eq!(again, 1, "numbers begin anew");
        // The next case hurts this one.
        guest.send(Message::text("x")).await;
        link.expect(TEXT).await;
        link.credit(again, 1).await;
        std::mem::forget(guest);
    }
    for (reason, count) in wanted {
        assert_eq!(errors(&site, reason).await, count, "{reason}");
    }
    // Kinds of later versions are ignored, and so is what nobody is there for.
    link.send(200, 77, b"later").await;
    link.send(worker::COUNTS, 0, &worker::counts("after_end", 3)).await;
    link.send(worker::COUNTS, 0, &worker::counts("after_end", 5)).await;
    link.send(worker::COUNTS, 0, &worker::counts("something else", 9)).await;
    link.credit(77, 1).await;
    site.open(&mut link).await;
    assert_eq!(site.metric("gateway_bridge_dropped_total{reason=\"after_end\"}").await, 5.0);
    assert_eq!(site.metric("gateway_bridge_dropped_total{reason=\"unknown_sid\"}").await, 1.0);
    // Before the proofs a frame is small.
    drop((link, worker));
    let worker = tokio::net::UnixListener::bind(site.socket(2)).unwrap();
    let (mut stream, _) = worker.accept().await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &5000_u32.to_le_bytes()).await.unwrap();
    eventually("that is too large there", || async { errors(&site, "too_large").await == 4.0 }).await;
}

#[tokio::test]
async fn a_silent_worker_gets_no_new_sockets_until_it_is_heard_again() {
    let (site, _worker, mut link) = Site::linked(&[]).await;
    let (sid, mut guest) = site.open(&mut link).await;
    link.lives = false;
    eventually_within(Duration::from_secs(40), "it is missed", || async {
        site.door().get("/readyz").await.1.contains("\"bridge_workers\":\"unavailable\"")
    })
    .await;
    assert_eq!(site.refused("/ws/orders/", &[]).await, 503);
    // Its sockets stay.
    link.send(TEXT, sid, b"I am back").await;
    assert_eq!(guest.text().await, "I am back");
    eventually("it is heard again", || async {
        site.door().get("/readyz").await.1.contains("\"bridge_workers\":\"ok\"")
    })
    .await;
    link.lives = true;
    site.open(&mut link).await;
}

#[tokio::test]
async fn workers_come_and_go_as_their_files_do() {
    let site = Site::start(&[]).await;
    let links = || async { site.metric("gateway_bridge_links{path=\"/ws/orders/\"}").await };
    for number in 1..=3 {
        let worker = Worker::at(&site.socket(number)).echo("one");
        eventually("it is found", || async { links().await == 1.0 }).await;
        drop(worker);
        std::fs::remove_file(site.socket(number)).unwrap();
        eventually("it is gone", || async { links().await == 0.0 }).await;
    }
}

#[tokio::test]
async fn a_successor_at_the_same_address_is_dialled_while_its_predecessor_leaves() {
    let (site, worker, mut link) = Site::linked(&[]).await;
    let (sid, mut guest) = site.open(&mut link).await;
    let (other, mut second) = site.open(&mut link).await;
    link.send(DRAIN, 0, &worker::drain(60.0)).await;
    drop(worker);
    let successor = Worker::at(&site.socket(1));
    let mut next = successor.link().await;
    let (new, mut third) = site.open(&mut next).await;
    next.send(TEXT, new, b"from the successor").await;
    assert_eq!(third.text().await, "from the successor");
    // One of the two was told at once, the other one has time.
    let told = link.expect(CLOSED).await.sid;
    let (stays, guest) = if told == sid { (other, &mut second) } else { (sid, &mut guest) };
    link.send(TEXT, stays, b"from the predecessor").await;
    assert_eq!(guest.text().await, "from the predecessor");
    // Whoever leaves as soon as it is there is not dialled again and again.
    next.send(DRAIN, 0, &worker::drain(60.0)).await;
    assert!(tokio::time::timeout(Duration::from_secs(3), successor.try_link()).await.is_err());
    drop(link);
    drop(next);
    successor.link().await;
}

#[tokio::test]
async fn workers_are_reached_over_tcp_and_tls_with_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let own = testkit::tls::make(directory.path(), &testkit::tls::TlsOptions::default());
    let write = |name: &str, pem: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (certificate, key) = (write("node.pem", &own.client_certificate), write("node.key", &own.client_key));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let workers = format!("tcp://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let base = [("bridge.path", "/ws/"), ("bridge.workers", workers.as_str()), ("bridge.secret", SECRET)];
    {
        let _node = TestNode::start(&base).await;
        let (stream, _) = listener.accept().await.unwrap();
        Link::greet(Box::new(stream), &Manner::default()).await.unwrap();
    }
    let ca = write("trusted.pem", &own.ca);
    let tls = [("bridge.ca", ca.as_str()), ("bridge.certificate", certificate.as_str()), ("bridge.key", key.as_str())];
    let all: Vec<_> = base.iter().chain(&tls).copied().collect();
    let node = TestNode::start(&all).await;
    let mut link = link_over_tls(&listener, &own).await;
    // Another authority's are for the links to come.
    let renewed = tempfile::tempdir().unwrap();
    let new = testkit::tls::make(renewed.path(), &testkit::tls::TlsOptions::default());
    write("trusted.pem", &new.ca);
    write("node.pem", &new.client_certificate);
    write("node.key", &new.client_key);
    node.reload(&all);
    let site = Site { node, directory };
    let guest = site.knock("/ws/x", &[]);
    let (sid, _) = link.open().await;
    link.accept(sid).await;
    let _guest = guest.await.unwrap().unwrap();
    drop(link);
    let mut link = link_over_tls(&listener, &new).await;
    let guest = site.knock("/ws/x", &[]);
    let (sid, _) = link.open().await;
    link.accept(sid).await;
    guest.await.unwrap().unwrap();
}

/// The next link from a node that shows a certificate of this authority, and trusts it.
async fn link_over_tls(listener: &TcpListener, own: &testkit::tls::Certificates) -> Link {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(own.ca.as_bytes()).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&own.certificate).unwrap()],
            PrivateKeyDer::from_pem_file(&own.key).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    // Others may still be in the queue, without TLS.
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        if let Ok(stream) = acceptor.accept(stream).await {
            return Link::greet(Box::new(stream), &Manner::default()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn sockets_open_and_talk_while_redis_is_away() {
    let mut redis = RedisServer::start();
    let (url, layer) = (redis.url(), ("layer", "pubsub"));
    let (site, _worker, mut link) = Site::linked(&[("redis-url", &url), layer]).await;
    let (sid, mut guest) = site.open(&mut link).await;
    redis.pause();
    let (other, mut second) = site.open(&mut link).await;
    for (sid, guest) in [(sid, &mut guest), (other, &mut second)] {
        guest.send(Message::text("still there?")).await;
        assert_eq!(link.expect(TEXT).await.sid, sid);
        link.credit(sid, 1).await;
        link.send(TEXT, sid, b"yes").await;
        assert_eq!(guest.text().await, "yes");
    }
    redis.resume();
}
