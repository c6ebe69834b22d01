//! Sockets that stay when their worker leaves: another one goes on with them.

use tokio_tungstenite::tungstenite::Message;

use super::common::eventually;
use super::worker::{
    ACCEPT, CLASS, CLOSED, DETACH, DRAIN, Frame, JOIN, JOINED, LAYER, LEAVE, Link, Manner, OPEN, PUBLISHED, READY,
    STATE, TEXT, Value, Worker, accept, drain, event, reattaches,
};
use super::{Guest, Site};

/// A socket in the group `room` whose class goes on elsewhere.
async fn stays(site: &Site, link: &mut Link) -> (u64, Guest) {
    let guest = site.knock("/ws/orders/", &[]);
    let (sid, open) = link.open().await;
    assert_eq!(open.get("reattach"), &Value::Nil);
    link.send(CLASS, sid, &reattaches("app.Chat")).await;
    link.join(sid, "room").await;
    link.accept(sid).await;
    (sid, guest.await.unwrap().unwrap())
}

async fn second(site: &Site) -> (Worker, Link) {
    let worker = Worker::at(&site.socket(2)).with(Manner { groups: true, ..Manner::default() });
    let mut link = worker.link().await;
    link.expect(LAYER).await;
    (worker, link)
}

/// The next frame that is no PUBLISHED.
async fn next(link: &mut Link) -> Frame {
    loop {
        let frame = link.next().await;
        if frame.kind != PUBLISHED {
            return frame;
        }
    }
}

#[tokio::test]
async fn a_worker_that_leaves_hands_its_sockets_on_with_all_that_came_meanwhile() {
    let (site, _worker, mut old) = Site::with_groups(&[]).await;
    let (sid, mut guest) = stays(&site, &mut old).await;
    old.join(sid, "left-later").await;
    old.send(STATE, sid, b"early").await;
    old.send(DRAIN, 0, &drain(20.0)).await;
    // The old one serves it until there is another.
    guest.send(Message::text("before")).await;
    assert_eq!(old.expect(TEXT).await.text(), "before");
    let (_other, mut new) = second(&site).await;
    let detached = old.expect(DETACH).await;
    assert_eq!(detached.sid, sid);
    // What is said and sent now is for the new one, whatever the old one does with its groups.
    guest.send(Message::text("meanwhile")).await;
    new.publish(0, "room", &event("said", "held")).await;
    new.expect(PUBLISHED).await;
    old.send(LEAVE, sid, b"room").await;
    old.credit(sid, 1).await;
    old.send(TEXT, sid, b"last words").await;
    old.send(STATE, sid, b"left").await;
    old.end(sid, 0, "").await;
    assert_eq!(guest.text().await, "last words");
    let open = next(&mut new).await;
    assert_eq!(open.kind, OPEN);
    let (again, open) = (open.sid, Value::read(&open.body));
    let reattach = open.get("reattach");
    assert_eq!((reattach.get("attempt"), reattach.get("state")), (&Value::Int(1), &Value::Bin(b"left".to_vec())));
    assert!(!open.get("scope").get("channel_name").str().is_empty());
    new.send(CLASS, again, &reattaches("app.Chat")).await;
    new.send(JOIN, again, b"room").await;
    assert_eq!(next(&mut new).await.kind, JOINED);
    new.publish(0, "room", &event("said", "live")).await;
    new.send(ACCEPT, again, &accept(None, &[])).await;
    // In the order in which they came.
    let (mut events, mut texts) = (Vec::new(), Vec::new());
    while events.len() + texts.len() < 3 {
        let frame = next(&mut new).await;
        match frame.kind {
            TEXT => texts.push(frame.text().to_owned()),
            _ => {
                let length = u32::from_le_bytes(frame.body[..4].try_into().unwrap()) as usize;
                assert_eq!(frame.body[4 + length..], again.to_le_bytes());
                events.push(Value::read(&frame.body[4..4 + length]).get("text").str().to_owned());
            }
        }
    }
    assert_eq!((events, texts), (vec!["held".to_owned(), "live".to_owned()], vec!["meanwhile".to_owned()]));
    new.send(TEXT, again, b"on").await;
    assert_eq!(guest.text().await, "on");
    // What it has not joined again it is in no longer, once its connect() has returned.
    new.send(READY, again, &[]).await;
    new.publish(0, "left-later", &event("said", "to nobody")).await;
    new.publish(0, "room", &event("said", "last")).await;
    let (said, sids) = new.event().await;
    assert_eq!((said.get("text").str(), sids), ("last", vec![again]));
    assert_eq!(site.metric("gateway_bridge_reattached_total{path=\"/ws/orders/\",outcome=\"kept\"}").await, 1.0);
    guest.close(1000, "").await;
    let closed = new.expect(CLOSED).await;
    assert_eq!((closed.sid, closed.code().0), (again, 1000));
    new.end(again, 0, "").await;
}

#[tokio::test]
async fn sockets_of_a_worker_that_is_killed_go_on_too() {
    let (site, worker, mut old) = Site::with_groups(&[]).await;
    let (sid, mut guest) = stays(&site, &mut old).await;
    old.send(STATE, sid, b"kept").await;
    // Until the node has it.
    old.join(sid, "other").await;
    drop((worker, old));
    let (_other, mut new) = second(&site).await;
    let (again, open) = new.open().await;
    assert_eq!(open.get("reattach").get("state"), &Value::Bin(b"kept".to_vec()));
    guest.send(Message::text("still there?")).await;
    new.accept(again).await;
    assert_eq!(new.expect(TEXT).await.text(), "still there?");
    new.send(TEXT, again, b"yes").await;
    assert_eq!(guest.text().await, "yes");
}

#[tokio::test]
async fn what_is_held_is_bounded_and_who_finds_no_successor_comes_back_by_itself() {
    let (site, _worker, mut old) = Site::with_groups(&[("bridge.slow_seconds", "60")]).await;
    let (sid, mut guest) = stays(&site, &mut old).await;
    old.send(DRAIN, 0, &drain(20.0)).await;
    let (_other, mut new) = second(&site).await;
    assert_eq!(old.expect(DETACH).await.sid, sid);
    for number in 0..257 {
        new.publish(0, "room", &event("said", &number.to_string())).await;
    }
    let (code, reason) = guest.closed().await;
    assert!(code == 1012 && reason.starts_with("retry=0-"), "{code} {reason}");
    assert_eq!(old.expect(CLOSED).await.code().0, 1012);
    old.end(sid, 0, "").await;
    // One whose successor refuses it.
    let guest = site.knock("/ws/orders/", &[]);
    let open = next(&mut new).await;
    new.send(CLASS, open.sid, &reattaches("app.Chat")).await;
    new.accept(open.sid).await;
    let mut guest = guest.await.unwrap().unwrap();
    let (again, mut third) = {
        let worker = Worker::at(&site.socket(3)).with(Manner { groups: true, ..Manner::default() });
        let mut third = worker.link().await;
        third.expect(LAYER).await;
        new.send(DRAIN, 0, &drain(20.0)).await;
        assert_eq!(next(&mut new).await.kind, DETACH);
        new.end(open.sid, 0, "").await;
        (third.open().await.0, third)
    };
    third.send(super::worker::DENY, again, &super::worker::deny(403, &[], b"")).await;
    assert_eq!(guest.closed().await.0, 1012);
    eventually("both are counted", || async {
        site.metric("gateway_bridge_reattached_total{path=\"/ws/orders/\",outcome=\"closed\"}").await == 2.0
    })
    .await;
}
