//! Open sockets: order and back-pressure both ways, and how they end, once, whoever ends them.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::common::{NodeProcess, eventually};
use super::worker::{BINARY, CLOSE, CLOSED, DRAIN, PAUSE, RESUME, SECRET, TEXT, WAITING, Worker, drain};
use super::{Guest, PATIENCE, Site};

#[tokio::test]
async fn a_client_that_floods_is_not_read_beyond_what_the_application_takes() {
    let (site, _worker, mut link) = Site::linked(&[]).await;
    let (sid, mut guest) = site.open(&mut link).await;
    const MESSAGES: usize = 20_000;
    let text = |number: usize| format!("{number:06}{}", "x".repeat(1000));
    #[expect(clippy::disallowed_methods, reason = "joined below")]
    let flood = tokio::spawn(async move {
        for number in 0..MESSAGES {
            guest.send(Message::text(text(number))).await;
        }
        guest
    });
    // It sleeps: eight messages are all it gets.
    for number in 0..8 {
        assert_eq!(link.expect(TEXT).await.text(), text(number));
    }
    assert!(timeout(Duration::from_millis(500), link.next()).await.is_err(), "no ninth one");
    assert!(!flood.is_finished(), "the client is not read");
    // Then it takes them as they come, never more than eight ahead, in order.
    link.credit(sid, 8).await;
    let mut ahead = 0;
    for number in 8..MESSAGES {
        assert_eq!(&link.expect(TEXT).await.text()[..6], &text(number)[..6]);
        ahead += 1;
        if ahead == 4 {
            link.credit(sid, 4).await;
            ahead = 0;
        }
    }
    let mut guest = flood.await.unwrap();
    // By bytes, too: one large message alone, whatever its size.
    let (large, small) = ("L".repeat(60_000), "s".repeat(6_000));
    link.credit(sid, 4).await;
    for text in [&large, &small, &small] {
        guest.send(Message::text(text.as_str())).await;
    }
    assert_eq!(link.expect(TEXT).await.text(), large);
    assert!(timeout(Duration::from_millis(300), link.next()).await.is_err());
    link.credit(sid, 1).await;
    assert_eq!(link.expect(TEXT).await.text(), small);
    assert_eq!(link.expect(TEXT).await.text(), small);
    // Nobody takes the rest: its close is still told, behind them.
    guest.close(1000, "").await;
    assert_eq!(link.expect(CLOSED).await.code(), (1000, ""));
}

#[tokio::test]
async fn an_application_waits_for_a_client_and_goes_on_in_order() {
    let (site, _worker, mut link) =
        Site::linked(&[("bridge.outbox_bytes", "200000"), ("bridge.slow_seconds", "60")]).await;
    let (sid, mut guest) = site.open(&mut link).await;
    let (other, mut quick) = site.open(&mut link).await;
    // Until the kernel takes no more of what the client does not read.
    let mut sent = 0_u32;
    let paused = loop {
        let message = [&sent.to_le_bytes()[..], &[0; 50_000]].concat();
        link.send(BINARY, sid, &message).await;
        sent += 1;
        if let Ok(frame) = timeout(Duration::from_millis(2), link.next()).await {
            break frame;
        }
        assert!(sent < 10_000);
    };
    assert_eq!((paused.kind, paused.sid), (PAUSE, sid));
    link.send(WAITING, sid, &[]).await;
    // What was on its way is taken all the same, and the other socket does not notice.
    for _ in 0..40 {
        link.send(BINARY, sid, &[&sent.to_le_bytes()[..], &[0; 50_000]].concat()).await;
        sent += 1;
    }
    link.send(TEXT, other, b"quick").await;
    assert_eq!(quick.text().await, "quick");
    #[expect(clippy::disallowed_methods, reason = "joined below")]
    let reads = tokio::spawn(async move {
        for number in 0..sent {
            assert_eq!(guest.next().await.into_data()[..4], number.to_le_bytes());
        }
        guest
    });
    let resumed = link.expect(RESUME).await;
    assert_eq!(resumed.sid, sid);
    let mut guest = reads.await.unwrap();
    link.send(TEXT, sid, b"on").await;
    assert_eq!(guest.text().await, "on");
}

#[tokio::test]
async fn a_client_that_lets_the_application_wait_too_long_is_closed_with_4008() {
    let (site, _worker, mut link) =
        Site::linked(&[("bridge.outbox_bytes", "100000"), ("bridge.slow_seconds", "1")]).await;
    let (sid, mut guest) = site.open(&mut link).await;
    let (patient, mut kept) = site.open(&mut link).await;
    let mut paused = std::collections::BTreeSet::new();
    while paused.len() < 2 {
        for sid in [sid, patient] {
            if !paused.contains(&sid) {
                link.send(BINARY, sid, &[0; 50_000]).await;
            }
        }
        if let Ok(frame) = timeout(Duration::from_millis(2), link.next()).await {
            assert_eq!(frame.kind, PAUSE);
            paused.insert(frame.sid);
        }
    }
    // Only of one of them anybody wants something.
    link.send(WAITING, sid, &[]).await;
    let closed = link.expect(CLOSED).await;
    assert_eq!((closed.sid, closed.code().0), (sid, 4008));
    link.end(sid, 0, "").await;
    guest.hears_end().await;
    assert_eq!(site.metric("gateway_outbox_full_total").await, 1.0);
    assert_eq!(site.metric("gateway_bridge_closed_total{path=\"/ws/orders/\",code=\"4008\"}").await, 1.0);
    link.send(CLOSE, patient, &[&4002_u16.to_le_bytes()[..], b"done"].concat()).await;
    assert_eq!(kept.closed().await, (4002, "done".to_owned()));
}

#[tokio::test]
async fn a_socket_ends_once_whoever_ends_it() {
    let (site, _worker, mut link) = Site::linked(&[]).await;
    // The application: its code, or 1011 for one that may not be sent; a reason is cut.
    let long = "é".repeat(100);
    for (code, reason, wanted) in [
        (1000, "", "".to_owned()),
        (4001, "bye", "bye".to_owned()),
        (1006, "x", "x".to_owned()),
        (3000, &long, "é".repeat(61)),
    ] {
        let (sid, mut guest) = site.open(&mut link).await;
        link.send(TEXT, sid, b"last").await;
        link.send(CLOSE, sid, &[&u16::to_le_bytes(code)[..], reason.as_bytes()].concat()).await;
        assert_eq!(guest.text().await, "last");
        let sent = if code == 1006 { 1011 } else { code };
        assert_eq!(guest.closed().await, (sent, wanted));
        assert_eq!(link.expect(CLOSED).await.code().0, sent);
        // What it sends then is dropped.
        link.send(TEXT, sid, b"too late").await;
        link.end(sid, 0, "").await;
    }
    assert_eq!(site.metric("gateway_bridge_closed_total{path=\"/ws/orders/\",code=\"app\"}").await, 4.0);
    // It returns while it is open, or fails.
    for (outcome, code) in [(0, 1000), (1, 1011)] {
        let (sid, mut guest) = site.open(&mut link).await;
        link.end(sid, outcome, "Traceback\nValueError").await;
        assert_eq!(guest.closed().await.0, code);
        assert_eq!(link.expect(CLOSED).await.code().0, code);
    }
    // The client: without a code, without a word.
    let (_, mut guest) = site.open(&mut link).await;
    guest.tcp().write_all(&[0x88, 0x80, 1, 2, 3, 4]).await.unwrap();
    assert_eq!(link.expect(CLOSED).await.code(), (1005, ""));
    let (_, guest) = site.open(&mut link).await;
    drop(guest);
    assert_eq!(link.expect(CLOSED).await.code(), (1006, ""));
    // Both at once: one CLOSED, and nothing more.
    let (sid, mut guest) = site.open(&mut link).await;
    guest.close(1000, "").await;
    link.send(CLOSE, sid, &[&4001_u16.to_le_bytes()[..], b""].concat()).await;
    assert!([1000, 4001].contains(&link.expect(CLOSED).await.code().0));
    let (sid, mut guest) = site.open(&mut link).await;
    guest.send(Message::text("next")).await;
    let next = link.expect(TEXT).await;
    assert_eq!((next.sid, next.text()), (sid, "next"));
}

#[tokio::test]
async fn a_worker_that_leaves_or_dies_sends_its_sockets_elsewhere() {
    let (site, worker, mut link) = Site::linked(&[]).await;
    let (sid, mut guest) = site.open(&mut link).await;
    // One that is still opening is accepted, and told the same.
    let opening = site.knock("/ws/orders/", &[]);
    let (late, _) = link.open().await;
    link.send(DRAIN, 0, &drain(5.0)).await;
    link.send(DRAIN, 0, &drain(5.0)).await;
    let spread = |reason: &str| {
        let (min, max) = reason.strip_prefix("retry=").unwrap().split_once('-').unwrap();
        let (min, max): (u64, u64) = (min.parse().unwrap(), max.parse().unwrap());
        assert!(min < max && max <= 5000, "{reason}");
    };
    let (code, reason) = guest.closed().await;
    assert_eq!(code, 1012);
    spread(&reason);
    let closed = link.expect(CLOSED).await;
    assert_eq!((closed.sid, closed.code()), (sid, (1012, reason.as_str())));
    link.accept(late).await;
    assert_eq!(opening.await.unwrap().unwrap().closed().await.0, 1012);
    assert_eq!(link.expect(CLOSED).await.code().0, 1012);
    // Nobody new gets there, and its successor takes over.
    let next = site.knock("/ws/orders/", &[]);
    drop(link);
    let mut link = worker.link().await;
    let (sid, _) = link.open().await;
    link.accept(sid).await;
    let mut guest = next.await.unwrap().unwrap();
    drop((link, worker));
    let (code, reason) = guest.closed().await;
    assert_eq!(code, 1012);
    spread(&reason);
    assert_eq!(site.metric("gateway_bridge_closed_total{path=\"/ws/orders/\",code=\"1012\"}").await, 3.0);
    eventually("no link is left", || async { site.metric("gateway_bridge_links{path=\"/ws/orders/\"}").await == 0.0 })
        .await;
}

#[tokio::test]
async fn the_sockets_of_a_worker_that_leaves_go_one_after_the_other_however_few() {
    let (site, _worker, mut link) = Site::linked(&[]).await;
    let mut guests = Vec::new();
    for _ in 0..5 {
        guests.push(site.open(&mut link).await.1);
    }
    let begun = Instant::now();
    link.send(DRAIN, 0, &drain(5.0)).await;
    let mut told = Vec::new();
    for _ in &guests {
        let closed = link.expect(CLOSED).await;
        assert_eq!(closed.code().0, 1012);
        let (min, max) = closed.code().1.strip_prefix("retry=").unwrap().split_once('-').unwrap();
        let (min, max): (u64, u64) = (min.parse().unwrap(), max.parse().unwrap());
        assert!(min < max && max <= 2_500, "{min} to {max}");
        told.push(begun.elapsed());
        link.end(closed.sid, 0, "").await;
    }
    // Over half of the window: at 0, 0.5, 1, 1.5 and 2 s.
    let not_before = |number: u32| Duration::from_millis(500) * number;
    assert!((0..).zip(&told).all(|(number, told)| *told >= not_before(number)), "{told:?}");
    assert!(told[0] < Duration::from_secs(1) && told[4] < Duration::from_secs(5), "{told:?}");
}

#[tokio::test]
async fn a_client_that_is_gone_is_noticed_although_its_application_takes_nothing() {
    let (site, _worker, mut link) = Site::linked(&[("limits.ping_seconds", "0"), ("limits.pong_seconds", "1")]).await;
    let (sid, mut guest) = site.open(&mut link).await;
    let (slow, mut stays) = site.open(&mut link).await;
    for number in 0..20_u8 {
        guest.send(Message::binary(vec![number])).await;
        stays.send(Message::binary(vec![number])).await;
    }
    for _ in 0..16 {
        link.expect(BINARY).await;
    }
    drop(guest);
    let closed = link.expect(CLOSED).await;
    assert_eq!((closed.sid, closed.code().0), (sid, 1006));
    assert_eq!(site.metric("gateway_bridge_dropped_total{reason=\"client_left\"}").await, 1.0);
    // One that is still there waits as long as it takes; one whose application goes on loses nothing.
    link.credit(slow, 8).await;
    drop(stays);
    for number in 8..16 {
        assert_eq!(link.expect(BINARY).await.body, [number]);
    }
    link.credit(slow, 8).await;
    for number in 16..20 {
        assert_eq!(link.expect(BINARY).await.body, [number]);
    }
    assert_eq!(link.expect(CLOSED).await.code().0, 1006);
}

#[tokio::test]
async fn a_node_that_leaves_tells_applications_how_their_sockets_ended() {
    let (site, _worker, mut link) = Site::linked(&[]).await;
    let (_, mut guest) = site.open(&mut link).await;
    let (_, mut silent) = site.open(&mut link).await;
    let Site { node, directory } = site;
    let left = async {
        let drained = node.running.drain().await;
        drop(directory);
        drained
    };
    let codes = async {
        let codes = [link.expect(CLOSED).await.code().0, link.expect(CLOSED).await.code().0];
        link.closed().await;
        codes
    };
    let (left, codes, heard) = tokio::join!(left, codes, guest.closed());
    assert_eq!((left, codes, heard.0), (0, [1012, 1012], 1012));
    assert_eq!(silent.closed().await.0, 1012);
}

#[tokio::test]
async fn pings_and_dead_clients_are_the_nodes() {
    let own = [("limits.ping_seconds", "1"), ("limits.pong_seconds", "1")];
    let (site, _worker, mut link) = Site::linked(&own).await;
    let (sid, mut guest) = site.open(&mut link).await;
    // It answers no ping, but says something: to an application that takes nothing.
    let stream = guest.tcp();
    for number in 0..20_u8 {
        stream.write_all(&[0x82, 0x81, 0, 0, 0, 0, number]).await.unwrap();
    }
    for number in 0..8 {
        assert_eq!(link.expect(BINARY).await.body, [number]);
    }
    // That silence is not the client's, who is not read.
    assert!(timeout(Duration::from_secs(3), link.next()).await.is_err());
    link.credit(sid, 8).await;
    for number in 8..16 {
        assert_eq!(link.expect(BINARY).await.body, [number]);
    }
    link.credit(sid, 8).await;
    for number in 16..20 {
        assert_eq!(link.expect(BINARY).await.body, [number]);
    }
    // This one is.
    assert_eq!(link.expect(CLOSED).await.code().0, 4000);
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, guest.tcp().read_to_end(&mut rest)).await;
    assert!(rest.contains(&0x89), "it was asked by pings");
}

/// An operator finds the socket by its channel, and its worker.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_the_socket_whose_application_failed_or_did_not_return() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("worker-1.sock");
    let worker = Worker::at(&file);
    let workers = format!("unix:{}", file.display());
    let node =
        NodeProcess::start(&[("bridge.path", "/ws/orders/"), ("bridge.workers", &workers), ("bridge.secret", SECRET)]);
    let mut link = worker.link().await;
    for (outcome, what) in [(1, "the application failed"), (2, "was cancelled")] {
        let opens = async {
            let (sid, _) = link.open().await;
            link.accept(sid).await;
            sid
        };
        let (guest, sid) = tokio::join!(Guest::connect(node.door, "/ws/orders/", &[]), opens);
        link.end(sid, outcome, "ValueError").await;
        guest.unwrap().closed().await;
        link.expect(CLOSED).await;
        eventually(what, async || {
            node.log().lines().any(|line| ["WARN", what, "channel=specific."].iter().all(|part| line.contains(part)))
        })
        .await;
    }
}
