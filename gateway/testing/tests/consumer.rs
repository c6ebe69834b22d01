//! A consumer with state of its route and of its own, driven as a site's own tests would.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use gateway::{CloseReason, Consumer, Context, Event, Frame, GroupName, Handlers, Outcome, Refusal, Rendering, Router};
use gateway_testing::{TestError, TestNode};
use serde_json::json;

struct Orders {
    seen: u32,
}

impl Consumer for Orders {
    fn handlers(handlers: &mut Handlers<Self>) {
        handlers.own("order.count", |orders, ctx, _| {
            async move {
                orders.seen += 1;
                ctx.send_json(&json!({ "seen": orders.seen }))
            }
            .boxed()
        });
    }

    async fn connect(&mut self, ctx: &mut Context) -> Result<(), Refusal> {
        if &**ctx.username() == "mallory" {
            return Err(Refusal::Forbidden);
        }
        ctx.group_add(&GroupName::parse("orders").map_err(|_| Refusal::Failed)?).await
    }

    async fn receive(&mut self, ctx: &mut Context, frame: Frame) -> Outcome {
        match frame {
            Frame::Text(text) if text == "bye" => return Err(CloseReason::InternalError),
            Frame::Text(text) => ctx.send_text(&text.to_uppercase()),
            Frame::Binary(bytes) => ctx.send_bytes(&bytes.into()),
        }
        Ok(())
    }
}

/// Shared handlers hold what the route was made with.
fn routes(currency: &str) -> Router {
    let currency: Arc<str> = currency.into();
    Router::new().route_with(
        "/ws/orders/",
        || Orders { seen: 0 },
        move |handlers| {
            handlers.shared("order.paid", move |event| {
                Rendering::json("order", &json!({ "paid": event.text("amount")?, "currency": &*currency }))
            });
        },
    )
}

#[tokio::test]
async fn a_consumer_is_driven_by_a_communicator() {
    let node = TestNode::start(routes("EUR")).await.unwrap();
    let mut alice = node.communicator("/ws/orders/").user("alice").connect().await.unwrap();
    let mut bob = node.communicator("/ws/orders/?x=1").user("bob").connect().await.unwrap();
    alice.send_text("hello").await.unwrap();
    assert_eq!(alice.receive_text().await.unwrap(), "HELLO");
    alice.send_bytes(b"\x00\xff").await.unwrap();
    assert_eq!(alice.receive_bytes().await.unwrap(), b"\x00\xff");
    assert!(bob.receive_nothing(Duration::from_millis(20)).await.unwrap());
    node.group_send("orders", &Event::new("order.paid").with("amount", "7")).await.unwrap();
    for client in [&mut alice, &mut bob] {
        assert_eq!(client.receive_json().await.unwrap(), json!({ "paid": "7", "currency": "EUR" }));
    }
    node.group_send("orders", &Event::new("order.count")).await.unwrap();
    assert_eq!(alice.receive_json().await.unwrap(), json!({ "seen": 1 }));
    alice.send_text("bye").await.unwrap();
    assert_eq!(alice.receive_close().await.unwrap().0, 1011);
    bob.disconnect(1000).await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn refusals_have_their_status() {
    let node = TestNode::start_with(routes("EUR"), &[("limits.connections_per_user", "1")]).await.unwrap();
    let refused = async |user: &str, path: &str| match node.communicator(path).user(user).connect().await {
        Err(TestError::Refused(status)) => status,
        other => panic!("{:?}", other.err()),
    };
    assert_eq!(refused("mallory", "/ws/orders/").await, 403);
    assert_eq!(refused("alice", "/ws/nowhere/").await, 404);
    assert!(matches!(node.communicator("/ws/orders/").connect().await, Err(TestError::Refused(401))));
    let _one = node.communicator("/ws/orders/").user("alice").connect().await.unwrap();
    assert_eq!(refused("alice", "/ws/orders/").await, 429);
}

#[tokio::test]
async fn the_built_in_consumers_are_tested_in_the_same_way() {
    let node = TestNode::start(gateway::consumers::routes()).await.unwrap();
    let mut alice =
        node.communicator("/ws/chat/lobby/").user("alice").subprotocol("gateway.v1").connect().await.unwrap();
    assert_eq!(alice.subprotocol.as_deref(), Some("gateway.v1"));
    alice
        .send_json(&json!({ "cate": "chat", "group_name": "lobby", "message": "hi", "client_id": "1" }))
        .await
        .unwrap();
    let (first, second) = (alice.receive_json().await.unwrap(), alice.receive_json().await.unwrap());
    let types = [first["type"].as_str().unwrap(), second["type"].as_str().unwrap()];
    assert!(types.contains(&"ack") && types.contains(&"chat"), "{first} {second}");
}
